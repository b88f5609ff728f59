"""Several processes as one, through accelerate: what is summed, dealt out and gathered.

Started by `accelerate launch --num_processes N` or `torchrun --nproc-per-node N`. With one process every function here
does nothing.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor

from ..errors import DistributedError

T = TypeVar("T")


def new_accelerator() -> Accelerator:
    """The device, and the processes this one was started with.

    Without an accelerator in the machine, processes only find each other if they are told that they are to use CPUs.
    """
    launched = "LOCAL_RANK" in os.environ
    return Accelerator(cpu=launched and not torch.accelerator.is_available())


@contextlib.contextmanager
def local_work(accelerator: Accelerator, doing: str) -> Iterator[None]:
    """A block without communication; if it fails on one process it fails on all, each naming the one and why.

    Raises:
        DistributedError: another process failed. A process that failed itself raises its own error.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    told = None if failure is None else f"{type(failure).__name__}: {failure}"
    failures = gather_objects(accelerator, told)
    if failure is not None:
        # One message is enough where the main process has its own.
        if not accelerator.is_main_process and failures[0] is not None:
            failure.__dict__["reported"] = True
        raise failure
    for process, text in enumerate(failures):
        if text is not None:
            elsewhere = DistributedError(f"{doing} failed on process {process} of {len(failures)}: {text}")
            elsewhere.reported = not accelerator.is_main_process
            raise elsewhere


@contextlib.contextmanager
def _contact(accelerator: Accelerator) -> Iterator[None]:
    """Says in plain words what a collective operation that breaks off means."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1:
            raise
        raise DistributedError(
            f"Process {accelerator.process_index} of {accelerator.num_processes} lost the others; one of them has "
            "ended, and its own message, if it had time for one, says why. Start the same command again: it goes on "
            f"from the last checkpoint. ({str(error).splitlines()[0]})"
        ) from error


def sum_in_place(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes; all must have the same shapes in the same order."""
    if accelerator.num_processes == 1:
        return
    with _contact(accelerator):
        for tensor in tensors:
            tensor.copy_(accelerator.reduce(tensor.to(accelerator.device), "sum"))


def sum_numbers(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Sums over the processes, number by number."""
    total = torch.tensor(numbers, dtype=torch.float64)
    sum_in_place(accelerator, [total])
    return total.tolist()


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> float:
    """Mean of all processes' `values (n,)`; n may differ, and be 0 on some."""
    total, count = sum_numbers(accelerator, [float(values.double().sum()), len(values)])
    return total / count


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """All processes' `rows (n, …)`, process by process; n may differ, and be 0 on some."""
    parts = [part for part in gather_objects(accelerator, rows.cpu()) if len(part)]
    return torch.cat(parts) if parts else rows.cpu()


def gather_objects(accelerator: Accelerator, value: T) -> list[T]:
    """Every process's value, by process."""
    if accelerator.num_processes == 1:
        return [value]
    with _contact(accelerator):
        return gather_object([value])


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's value, on every process."""
    if accelerator.num_processes == 1:
        return value
    with _contact(accelerator):
        return broadcast_object_list([value])[0]


def from_owner(accelerator: Accelerator, tensor: Tensor, owner: int) -> Tensor:
    """The `owner`'s tensor, on every process; the others give one of that shape to overwrite."""
    if accelerator.num_processes == 1:
        return tensor
    with _contact(accelerator):
        received = broadcast(tensor.to(accelerator.device).contiguous(), from_process=owner)
    return received.to(tensor.device)


def deal(costs: Sequence[float], hands: int) -> list[int]:
    """Which of `hands` processes takes each job, so that the costs are nearly equal.

    The dearest job goes first, each to the least loaded process (Graham 1969).
    """
    loads = [0.0] * hands
    owners = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        owners[job] = min(range(hands), key=lambda hand: loads[hand])
        loads[owners[job]] += costs[job]
    return owners


def own_share(accelerator: Accelerator, count: int, start: int = 0) -> range:
    """This process's part of `start … count − 1`: every `num_processes`-th."""
    return range(start + accelerator.process_index, count, accelerator.num_processes)
