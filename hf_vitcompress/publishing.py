"""Publishing a compressed checkpoint on the Hub: one commit, with a card that keeps what a person wrote."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.utils import logging

from .cards import write_card
from .cards.merging import make_card, own_text, read_card, renewed
from .companions import restored_companions
from .errors import PublishError, ReportError
from .hub_errors import CLIENT_ERRORS, CONFLICTS, HTTP_ERRORS, explained, persistently, status_of
from .loading import load_model
from .modeling_factored import CARD_FILE
from .report import REPORT_FILE
from .version import __version__

PUBLISHED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "modeling_factored.py",
    "*processor*_config.json",
    "compression_*",
    "LICENSE*",
    "NOTICE*",
    "onnx/*",
)
"""What goes to the Hub; whatever else lies in the folder (checkpoints, training arguments, caches) does not."""

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

ATTEMPTS = 4
"""How often a commit is made anew on top of what somebody else has committed meanwhile."""

EXPECTED: tuple[type[Exception], ...] = (OSError, ValueError, *CLIENT_ERRORS)

logger = logging.get_logger(__name__)


def push_model(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """Publish a compressed model with image processor, recipe, plan, report, figure and card; see `push_folder`.

    A model that was loaded from a folder or from the Hub takes along what lies there.
    """
    check_target(repo_id, token)
    with tempfile.TemporaryDirectory() as folder:
        if not model.companions:
            model.companions = restored_companions(model)  # type: ignore[assignment]
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return push_folder(
            folder,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
) -> CommitInfo:
    """Publish a folder made by `save_pretrained` or `vitcompress compress`, in one commit; the folder is only read.

    The repository is created where there is none. A card that is there keeps its text and metadata, except for the
    block and the facts that are ours. Weights of an earlier push in another number of shards are removed. What fails
    can be repeated: files that have arrived are not sent again.

    Args:
        repo_id: `name`, or `organization/name`.
        private: visibility of a new repository; by default that of the account.
        token: by default the one that `hf auth login` keeps.
        revision: branch; made if there is none of that name.
        create_pr: open a pull request instead of committing.
        max_shard_size: split the weights anew, into files of at most this size, such as `"5GB"`.
        tags: further tags for the card.

    Raises:
        PublishError: the folder is no checkpoint, there is no token or it may not write, or the Hub cannot be reached.
    """
    root = _checkpoint_folder(folder)
    check_target(repo_id, token)
    if max_shard_size is not None:
        return push_model(
            load_model(root),
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=tags,
        )
    api = HfApi(token=token, library_name="hf_vitcompress", library_version=__version__)
    try:
        repo = persistently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        branch = revision or "main"
        if revision is not None and not revision.startswith("refs/") and not create_pr:
            persistently(lambda: api.create_branch(repo, branch=branch, exist_ok=True))
        push = _Push(api, root, repo, branch, create_pr, tags or [])
        return push.commit(commit_message or "Upload compressed model", commit_description)
    except EXPECTED as error:
        raise PublishError(explained(error, repo_id, str(folder))) from error


class _Push:
    """One folder on its way to one branch."""

    def __init__(self, api: HfApi, root: Path, repo: str, branch: str, create_pr: bool, tags: list[str]) -> None:
        self.api, self.root, self.repo, self.branch = api, root, repo, branch
        self.create_pr, self.tags = create_pr, tags
        files = {path for pattern in PUBLISHED for path in root.glob(pattern) if path.is_file()}
        self.files = {path.relative_to(root).as_posix(): path for path in sorted(files)}

    def commit(self, message: str, description: str | None) -> CommitInfo:
        """On top of the branch as it was when its card was read: nobody's edit is overwritten unseen."""
        for attempt in range(1, ATTEMPTS + 1):
            head = persistently(lambda: self.api.model_info(self.repo, revision=self.branch))
            present = {sibling.rfilename for sibling in head.siblings or []}
            card = self._card(head.sha if CARD_FILE in present else None)
            stale = [name for name in present if WEIGHTS.fullmatch(name) and name not in self.files]
            try:
                return self._send(card, stale, head.sha, message, description)
            except HTTP_ERRORS as error:
                if status_of(error) not in CONFLICTS or attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _send(
        self, card: bytes | None, stale: list[str], head: str | None, message: str, description: str | None
    ) -> CommitInfo:
        def additions() -> list[CommitOperationAdd]:
            return [CommitOperationAdd(name, str(path)) for name, path in self.files.items()]

        if self.create_pr:
            # By itself, because it can be repeated; the request that opens the pull request cannot.
            uploads = additions()
            persistently(lambda: self.api.preupload_lfs_files(self.repo, uploads, create_pr=True, revision=self.branch))

        def send() -> CommitInfo:
            operations: list[Any] = [*additions(), *(CommitOperationDelete(name) for name in stale)]
            if card is not None:
                operations.append(CommitOperationAdd(CARD_FILE, card))
            return self.api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                commit_description=description,
                revision=self.branch,
                create_pr=self.create_pr,
                parent_commit=head,
            )

        return persistently(send, lost_answers=not self.create_pr)

    def _card(self, head: str | None) -> bytes | None:
        """The card to commit: ours in the card of the branch at `head`, or in the folder's where that has none."""
        remote = None
        if head is not None:
            file = persistently(lambda: self.api.hf_hub_download(self.repo, CARD_FILE, revision=head))
            remote = read_card(Path(file).read_text(encoding="utf-8"))
        local = self._local_card({} if remote is None else remote.data.to_dict())
        if local is None or remote is None:
            return None if local is None else str(local).encode()
        if not own_text(remote):
            remote.text = local.text  # nobody wrote there: keep what was written here
        elif own_text(local) not in ("", own_text(remote)):
            logger.warning(
                f"The card of {self.repo} and {CARD_FILE} in {self.root} were both edited: the text of the one on the "
                "Hub is kept."
            )
        return str(renewed(remote, local)).encode()

    def _local_card(self, known: dict[str, Any]) -> ModelCard | None:
        """The folder's card with the lines for this repository; `None` where nothing is known about the model."""
        with tempfile.TemporaryDirectory() as temporary:
            for name in (CARD_FILE, *self.files):
                if (self.root / name).is_file():
                    (Path(temporary) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(temporary) / name).symlink_to(self.root / name)
            try:
                write_card(temporary, repo_id=self.repo, known=known)
            except ReportError:
                logger.warning(f"{self.root} has no {REPORT_FILE}: {self.repo} is published without a card of its own.")
                return None
            card = read_card((Path(temporary) / CARD_FILE).read_text(encoding="utf-8"))
        metadata = card.data.to_dict()
        metadata["tags"] = list(dict.fromkeys([*metadata.get("tags", []), *self.tags]))
        return make_card(metadata, card.text)


def check_target(repo_id: str, token: bool | str | None) -> None:
    """Refuse what the Hub would refuse, before any work is done.

    Raises:
        PublishError: the name is none, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is no name of a Hub repository: {error}") from error
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise PublishError(
            "Publishing needs a Hugging Face token with write access: run `hf auth login`, or give one (token=…, "
            "--token, or the variable HF_TOKEN)."
        )


def _checkpoint_folder(folder: str | Path) -> Path:
    root = Path(folder).resolve()
    if not (root / "config.json").is_file() or not any(root.glob("model*.safetensors")):
        raise PublishError(
            f"{str(folder)!r} is no checkpoint: it has no config.json, or no model.safetensors. Give a folder made by "
            "`vitcompress compress` or save_pretrained."
        )
    index = root / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(name for name in wanted if not (root / name).is_file()):
            raise PublishError(f"{str(folder)!r} lacks {', '.join(missing)}. Copy it again, or save the model again.")
    return root
