"""Looking at what flows through some modules of a model, and leaving no trace of it in the model."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .modes import autocast


class Tap:
    """Within a `with` block, keeps what flows into and out of some modules in the last forward pass.

    Attributes:
        inputs, outputs: by module name.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        self.modules = {name: model.get_submodule(name) for name in names}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Tap":
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self.inputs[name], self.outputs[name] = inputs[0], first_of(output)

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def first_of(output: Any) -> Tensor:
    """A block's hidden states; some blocks return more beside them."""
    return output[0] if isinstance(output, tuple) else output


class _Reached(Exception):  # noqa: N818 (no error)
    """The block whose inputs are wanted has been called."""


class BlockStream:
    """One model's inputs of one block, for all images of this process."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.hidden: list[Tensor] = []
        self.rest: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @property
    def bytes(self) -> int:
        return sum(hidden.nbytes for hidden in self.hidden)

    @property
    def images(self) -> int:
        return sum(len(hidden) for hidden in self.hidden)

    def read(self, model: PreTrainedModel, block: str, pixel_values: Tensor) -> None:
        """Add what `model` passes to `block` for these images; nothing after it is computed."""

        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, *others = arguments
            self.hidden.append(hidden)
            self.rest.append((tuple(others), named))
            raise _Reached

        handle = model.get_submodule(block).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with contextlib.suppress(_Reached), autocast(model.device, self.precision):
                model(pixel_values=pixel_values.to(model.device, model.dtype))
        finally:
            handle.remove()

    def run(self, block: nn.Module, index: int) -> Tensor:
        """The block's output (n, tokens, d) for one batch."""
        arguments, named = self.rest[index]
        with autocast(self.hidden[index].device, self.precision):
            output = block(self.hidden[index], *arguments, **named)
        return first_of(output)

    def advance(self, block: nn.Module) -> None:
        """From the inputs of `block` to those of the next one."""
        for index in range(len(self.hidden)):
            self.hidden[index] = self.run(block, index)
