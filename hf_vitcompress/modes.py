"""How a model is run: in which arithmetic, and without side effects."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .config import Precision
from .errors import ConfigError


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
    configs = {name: value for name, value in vars(model.config).items() if isinstance(value, PreTrainedConfig)}
    return {
        name: config._attn_implementation
        for name, config in {"": model.config, **configs}.items()
        if config._attn_implementation is not None
    }


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel, trained: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """No dropout, gradients of `trained` parameters only, eager attention where its backward pass is faster.

    Undone afterwards.
    """
    training = {module: module.training for module in model.modules()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    attention = attention_implementations(model)
    eager = {name: "eager" if used == "sdpa" else used for name, used in attention.items()}
    settable = model.device.type == "cpu" and model._can_set_attn_implementation()
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
