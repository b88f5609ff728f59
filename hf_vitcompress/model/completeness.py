"""Whether a checkpoint holds the weights that its model runs with; transformers makes up those that it lacks."""

import contextlib
import copy
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import logger as loading_logger

from ..architectures.constructors import constructor_options
from ..architectures.inputs import example_inputs
from ..architectures.outputs import read_outputs
from ..architectures.running import attention_implementations
from ..architectures.subject import Subject
from ..configuration_factored import inner_configs
from ..errors import UnsupportedModelError
from ..runtime.text import printable
from ..runtime.weights import stored_sizes, weight_files
from .making import without_storage

NAMED = 3
"""So many tensors are named, and the others counted."""


def check_complete(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> str | None:
    """Refuse a model some of whose weights are made up, if its outputs depend on them.

    Args:
        name: of the checkpoint.
        info: what `from_pretrained` gives with `output_loading_info=True`.

    Returns:
        a sentence about tensors that are in the model or in the checkpoint only and change nothing; `None` where there
        are none.

    Raises:
        UnsupportedModelError: weights that the model runs with are missing in the checkpoint, of another shape, or
            not finite.
    """
    shapes = {key: (tuple(stored), tuple(wanted)) for key, stored, wanted in info["mismatched_keys"]}
    absent, unknown = sorted({*info["missing_keys"], *shapes}), sorted(info["unexpected_keys"])
    running = running_tensors(model, absent)
    if running:
        described = [_with_shapes(key, shapes.get(key)) for key in running]
        foreign = f" It holds {_named(unknown)}, which the model does not have." if unknown else ""
        raise UnsupportedModelError(
            f"The checkpoint {name!r} lacks weights that {type(model).__name__} runs with, and they would be random: "
            f"{_named(described)}.{foreign} Give the checkpoint that belongs to this config.json. If they are meant to "
            "be new, such as those of a classifier, load the model with from_pretrained, train it, and give it or the "
            "folder it is saved to."
        )
    if broken := [key for key, tensor in model.named_parameters() if not _finite(tensor)]:
        raise UnsupportedModelError(
            f"The checkpoint {name!r} holds weights that are infinite or no numbers: {_named(broken)}. Save the model "
            "again from a state before its training failed."
        )
    idle = [key for key in absent if key not in running]
    parts = [f"has no {_named(idle)}, which change no output" if idle else "", _unused(unknown)]
    said = " and ".join(part for part in parts if part)
    return f"The checkpoint {name!r} {said}." if said else None


def check_size(name: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Refuse a config that makes a far larger model than its folder has weights for, before memory is taken for it.

    Raises:
        UnsupportedModelError: a size in the config does not fit the weights.
    """
    if not (sizes := stored_sizes(weight_files(name))):
        return
    if (blocks := _blocks(config)) > len(sizes):
        raise _too_large(name, f"{blocks:,} blocks", f"{len(sizes):,} tensors")
    empty = without_storage(model_class, copy.deepcopy(config), config._attn_implementation, torch.float32)
    wanted = sum(parameter.numel() for parameter in empty.parameters())
    if wanted > 4 * sum(sizes) + 2**24:
        raise _too_large(name, f"{wanted:,} parameters", f"weights for {sum(sizes):,}")


def _blocks(config: PreTrainedConfig) -> int:
    """The largest number of blocks in a config and those in it."""
    own = getattr(config, "num_hidden_layers", None)
    return max([own if isinstance(own, int) else 0, *map(_blocks, inner_configs(config).values())])


def _too_large(name: str, wanted: str, stored: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The config.json of {name!r} describes a model of {wanted}, and the folder holds {stored}. Restore the "
        "config.json that was saved with them."
    )


def running_tensors(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """Those of a model's tensors on which what it says of images depends.

    A copy without numbers is run and differentiated. Of a model that takes more than images, every tensor counts.
    """
    if not names:
        return []
    try:
        used = differentiated(model)
    except Exception:  # the forward pass of any class; what cannot be run without numbers may need every tensor
        used = set(dict(model.named_parameters()))
    derived = {key for key, buffer in model.named_buffers() if not buffer.is_floating_point()}
    parameters = dict(model.named_parameters()).keys()
    return [key for key in names if key in used or (key not in parameters and key not in derived)]


def differentiated(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that get a gradient from the terms that a model's outputs are compared by."""
    config, attention = copy.deepcopy(model.config), attention_implementations(model)
    twin = without_storage(type(model), config, attention, torch.float32, **constructor_options(model)).eval()
    twin.requires_grad_(True)
    inputs = example_inputs(twin, 2)
    terms = read_outputs(Subject.alone(twin), twin(**inputs), inputs)
    total = torch.stack([term.values.sum() for term in terms]).sum()
    parameters = dict(twin.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {key for key, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Without the table of keys that transformers prints, in this thread; `check_complete` says what matters of it."""
    own = _NoReport()
    loading_logger.addFilter(own)
    try:
        yield
    finally:
        loading_logger.removeFilter(own)


class _NoReport(logging.Filter):
    """Drops the tables of the thread that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread or "LOAD REPORT" not in record.getMessage()


def _unused(unknown: Sequence[str]) -> str:
    return f"holds {_named(unknown)}, which the model does not have" if unknown else ""


def _finite(tensor: Tensor) -> bool:
    """A quantized one counts as it is: its scales are what its weights were."""
    return is_traceable_wrapper_subclass(tensor) or bool(torch.isfinite(tensor.detach()).all())


def _with_shapes(key: str, shapes: tuple[tuple[int, ...], tuple[int, ...]] | None) -> str:
    return key if shapes is None else f"{key} (stored {list(shapes[0])}, wanted {list(shapes[1])})"


def _named(keys: Sequence[str]) -> str:
    """A few of them, and how many there are."""
    more = f" and {len(keys) - NAMED:,} others" if len(keys) > NAMED else ""
    return f"{', '.join(map(printable, keys[:NAMED]))}{more}"
