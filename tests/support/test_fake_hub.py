"""The fake Hub behaves as the real client expects it to: nothing here is of hf_vitcompress."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import (
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.models import seeded, tiny_config
from support.pushing import FILES, LARGE, LARGE_PATH, SMALL, client_with_a_repository, push, status_of  # noqa: F401

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: image-classification
tags: [vision]
base_model: [google/vit-base-patch16-224]
base_model_relation: finetune
model-index:
- name: x
  results:
  - task: {type: image-classification}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics:
    - {type: accuracy, value: 0.9}
---
# x
"""


def test_files_come_back_as_they_were(hub: FakeHub, api: HfApi) -> None:
    commit = push(api, FILES)
    assert hub.files("me/x") == FILES
    assert [one.title for one in hub.commits("me/x")] == ["Add", "initial commit"]
    assert hub.commits("me/x")[0].oid == commit.oid == api.model_info("me/x").sha
    assert hub.commits("me/x")[0].changed() == sorted(FILES)
    assert len(hub.seen("PUT", "/stored/")) == len(hub.seen("POST", "/commit/main")) == 1
    folder = Path(snapshot_download("me/x"))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert "POST /api/models/{repo}/commit/{revision} -> 200" in hub.kinds()


def test_small_files_do_not_go_to_large_file_storage(api: HfApi) -> None:
    push(api, {**FILES, "plot.png": b"\x89PNG\0"})
    entries = {entry.path: entry for entry in api.list_repo_tree("me/x", recursive=True) if hasattr(entry, "lfs")}
    assert [path for path, entry in entries.items() if entry.lfs] == ["plot.png", LARGE_PATH]
    assert entries[LARGE_PATH].lfs.size == len(LARGE)
    assert [entry.path for entry in api.list_repo_tree("me/x")] == ["weights", ".gitattributes", "notes.md", "plot.png"]
    assert [entry.path for entry in api.get_paths_info("me/x", ["plot.png", "none"])] == ["plot.png"]


@pytest.mark.parametrize("path", FILES)
def test_a_known_file_is_not_downloaded_again(hub: FakeHub, api: HfApi, path: str) -> None:
    push(api, FILES)
    first = hf_hub_download("me/x", path)
    hub.requests.clear()
    assert hf_hub_download("me/x", path) == first
    assert [request.method for request in hub.requests] == ["HEAD"]
    hub.put("me/x", path, b"changed")
    assert Path(hf_hub_download("me/x", path)).read_bytes() == b"changed"


def test_what_is_stored_is_not_sent_again(hub: FakeHub, api: HfApi) -> None:
    push(api, FILES)
    push(api, {**FILES, "copy.safetensors": LARGE})
    assert hub.commits("me/x")[0].changed() == ["copy.safetensors"]
    assert len(hub.seen("PUT", "/stored/")) == 1
    push(api, FILES)
    assert len(hub.commits("me/x")) == 3


def test_large_files_in_parts(hub: FakeHub, api: HfApi) -> None:
    hub.part_size = 30_000
    push(api, FILES)
    assert hub.files("me/x") == FILES
    assert len(hub.seen("PUT", "/stored/")) == 4


def test_a_commit_on_an_older_one_is_refused(hub: FakeHub, api: HfApi) -> None:
    parent = push(api, FILES).oid
    edit = hub.put("me/x", "notes.md", b"edited")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        push(api, {"a.txt": b"a"}, parent_commit=parent)
    assert status_of(error) == 412
    push(api, {"a.txt": b"a"}, parent_commit=edit.oid)
    assert hub.files("me/x") == {**FILES, "notes.md": b"edited", "a.txt": b"a"}


