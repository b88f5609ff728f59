"""The report and card of a compressed model, renewed for the weights that they are saved with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CompressionConfig, save_settings
from ..planning.plan import CompressionPlan
from ..report.report import CompressionReport
from ..runtime.weights import folder_digest
from .cards import write_card
from .names import PLAN_FILE, RECIPE_FILE


@dataclass
class CompressionRecord:
    """Recipe, plan, report and the card made of them; `save_pretrained` of the model calls this one's."""

    config: CompressionConfig
    plan: CompressionPlan
    report: CompressionReport

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write all of it into `folder`, which holds the model."""
        self.save_without_card(folder)
        write_card(folder)

    def save_without_card(self, folder: str | Path) -> None:
        """Write it into a folder that may hold the model in another form."""
        save_settings(self.plan.settings(self.config), Path(folder) / RECIPE_FILE)
        self.plan.save(Path(folder) / PLAN_FILE)
        self.report.beside(folder_digest(folder)).save(folder)

    def beside_dense(self) -> None:
        """Nothing of it goes with the dense form of the model."""


def renew_record(folder: str | Path, report: CompressionReport) -> None:
    """Let the report in a folder, and the card, say whether its weights are those that the compression ended with."""
    now = report.beside(folder_digest(folder))
    if now != report:
        now.save(folder)
    write_card(folder)
