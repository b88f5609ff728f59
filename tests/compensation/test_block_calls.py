"""Which blocks read the output of the one before them: models that do something between, and all families."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitcompress.architectures.inputs import model_inputs
from hf_vitcompress.architectures.layers import block_names
from hf_vitcompress.compensation.block_calls import Call, Flow, observe_flow
from support.zoo import HEADS, Head

HIDDEN = torch.arange(12.0).reshape(2, 3, 2)
NAMES = ["blocks.0", "blocks.1", "blocks.2"]


class Block(nn.Module):
    def forward(self, hidden: Tensor, mask: Any = None, **others: Any) -> Any:
        return (2 * hidden, "weights") if others.get("weights") else 2 * hidden


Between = Callable[[int, Tensor], tuple[tuple[Any, ...], dict[str, Any]]]
"""Of a block's index and the hidden states before it: its arguments, by position and by name."""


def alone(index: int, hidden: Tensor) -> Any:
    return (hidden,), {}


class Model(nn.Module):
    """Three blocks, with something between."""

    device = torch.device("cpu")

    def __init__(self, between: Between = alone) -> None:
        super().__init__()
        self.between = between
        self.blocks = nn.ModuleList(Block() for _ in NAMES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = pixel_values
        for index, block in enumerate(self.blocks):
            arguments, named = self.between(index, hidden)
            output = block(*arguments, **named)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


def chained(between: Between) -> list[bool]:
    model: Any = Model(between)
    flow = observe_flow(model, NAMES, {"pixel_values": HIDDEN.clone()}, "float32")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return of_pairs(flow, NAMES)


def of_pairs(flow: Flow, names: list[str]) -> list[bool]:
    return [pair in flow.chained for pair in pairwise(names)]


MASK = torch.tensor([[1, 0]])
ALIKE: dict[str, Between] = {
    "nothing else": alone,
    "by name": lambda i, hidden: ((), {"hidden": hidden}),
    "one tensor": lambda i, hidden: ((hidden, MASK), {}),
    "equal tensors": lambda i, hidden: ((hidden,), {"mask": MASK.clone()}),
    "equal tuples": lambda i, hidden: ((hidden, (4, [MASK.clone(), None])), {"x": {"a": 1.5, "b": "c"}}),
    "more output": lambda i, hidden: ((hidden,), {"weights": True}),
    "equal hidden states in another place": lambda i, hidden: ((hidden.clone(),), {}),
    "another object that is the same": lambda i, hidden: ((hidden, ALIKE), {}),
}


@pytest.mark.parametrize("between", ALIKE.values(), ids=ALIKE)
def test_blocks_that_read_the_output_of_the_one_before_are_chained(between: Between) -> None:
    assert chained(between) == [True, True]


def added_in_place(index: int, hidden: Tensor) -> Any:
    if index == 2:
        hidden += 1
    return (hidden,), {}


def mask_in_place() -> Between:
    mask = torch.ones(2)

    def between(index: int, hidden: Tensor) -> Any:
        if index == 2:
            mask.zero_()
        return (hidden, mask), {}

    return between


# Each of them differs before the last block only.
DIFFERENT: dict[str, Between] = {
    "added": lambda i, hidden: ((hidden + (i == 2),), {}),
    "added in place": added_in_place,
    "another mask, in place": mask_in_place(),
    "fewer tokens": lambda i, hidden: ((hidden[:, : 3 - i // 2],), {}),
    "other type": lambda i, hidden: ((hidden.double() if i == 2 else hidden,), {}),
    "position": lambda i, hidden: ((hidden,), {}) if i < 2 else ((), {"hidden": hidden}),
    "mask": lambda i, hidden: ((hidden, MASK + i // 2), {}),
    "named mask": lambda i, hidden: ((hidden,), {"mask": MASK + i // 2}),
    "no mask": lambda i, hidden: ((hidden, None if i == 2 else MASK), {}),
    "one argument more": lambda i, hidden: ((hidden,), {"x": 1} if i == 2 else {}),
    "sizes": lambda i, hidden: ((hidden, (4, 4 - i // 2)), {}),
    "length": lambda i, hidden: ((hidden, (4,) * (1 + i // 2)), {}),
    "in a mapping": lambda i, hidden: ((hidden,), {"x": {"a": [i // 2]}}),
    "text": lambda i, hidden: ((hidden,), {"x": "ab"[i // 2]}),
    "unknown objects": lambda i, hidden: ((hidden, ALIKE if i < 2 else {**ALIKE, "x": object}), {}),
}


@pytest.mark.parametrize("between", DIFFERENT.values(), ids=DIFFERENT)
def test_blocks_whose_inputs_differ_in_anything_else_are_not(between: Between) -> None:
    assert chained(between) == [True, False]


def test_hidden_states_that_are_no_numbers_are_the_same_as_nothing() -> None:
    assert chained(lambda i, hidden: ((hidden * float("nan"),), {})) == [False, False]


class Twice(Model):
    """Runs its second block twice."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        first, second, third = self.blocks
        return third(second(second(first(pixel_values))))


class Crooked(Model):
    """Has its blocks in another order than it runs them, and leaves one out."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        first, second, _ = self.blocks
        return first(second(pixel_values))


@pytest.mark.parametrize(("model_class", "known"), [(Twice, NAMES), (Crooked, NAMES[:2])])
def test_blocks_that_are_called_in_another_order_or_more_than_once_are_not_chained(
    model_class: type[Model], known: list[str]
) -> None:
    model: Any = model_class()
    flow = observe_flow(model, NAMES, {"pixel_values": HIDDEN}, "float32")
    assert of_pairs(flow, NAMES) == [False, False]
    assert set(flow.bytes) == set(known)


def test_the_bytes_of_inputs_are_those_of_all_tensors() -> None:
    model: Any = Model(lambda i, hidden: ((hidden[:, i:], (MASK, {"a": MASK})), {"x": [MASK]}))
    flow = observe_flow(model, NAMES, {"pixel_values": HIDDEN}, "float32")
    assert flow.bytes == {name: 4 * 2 * (3 - i - max(0, i - 1)) * 2 + 3 * 16 for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("arguments", [(HIDDEN, MASK), (None, HIDDEN)])
def test_a_call_is_repeated_as_it_was(arguments: tuple[Any, ...]) -> None:
    seen: list[Any] = []

    class Watching(nn.Module):
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            seen.append((arguments, named))
            return HIDDEN

    Watching()(*arguments, x=3)
    call = Call.of(arguments, {"x": 3})
    assert call.hidden is HIDDEN
    call.run(Watching())
    assert seen[0] == seen[1]
    named = Call.of((1, MASK), {"hidden_states": HIDDEN, "y": 2})
    named.run(Watching())
    assert seen[2] == ((1, MASK), {"hidden_states": HIDDEN, "y": 2})


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_blocks_of_every_family_are_chained_where_nothing_happens_between(head: Head) -> None:
    model = head.dense()
    names = block_names(model)
    with torch.no_grad():
        flow = observe_flow(model, names, model_inputs(model, head.pixels(3)), "float32")
    assert set(flow.bytes) == set(names)
    if head.family == "yolos":
        expected = [False] * (len(names) - 1)  # position embeddings are added between
    elif head.name.startswith(("Swin", "UperNet")):
        expected = [name.split(".blocks.")[0] == later.split(".blocks.")[0] for name, later in pairwise(names)]
    else:
        expected = [True] * (len(names) - 1)
    assert of_pairs(flow, names) == expected
