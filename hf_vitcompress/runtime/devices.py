"""What a device computes in, and what it is called."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol, get_args

import torch

from ..config import Precision
from ..errors import ConfigError, shown


class Placed(Protocol):
    """What lies on a device and has a type, as models and tensors do."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def check_precision(precision: str) -> None:
    """Refuse what names no precision.

    Raises:
        ConfigError: with the names there are.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is one of {', '.join(get_args(Precision))}, not {shown(precision)}.")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`"bfloat16"` or `"float32"`; `"auto"` asks the device whether it computes in bfloat16."""
    check_precision(precision)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
        return "bfloat16" if fast else "float32"
    return "float32"


def autocast(model: Placed, precision: str) -> torch.autocast:
    """Forward passes in bfloat16 where `precision` says so; weights stay as they are.

    A model whose own weights are of another type than float32 computes in that.
    """
    wanted = precision == "bfloat16" and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=wanted)


_switch = threading.RLock()


@contextlib.contextmanager
def fast_products(device: torch.device, wanted: bool) -> Iterator[None]:
    """Where `wanted`, float32 products on a CPU take their numbers as bfloat16 and add in float32.

    torch has one switch for all threads; those that come here take turns, so that it ends as it was.
    """
    if not wanted or device.type != "cpu":
        yield
        return
    matmul: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (not in torch's type stubs)
    with _switch:
        previous = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = previous


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = torch.cpu.get_capabilities().get("cpu_name", "CPU")
        return f"{name} ({threads} thread{'' if threads == 1 else 's'})"
    return str(device)
