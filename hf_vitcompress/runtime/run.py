"""What every stage is handed: the recipe, the processes and the progress bars."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..config import CompressionConfig
from .distributed import new_accelerator


@dataclass(frozen=True)
class Run:
    """One way to work: stages that get the same `Run` follow the same recipe on the same processes.

    Attributes:
        config: the recipe.
        accelerator: the device, and the processes that share the work.
        progress: whether to show progress bars; the main process alone shows them.
    """

    config: CompressionConfig
    accelerator: Accelerator = field(default_factory=new_accelerator)
    progress: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.accelerator.is_main_process

    @property
    def images_wanted(self) -> int | None:
        """How many images the stages can use at most; `None`: all there are."""
        config = self.config
        wanted = config.num_images
        if config.compensation != "none":
            more = config.compensation_images
            wanted = None if wanted is None or more is None else max(wanted, more + config.held_out_images)
        return None if wanted is None else wanted + config.validation_images

    def bar(self, doing: str, unit: str, items: Iterable[Any] | None = None, **settings: Any) -> "tqdm[Any]":
        """A progress bar of the main process, over `items` or by hand.

        Args:
            unit: what is counted, such as `"images"`.
            settings: further arguments of `tqdm`, such as `total`.
        """
        return progress_bar(doing, unit, self.progress and self.is_main, iterable=items, **settings)


def progress_bar(doing: str, unit: str, shown: bool, **settings: Any) -> "tqdm[Any]":
    """A progress bar that says what it counts; `settings` are further arguments of `tqdm`.

    It is not shown where there is nothing to count.
    """
    return tqdm(desc=doing, unit=f" {unit}", disable=not shown or settings.get("total") == 0, **settings)
