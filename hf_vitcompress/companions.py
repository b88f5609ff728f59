"""What is saved beside a compressed model, so that it can be understood and made again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import CompressionConfig
from .planning import CompressionPlan
from .report import CompressionReport

RECIPE_FILE = "compression_recipe.yaml"
PLAN_FILE = "compression_plan.json"


@dataclass
class CompressionRecord:
    """Recipe, plan and report; `save_pretrained` of the model calls this one's."""

    config: CompressionConfig
    plan: CompressionPlan
    report: CompressionReport

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        self.config.save(Path(folder) / RECIPE_FILE)
        self.plan.save(Path(folder) / PLAN_FILE)
        self.report.save(folder)
