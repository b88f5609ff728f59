"""The fixture: this process's own client, pointed at a fake Hub."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants

from .hub import FakeHub


@pytest.fixture(name="hub")
def running_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running Hub, with which `huggingface_hub` and `transformers` speak as the user "me"."""
    hub = FakeHub(tmp_path / "hf_home")
    hub.start()
    point_environment(hub, monkeypatch)
    point_client(hub, monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # how the client uploads large files
        yield hub
    huggingface_hub.close_session()
    hub.stop()
    assert not hub.errors, "\n".join(hub.errors)


def point_environment(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes that the test starts, and for the token, which the client looks up each time."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)


def point_client(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what this process's client read when it was imported. Its waits before retries are noted and skipped."""
    values = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HOME": str(hub.home),
        "HF_HUB_CACHE": str(hub.home / "hub"),
        "HF_TOKEN_PATH": str(hub.home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": hub.waits.append}))
    huggingface_hub.close_session()