def test_pull_request(hub: FakeHub, api: HfApi) -> None:
    hub.add_repo("you/y", FILES)
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        push(api, {"notes.md": b"mine"}, "you/y")
    commit = push(api, {"notes.md": b"mine"}, "you/y", create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert hub.files("you/y") == FILES
    assert hub.files("you/y", "refs/pr/1") == {**FILES, "notes.md": b"mine"}
    assert Path(hf_hub_download("you/y", "notes.md", revision="refs/pr/1")).read_bytes() == b"mine"
    assert [ref.ref for ref in api.list_repo_refs("you/y", include_pull_requests=True).pull_requests] == ["refs/pr/1"]


def test_branches_and_tags(hub: FakeHub, api: HfApi) -> None:
    api.create_branch("me/x", branch="small")
    push(api, FILES, revision="small")
    assert (hub.files("me/x"), hub.files("me/x", "small")) == ({}, FILES)
    api.create_tag("me/x", tag="v1", revision="small")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch("me/x", branch="small")
    assert status_of(error) == 409
    api.delete_branch("me/x", branch="small")
    refs = api.list_repo_refs("me/x")
    assert ([ref.name for ref in refs.branches], [ref.name for ref in refs.tags]) == (["main"], ["v1"])
    assert [commit.title for commit in api.list_repo_commits("me/x", revision="v1")] == ["Add", "initial commit"]
    with pytest.raises(RevisionNotFoundError):
        push(api, FILES, revision="small")


def test_private_repositories_are_hidden_from_others(hub: FakeHub, api: HfApi) -> None:
    api.create_repo("me/secret", private=True)
    push(api, FILES, "me/secret")
    assert api.model_info("me/secret").private
    assert Path(hf_hub_download("me/secret", LARGE_PATH)).read_bytes() == LARGE
    for token in (False, hub.token(user="stranger")):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("me/secret", "notes.md", token=token)
    api.update_repo_settings("me/secret", private=False)
    assert api.repo_exists("me/secret", token=False)


def test_deletion(hub: FakeHub, api: HfApi) -> None:
    push(api, {**FILES, "weights/more.txt": b"more"})
    api.delete_file("notes.md", "me/x")
    assert sorted(hub.files("me/x")) == [LARGE_PATH, "weights/more.txt"]
    api.delete_folder("weights", "me/x")
    assert hub.files("me/x") == {}
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.create_commit("me/x", [CommitOperationDelete("notes.md")], commit_message="Delete")
    api.delete_repo("me/x")
    assert not api.repo_exists("me/x")


def test_what_is_not_there(api: HfApi) -> None:
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "none.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/x", "none.txt", revision="none")
    for token in (None, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("me/none", token=token)
    assert not api.file_exists("me/x", "none.txt")


def test_creating_a_repository(hub: FakeHub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo("me/x")
    assert status_of(error) == 409
    assert api.create_repo("me/x", exist_ok=True).repo_id == "me/x"
    with pytest.raises(HfHubHTTPError, match="rights to create a model") as error:
        api.create_repo("team/x")
    assert status_of(error) == 403


def test_tokens(hub: FakeHub, api: HfApi) -> None:
    hub.organizations["team"] = {"me", "you"}
    me = api.whoami()
    assert (me["name"], [one["name"] for one in me["orgs"]]) == ("me", ["team"])
    assert me["auth"]["accessToken"]["role"] == "write"
    assert api.create_repo("team/x").namespace == "team"
    reader = hub.token(write=False)
    assert api.whoami(reader)["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="write token") as error:
        push(api, FILES, token=reader)
    assert status_of(error) == 403
    for call in (api.whoami, lambda token: push(api, FILES, token=token)):
        with pytest.raises(HfHubHTTPError) as error:
            call("hf_unknown")
        assert status_of(error) == 401


def test_ignored_files_are_not_committed(hub: FakeHub, api: HfApi) -> None:
    files = {".gitignore": b"# mine\n*.log\nruns/\n", "a.log": b"a", "runs/b.txt": b"b", "c.txt": b"c"}
    push(api, files)
    assert sorted(hub.files("me/x")) == [".gitignore", "c.txt"]


def test_a_good_card_is_accepted(hub: FakeHub, api: HfApi) -> None:
    # As `ModelCard.validate` asks, which in huggingface-hub 1 knows the real Hub alone.
    asked = {"repoType": "model", "content": CARD}
    assert get_session().post(f"{hub.endpoint}/api/validate-yaml", json=asked).status_code == 200
    push(api, {"README.md": CARD.encode()})
    info = api.model_info("me/x")
    assert (info.pipeline_tag, info.library_name) == ("image-classification", "transformers")
    assert info.tags == ["vision", "license:apache-2.0"]
    assert info.card_data.base_model == ["google/vit-base-patch16-224"]
    assert len(hub.seen("POST", "validate-yaml")) == 2


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("license: apache-2.0", "license: apache", '"license" must be one of'),
        ("license: apache-2.0", "license: [", "Invalid YAML"),
        ("language: en", "license: mit", "duplicated mapping key"),
        ("language: en", "language: English", '"language" must be an ISO 639'),
        ("tags: [vision]", "tags: vision", '"tags" must be an array'),
        ("tags: [vision]", "tags: [1]", r'"tags\[0\]" must be a string'),
        ("[google/vit-base-patch16-224]", "../vit", '"base_model" with value "../vit" is not valid'),
        ("relation: finetune", "relation: compressed", '"base_model_relation" must be one of'),
        ("- name: x", "- title: x", r'"model-index\[0\].name" is required'),
        ("task: {type: image-classification}", "task: {}", r'results\[0\].task.type" is required'),
        (", name: CIFAR-10", "", r'results\[0\].dataset.name" is required'),
        (", value: 0.9", "", r'metrics\[0\].value" is required'),
    ],
)
def test_a_bad_card_is_refused(hub: FakeHub, api: HfApi, good: str, bad: str, message: str) -> None:
    assert good in CARD
    card = CARD.replace(good, bad)
    with pytest.raises(ValueError, match=message):
        push(api, {"README.md": card.encode()})
    assert hub.files("me/x") == {}


def test_warnings_about_a_card(api: HfApi) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": SMALL})
    with pytest.warns(UserWarning, match='"chess" is not in the official list'):
        push(api, {"README.md": CARD.replace("tag: image-classification", "tag: chess").encode()})


def test_transformers_pushes_and_loads(hub: FakeHub, processor, pixels: torch.Tensor) -> None:
    model = seeded(ViTForImageClassification, tiny_config())
    model.push_to_hub("me/vit", private=True)
    processor.push_to_hub("me/vit")
    written = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert written <= set(hub.files("me/vit"))
    loaded = AutoModelForImageClassification.from_pretrained("me/vit")
    assert torch.equal(loaded(pixels[:2]).logits, model(pixels[:2]).logits)
    assert AutoImageProcessor.from_pretrained("me/vit").size == processor.size


def test_another_process(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_repo("me/x", FILES)
    (tmp_path / "new.bin").write_bytes(LARGE[::-1])
    script = """if True:
        import sys
        from huggingface_hub import HfApi, hf_hub_download
        HfApi().upload_file(path_or_fileobj=sys.argv[1], path_in_repo="new.bin", repo_id="me/x")
        print(hf_hub_download("me/x", "notes.md"))
    """
    command = [sys.executable, "-c", script, str(tmp_path / "new.bin")]
    done = subprocess.run(command, env={**os.environ, **hub.environment()}, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == SMALL
    assert Path(done.stdout.strip()).is_relative_to(hub.home)
    assert hub.files("me/x") == {**FILES, "new.bin": LARGE[::-1]}
