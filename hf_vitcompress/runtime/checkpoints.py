"""Where a long stage writes down how far it has come."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import CompensationError
from .distributed import from_main, local_work
from .files import atomic_path

CHECKPOINT_SECONDS = 30.0
"""How much work a kill may cost, about."""


class Checkpoint:
    """A file of tensors and plain data, written by the main process and read for all of them.

    Args:
        path: the file; `None` keeps nothing.
    """

    def __init__(self, path: Path | None, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator

    def load(self) -> dict[str, Any] | None:
        """What was saved last, or `None`.

        Raises:
            CompensationError: the file is damaged.
        """
        if self.path is None:
            return None
        saved = None
        with local_work(self.accelerator, "Reading the checkpoint"):
            if self.accelerator.is_main_process and self.path.is_file():
                try:
                    saved = torch.load(self.path, map_location="cpu", weights_only=True)
                except Exception as error:  # what an unpickler meets in a damaged file has no common base class
                    raise CompensationError(
                        f"{str(self.path)!r} is not a complete checkpoint. Delete it to start this stage again."
                    ) from error
        return from_main(self.accelerator, saved)

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved before."""
        if self.path is None:
            return
        with local_work(self.accelerator, "Writing the checkpoint"):
            if self.accelerator.is_main_process:
                with atomic_path(self.path) as temporary:
                    torch.save(state, temporary)
