"""Fixtures of the tests of deploy."""

import copy
from typing import Any

import pytest
from transformers import PreTrainedModel

from hf_vitcompress.deploy import export as exporting
from hf_vitcompress.deploy.export_formats import FORMATS
from support.programs import MODELS, Make
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")


@pytest.fixture(scope="session")
def models() -> Make:
    """A copy of a model of `MODELS`, each made once."""
    known: dict[str, PreTrainedModel] = {}

    def make(name: str) -> PreTrainedModel:
        if name not in known:
            known[name] = MODELS[name]()
        return copy.deepcopy(known[name])

    return make


@pytest.fixture
def model(models: Make) -> PreTrainedModel:
    return models("everything")


@pytest.fixture(scope="session")
def program(models: Make) -> Any:
    """What `trace` makes of `model` for torch-export."""
    return exporting.trace(models("everything"), FORMATS["torch-export"], (3, 16, 16))


@pytest.fixture
def traced(model: PreTrainedModel, program: Any, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """`model`, for torch-export without the time it takes to trace."""
    monkeypatch.setattr(exporting, "trace", lambda *_: program)
    return model


@pytest.fixture
def export(run: Run) -> Run:
    """`vitcompress export …`"""
    return lambda *arguments: run("export", *arguments)
