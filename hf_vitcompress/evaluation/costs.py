"""What a model costs, counted and not measured: parameters, multiply-accumulates, bytes."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..architectures.inputs import example_inputs
from ..architectures.layers import constructor_options
from ..runtime.weights import plain_tensors


@dataclass(frozen=True)
class Costs:
    """Attributes:
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


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes; a quantized one has the shape and dtype of what it stands for, and smaller parts."""
    return sum(part.numel() * part.element_size() for part in plain_tensors(tensor))


def count_macs(model: PreTrainedModel, shape: Sequence[int] | None = None) -> int:
    """Multiply-accumulates per image: matrix products and convolutions, attention's two products included.

    Counted by torch's own counter on a copy without storage. Norms, softmax and activations are not counted.

    Args:
        shape: of one image's `pixel_values`; by default that which the config is made for, see `example_inputs`.
    """
    with init_empty_weights(include_buffers=True):
        # A copy: `_from_config` writes the attention implementation and the dtype into the config it is given.
        config = copy.deepcopy(model.config)
        options = constructor_options(model)
        twin = type(model)._from_config(config, attn_implementation="eager", dtype=torch.float32, **options)
    twin.eval()
    inputs = example_inputs(twin, shape=shape)
    if "pixel_attention_mask" in inputs:
        inputs["pixel_attention_mask"] = None  # whether it is full can be asked only of numbers; and it is
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(**inputs)
    return counter.get_total_flops() // 2
