"""How a model is run: in which arithmetic, and without side effects."""

import contextlib
import math
from collections.abc import Collection, Iterator
from typing import Any, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .config import Precision
from .errors import ConfigError
from .inputs import height_and_width
from .modeling_factored import inner_configs

EAGER_TOKENS = 640
"""Up to so many tokens of an image, eager attention has the faster backward pass on a CPU.

With more it is slower, too, and the scores that it stores, heads × tokens² numbers of every image and layer, fill
memory: 384 × 384 pixels in patches of 16 are 576 tokens, 800 × 1333 are 4150 and 32 GB in a batch of 16 and 12 layers.
"""


def resolve_precision(precision: str, device: torch.device) -> str:
    """`"bfloat16"` or `"float32"`; `"auto"` asks the device whether it computes in bfloat16."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
        return "bfloat16" if fast else "float32"
    return "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Forward passes in bfloat16 where `precision` says so; weights stay as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def fast_products(device: torch.device, wanted: bool) -> Iterator[None]:
    """Where `wanted`, float32 products on a CPU take their numbers as bfloat16 and add in float32."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (not in torch's type stubs)
    previous = matmul.fp32_precision
    try:
        if wanted and device.type == "cpu":
            matmul.fp32_precision = "bf16"
        yield
    finally:
        matmul.fp32_precision = previous


def attention_implementations(model: PreTrainedModel) -> dict[str, str]:
    """Which attention function a model uses, and those of the models in it by the name of their config.

    As `attn_implementation` takes it; a model and its backbone may differ.
    """
    return {
        name: config._attn_implementation
        for name, config in {"": model.config, **inner_configs(model.config)}.items()
        if config._attn_implementation is not None
    }


def _eager_pays(model: PreTrainedModel) -> bool:
    """Whether every config in the model's that says for what images it is asks for few enough scores."""
    configs = (model.config, *inner_configs(model.config).values())
    scores = [count for config in configs if (count := _scores(config)) is not None]
    return bool(scores) and max(scores) <= EAGER_TOKENS**2


def _scores(config: PreTrainedConfig) -> int | None:
    """Queries × keys of one head for an image; `None` where the config does not say how large images or patches are."""
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image is None or patch is None:
        return None
    tokens = math.prod(
        -(-size // own) for size, own in zip(height_and_width(image), height_and_width(patch), strict=True)
    )
    window = getattr(config, "window_size", None)
    return tokens * (tokens if window is None else min(tokens, math.prod(height_and_width(window))))


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel, trained: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """No dropout, gradients of `trained` parameters only, eager attention where `EAGER_TOKENS` says that it is faster.

    Undone afterwards.
    """
    training = {module: module.training for module in model.modules()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    attention = attention_implementations(model)
    eager = {name: "eager" if used == "sdpa" else used for name, used in attention.items()}
    settable = model.device.type == "cpu" and model._can_set_attn_implementation() and _eager_pays(model)
    model.eval()
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    if settable and eager != attention:
        model.set_attn_implementation(eager)
    try:
        yield
    finally:
        for parameter, requires_grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(requires_grad)
        if attention_implementations(model) != attention:
            model.set_attn_implementation(attention)
        for module, mode in training.items():
            module.training = mode
