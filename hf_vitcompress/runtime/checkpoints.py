"""Where a long stage writes down how far it has come."""

import contextlib
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import CompensationError
from .distributed import from_main, local_work
from .files import atomic_path, remove, short_name, with_ending
from .identity import PACKAGE, Identity, differences, identity_digest, package_facts

CHECKPOINT_SECONDS = 30.0
"""How much work a kill may cost, about."""

STAGE = "another stage"


def remove_checkpoints(path: Path) -> None:
    """Remove the file `path` and those of all stages named after it, whatever settings they are of.

    What killed runs left of them goes, too: no other process may be writing them.
    """
    names = "|".join(map(re.escape, (path.name, short_name(path))))
    ours = re.compile(rf"\.?({names})(\.[a-z]+-[0-9a-f]{{12}})?(\.\d+-\d+\.part)?")
    for file in list(path.parent.iterdir()):
        if ours.fullmatch(file.name):
            remove(file)


class Checkpoint:
    """A file of tensors and plain data, written by the main process and read for all of them.

    Args:
        path: the file; `None` keeps nothing.
        identity: what the result of the stage is made from; a file that was made from something else is refused.

    Attributes:
        spent: seconds that the stage had taken in earlier runs, when what was loaded was saved.
    """

    def __init__(self, path: Path | None, accelerator: Accelerator, identity: Identity | None = None) -> None:
        self.path, self.accelerator, self.identity = path, accelerator, identity or {}
        self.spent, self._start = 0.0, time.perf_counter()

    @classmethod
    def beside(cls, path: str | Path, stage: str, identity: Identity, accelerator: Accelerator) -> "Checkpoint":
        """A file of that stage, named after `path` and all that its result is made from."""
        identity = {kind: facts for kind, facts in identity.items() if kind != PACKAGE}
        path = with_ending(Path(path), f".{stage}-{identity_digest(identity)}")
        return cls(path, accelerator, {**identity, STAGE: {"name": stage}, PACKAGE: package_facts()})

    def load(self) -> dict[str, Any] | None:
        """What was saved last, or `None`.

        Raises:
            CompensationError: the file is damaged, or made from something else.
        """
        if self.path is None:
            return None
        saved = None
        with local_work(self.accelerator, "Reading the checkpoint"):
            if self.accelerator.is_main_process and self.path.is_file():
                saved = self._read(self.path)
        saved = from_main(self.accelerator, saved)
        if saved is None:
            return None
        self.spent = saved.get("seconds", 0.0)
        return saved["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved before."""
        if self.path is None:
            return
        with local_work(self.accelerator, "Writing the checkpoint"):
            if self.accelerator.is_main_process:
                seconds = self.spent + time.perf_counter() - self._start
                with atomic_path(self.path) as temporary:
                    torch.save({"identity": self.identity, "state": state, "seconds": seconds}, temporary)

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """A block that takes up what was loaded.

        Raises:
            CompensationError: it is the state of something else.
        """
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise self._incomplete() from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
                damaged = archive.testzip()
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what an unpickler meets in a damaged file has no common base class
            raise self._incomplete() from error
        if damaged is not None or not isinstance(content, dict) or set(content) - {"seconds"} != {"identity", "state"}:
            raise self._incomplete()
        if not isinstance(content.get("seconds", 0.0), float):  # files of earlier versions have none
            raise self._incomplete()
        with self.restoring():
            different = differences(content["identity"], self.identity)
        if different:
            raise CompensationError(
                f"The checkpoint {str(path)!r} was made with {different}. Delete it to start this stage again."
            )
        return content

    def _incomplete(self) -> CompensationError:
        return CompensationError(
            f"{str(self.path)!r} is not a complete checkpoint. Delete it to start this stage again."
        )
