"""The files beside a compressed model that explain it and make it again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, model_info
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import CompressionConfig
from ..model.loading import load_image_processor
from ..modeling_factored import CARD_FILE
from ..planning.plan import CompressionPlan
from ..report.provenance import is_repo_id
from ..report.report import REPORT_FILE, CompressionReport
from .cards import write_card
from .names import PLAN_FILE, RECIPE_FILE, RECORD_FILES, files_within, goes_along
from .retries import persistently

logger = logging.get_logger(__name__)


@dataclass
class CompressionRecord:
    """Recipe, plan, report and the card made of them; `save_pretrained` of the model calls this one's."""

    config: CompressionConfig
    plan: CompressionPlan
    report: CompressionReport

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write all of it into `folder`, which holds the model."""
        self.config.save(Path(folder) / RECIPE_FILE)
        self.plan.save(Path(folder) / PLAN_FILE)
        self.report.save(folder)
        write_card(folder, self.report)


class SavedFiles:
    """Files that are saved with a model; a card among them is renewed for the weights of the new folder."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    @classmethod
    def of(cls, folder: str | Path, wanted: Callable[[str], object] = RECORD_FILES.__contains__) -> "SavedFiles":
        """The files of a folder with wanted names; see `names.files_within`."""
        return cls({name: path.read_bytes() for name, path in files_within(Path(folder), wanted).items()})

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write them into `folder`, which holds the model; a card that is there is kept, except for our part of it."""
        for name, content in self.files.items():
            if name != CARD_FILE or not (Path(folder) / CARD_FILE).exists():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(content)
        if REPORT_FILE in self.files:
            write_card(folder)


def lies_beside(name: str) -> bool:
    """Whether a file of that name goes along with a model that is saved elsewhere."""
    return name == CARD_FILE or goes_along(name)


def restored_companions(model: PreTrainedModel) -> list[Any]:
    """The files beside the checkpoint that a model was loaded from, a folder or a Hub repository."""
    name = str(model.config.name_or_path or "")
    saved = SavedFiles({})
    if is_repo_id(name):
        saved = _from_hub(name)
    elif name and Path(name).is_dir():
        saved = SavedFiles.of(name, lies_beside)
    processor = load_image_processor(model)
    return [*([saved] if saved.files else []), *([] if processor is None else [processor])]


def _from_hub(name: str) -> SavedFiles:
    """Files of a repository; none where that is gone, or was a folder that is.

    One by one, because `snapshot_download` is content with what the cache has when the Hub does not answer.
    """
    try:
        info = persistently(lambda: model_info(name))
    except RepositoryNotFoundError:
        logger.warning(f"There is no {name!r} any more: what lay beside the model there does not go along.")
        return SavedFiles({})
    present = [sibling.rfilename for sibling in info.siblings or []]
    names = [file for file in present if lies_beside(file)]
    download = partial(hf_hub_download, name, revision=info.sha)
    return SavedFiles({file: Path(persistently(partial(download, file))).read_bytes() for file in names})
