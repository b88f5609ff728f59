"""Whether a model's weights are all there, and plain: numbers that can be read, differentiated and factored."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import UnsupportedModelError

QUANTIZERS = ("quant", "torchao", "bitsandbytes", "gptq", "awq", "hqq")
"""Parts of the names of the modules that classes of quantized layers come from."""

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unwrapped(model: Any) -> Any:
    """The model in what `torch.compile` and data parallelism make of one; anything else as it is."""
    return extract_model_from_parallel(model, keep_torch_compile=False) if isinstance(model, nn.Module) else model


def check_plain(model: nn.Module) -> None:
    """That all weights are there, on one device, and floating-point numbers that are not quantized.

    Raises:
        UnsupportedModelError: naming the first that is not, and what to do.
    """
    name = type(model).__name__
    for path, module in model.named_modules():
        if any(word in type(module).__module__.lower() for word in QUANTIZERS):
            raise _quantized(name, path, f"{type(module).__module__}.{type(module).__name__}")
    devices = {str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]}
    for path, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UnsupportedModelError(
                f"{path} of this {name} has no shape yet. Run the model on one image before it is compressed."
            )
        if parameter.is_meta:
            raise _absent(name, path, placed=hasattr(model, "hf_device_map") or _is_offloaded(model))
        if type(parameter) is not nn.Parameter:
            kind = type(parameter).__name__
            if kind == "DTensor":
                raise UnsupportedModelError(
                    f"The weights of this {name} are dealt out over processes ({path} is a DTensor). Load it without "
                    "tp_plan or FSDP, as a whole on each process."
                )
            raise _quantized(name, path, kind)
        if parameter.dtype not in FLOATS:
            raise _quantized(name, path, str(parameter.dtype).removeprefix("torch."))
    if len(devices - {"meta"}) > 1:
        raise UnsupportedModelError(
            f"This {name} is spread over several devices ({', '.join(sorted(devices))}). Put it on one, with "
            "model.to(…), or load it without device_map."
        )


def _is_offloaded(model: nn.Module) -> bool:
    """Whether hooks of accelerate bring weights when they are needed."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _absent(name: str, path: str, placed: bool) -> UnsupportedModelError:
    if placed:
        return UnsupportedModelError(
            f"Weights of this {name} are offloaded to the CPU or to disk ({path} is on the device `meta`). Load it "
            "with from_pretrained without device_map."
        )
    return UnsupportedModelError(
        f"This {name} has no weights: {path} is on the device `meta`. Load it with from_pretrained, or fill it with "
        "to_empty and load_state_dict."
    )


def _quantized(name: str, path: str, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"This {name} is quantized already ({path} is {kind}). Give the model as it was before quantization; "
        "quantize the compressed one with hf_vitcompress.quantize."
    )
