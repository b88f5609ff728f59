"""What a model costs, counted and not measured: parameters, multiply-accumulates, bytes."""

import contextlib
import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.constructors import constructor_options
from ..architectures.inputs import example_inputs
from ..architectures.merging import patches_in, tokens_left
from ..model.making import without_storage
from ..runtime.weights import plain_tensors
from ..tokens_factored import MergedTokensMixin, config_of
from .shapes import Remembered


@dataclass(frozen=True)
class Costs:
    """Costs of a model, counted and not measured.

    Attributes:
        parameters: all of the model's, heads and embeddings included.
        macs: multiply-accumulates of one forward pass over one image.
        bytes: size of the weights in memory, with the scales and zero points of quantized ones.
    """

    parameters: int
    macs: int
    bytes: int


def count_costs(model: PreTrainedModel, shape: Sequence[int] | None = None) -> Costs:
    """What `model` costs for images of which one has that shape; see `count_macs`."""
    parameters = list(model.parameters())
    return Costs(
        parameters=sum(p.numel() for p in parameters),
        macs=count_macs(model, shape),
        bytes=sum(tensor_bytes(p) for p in parameters),
    )


def patch_tokens(model: PreTrainedModel, shape: Sequence[int]) -> tuple[int, int] | None:
    """Patch tokens in the first and in the last block of a model that merges tokens; `None` of another.

    Args:
        shape: of one image's `pixel_values`.
    """
    blocks = [module for module in model.modules() if isinstance(module, MergedTokensMixin)]
    if not blocks:
        return None
    patches = patches_in(config_of(cast(nn.Module, blocks[0])), shape[-2:])
    return patches, tokens_left(patches, (block.merged_tokens for block in blocks))


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes; a quantized one has the shape and dtype of what it stands for, and smaller parts."""
    return sum(part.numel() * part.element_size() for part in plain_tensors(tensor))


def count_macs(model: PreTrainedModel, shape: Sequence[int] | None = None) -> int:
    """Multiply-accumulates per image: matrix products and convolutions, attention's two products included.

    Counted by torch's own counter on a copy without storage, which is made of the model's class and config: layers
    that somebody put into the model afterwards (quantized ones, adapters, gates) count as those they stand for. Norms,
    softmax and activations are not counted. Models of one class and config are counted once for each shape.

    Args:
        shape: of one image's `pixel_values`; by default that which the config is made for, see `example_inputs`.
    """
    options = constructor_options(model)
    blueprint = Blueprint(type(model), model.config.to_json_string(use_diff=False), (*options.items(),), model.config)
    return macs_of(blueprint, None if shape is None else tuple(shape))


@dataclass(frozen=True)
class Blueprint:
    """All that decides how a model is built, comparable and hashable.

    Attributes:
        model_class: of the model.
        description: its config as JSON, by which blueprints are compared.
        options: arguments of the constructor that the config does not know.
        config: what `description` describes.
    """

    model_class: type[PreTrainedModel]
    description: str
    options: tuple[tuple[str, Any], ...]
    config: PreTrainedConfig = field(compare=False)

    def build(self) -> PreTrainedModel:
        """The model in evaluation mode, on the meta device, its attention spelled out in products."""
        # A copy: `_from_config` writes the attention implementation and the dtype into the config it is given.
        config = copy.deepcopy(self.config)
        return without_storage(self.model_class, config, "eager", torch.float32, **dict(self.options)).eval()


@functools.lru_cache(maxsize=256)
def macs_of(blueprint: Blueprint, shape: tuple[int, ...] | None) -> int:
    """What `count_macs` says of any model that is built like that."""
    model = blueprint.build()
    inputs = example_inputs(model, shape=shape)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = cast(Any, _NoTracker())
    with Remembered(), counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops() // 2


class _NoTracker(contextlib.nullcontext[None]):
    """In place of the counter's own, which tells modules apart and for that hooks into all of them, in every thread."""

    parents = ("Global",)
