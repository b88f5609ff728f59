"""A plain client of the fake Hub, and files for it to push."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForImageClassification, PreTrainedModel

from support.fake_hub import FakeHub, reading, running_hub  # noqa: F401  (the fixture "hub")

SMALL = b"# A title\n"
LARGE = os.urandom(100_000)
LARGE_PATH = "weights/model.safetensors"
FILES = {"notes.md": SMALL, LARGE_PATH: LARGE}


@pytest.fixture(name="api")
def client_with_a_repository(hub: FakeHub) -> HfApi:
    """The client of "me", who has the empty repository "me/x"."""
    api = HfApi()
    api.create_repo("me/x")
    return api


def push(api: HfApi, files: dict[str, bytes], repo: str = "me/x", **settings: Any) -> CommitInfo:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="Add", **settings)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def load(name: str | Path, **settings: Any) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(name, **settings)


def pushes(hub: FakeHub, repo: str = "me/x", revision: str = "main") -> list[Any]:
    """Commits besides the Hub's own first one, newest first."""
    return hub.commits(repo, revision)[:-1]


def edit_remote(hub: FakeHub, *changes: tuple[str, str], repo: str = "me/x") -> str:
    """As a person does on the web site; returns the new card."""
    card = hub.files(repo)["README.md"].decode()
    for old, new in changes:
        assert card.count(old) == 1, old
        card = card.replace(old, new)
    hub.put(repo, "README.md", card.encode())
    return card


def with_words(above: str, below: str) -> list[tuple[str, str]]:
    begin, end = "<!-- hf_vitcompress: begin", "<!-- hf_vitcompress: end -->"
    return [(begin, f"{above}\n\n{begin}"), (end, f"{end}\n\n{below}")]


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
