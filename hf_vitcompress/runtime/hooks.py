"""Looking at what flows through some modules of a model, and leaving no trace of it in the model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


class Reached(Exception):  # noqa: N818 (no error)
    """The module has been called that a forward pass is made for."""


class Capture:
    """Within a `with` block, keeps what flows into and out of some modules in the last forward pass.

    Args:
        ends: whether a pass ends with `Reached` once one of them has been called: what follows is not wanted.

    Attributes:
        inputs, outputs: by module name.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str], ends: bool = False) -> None:
        self.modules, self.ends = {name: model.get_submodule(name) for name in names}, ends
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Capture":
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(self._hook(name), with_kwargs=True))
        return self

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            self.inputs[name], self.outputs[name] = first_input(arguments, named)[1], first_of(output)
            if self.ends:
                raise Reached

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def first_input(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[int | str, Tensor]:
    """Position or name of a module's hidden states among its arguments, and these."""
    if "hidden_states" in named:
        return "hidden_states", named["hidden_states"]
    given: list[tuple[int | str, Any]] = [*enumerate(arguments), *named.items()]
    return next((place, value) for place, value in given if isinstance(value, Tensor))


def first_of(output: Any) -> Tensor:
    """A block's hidden states; some blocks return more beside them."""
    return output[0] if isinstance(output, tuple) else output
