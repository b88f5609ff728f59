"""The files beside the checkpoint that a model was loaded from, which are saved with it again."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..architectures.subject import Subject
from ..errors import ReportError
from ..model.companions import beside_dense, companions_of
from ..model.timm_images import as_companions, name_processor
from ..modeling_factored import CARD_FILE, CONFIG_FILE
from ..report.provenance import is_repo_id
from ..report.report import REPORT_FILE, CompressionReport
from .names import code_of, files_along, goes_along, is_beside_program, is_record, is_used, is_used_by_texts
from .record import renew_record
from .retries import CLIENT_ERRORS, persistently, sentence

OWN_FILES = (CARD_FILE, "generation_config.json")
"""Files that are kept where they are there already: the model has just written one, and a person the other."""

logger = logging.get_logger(__name__)


class SavedFiles:
    """Files that are saved with a model; report and card among them are renewed for the weights of the new folder."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    @classmethod
    def of(cls, folder: str | Path, wanted: Callable[[str], object] | None = None) -> "SavedFiles":
        """The files of a folder that go along with a model; or only those with wanted names."""
        along = files_along(Path(folder), wanted or lies_beside)
        return cls({name: path.read_bytes() for name, path in along.items()})

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write them into `folder`, which holds the model; a card that is there is kept, except for our part of it."""
        self.write(folder)
        if REPORT_FILE in self.files:
            try:
                renew_record(folder, CompressionReport.parse(self.files[REPORT_FILE]))
            except ReportError as error:  # the weights, maybe of a long training, are worth more
                logger.warning(f"{error} The model is saved; its card is not renewed.")

    def save_without_card(self, folder: str | Path) -> None:
        """Write what tells of the compression into a folder that may hold the model in another form."""
        self.at_hand().only(is_record).write(folder)

    def write(self, folder: str | Path) -> None:
        """Write them as they are."""
        for name, content in self.files.items():
            if name not in OWN_FILES or not (Path(folder) / name).exists():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(content)

    def at_hand(self) -> "SavedFiles":
        """Themselves."""
        return self

    def only(self, wanted: Callable[[str], bool]) -> "SavedFiles":
        """Those with wanted names, and the code of processors."""
        return SavedFiles({name: data for name, data in self.files.items() if wanted(name) or name.endswith(".py")})

    def beside_dense(self) -> "SavedFiles":
        """Those that the dense form of the model is used with, too."""
        return self.only(is_used)


class HubFiles(SavedFiles):
    """Those of a repository, which are fetched when they are first needed.

    Args:
        repo_id: of the repository.
        revision: commit that the model was loaded from; `None` for the newest one.
        token: as `from_pretrained` takes it; a copy of this object has none.
        wanted: which of the names go along.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None = None,
        token: bool | str | None = None,
        wanted: Callable[[str], bool] | None = None,
    ) -> None:
        self.repo_id, self.revision, self.token, self.wanted = repo_id, revision, token, wanted or lies_beside
        self._at_hand: SavedFiles | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "token": None}

    @cached_property
    def files(self) -> dict[str, bytes]:  # type: ignore[override]
        """One by one, because `snapshot_download` is content with what the cache has when the Hub does not answer."""
        try:
            info = persistently(lambda: model_info(self.repo_id, revision=self.revision, token=self.token))
        except RepositoryNotFoundError:
            logger.warning(f"There is no {self.repo_id!r} any more: what lay beside the model there does not go along.")
            return {}
        download = partial(hf_hub_download, self.repo_id, revision=info.sha, token=self.token)

        def read(name: str) -> bytes:
            return Path(persistently(partial(download, name))).read_bytes()

        present = [sibling.rfilename for sibling in info.siblings or []]
        wanted = {*filter(self.wanted, present), *code_of(present, read)}
        return {name: read(name) for name in sorted(wanted)}

    def at_hand(self) -> SavedFiles:
        """Where the Hub does not answer, those that the cache has: what was computed is worth more than the others."""
        if self._at_hand is None:
            try:
                self._at_hand = SavedFiles(self.files)
            except CLIENT_ERRORS as error:
                self._at_hand = self._cached()
                if self.wanted(REPORT_FILE) and REPORT_FILE not in self._at_hand.files:
                    logger.warning(
                        f"Recipe, plan and report of the compression, which lie in {self.repo_id!r} on the Hub, do not "
                        f"go along: {sentence(str(error).strip())} Load the model again when the Hub can be reached."
                    )
        return self._at_hand

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write those that are at hand into `folder`, which holds the model."""
        self.at_hand().save_pretrained(folder)

    def only(self, wanted: Callable[[str], bool]) -> "HubFiles":
        """Those with wanted names, and the code of processors; not fetched yet."""
        return HubFiles(self.repo_id, self.revision, self.token, wanted)

    def _cached(self) -> SavedFiles:
        config = try_to_load_from_cache(self.repo_id, CONFIG_FILE, revision=self.revision)
        return SavedFiles.of(Path(config).parent, self.wanted) if isinstance(config, str) else SavedFiles({})


def lies_beside(name: str) -> bool:
    """Whether a file of that name goes along with a model that is saved elsewhere."""
    return name == CARD_FILE or goes_along(name)


def companions_at(name: str | Path, revision: str | None = None, token: bool | str | None = None) -> list[SavedFiles]:
    """What lies beside the checkpoint `name`, a folder, which is read now, or a Hub repository; empty for others."""
    if Path(name).is_dir():
        saved = SavedFiles.of(name)
        return [saved] if saved.files else []
    return [HubFiles(str(name), revision, token)] if is_repo_id(str(name)) else []


def restored_companions(model: PreTrainedModel) -> list[Any]:
    """The companions of a model; or of one that has none the files beside the checkpoint that it was loaded from.

    Files on the Hub are fetched.
    """
    return [item for item in _known_companions(model) if not isinstance(item, HubFiles) or item.files]


def files_at_hand(model: PreTrainedModel) -> list[SavedFiles]:
    """The files that lay beside a compressed model where it was loaded from, as far as they can be had."""
    return [item.at_hand() for item in _known_companions(model) if isinstance(item, SavedFiles)]


def used_companions(model: PreTrainedModel) -> list[Any]:
    """Those of a dense model, which go with its compressed or quantized form as well."""
    return beside_dense(_known_companions(model))


def save_beside_program(folder: Path, model: PreTrainedModel, record: bool) -> None:
    """Write into the folder of a program what lies beside the model, or would if that were saved; but no card.

    Args:
        model: of which the program was made.
        record: whether what tells of its compression is written, too.
    """
    for companion in _known_companions(model):
        if record and hasattr(companion, "save_without_card"):
            companion.save_without_card(folder)
    for used in used_companions(model):
        (used.only(is_beside_program) if isinstance(used, SavedFiles) else used).save_pretrained(folder)


def companions_for(subject: Subject, given: Any = None) -> list[Any]:
    """What goes with the compressed form of a model.

    Args:
        given: an image processor that takes the place of the one beside the model.
    """
    beside = used_companions(subject.whole)
    if given is not None:
        beside = [item.only(is_used_by_texts) for item in beside if isinstance(item, SavedFiles)]
    return [*as_companions(subject.processor), *beside]


def accompany(small: PreTrainedModel, subject: Subject, record: Any, given: Any = None) -> None:
    """Let a compressed model be saved with the record of its compression, and with what the dense one is used with."""
    small.companions = [record, *companions_for(subject, given)]  # type: ignore[assignment]
    name_processor(small.config, subject.processor)


def _known_companions(model: PreTrainedModel) -> list[Any]:
    name = str(model.config.name_or_path or "")
    return companions_of(model) or (companions_at(name, getattr(model.config, "_commit_hash", None)) if name else [])
