"""Putting new files in the place of old ones, so that a kill at any moment leaves the old, the new, or what can go on.

The new files lie in a folder inside their target, with a journal that says what each replaces and what is removed. Once
that folder has the name `READY`, the exchange only goes on; every step of it can be done again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..configuration_factored import MODELING_FILE
from ..configuration_timm import FILES as TIMM_FILES
from ..errors import OutputError
from ..modeling_factored import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, READY, holds_weights
from .files import file_digest, sync
from .manifest import has_changed, is_inside, is_peoples, manifest_text, written_files

NEW = "new"
JOURNAL = "exchange.json"


@dataclass(frozen=True)
class Journal:
    """What an exchange does.

    Attributes:
        put: digest of the file that each new one replaces, by name; `None` where there is none.
        remove: digest of each file that goes, by name.
    """

    put: dict[str, str | None]
    remove: dict[str, str]


def plan_exchange(target: Path, new: Path, card: str | None, renew: bool) -> Journal:
    """Decide which files those in `new` replace, drop those that would replace somebody's, and add a manifest.

    Args:
        card: digest of the model card in `target` that the one in `new` has been merged with; `None`: there was none.
        renew: whether files of the same names are replaced whoever wrote them, and others stay.

    Raises:
        OutputError: without `renew`, a file would replace one that is not ours.
    """
    ours = written_files(target) if target.is_dir() else {}
    put: dict[str, str | None] = {}
    for name in sorted(_names(new)):
        _refuse_obstacle(target, name)
        there = _digest(target / name)
        if is_peoples(name) and _keeps(name, there, _digest(new / name), ours.get(name), card):
            (new / name).unlink()
        elif there is None or renew or there == ours.get(name) or is_peoples(name):
            put[name] = there
        else:
            raise OutputError(
                f"{str(target / name)!r} was not written by this package and would be replaced. Move it elsewhere, or "
                "choose another name for the output."
            )
    gone = {name: digest for name, digest in ours.items() if name not in put and _goes(name, put, renew)}
    kept = {name: digest for name, digest in ours.items() if renew and name not in gone}
    written = {name: file_digest(new / name) for name in put}
    (new / MANIFEST_FILE).write_text(manifest_text({**kept, **written}), encoding="utf-8")
    return Journal({**put, MANIFEST_FILE: _digest(target / MANIFEST_FILE)}, gone)


def put_in_place(target: Path, staging: Path, journal: Journal) -> None:
    """Let the files in `staging / NEW` take their places in `target`, by one renaming where there is no such folder."""
    (staging / JOURNAL).write_text(json.dumps(asdict(journal)), encoding="utf-8")
    _sync_tree(staging)
    if not target.is_dir():
        os.replace(staging / NEW, target)
        sync(target.parent)
        return
    os.replace(staging, target / READY)
    sync(target)
    complete(target)


def complete(target: Path) -> None:
    """Go on with an exchange that has begun, if one has.

    Raises:
        OutputError: a file has been changed since the exchange was interrupted, the journal of that is damaged, or the
            folder cannot be written to.
    """
    ready = target / READY
    if not ready.is_dir() or ready.is_symlink():
        return
    try:
        if (ready / JOURNAL).is_file():
            _go_on(target, ready / NEW, _read(ready / JOURNAL, target))
            (ready / JOURNAL).unlink()
            sync(ready)
        shutil.rmtree(ready)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"The files of {str(target)!r} could not all be replaced: {error}. Nothing is lost: the next command that "
            "uses the folder goes on with it."
        ) from error


def _go_on(target: Path, new: Path, journal: Journal) -> None:
    """`config.json` goes first and comes last: a folder between the two does not load."""
    if (new / CONFIG_FILE).exists():
        _remove(target, CONFIG_FILE, journal.put[CONFIG_FILE])
        sync(target)
    for name, digest in journal.remove.items():
        _remove(target, name, digest)
    for name in sorted(journal.put, key=lambda name: name == CONFIG_FILE):
        if not (new / name).exists():
            continue  # it is in its place already
        if name == CONFIG_FILE:
            sync(target)
        _refuse_changed(target, name, journal.put[name])
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, target / name)
    sync(target)


def _remove(target: Path, name: str, digest: str | None) -> None:
    _refuse_changed(target, name, digest)
    (target / name).unlink(missing_ok=True)


def _refuse_changed(target: Path, name: str, digest: str | None) -> None:
    """What somebody put there after the exchange had begun is not ours to replace."""
    if has_changed(target / name, digest):
        raise OutputError(
            f"{str(target / name)!r} was changed while the files of its folder were being replaced. Move it elsewhere "
            "and run the same command again, which goes on with that."
        )


def _refuse_obstacle(target: Path, name: str) -> None:
    """That a file can be put there, which is certain before anything is moved."""
    path = target / name
    folders = [folder for folder in path.parents if folder.is_relative_to(target)]
    taken = path.exists() and not path.is_file()
    if taken or any(folder.exists() and not folder.is_dir() for folder in folders) or not is_inside(target, name):
        raise OutputError(f"{str(path)!r} is in the way of a file of that name. Move it elsewhere.")


def _keeps(name: str, there: str | None, new: str | None, ours: str | None, card: str | None) -> bool:
    """Whether the file of a person's kind that is there stays as it is."""
    if name == CARD_FILE:
        return there != card or new == card
    return there is not None and there != ours


def _goes(name: str, put: dict[str, str | None], renew: bool) -> bool:
    """Whether a file of ours that has no successor is removed; a person's kind never is."""
    if renew:  # weights of an earlier save in another number of shards, and code that the model's own does not need
        code = name in TIMM_FILES and MODELING_FILE in put
        return code or (holds_weights(name) and any(map(holds_weights, put)))
    return not is_peoples(name)


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir() and path.name != MANIFEST_FILE:
            yield path.relative_to(folder).as_posix()


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _read(path: Path, target: Path) -> Journal:
    try:
        journal = Journal(**json.loads(path.read_text(encoding="utf-8")))
        if not all(is_inside(target, name) for name in (*journal.put, *journal.remove)):
            raise ValueError("it names files outside the folder")
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"The exchange of files in {str(target)!r} was interrupted, and {str(path)!r} is damaged: {error}. Remove "
            f"{READY!r} from the folder, and write the folder again."
        ) from error
    return journal


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))
