"""What a tap sees, and that it leaves no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_vitcompress.runtime.hooks import Capture, first_input

HIDDEN, OTHER = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("arguments", "named", "place"),
    [
        ((HIDDEN,), {}, 0),
        ((HIDDEN, OTHER), {"mask": OTHER}, 0),
        ((None, HIDDEN), {}, 1),
        ((), {"hidden_states": HIDDEN}, "hidden_states"),
        ((OTHER,), {"mask": OTHER, "hidden_states": HIDDEN}, "hidden_states"),
        ((), {"flag": True, "states": HIDDEN, "mask": OTHER}, "states"),
    ],
)
def test_hidden_states_are_found_by_position_or_name(
    arguments: tuple[Any, ...], named: dict[str, Any], place: int | str
) -> None:
    found = first_input(arguments, named)
    assert found[0] == place
    assert found[1] is HIDDEN


class Block(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states + 1, None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.second(hidden_states=self.first(hidden)[0])[0]


def test_a_tap_sees_inputs_and_outputs_and_leaves_no_trace() -> None:
    model: Any = Model()
    with Capture(model, ["first", "second"]) as tap:
        model(HIDDEN)
        model(2 * HIDDEN)
    model(3 * HIDDEN)
    assert {name: float(seen.mean()) for name, seen in tap.inputs.items()} == {"first": 2, "second": 3}
    assert {name: float(seen.mean()) for name, seen in tap.outputs.items()} == {"first": 3, "second": 4}
    assert not any(module._forward_hooks for module in model.modules())
