"""Models made without changing anything for the other threads of the process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops

from ..configuration_factored import inner_configs

MAKING = threading.RLock()
"""Held while a model is loaded or built: transformers then replaces functions of torch and of its own for the whole
process, and of two threads that do so at a time, one puts back for good what the other had put in place."""


FILLING = {nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_}
"""What layers fill their tensors with when they are made; of tensors without storage that is a quarter of the time."""


class _Unfilled(TorchFunctionMode):
    """In this thread, those functions leave tensors as they are."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in FILLING:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """What is made in the block has no storage; numbers that constructors ask of a `torch.linspace` are there."""
    with MAKING, torch.device("meta"), meta_device_safe_creation_ops():
        yield


def without_storage(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    attention: str | dict[str, str],
    dtype: torch.dtype,
    **options: Any,
) -> PreTrainedModel:
    """A model whose tensors have shapes and no values, buffers included; no random number is drawn.

    accelerate's `init_empty_weights` replaces methods of `nn.Module`, which all threads share, and `_from_config` given
    a dtype changes torch's default one, which they share, too. The meta device is this thread's alone.

    Args:
        config: becomes the model's own.
        attention: as `attn_implementation` takes it.
        options: arguments of the constructor that the config does not know.
    """
    _note_dtype(config, None)
    with on_meta(), _Unfilled():
        model = model_class._from_config(config, attn_implementation=attention, dtype=None, **options)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            _note_dtype(module.config, dtype)
    return model.to(dtype=dtype)


def take_buffers(model: nn.Module, source: nn.Module) -> None:
    """Copy to `model` the buffers of `source` that no checkpoint holds, such as position ids and rotary frequencies."""
    known, saved = dict(source.named_buffers()), model.state_dict().keys()
    for path, module in model.named_modules():
        for name in dict(module.named_buffers(recurse=False)):
            if (full := f"{path}.{name}".removeprefix(".")) not in saved:
                setattr(module, name, known[full].detach().clone())


def _note_dtype(config: PreTrainedConfig, dtype: torch.dtype | None) -> None:
    """In a config and those in it."""
    config.dtype = dtype
    for inner in inner_configs(config).values():
        _note_dtype(inner, dtype)
