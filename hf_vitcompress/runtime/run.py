"""What every stage is handed: the recipe, the processes and the progress bars."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from ..config import CompressionConfig
from .distributed import new_accelerator

STREAM_IMAGES = 4096
"""So many images are drawn from a stream where no setting says how many are wanted.

They are held in memory: 2.5 GB of ready `pixel_values` of 224 × 224. A stream need not have an end."""


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
        """How many images of a stream the stages can use at most; `None`: all that are held."""
        config = self.config
        wanted = config.num_images
        if wanted is None:
            return None
        if config.compensation != "none":
            learn = (config.compensation_images or STREAM_IMAGES) if config.distills else wanted
            wanted = max(wanted, learn + config.held_out_images)
        return wanted + (config.validation_images if config.searches_accuracy else 0)

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
