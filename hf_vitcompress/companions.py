"""What is saved beside a compressed model, so that it can be understood and made again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from .cards import write_card
from .config import CompressionConfig
from .loading import load_image_processor
from .modeling_factored import CARD_FILE
from .planning import CompressionPlan
from .provenance import is_repo_id
from .report import FIGURE_FILE, REPORT_FILE, REPORT_NAME, CompressionReport

RECIPE_FILE = "compression_recipe.yaml"
PLAN_FILE = "compression_plan.json"
RECORD_FILES = (RECIPE_FILE, PLAN_FILE, REPORT_FILE, f"{REPORT_NAME}.md", FIGURE_FILE)


@dataclass
class CompressionRecord:
    """Recipe, plan, report and the card made of them; `save_pretrained` of the model calls this one's."""

    config: CompressionConfig
    plan: CompressionPlan
    report: CompressionReport

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        self.config.save(Path(folder) / RECIPE_FILE)
        self.plan.save(Path(folder) / PLAN_FILE)
        self.report.save(folder)
        write_card(folder, self.report)


class SavedFiles:
    """Files that go wherever a model goes; a card among them is renewed for the weights it comes to lie beside."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    @classmethod
    def of(cls, folder: str | Path, names: tuple[str, ...] = RECORD_FILES) -> "SavedFiles":
        """Those of `names` that are there."""
        return cls({name: (Path(folder) / name).read_bytes() for name in names if (Path(folder) / name).is_file()})

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        for name, content in self.files.items():
            if name != CARD_FILE or not (Path(folder) / CARD_FILE).exists():
                (Path(folder) / name).write_bytes(content)
        if REPORT_FILE in self.files:
            write_card(folder)


def restored_companions(model: PreTrainedModel) -> list[Any]:
    """What lies beside the checkpoint that a model was loaded from, a folder or a Hub repository."""
    name = str(model.config.name_or_path or "")
    wanted = (CARD_FILE, *RECORD_FILES)
    folder = snapshot_download(name, allow_patterns=list(wanted)) if is_repo_id(name) else name
    saved = SavedFiles.of(folder, wanted) if folder and Path(folder).is_dir() else SavedFiles({})
    processor = load_image_processor(model)
    return [*([saved] if saved.files else []), *([] if processor is None else [processor])]
