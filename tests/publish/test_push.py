"""Pushing to the Hub: what arrives, in how many commits, and what of a person's work is kept."""

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedModel,
    ViTModel,
)
from transformers.utils import logging

from hf_vitcompress import CompressionConfig, CompressionReport, ViTCompressor, modeling_factored
from hf_vitcompress.errors import PublishError
from hf_vitcompress.publish.push import push_folder
from support.clean_interpreter import run_script
from support.fake_hub import FakeHub, reading, running_hub  # noqa: F401  (the fixture "hub")
from support.models import TINY, seeded, tiny_config
from support.published import PUBLISHED, TELL_TALE, TOKEN, Made, block_count, card_of, contents
from support.pushing import edit_remote, load, pushes, with_words
from support.students import random_images

logging.disable_progress_bar()

PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PIXELS).logits


def edit_local(folder: Path, *changes: tuple[str, str]) -> None:
    card = (folder / "README.md").read_text()
    for old, new in changes:
        assert card.count(old) == 1, old
        card = card.replace(old, new)
    (folder / "README.md").write_text(card)


# ---- what arrives


def test_a_model_is_published_in_one_commit(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    assert hub.files("me/x").keys() == PUBLISHED
    (commit,) = pushes(hub)
    assert (commit.title, commit.description, commit.author) == ("Upload compressed model", "", "me")
    assert len(hub.seen("POST", "/commit/")) == 1
    for name in PUBLISHED - {"README.md"}:
        assert hub.files("me/x")[name] == (made.folder / name).read_bytes(), name
    assert 'from_pretrained("me/x")' in card_of(hub.files("me/x")).text


def test_a_folder_is_published_as_the_model_it_holds(hub: FakeHub, made: Made, folder: Path) -> None:
    before = contents(folder)
    push_folder(folder, "me/x")
    made.model.push_to_hub("me/y")
    files = hub.files("me/x")
    assert {**files, "README.md": b""} == {**hub.files("me/y"), "README.md": b""}
    assert str(card_of(files)).replace("me/x", "me/y").replace("name: x", "name: y") == str(card_of(hub.files("me/y")))
    assert len(pushes(hub)) == 1
    assert contents(folder) == before


def test_nothing_else_in_the_folder_is_published(hub: FakeHub, folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "secrets.txt", ".env", "pytorch_model.bin", "model.onnx"):
        (folder / name).write_bytes(b"private")
    for name in (".git/config", "checkpoint-5/model.safetensors", "checkpoint-5/config.json", "runs/log", "onnx/a/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    save_file({"weight": torch.zeros(2)}, folder / "model_ema.safetensors")
    save_file({"weight": torch.zeros(2)}, folder / "adapter_model.safetensors")
    for name in ("LICENSE", "NOTICE.txt", "onnx/model.onnx", "compression_notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"public")
    push_folder(folder, "me/x")
    public = {"LICENSE", "NOTICE.txt", "onnx/model.onnx", "compression_notes.md"}
    assert hub.files("me/x").keys() == PUBLISHED | public
    assert len(pushes(hub)) == 1


def test_a_folder_of_links_is_published_with_what_they_lead_to(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    """As the cache of the Hub's client is."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    push_folder(linked, "me/x")
    assert hub.files("me/x")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert all(path.is_symlink() for path in linked.iterdir())


def test_a_name_without_an_organization_is_the_users_own(hub: FakeHub, folder: Path) -> None:
    done = push_folder(folder, "x")
    assert done.commit_url.startswith(f"{hub.endpoint}/me/x/commit/")
    assert 'from_pretrained("me/x")' in card_of(hub.files("me/x")).text


def test_settings_reach_the_hub(hub: FakeHub, made: Made) -> None:
    hub.organizations["team"] = {"you"}
    token = hub.token(user="you")
    made.model.push_to_hub(
        "team/x",
        private=True,
        token=token,
        commit_message="Smaller",
        commit_description="by half",
        tags=["digits", "vision"],
    )
    (commit,) = pushes(hub, "team/x")
    assert (commit.title, commit.description, commit.author) == ("Smaller", "by half", "you")
    assert hub.repositories["team/x"].private
    assert card_of(hub.files("team/x")).metadata["tags"].count("vision") == 1
    assert card_of(hub.files("team/x")).metadata["tags"][-1] == "digits"


def test_a_repository_that_exists_stays_as_visible_as_it_is(hub: FakeHub, folder: Path) -> None:
    hub.add_repo("me/x", private=True)
    push_folder(folder, "me/x", private=False)
    assert hub.repositories["me/x"].private


@pytest.mark.parametrize("revision", ["small", "v1/half"])
def test_a_branch_is_made(hub: FakeHub, folder: Path, revision: str) -> None:
    hub.add_repo("me/x", {"notes.md": b"on main"})
    push_folder(folder, "me/x", revision=revision)
    assert hub.files("me/x") == {"notes.md": b"on main"}
    assert hub.files("me/x", revision).keys() == {*PUBLISHED, "notes.md"}
    push_folder(folder, "me/x", revision=revision, commit_message="Again", tags=["more"])
    assert [commit.title for commit in pushes(hub, revision=revision)][:2] == ["Again", "Upload compressed model"]
    assert torch.equal(logits(load("me/x", revision=revision)), logits(load(folder)))


def test_a_pull_request_is_opened_with_everything_in_it(hub: FakeHub, made: Made) -> None:
    hub.add_repo("you/x", {"README.md": b"---\nlicense: gpl-3.0\n---\n# Theirs\n"})
    done = made.model.push_to_hub("you/x", create_pr=True, commit_message="Smaller")
    assert done.pr_url == f"{hub.endpoint}/you/x/discussions/1"
    assert hub.files("you/x").keys() == {"README.md"}
    files = hub.files("you/x", "refs/pr/1")
    assert files.keys() == PUBLISHED
    assert pushes(hub, "you/x", "refs/pr/1")[0].title == "Smaller"
    card = card_of(files)
    assert (card.metadata["license"], card.text.splitlines()[0]) == ("gpl-3.0", "# Theirs")
    assert len(hub.seen("PUT", "/stored/")) == len({*PUBLISHED} & {"model.safetensors", "compression_report.png"})


def test_a_pull_request_can_be_pushed_to(hub: FakeHub, folder: Path) -> None:
    hub.add_repo("me/x", {"notes.md": b"mine"})
    push_folder(folder, "me/x", create_pr=True)
    push_folder(folder, "me/x", revision="refs/pr/1", tags=["more"])
    assert hub.files("me/x").keys() == {"notes.md"}
    assert card_of(hub.files("me/x", "refs/pr/1")).metadata["tags"][-1] == "more"
    assert hub.repositories["me/x"].refs.keys() == {"refs/heads/main", "refs/pr/1"}


def test_saving_pushes_where_it_is_asked_to(hub: FakeHub, made: Made, tmp_path: Path) -> None:
    made.model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/x", commit_message="Saved", private=True)
    assert contents(tmp_path / "a").keys() == hub.files("me/x").keys() == PUBLISHED
    assert [commit.title for commit in pushes(hub)] == ["Saved"]
    assert hub.repositories["me/x"].private
    made.model.save_pretrained(tmp_path / "b", push_to_hub=True)
    assert hub.files("me/b").keys() == PUBLISHED


def test_what_somebody_wrote_into_the_folder_is_pushed_by_saving_there(
    hub: FakeHub, made: Made, tmp_path: Path
) -> None:
    made.model.save_pretrained(tmp_path / "a")
    card = tmp_path / "a" / "README.md"
    card.write_text(card.read_text().replace("<!-- hf_vitcompress: begin", "My words.\n\n<!-- hf_vitcompress: begin"))
    made.model.save_pretrained(tmp_path / "a", push_to_hub=True, max_shard_size="20KB")
    assert card_of(hub.files("me/a")).text.startswith("My words.")
    assert len([name for name in hub.files("me/a") if name.endswith(".safetensors")]) > 1


def test_training_can_end_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    from hf_vitcompress import CompressionCallback
    from support.training import CONFIG, new_trainer

    callback = CompressionCallback(CONFIG, at_step=4, push_to_hub="me/x", output_dir=tmp_path / "out")
    trainer = new_trainer(tmp_path, callback, without_evaluation=True)
    trainer.train()
    files = hub.files("me/x")
    assert files.keys() == PUBLISHED - {"preprocessor_config.json"}
    assert "Afterwards the weights were changed" in card_of(files).text
    assert torch.equal(logits(load("me/x")), logits(trainer.model))
    assert len(pushes(hub)) == 1


# ---- shards


def test_weights_are_split_and_joined_without_leaving_old_ones(hub: FakeHub, made: Made, folder: Path) -> None:
    before = contents(folder)
    push_folder(folder, "me/x", max_shard_size="20KB")
    shards = {name for name in hub.files("me/x") if name.startswith("model-0")}
    assert len(shards) == 3
    assert hub.files("me/x").keys() == {*PUBLISHED, *shards, "model.safetensors.index.json"} - {"model.safetensors"}
    assert torch.equal(logits(load("me/x")), logits(made.model))
    assert card_of(hub.files("me/x")).metadata["model-index"], "they are the same weights"
    assert contents(folder) == before

    made.model.push_to_hub("me/x", max_shard_size="40KB")
    assert len([name for name in hub.files("me/x") if name.startswith("model-0")]) == 2
    push_folder(folder, "me/x")
    assert hub.files("me/x").keys() == PUBLISHED
    assert len(pushes(hub)) == 3


def test_splitting_takes_everything_else_along(hub: FakeHub, folder: Path) -> None:
    edit_local(folder, *with_words("local words", "more"))
    (folder / "LICENSE").write_text("the terms")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"program")
    push_folder(folder, "me/x", max_shard_size="20KB")
    files = hub.files("me/x")
    assert files["LICENSE"] == b"the terms"
    assert files["onnx/model.onnx"] == b"program"
    assert "local words" in card_of(files).text


def test_an_impossible_size_is_told(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(PublishError, match="cannot be published"):
        push_folder(folder, "me/x", max_shard_size="five")
    assert "me/x" not in hub.repositories


# ---- once more


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
    assert pushes(hub)[0].changed() == ["README.md", "model.safetensors"]
    assert "Afterwards the weights were changed" in card.text
    assert "model-index" not in card.metadata
    assert card.text.startswith("above")
    assert card.text.endswith("below")
    assert torch.equal(logits(load("me/x")), logits(trained))


# ---- a person's card


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


# ---- without a report of ours


@pytest.mark.parametrize("damage", [None, "{"], ids=["missing", "damaged"])
def test_without_a_report_the_card_of_the_folder_goes(
    hub: FakeHub, folder: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "compression_report.json").unlink()
    if damage is not None:
        (folder / "compression_report.json").write_text(damage)
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n# Mine\n")
    push_folder(folder, "me/x")
    assert hub.files("me/x")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
    assert "without a card of ours" in caplog.text
    assert ("is damaged" in caplog.text) == (damage is not None)
    edit_remote(hub, ("# Mine", "# Edited"))
    push_folder(folder, "me/x")
    assert b"# Edited" in hub.files("me/x")["README.md"]


def test_a_dense_checkpoint_can_be_published(hub: FakeHub, made: Made) -> None:
    push_folder(made.dense, "me/dense")
    assert hub.files("me/dense").keys() == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_where_the_package_is_missing_transformers_pushes(
    hub: FakeHub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_factored.importlib.util, "find_spec", lambda name: None)
    made.model.push_to_hub("me/x")
    assert {"config.json", "model.safetensors", "modeling_factored.py", "README.md"} <= hub.files("me/x").keys()
    assert torch.equal(logits(load("me/x")), logits(made.model))


def test_adapters_are_published_alone(hub: FakeHub, made: Made) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
    model = copy.deepcopy(made.model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"))
    model.push_to_hub("me/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("me/adapter").keys()
    assert "model.safetensors" not in hub.files("me/adapter")


# ---- loading


def test_it_loads_from_the_hub(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    assert torch.equal(logits(load("me/x")), logits(made.model))
    assert AutoImageProcessor.from_pretrained("me/x").size == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("dense", "config", "auto"),
    [
        (ViTModel, tiny_config(), AutoModel),
        (DeiTForImageClassification, DeiTConfig(**TINY), AutoModelForImageClassification),
    ],
)
def test_models_without_a_head_and_of_another_kind(hub: FakeHub, dense: Any, config: Any, auto: Any) -> None:
    recipe = CompressionConfig(keep_ratio=0.6, rank_multiple=1, measuring_images=0, precision="float32")
    small = ViTCompressor(recipe, progress=False).compress(seeded(dense, config), random_images(24))
    cast(Any, small).push_to_hub("me/x")
    assert hub.files("me/x").keys() == PUBLISHED - {"preprocessor_config.json"}
    loaded = auto.from_pretrained("me/x")
    assert type(loaded) is type(small)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(PIXELS)[0], small.eval()(PIXELS)[0])


def test_a_model_of_the_hub_is_compressed_and_published_with_its_terms(hub: FakeHub, made: Made) -> None:
    hub.add_repo("someone/vit", contents(made.dense))
    recipe = CompressionConfig(keep_ratio=0.6, rank_multiple=1, measuring_images=0, precision="float32")
    small = ViTCompressor(recipe, progress=False).compress("someone/vit", str(made.images))
    cast(Any, small).push_to_hub("me/x")
    card = card_of(hub.files("me/x"))
    assert "This is [`someone/vit`](https://huggingface.co/someone/vit), compressed" in card.text
    expected = {"base_model": "someone/vit", "license": "mit", "datasets": ["someone/shapes"], "language": ["en"]}
    assert expected.items() <= card.metadata.items()


def test_a_model_of_the_hub_takes_everything_along_to_another_place(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    edit_remote(hub, *with_words("above", "below"), ("license: mit", "license: mit\nwidget: [{src: a.png}]"))
    load("me/x").push_to_hub("me/y")
    one, two = hub.files("me/x"), hub.files("me/y")
    assert {**one, "README.md": b""} == {**two, "README.md": b""}
    card = card_of(two)
    assert card.text.startswith("above")
    assert card.metadata["widget"] == [{"src": "a.png"}]
    assert 'from_pretrained("me/y")' in card.text
    assert "me/x" not in str(card)
    assert card.metadata["model-index"][0]["name"] == "y"
    assert len(card.metadata["model-index"][0]["results"]) == 1


def test_a_model_of_a_folder_takes_everything_along(hub: FakeHub, folder: Path) -> None:
    edit_local(folder, *with_words("above", "below"))
    load(folder).push_to_hub("me/y")
    assert hub.files("me/y").keys() == PUBLISHED
    assert card_of(hub.files("me/y")).text.startswith("above")


CLEAN_SCRIPT = """
import sys
sys.modules["hf_vitcompress"] = None  # as if it were not installed

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("me/x", trust_remote_code=True)
assert AutoImageProcessor.from_pretrained("me/x").size["height"] == 16
torch.save(model(torch.load("pixels.pt")).logits.detach(), "logits.pt")
model.push_to_hub("me/from-elsewhere")
"""


def test_it_loads_and_is_pushed_where_the_package_is_not(hub: FakeHub, made: Made, tmp_path: Path) -> None:
    made.model.push_to_hub("me/x")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    run_script(CLEAN_SCRIPT, tmp_path, hub.environment())
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(made.model))
    assert torch.equal(logits(load("me/from-elsewhere")), logits(made.model))


# ---- privacy


def test_nothing_private_is_published(hub: FakeHub, made: Made, folder: Path) -> None:
    made.model.push_to_hub("me/x")
    push_folder(folder, "me/y", max_shard_size="20KB")
    load(folder).push_to_hub("me/z")
    secret = {TELL_TALE, TOKEN, hub.token()}
    surroundings = {str(Path.home()), os.uname().nodename, tempfile.gettempdir(), str(folder.parent)}
    for repo in ("me/x", "me/y", "me/z"):
        for name, content in hub.files(repo).items():
            is_text = not name.endswith((".safetensors", ".png"))
            for word in secret | {word for word in surroundings if is_text and len(word) >= 4}:
                assert word.encode() not in content, (repo, name, word)
