"""Steps of an optimizer that several processes share: which images each of them sees, and the sum of what it finds."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..images.images import Batch, ImageSource
from ..runtime.distributed import from_main, local_work, sum_in_place
from ..runtime.run import progress_bar

if TYPE_CHECKING:
    from tqdm.auto import tqdm

TIMED_STEPS = 3


class Steps:
    """Steps over images in random order, the same however often the work was interrupted.

    Args:
        batch_size: images in a step, over all processes; fewer where there are not as many.

    Attributes:
        per_epoch: steps in one pass; images beyond the last whole batch wait for another one.
    """

    def __init__(
        self, images: ImageSource, image_processor: Any, batch_size: int, seed: int, accelerator: Accelerator
    ) -> None:
        self.images, self.processor, self.seed, self.accelerator = images, image_processor, seed, accelerator
        self.batch_size = min(batch_size, len(images))
        self.per_epoch = len(images) // self.batch_size
        self._begun = False

    def own_part(self, step: int) -> list[tuple[Batch, Tensor]]:
        """This process's images of a step, and a draw in [0, 1) for each of them (n,).

        Which they are depends on the step and the seed alone.

        Raises:
            DataError: most of the images cannot be read, or none of the first step.
        """
        epoch, position = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.images), generator=self._generator(0, epoch))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        draws = torch.rand(self.batch_size, dtype=torch.float32, generator=self._generator(1, step))
        own = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        part: list[tuple[Batch, Tensor]] = []
        with local_work(self.accelerator, "Reading images"):
            if len(chosen[own]):
                images = self.images.select(chosen[own].tolist())
                images.tally = self.images.tally
                batches = images.batches(self.processor, len(images), wanted=[0])
                part = [(batch, draws[own][batch.positions]) for batch in batches]
        if not self._begun:
            self._begun = True
            self.images.check_any(self.accelerator)
        return part

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + 2 * number + purpose) % 2**63)

    def in_epochs(self, epochs: float) -> int:
        """Number of steps in so many passes over the images, at least 1."""
        return max(1, round(epochs * self.per_epoch))

    def in_seconds(self, seconds: float, gradients: Callable[[int], float], optimizer: torch.optim.Optimizer) -> int:
        """Number of steps that fit into this time after a few trial steps, at least 1; the same on all processes.

        Args:
            gradients: sets the gradients of a step, of the parameters that the optimizer has.
        """
        start = time.perf_counter()
        step_seconds = self.seconds_of(gradients, optimizer)
        left = seconds - (time.perf_counter() - start)
        return from_main(self.accelerator, max(1, int(left / step_seconds)))

    def seconds_of(self, gradients: Callable[[int], float], optimizer: torch.optim.Optimizer) -> float:
        """Seconds that a step takes, measured on trial steps whose gradients are thrown away."""
        seconds = []
        for trial in range(TIMED_STEPS + 1):
            start = time.perf_counter()
            gradients(trial % self.per_epoch)
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])  # the first one warms up

    def bar(self, doing: str, step: int, total_steps: int, progress: bool) -> "tqdm[Any]":
        """A progress bar that counts images; the main process shows it."""
        shown = progress and self.accelerator.is_main_process
        total, done = total_steps * self.batch_size, step * self.batch_size
        return progress_bar(doing, "images", shown, total=total, initial=done)


def sum_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one exchange; a process may have none."""
    if accelerator.num_processes == 1:
        return
    receivers = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in receivers]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    sum_in_place(accelerator, [flat])
    for parameter, summed in zip(receivers, flat.split([p.numel() for p in receivers]), strict=True):
        parameter.grad = summed.view_as(parameter)
