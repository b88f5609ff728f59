"""The model card of a compressed checkpoint, written from what lies in its folder: report, recipe and weights.

No free text gets in but Hub ids and the names of metrics, so that no local path, user name or token can.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ...modeling_factored import CARD_FILE
from ...report.card_file import Card
from ...report.report import FIGURE_FILE, CompressionReport
from ...runtime.files import write_text
from ..names import is_inside
from . import wording
from .citations import citations
from .merging import END, START, renewed
from .metadata import card_metadata
from .subject import BACKBONE, CardSubject
from .ways import parts

TEMPLATE = Path(__file__).parent / "template.md"

HUB_ID = "hub-id"
PLACEHOLDER_ID = f"path/or/{HUB_ID}"
"""Stands for the repository until it is known."""


def write_card(
    folder: str | Path,
    report: CompressionReport | None = None,
    repo_id: str | None = None,
    known: Mapping[str, Any] | None = None,
    into: str | Path | None = None,
) -> Card:
    """Write `README.md` into a checkpoint folder, or renew our part of the one that is there; returns it.

    Arguments as of `model_card`; what the metadata of that file says counts as known, too.

    Args:
        into: another folder, whose card is written instead.
    """
    path = Path(into or folder) / CARD_FILE
    existing = (
        Card.load(path) if is_inside(Path(into or folder), path) else None
    )  # a link may lead to what nobody may read
    stated = {} if existing is None else existing.metadata
    card = model_card(folder, report, repo_id, {**stated, **(known or {})})
    if existing is not None:
        card = renewed(existing, card)
    write_text(path, str(card))
    return card


def model_card(
    folder: str | Path,
    report: CompressionReport | None = None,
    repo_id: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> Card:
    """The card of the checkpoint in `folder`.

    Args:
        report: instead of the one in the folder.
        repo_id: where it will be published, for the lines of code that load it.
        known: card metadata that a person has stated: base model, licence and data sets that the report lacks.

    Raises:
        ReportError: the folder has no report.
    """
    subject = CardSubject.read(folder, report, known)
    report, title = subject.report, wording.title(subject)
    card = ModelCard.from_template(
        card_metadata(subject, repo_id.split("/")[-1] if repo_id else title),
        template_path=str(TEMPLATE),
        start=START,
        end=END,
        title=title,
        summary=wording.summary(subject),
        rows=wording.rows(subject),
        measured=wording.measured(subject),
        figure=FIGURE_FILE,
        parts=parts(report),
        auto_class=subject.loading_class,
        repo_id=repo_id or (HUB_ID if subject.loading_class == BACKBONE else PLACEHOLDER_ID),
        use=wording.use(subject),
        packages=wording.packages(subject),
        modeling_file=subject.modeling_file,
        timm=subject.timm,
        making=wording.making(subject),
        recipe=subject.recipe,
        limits=wording.limits(subject),
        references=citations(
            report.settings,
            subject.timm is not None,
            report.patch_tokens is not None,
            any(part.shapes for part in report.parts),
        ),
    )
    return Card(card.data.to_dict(), card.text.strip())
