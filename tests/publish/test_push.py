"""Pushing to the Hub: what arrives, in how many commits, and what of a person's work is kept."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_vitcompress.errors import PublishError
from hf_vitcompress.publish.push import push_folder
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.published import PUBLISHED, Made, card_of, contents
from support.pushing import edit_local, load, logits, pushes, with_words


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


def test_a_snapshot_in_the_cache_of_the_hub_is_published_with_what_its_links_lead_to(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "models--me--x" / "snapshots" / "abc", tmp_path / "models--me--x" / "blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"program")
    for number, name in enumerate(contents(folder)):
        (folder / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    push_folder(snapshot, "me/x")
    assert hub.files("me/x").keys() == {*PUBLISHED, "onnx/model.onnx"}
    assert hub.files("me/x")["model.safetensors"] == (snapshot / "model.safetensors").read_bytes()
    assert (snapshot / "model.safetensors").is_symlink()


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
