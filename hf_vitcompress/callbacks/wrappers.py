"""The wrappers around a Trainer's model see new parameters."""

from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer


def renew_wrappers(trainer: Trainer) -> None:
    """Let `torch.compile` and `DistributedDataParallel` follow a change of the structure of the Trainer's model."""
    wrapper: Any = trainer.model_wrapped
    if is_compiled_module(wrapper):
        torch.compiler.reset()
        wrapper = wrapper._orig_mod
    if isinstance(wrapper, DistributedDataParallel):
        synchronize_anew(wrapper, trainer.accelerator.ddp_handler)


def synchronize_anew(wrapper: DistributedDataParallel, handler: Any) -> None:
    """Let data parallelism average the gradients of the parameters that the model now has.

    `DistributedDataParallel` takes note of the parameters when it is made, and has no way to be told of others. A new
    wrapper would not do: the Trainer's loop holds this one in a variable of its own until the training ends, and
    passes it to every step. So the object stays, and is initialised again, which also gives all processes the main
    one's weights. `handler` are the Trainer's `DistributedDataParallelKwargs`, or `None`.
    """
    options: dict[str, Any] = {} if handler is None else handler.to_kwargs()
    options |= {"device_ids": wrapper.device_ids, "output_device": wrapper.output_device}
    state: Any = wrapper
    state.reducer = state.logger = None  # the old reducer takes its hooks off the parameters that stay
    DistributedDataParallel.__init__(wrapper, wrapper.module, **options)
    if handler is not None:
        handler.register_comm_hook(wrapper)
