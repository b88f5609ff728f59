"""What a profile is taken of; how long anything takes is not asked."""

import pytest
import torch

from hf_vitcompress.profiling.measuring import Bench, take_profile, time_operation
from hf_vitcompress.profiling.operations import Activation, Attention, Product
from support.profiles import CONDITIONS

OPERATIONS = [
    *(Product(5, 16, 16), Product(5, 16, 4), Product(5, 4, 16), Product(2, 32, 32)),
    *(
        Activation(5, 16),
        Activation(5, 48),
        Attention(5, 5, 2, 8, 8),
        Attention(5, 5, 2, 8, 2),
        Attention(5, 5, 2, 4, 8),
    ),
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_operation_can_be_timed(dtype: torch.dtype, fused: bool) -> None:
    bench = Bench(torch.device("cpu"), dtype, 2, fused)
    assert all(time_operation(bench, operation) > 0 for operation in OPERATIONS)


def test_windows_are_shared_out_over_the_queries() -> None:
    """Of Swin: more queries in an image than keys in a window."""
    assert time_operation(Bench(torch.device("cpu"), torch.float32, 2), Attention(16, 4, 2, 8, 8)) > 0


def test_a_profile_spans_the_operations_that_were_asked_for() -> None:
    calls: list[None] = []
    bench = Bench(torch.device("cpu"), torch.float32, 1)
    profile = take_profile(bench, OPERATIONS, 0.5, CONDITIONS, done=lambda: calls.append(None))
    assert (profile.dense, profile.conditions) == (0.5, CONDITIONS)
    assert sorted(profile.products) == [2, 5]
    for operation in OPERATIONS:
        if isinstance(operation, Product):
            axes = profile.products[operation.rows].axes
            sizes = operation[1:]
            assert all(axis[0] <= size <= axis[-1] for axis, size in zip(axes, sizes, strict=True))
    assert profile.activations is not None
    assert profile.activations.axes == ((5,), (16, 48))
    assert profile.attentions.keys() == {4, 8}
    assert profile.attentions[8].axes == ((5,), (5,), (2,), (2, 8))
    assert len(calls) >= len(OPERATIONS)
    assert all(profile.seconds(operation) > 0 for operation in OPERATIONS)
