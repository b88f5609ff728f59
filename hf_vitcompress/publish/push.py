"""Publishing a compressed checkpoint on the Hub: one commit, with a card that keeps what a person wrote."""

import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin, logging

from ..errors import PublishError, ReportError, VitCompressError
from ..modeling_factored import CARD_FILE, holds_weights
from ..report.card_file import Card
from ..report.report import REPORT_FILE, CompressionReport
from ..runtime.text import printable
from ..version import __version__
from .cards import write_card
from .cards.merging import own_text, renewed
from .files import checked_folder, link_files, resharded
from .names import is_inside, left_out, published_files
from .retries import CLIENT_ERRORS, CONFLICTS, explained, is_transient, persistently, status_of
from .saved import restored_companions

LARGEST_SHARD = "50GB"

ATTEMPTS = 4
"""How often a commit is made anew on top of what somebody else has committed meanwhile."""

SHOWN = 5
"""So many names of files that stay are said, and the others counted."""

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
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
) -> CommitInfo:
    """Publish a compressed model with image processor, recipe, plan, report, figure and card; see `push_folder`.

    If the model was loaded from a folder or from the Hub, the files beside it there are published with it. For a model
    with adapters only the adapters are published, as transformers does.
    """
    check_repository(repo_id, token)
    settings: dict[str, Any] = {
        "commit_message": commit_message,
        "commit_description": commit_description,
        "private": private,
        "token": token,
        "revision": revision,
        "create_pr": create_pr,
        "tags": tags,
    }
    if getattr(model, "_hf_peft_config_loaded", False):
        return PushToHubMixin.push_to_hub(model, repo_id, **settings)  # type: ignore[return-value]
    try:
        model.companions = restored_companions(model)  # type: ignore[assignment]
    except CLIENT_ERRORS as error:
        raise PublishError(explained(error, repo_id, "the model")) from error
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size or LARGEST_SHARD)
        return push_folder(folder, repo_id, **settings)


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

    The repository is created if it does not exist. An existing card keeps its text and metadata; only the marked block
    and the facts of the compression are renewed. Weights of an earlier push with another number of shards are removed.
    A push that fails can be repeated: files that have arrived are not sent again.

    Args:
        folder: folder of the compressed model.
        repo_id: `name`, or `organization/name`.
        commit_message: title of the commit.
        commit_description: text of the commit.
        private: visibility of a new repository; by default that of the account.
        token: access token; by default the one that `hf auth login` stored.
        revision: branch; created if it does not exist.
        create_pr: open a pull request instead of committing.
        max_shard_size: split the weights into files of at most this size, such as `"5GB"`.
        tags: further tags for the card.

    Returns:
        the commit, or the pull request with its address.

    Raises:
        PublishError: the folder is not a checkpoint, the token is missing or may not write, or the Hub cannot be
            reached.
    """
    root = checked_folder(folder)
    check_repository(repo_id, token)
    _say_what_stays(root)
    api = HfApi(token=token, library_name="hf_vitcompress", library_version=__version__)
    try:
        with tempfile.TemporaryDirectory() as other:
            files = published_files(root) if max_shard_size is None else resharded(root, max_shard_size, Path(other))
            repo = persistently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
            branch = revision or "main"
            if revision is not None and not revision.startswith("refs/") and not create_pr:
                persistently(lambda: api.create_branch(repo, branch=branch, exist_ok=True))
            push = _Push(api, root, files, repo, branch, create_pr, tags or [])
            return push.commit(commit_message or "Upload compressed model", commit_description)
    except VitCompressError:
        raise
    except EXPECTED as error:
        raise PublishError(explained(error, repo_id, str(folder))) from error


def _say_what_stays(root: Path) -> None:
    """One line about what is in the folder and is not published."""
    if names := left_out(root):
        shown, more = ", ".join(map(printable, names[:SHOWN])), len(names) - SHOWN
        logger.warning(
            f"Not published, because they are no files of a model or lead out of the folder: {shown}"
            f"{f' and {more} more' if more > 0 else ''}."
        )


def own_card(root: Path) -> bytes | None:
    """The card in a folder; `None` where it has none, or a link that leads out of it."""
    return (root / CARD_FILE).read_bytes() if is_inside(root, root / CARD_FILE) else None


class _Push:
    """One folder on its way to one branch."""

    def __init__(
        self,
        api: HfApi,
        root: Path,
        files: dict[str, Path],
        repo: str,
        branch: str,
        create_pr: bool,
        tags: list[str],
    ) -> None:
        self.api, self.root, self.files, self.repo, self.branch = api, root, files, repo, branch
        self.create_pr, self.tags = create_pr, tags
        self.card = own_card(root)

    def commit(self, message: str, description: str | None) -> CommitInfo:
        """On top of the branch as it was when its card was read: nobody's edit is overwritten unseen."""
        for attempt in range(1, ATTEMPTS + 1):
            head = persistently(lambda: self.api.model_info(self.repo, revision=self.branch))
            present = {sibling.rfilename for sibling in head.siblings or []}
            card = self._card(head.sha if CARD_FILE in present else None)
            stale = [name for name in present if holds_weights(name) and name not in self.files]
            try:
                return self._send(card, stale, head.sha, message, description)
            except CLIENT_ERRORS as error:
                if status_of(error) not in CONFLICTS or attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _send(
        self, card: bytes | None, stale: list[str], head: str | None, message: str, description: str | None
    ) -> CommitInfo:
        uploads = self._additions(card)
        if self.create_pr:
            # By itself, because it can be repeated; the request that opens the pull request cannot.
            persistently(
                lambda: self.api.preupload_lfs_files(
                    self.repo, uploads, create_pr=True, revision=self.branch, free_memory=False
                )
            )

        def send() -> CommitInfo:
            # Anew each time, because they remember what the branch had when it was first asked.
            additions = uploads if self.create_pr else self._additions(card)
            return self.api.create_commit(
                self.repo,
                [*additions, *(CommitOperationDelete(name) for name in stale)],
                commit_message=message,
                commit_description=description,
                revision=self.branch,
                create_pr=self.create_pr,
                parent_commit=head,
            )

        try:
            return persistently(send, repeatable=not self.create_pr)
        except CLIENT_ERRORS as error:
            if self.create_pr and is_transient(error):
                raise PublishError(
                    f"The Hub failed while the pull request to {self.repo!r} was being opened, and may have opened it: "
                    "look there before you repeat the command."
                ) from error
            raise

    def _additions(self, card: bytes | None) -> list[CommitOperationAdd]:
        files = [CommitOperationAdd(name, str(path)) for name, path in self.files.items()]
        return files if card is None else [*files, CommitOperationAdd(CARD_FILE, card)]

    def _card(self, head: str | None) -> bytes | None:
        """The card to commit: ours in the card of the branch at `head`, or in the folder's where that has none."""
        remote = None
        if head is not None:
            file = persistently(lambda: self.api.hf_hub_download(self.repo, CARD_FILE, revision=head))
            remote = Card.load(file)
        try:
            if REPORT_FILE not in self.files:
                raise ReportError(
                    f"There is no {REPORT_FILE} in {str(self.root)!r}: it was not made by compress. If it was trained "
                    "from a model that was, copy that model's files compression_* into it and push it again."
                )
            report = CompressionReport.load(self.files[REPORT_FILE].parent)
        except ReportError as error:
            logger.warning(f"{self.repo} is published without a card of ours. {error}")
            return self.card if remote is None else None
        local = self._local_card(report, {} if remote is None else remote.metadata)
        if remote is None:
            return str(local).encode()
        if not own_text(remote):
            remote.text = local.text  # nobody wrote there: keep what was written here
        elif own_text(local) not in ("", own_text(remote)):
            logger.warning(
                f"The card of {self.repo} and {CARD_FILE} in {self.root} were both edited: the text of the one on the "
                "Hub is kept."
            )
        return str(renewed(remote, local)).encode()

    def _local_card(self, report: CompressionReport, known: dict[str, Any]) -> Card:
        """The folder's card with the lines and tags for this repository."""
        with tempfile.TemporaryDirectory() as temporary:
            link_files(self.files, Path(temporary))
            if self.card is not None:
                (Path(temporary) / CARD_FILE).write_bytes(self.card)
            card = write_card(temporary, report, self.repo, known)
        tags = card.metadata["tags"]
        return Card({**card.metadata, "tags": [*tags, *(tag for tag in self.tags if tag not in tags)]}, card.text)


def check_repository(repo_id: str, token: bool | str | None) -> None:
    """Refuse what the Hub would refuse, before any work is done.

    Raises:
        PublishError: the name is none, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is no name of a Hub repository: {error}") from error
    given = token if isinstance(token, str) else None if token is False else get_token()
    if not given:
        raise PublishError(
            "Publishing needs a Hugging Face token with write access: run `hf auth login`, or give one (token=…, "
            "--token, or the variable HF_TOKEN)."
        )
    if not re.fullmatch(r"[!-~]+", given):
        # Said here, because the client's own message would show it.
        raise PublishError("The token has spaces, line breaks or other characters that no token has. Copy it again.")
