"""What keeps quantization through `from_pretrained` from failing on models of images."""

import copy
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

from ..architectures.timm_inputs import WRAPPER
from .making import without_storage


class ReadableQuantizer(TorchAoHfQuantizer):
    """Writes what torchao reads again: its list can have no tensor whose name has no dot, as CLIP's logit_scale.

    Tensors that are not in it are read as those of any checkpoint.
    """

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, str]]:
        """As torchao's, without the names that it could not read."""
        state, metadata = super().get_state_dict_and_metadata(model)
        listed = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
        return state, {**metadata, "tensor_names": json.dumps(listed)}


def write_readably(model: PreTrainedModel) -> None:
    """Let a model that torchao quantized be saved by `ReadableQuantizer`."""
    if type(quantizer := getattr(model, "hf_quantizer", None)) is TorchAoHfQuantizer:
        quantizer.__class__ = ReadableQuantizer


def quantizable(found: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class to quantize while loading: transformers then asks for input embeddings, which images need not have."""

    def get_input_embeddings(model: PreTrainedModel) -> Any:
        try:
            return found.get_input_embeddings(model)
        except NotImplementedError:
            return None

    body = {"__module__": found.__module__, "get_input_embeddings": get_input_embeddings}
    return type(found.__name__, (found,), body)


def spare_narrow_layers(
    quantization: TorchAoConfig, model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> list[str]:
    """Tell a quantization, in place, to leave layers alone that read one feature; their names.

    torchao takes the scales of such a weight, one for each row, for one scale of it all.
    """
    empty = _empty(model_class, config)
    linears = {name: module for name, module in empty.named_modules() if isinstance(module, nn.Linear)}
    narrow = [name for name, module in linears.items() if module.in_features == 1]
    _spare(quantization, empty, narrow)
    return narrow


def spare_layers_with_biases_beside(
    quantization: TorchAoConfig, model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> list[str]:
    """Tell a quantization, in place, to leave timm's `qkv` alone where biases of queries and values stand beside it.

    timm then reads the weight without the layer, in a way that torchao's tensors do not take; their names.
    """
    if config.model_type != WRAPPER:
        return []
    empty = _empty(model_class, config)
    parents = [name for name, module in empty.named_modules() if getattr(module, "q_bias", None) is not None]
    layers = [f"{name}.qkv" for name in parents if isinstance(empty.get_submodule(f"{name}.qkv"), nn.Linear)]
    _spare(quantization, empty, layers)
    return layers


def _empty(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    return without_storage(model_class, copy.deepcopy(config), config._attn_implementation, torch.float32)


def _spare(quantization: TorchAoConfig, model: PreTrainedModel, names: list[str]) -> None:
    if names:
        spared = [*(quantization.modules_to_not_convert or []), *names]
        quantization.modules_to_not_convert = sorted(
            HfQuantizer.get_modules_to_not_convert(model, spared, add_default_skips=True)
        )
