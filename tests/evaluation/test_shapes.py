"""What an operation without storage gives is remembered by the forms of what it is given, and by nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from hf_vitcompress.evaluation.shapes import KEPT, Remembered


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


OPERATIONS: dict[str, Callable[[], Tensor]] = {
    "product": lambda: empty(3, 4) @ empty(4, 5),
    "of another shape": lambda: empty(3, 4) @ empty(4, 6),
    "of another type": lambda: empty(3, 4, dtype=torch.float64) @ empty(4, 5, dtype=torch.float64),
    "of other strides": lambda: empty(4, 3).T + empty(4, 3).T,
    "three results": lambda: layer_norm(empty(2, 8), (8,), empty(8), empty(8)),
    "whole number": lambda: empty(3, dtype=torch.int64) + 1,
    "fraction": lambda: empty(3, dtype=torch.int64) + 1.0,
    "of a list": lambda: torch.cat([empty(2, 3), empty(4, 3)]),
    "a view": lambda: empty(6, 4).reshape(3, 8),
    "along a dimension": lambda: empty(3, 4).sum(1),
    "along another": lambda: empty(3, 4).sum(0),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remembered, "known", {})


def form(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def test_results_are_those_of_torch_the_first_time_and_every_other() -> None:
    expected = [form(operation()) for operation in OPERATIONS.values()]
    with torch.no_grad(), Remembered():
        found = [[form(operation()) for operation in OPERATIONS.values()] for _ in range(2)]
    assert found == [expected, expected]
    assert Remembered.known


def test_what_changes_a_tensor_or_is_a_part_of_one_is_done_each_time() -> None:
    tensor = empty(4, 6)
    with torch.no_grad(), Remembered():
        assert all(tensor.add_(1) is tensor for _ in range(2))
        assert all(tensor[1:].untyped_storage()._cdata == tensor.untyped_storage()._cdata for _ in range(2))
    assert not Remembered.known


def test_tensors_with_values_are_computed() -> None:
    with torch.no_grad(), Remembered():
        assert [(torch.full((2,), value) * 3).tolist() for value in (1.0, 2.0)] == [[3.0, 3.0], [6.0, 6.0]]
    assert not Remembered.known


def test_no_more_is_kept_than_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(OPERATIONS) < KEPT
    monkeypatch.setattr("hf_vitcompress.evaluation.shapes.KEPT", 3)
    with torch.no_grad(), Remembered():
        for operation in OPERATIONS.values():
            operation()
            assert len(Remembered.known) <= 3
