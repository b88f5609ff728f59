"""Cards of them."""

from dataclasses import replace
from typing import Any

from hf_vitcompress.compensation.course import CompensationPoint
from hf_vitcompress.evaluation.evaluation import Evaluation
from hf_vitcompress.publish.cards import model_card
from hf_vitcompress.report.card_file import Card
from hf_vitcompress.report.provenance import Origin
from hf_vitcompress.runtime.weights import folder_digest
from support.fake_hub.cards import check_card
from support.published import Made
from support.reports import EVALUATION

PUBLISHED_ORIGIN = Origin("google/vit-base-patch16-224", True, "apache-2.0", language=["en"], datasets=["imagenet-1k"])


POINTS = [CompensationPoint(stage, seconds, 64, 0.2) for seconds, stage in enumerate(["residual", "distill"])]


def card_with(made: Made, repo_id: str | None = "me/x", known: dict[str, Any] | None = None, **changes: Any) -> Card:
    """The card of a report in which something is different; the Hub must accept it."""
    card = model_card(made.folder, replace(made.report, **changes), repo_id, known)
    assert check_card(str(card)) == {"errors": [], "warnings": []}
    assert Card.parse(str(card)) == card
    return card


def judged(made: Made, **changes: Any) -> Evaluation:
    return replace(EVALUATION, **{"weights": folder_digest(made.folder), **changes})
