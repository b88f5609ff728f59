"""A plain client of the fake Hub, and files for it to push."""

import os
from typing import Any

import pytest
from fake_hub import FakeHub
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

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
