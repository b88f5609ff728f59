"""What a card is written from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..costs import disk_bytes
from ..evaluation import Evaluation
from ..fingerprints import folder_digest
from ..modeling_factored import FACTORED_ARCHITECTURES, MODEL_TYPE_PREFIX
from ..provenance import stored_dtypes
from ..report import CompressionReport

CLASSIFIER = "AutoModelForImageClassification"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a compressed model.

    Attributes:
        report: of the compression.
        config: content of `config.json`.
        auto_class: name of the Auto class that loads it.
        disk_bytes: of its weights.
        dtypes: they are stored in.
        same_weights: whether they are those that the compression ended with.
        evaluation: of these weights; `None` where they were not judged.
    """

    report: CompressionReport
    config: dict[str, Any]
    auto_class: str
    disk_bytes: int
    dtypes: list[str]
    same_weights: bool
    evaluation: Evaluation | None

    @classmethod
    def read(
        cls, folder: str | Path, report: CompressionReport | None = None, known: Mapping[str, Any] | None = None
    ) -> "Checkpoint":
        report = report or CompressionReport.load(folder)
        report = replace(report, origin=report.origin.completed(known or {}))
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        digest = folder_digest(folder)
        judged = report.evaluation
        return cls(
            report,
            config,
            _auto_class(config),
            disk_bytes(folder),
            stored_dtypes(folder),
            same_weights=digest is not None and report.weights == digest,
            evaluation=judged if judged is not None and judged.weights in (None, digest) else None,
        )


def _auto_class(config: dict[str, Any]) -> str:
    heads = FACTORED_ARCHITECTURES[config["model_type"].removeprefix(MODEL_TYPE_PREFIX)].heads
    names = {name.removeprefix("Factored") for name in config.get("architectures") or []}
    return next((auto for auto, classes in heads.items() if names & set(classes)), "AutoModel")
