"""Pushing again: what a person changed stays, what is ours is renewed."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

from hf_vitcompress import CompressionReport
from hf_vitcompress.errors import PublishError
from hf_vitcompress.publish.push import push_folder
from support.fake_hub import FakeHub, reading, running_hub  # noqa: F401  (the fixture "hub")
from support.published import Made, block_count, card_of, contents
from support.pushing import edit_local, edit_remote, load, logits, pushes, with_words


@pytest.mark.parametrize("how", ["folder", "model"])
def test_pushing_again_without_changes_is_no_commit(hub: FakeHub, made: Made, folder: Path, how: str) -> None:
    def push() -> str:
        return (push_folder(folder, "me/x") if how == "folder" else made.model.push_to_hub("me/x")).oid

    first = push()
    hub.requests.clear()
    assert push() == push() == first
    assert len(pushes(hub)) == 1
    assert not hub.seen("POST", "/commit/")
    assert not hub.seen("PUT", "/stored/")


def test_pushing_again_after_an_edit_on_the_hub_is_no_commit(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/x")
    edit_remote(hub, *with_words("above", "below"), ("license: mit", "license: mit\nwidget: [{src: a.png}]"))
    push_folder(folder, "me/x")
    formatted = len(pushes(hub))
    push_folder(folder, "me/x")
    assert len(pushes(hub)) == formatted
    assert block_count(card_of(hub.files("me/x")).text) == 1


def test_trained_weights_renew_weights_and_figures(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    edit_remote(hub, *with_words("above", "below"))
    trained = copy.deepcopy(made.model)
    with torch.no_grad():
        trained.classifier.bias += 1
    trained.push_to_hub("me/x")
    card = card_of(hub.files("me/x"))
    changed = ["README.md", "compression_report.json", "compression_report.md", "model.safetensors"]
    assert pushes(hub)[0].changed() == changed
    assert "Afterwards the weights were changed" in card.text
    assert "model-index" not in card.metadata
    assert card.text.startswith("above")
    assert card.text.endswith("below")
    assert torch.equal(logits(load("me/x")), logits(trained))


OTHER_RESULT = """model-index:
- name: x
  results:
  - task: {type: image-classification}
    dataset: {type: other, name: Other, split: test}
    metrics: [{type: f1, value: 0.5, name: theirs, verified: true, odd: 1}]
    source: {name: a, url: https://a}
"""


def test_what_a_person_changed_on_the_hub_stays(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/x")
    edit_remote(
        hub,
        *with_words("# Words above", "Words below. 日本語 🚀"),
        ("license: mit", "license: apache-2.0"),
        ("- vision\n", "- vision\n- theirs\n"),
        ("language:\n- en", "language:\n- en\n- no"),
        ("- someone/shapes", "- someone/shapes\n- me/data"),
        ("model-index:\n- name: x\n  results:\n", OTHER_RESULT),
        ("# ViTForImageClassification at", "# OVERWRITTEN at"),
    )
    for _ in range(2):
        push_folder(folder, "me/x")
        card = card_of(hub.files("me/x"))
        assert card.text.startswith("# Words above\n\n<!--")
        assert card.text.endswith("-->\n\nWords below. 日本語 🚀")
        assert "OVERWRITTEN" not in card.text
        assert block_count(card.text) == 1
        assert card.metadata["license"] == "apache-2.0"
        assert card.metadata["language"] == ["en", "no"]
        assert "theirs" in card.metadata["tags"]
        assert card.metadata["datasets"] == ["someone/shapes", "me/data"]
        theirs, ours = card.metadata["model-index"][0]["results"]
        assert theirs == yaml.safe_load(OTHER_RESULT)["model-index"][0]["results"][0]
        assert ours["metrics"][0]["value"] == CompressionReport.load(folder).evaluation.top1.value


def test_a_card_without_our_block_gets_it_appended(hub: FakeHub, folder: Path) -> None:
    hub.add_repo("me/x", {"README.md": b"---\nlicense: gpl-3.0\ninference: false\n---\n# Theirs\n\nand more\n"})
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert card.text.startswith("# Theirs\n\nand more\n\n<!-- hf_vitcompress: begin")
    assert (card.metadata["license"], card.metadata["inference"]) == ("gpl-3.0", False)
    assert len(pushes(hub)) == 2


@pytest.mark.parametrize(
    "damaged",
    [b"---\nlicense: [\n---\nmy words\n", b"\xff\xfemy words", b"", b"---\n- a\n---\nmy words", b"\r\nmy words\r\n"],
)
def test_a_damaged_card_on_the_hub_is_mended(
    hub: FakeHub, folder: Path, damaged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("me/x", {"notes.md": b""})
    repository = hub.repositories["me/x"]
    blob = repository.blob("main", "README.md", damaged)
    repository.commit("refs/heads/main", {"README.md": blob}, "Damage", "", "me")
    # The real Hub shows such a repository all the same.
    monkeypatch.setattr(reading, "card_facts", lambda commit: {"tags": []})
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert ("my words" in card.text) == bool(damaged)
    assert card.metadata["license"] == "mit"


def test_edits_before_the_first_push_travel(hub: FakeHub, folder: Path) -> None:
    edit_local(folder, *with_words("local above", "local below"), ("license: mit", "license: mit\ngated: true"))
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert card.text.startswith("local above")
    assert card.text.endswith("local below")
    assert card.metadata["gated"] is True


def test_edits_after_the_first_push_travel_while_nobody_wrote_on_the_hub(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/x")
    edit_local(folder, *with_words("local above", "local below"))
    push_folder(folder, "me/x")
    assert card_of(hub.files("me/x")).text.startswith("local above")


def test_where_both_were_edited_the_hub_wins_with_a_warning(
    hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_local(folder, *with_words("local above", "local below"))
    push_folder(folder, "me/x")
    assert not caplog.messages
    edit_remote(hub, ("local above", "remote above"))
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert card.text.startswith("remote above")
    assert "local above" not in card.text
    assert "were both edited" in caplog.text


def test_an_edited_block_that_lost_its_end_costs_no_words(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/x")
    edit_remote(hub, ("<!-- hf_vitcompress: end -->", "my words at the end"))
    for _ in range(3):
        push_folder(folder, "me/x")
        assert card_of(hub.files("me/x")).text.count("my words at the end") == 1


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_a_base_model_that_a_person_states_appears_in_our_block(hub: FakeHub, folder: Path, where: str) -> None:
    report = json.loads((folder / "compression_report.json").read_text())
    (folder / "compression_report.json").write_text(json.dumps({**report, "origin": {}}))
    stated = b"---\nbase_model: google/vit-tiny\nlicense: apache-2.0\n---\n"
    (folder / "README.md").unlink()
    if where == "hub":
        hub.add_repo("me/x", {"README.md": stated})
    else:
        (folder / "README.md").write_bytes(stated)
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert "[`google/vit-tiny`](https://huggingface.co/google/vit-tiny)" in card.text
    assert "licence of the dense model is not known" not in card.text
    assert (card.metadata["base_model"], card.metadata["base_model_relation"]) == ("google/vit-tiny", "finetune")


def test_the_hub_refuses_metadata_and_says_which(hub: FakeHub, folder: Path) -> None:
    edit_local(folder, ("license: mit", "license: my-own"))
    before = contents(folder)
    with pytest.raises(PublishError, match=r'refuses the card of .*"license" must be one of') as error:
        push_folder(folder, "me/x")
    assert len(str(error.value)) < 700
    assert contents(folder) == before
    assert pushes(hub) == []
    edit_local(folder, ("license: my-own", "license: mit"))
    push_folder(folder, "me/x")
