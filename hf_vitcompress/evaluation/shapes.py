"""What operations make of tensors that have shapes and no values."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KEPT = 4096
"""So many operations are remembered; with one more, all are worked out anew."""

Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and type of a tensor."""


class Remembered(TorchDispatchMode):
    """In this thread, an operation on the meta device is worked out once for all tensors of the same forms.

    torch works many of them out in Python, and the blocks of a model are alike.
    """

    known: ClassVar[dict[Any, tuple[Form, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        key = _key(func, args, options)
        if key is None:
            return func(*args, **options)
        if (forms := self.known.get(key)) is not None:
            made = tuple(torch.empty_strided(*form[:2], dtype=form[2], device="meta") for form in forms)
            return made if len(func._schema.returns) > 1 else made[0]
        result = func(*args, **options)
        results = result if isinstance(result, tuple) else (result,)
        if all(type(one) is Tensor and one.is_meta for one in results):
            if len(self.known) >= KEPT:
                self.known.clear()
            self.known[key] = tuple((one.shape, one.stride(), one.dtype) for one in results)
        return result


def _key(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """All that decides the forms of what an operation returns; `None` where it may return one of its arguments."""
    if func._schema.is_mutable or any(one.alias_info is not None for one in func._schema.returns):
        return None
    try:
        key = func, _form(args), _form(tuple(options.items()))
        hash(key)
    except (TypeError, ValueError):
        return None
    return key


def _form(value: Any) -> Any:
    """What a tensor without values is, or any other argument.

    Raises:
        ValueError: the tensor has values, which may matter.
    """
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise ValueError("a tensor with values")
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_form, value))
    return type(value), value  # 1, 1.0 and True are alike, and make tensors of different types
