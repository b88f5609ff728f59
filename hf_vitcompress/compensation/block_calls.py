"""What blocks are called with, and how hidden states pass from one block to the next.

In most architectures a block reads what the one before it returned, with the same further arguments. Others do
something between: they merge patches between stages, or add position embeddings. `observe_flow` finds out where.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..runtime.devices import autocast
from ..runtime.hooks import first_input, first_of


@dataclass
class Call:
    """What a block is called with.

    Attributes:
        hidden: hidden states (n, …, d).
        arguments, named: all arguments, with `None` in the place of the hidden states.
        place: where these stand: their position, or their name.
        mask: (n, tokens) of the images, 0 where a token is padding; `None` without padding.
    """

    hidden: Tensor
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    place: int | str
    mask: Tensor | None = None

    @classmethod
    def of(cls, arguments: tuple[Any, ...], named: Mapping[str, Any], mask: Tensor | None = None) -> "Call":
        place, hidden = first_input(arguments, named)
        if isinstance(place, int):
            return cls(hidden, (*arguments[:place], None, *arguments[place + 1 :]), dict(named), place, mask)
        return cls(hidden, arguments, {**named, place: None}, place, mask)

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes + sum(tensor.nbytes for tensor in _tensors([self.arguments, self.named]))

    def run(self, block: nn.Module) -> Tensor:
        """The block's output (n, …, d)."""
        arguments, named = list(self.arguments), dict(self.named)
        if isinstance(self.place, int):
            arguments[self.place] = self.hidden
        else:
            named[self.place] = self.hidden
        return first_of(block(*arguments, **named))

    def copy(self) -> "Call":
        """With tensors of its own."""
        hidden, arguments, named = _copied((self.hidden, self.arguments, self.named))
        return Call(hidden, arguments, named, self.place, self.mask)

    def follows(self, previous: "Call", output: Tensor) -> bool:
        """Whether it is what `previous` was, with the output of that in the place of the hidden states."""
        ours, theirs = (self.place, self.arguments, self.named), (previous.place, previous.arguments, previous.named)
        return _same(self.hidden, output) and _same(ours, theirs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(inner) for inner in value)
    return {name: _copied(inner) for name, inner in value.items()} if type(value) is dict else value


def _same(left: Any, right: Any) -> bool:
    """Whether arguments mean the same; where that cannot be told, they do not."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        alike = (left.shape, left.dtype, left.device) == (right.shape, right.dtype, right.device)
        return alike and torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(_same(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    return left is right or (isinstance(left, str | int | float) and left == right)


@dataclass
class Flow:
    """How hidden states pass through a model.

    Attributes:
        chained: pairs of blocks of which the second reads the output of the first.
        bytes: of one batch's inputs of each block.
    """

    chained: set[tuple[str, str]] = field(default_factory=set)
    bytes: dict[str, int] = field(default_factory=dict)


def observe_flow(model: PreTrainedModel, blocks: Sequence[str], inputs: Mapping[str, Any], precision: str) -> Flow:
    """Run the model once and see what each block is called with.

    Args:
        blocks: module names.
        inputs: arguments of the model.
    """
    flow, calls = Flow(), Counter[str]()
    # Copies, because the model may change its tensors in place between two blocks.
    last: tuple[str, Call, Tensor] | None = None
    running: Call | None = None

    def before(name: str, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal running
        call = Call.of(arguments, named)
        calls[name] += 1
        flow.bytes.setdefault(name, call.nbytes)
        if last is not None and call.follows(*last[1:]):
            flow.chained.add((last[0], name))
        running = call.copy()

    def after(name: str, _: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        nonlocal last
        assert running is not None
        last = name, running, first_of(output).detach().clone()

    handles: list[RemovableHandle] = []
    try:
        for name in blocks:
            block = model.get_submodule(name)
            handles.append(block.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(block.register_forward_hook(partial(after, name)))
        with autocast(model, precision):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    # Streams know a block's first call only.
    flow.chained = {pair for pair in flow.chained if calls[pair[0]] == calls[pair[1]] == 1}
    return flow
