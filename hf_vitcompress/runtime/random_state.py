"""The caller's random states, which no work of ours may change, and switches, which may not change our work."""

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch


@contextlib.contextmanager
def unchanged_random_state() -> Iterator[None]:
    """A block after which the random states of Python, numpy and torch (GPUs, too) are what they were before.

    Nothing in this package draws from them. What it runs may: data sets that augment, a `DataLoader` that shuffles, the
    constructors of models.
    """
    states = random.getstate(), numpy.random.get_state()
    # Asking a GPU that is not in use yet would claim memory on it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextlib.contextmanager
def independent_of_caller() -> Iterator[None]:
    """As `unchanged_random_state`, with gradients even where the caller has switched them off.

    Under `torch.inference_mode` every tensor that is made could never be trained.
    """
    with unchanged_random_state(), torch.inference_mode(False), torch.enable_grad():
        yield
