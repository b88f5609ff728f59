"""What a card is written from."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...configuration_factored import MODEL_TYPE_PREFIX, travelling_files, unguarded
from ...configuration_timm import MODEL_TYPE as TIMM
from ...errors import ReportError
from ...evaluation.evaluation import Evaluation
from ...model.loading import auto_class_name
from ...report.outside import for_markdown
from ...report.provenance import is_repo_id
from ...report.report import CompressionReport
from ...runtime.text import printable
from ...runtime.weights import disk_bytes, folder_digest, stored_dtypes

CLASSIFIER, BACKBONE = "AutoModelForImageClassification", "AutoBackbone"

_ARCHITECTURE = re.compile(r"[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class CardSubject:
    """A folder with a compressed model.

    Attributes:
        report: of the compression; its texts are safe in Markdown.
        recipe: its settings as YAML, safe in a block of code.
        auto_class: name of the Auto class that loads it.
        timm: name of its architecture in timm; `None` of another model.
        modeling_file: what loads it where the package is not installed.
        disk_bytes: of its weights.
        dtypes: they are stored in.
        same_weights: whether they are those that the compression ended with.
        evaluation: of these weights; `None` where they were not judged.
    """

    report: CompressionReport
    recipe: str
    auto_class: str
    timm: str | None
    modeling_file: str
    disk_bytes: int
    dtypes: list[str]
    same_weights: bool
    evaluation: Evaluation | None

    @property
    def loading_class(self) -> str:
        """Name of the Auto class for lines of code: `AutoBackbone` opens no folder, and `AutoModel` those of timm."""
        return "AutoModel" if self.timm is not None and self.auto_class == BACKBONE else self.auto_class

    @classmethod
    def read(
        cls, folder: str | Path, report: CompressionReport | None = None, known: Mapping[str, Any] | None = None
    ) -> "CardSubject":
        """From a checkpoint folder.

        Args:
            report: instead of the one in the folder.
            known: metadata of a card, for what the report does not know of the dense model.

        Raises:
            ReportError: the folder has no report.
        """
        report = report or CompressionReport.load(folder)
        found = report.search
        report = replace(
            report,
            search=found and replace(found, dataset=_published(found.dataset), split=_named(found.split)),
            origin=report.origin.completed(known or {}),
            calibration_dataset=_published(report.calibration_dataset),
            calibration_split=_named(report.calibration_split),
        )
        content = _config_of(Path(folder) / "config.json")
        model_type, architectures = str(content.get("model_type", "")), content.get("architectures") or []
        digest = folder_digest(folder)
        judged = report.evaluation
        if judged is not None:
            of_these = digest is not None and digest == (judged.weights or report.weights)
            named = replace(judged, dataset=_published(judged.dataset), split=_named(judged.split))
            judged = named if of_these else None
        return cls(
            for_markdown(report),
            yaml.safe_dump(report.settings).strip().replace("<!--", "<! --").replace("```", "` ` `"),
            auto_class_name(model_type, [str(name) for name in architectures]),
            _timm_architecture(content),
            travelling_files(model_type)[-1],
            disk_bytes(folder),
            stored_dtypes(folder),
            same_weights=digest is not None and report.weights == digest,
            evaluation=for_markdown(judged),
        )


def _timm_architecture(content: dict[str, Any]) -> str | None:
    """Of a model of timm; a name that timm has given to none, as a file from anybody may hold, is left out."""
    if str(content.get("model_type")).removeprefix(MODEL_TYPE_PREFIX) != TIMM:
        return None
    name = unguarded(content).get("architecture")
    return name if isinstance(name, str) and _ARCHITECTURE.fullmatch(name) else "model"


def _config_of(config: Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
        ReportError: it is that of no model.
    """
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        return {**content, "architectures": list(content.get("architectures") or [])}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ReportError(f"{str(config)!r} is damaged: {printable(str(error))}. Save the model again.") from error


def _published(dataset: str | None) -> str | None:
    """The id of a data set that others can find; a path is none."""
    return dataset if dataset is not None and is_repo_id(dataset) else None


def _named(split: str | None) -> str | None:
    """A split whose name tells nothing of this disk: the keys of a mapping of splits may be paths."""
    return None if split is None or "/" in split or "\\" in split else split
