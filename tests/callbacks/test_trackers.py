"""Report and figures reach a tracker as artifacts of the Trainer's own integration, here that for Weights & Biases."""

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import ViTImageProcessorPil

from hf_vitcompress.callbacks import CompressionCallback, CompressionMetricsCallback
from support.training import CONFIG, new_trainer


class Artifact:
    """Files under names, as `wandb.Artifact` takes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def new_file(self, name: str, mode: str) -> Any:
        return (self.folder / name).open(mode)


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in the place of wandb, of which the integration of transformers uses this much."""
    got = SimpleNamespace(artifacts=[], logs=[])
    run = SimpleNamespace(
        id="1",
        name="run",
        url="",
        summary={},
        _label=lambda **_: None,
        log_artifact=lambda artifact, aliases: got.artifacts.append(artifact),
    )
    wandb: Any = ModuleType("wandb")
    wandb.__spec__ = SimpleNamespace(name="wandb")
    wandb.run, wandb.summary, wandb.config = run, {}, _Config()
    wandb.log = lambda values: got.logs.append(values)
    wandb.init = wandb.watch = wandb.finish = wandb.define_metric = lambda *_, **__: None
    folders = (tmp_path / f"artifact-{number}" for number in itertools.count())
    wandb.Artifact = lambda **arguments: Artifact(next(folders))
    settings: Any = ModuleType("wandb.sdk.lib.config_util")
    settings.ConfigError = ValueError
    modules = {"wandb": wandb, "wandb.sdk": ModuleType("wandb.sdk"), "wandb.sdk.lib": ModuleType("wandb.sdk.lib")}
    for name, module in {**modules, "wandb.sdk.lib.config_util": settings}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("WANDB_WATCH", "false")
    return got


class _Config(dict[str, Any]):
    def update(self, values: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        super().update(values)


def test_report_figure_and_card_are_in_the_artifact_of_the_model(tracker: SimpleNamespace, tmp_path: Path) -> None:
    compression = CompressionCallback(CONFIG, at_step=0.5)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    trainer = new_trainer(
        tmp_path / "out", CompressionMetricsCallback(), compression, report_to=["wandb"], run_name="small"
    )
    trainer.processing_class = processor
    trainer.train()
    final = tracker.artifacts[-1].folder
    assert compression.report is not None
    assert json.loads((final / "compression_report.json").read_text())["keep_ratio"] == compression.report.keep_ratio
    assert (final / "compression_report.png").read_bytes().startswith(b"\x89PNG")
    assert "# ViTForImageClassification at" in (final / "README.md").read_text()
    assert {"compression_plan.json", "compression_recipe.yaml", "model.safetensors", "modeling_factored.py"} <= {
        path.name for path in final.iterdir()
    }
    ratios = [logs["train/compression_keep_ratio"] for logs in tracker.logs if "train/compression_keep_ratio" in logs]
    assert ratios[0] == 1
    assert ratios[-1] == pytest.approx(compression.report.keep_ratio)
