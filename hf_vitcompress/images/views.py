"""Sequences that hold nothing: what is asked for is read from where it lies."""

from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Chosen(Sequence[T]):
    """The values at some indices of a sequence, in their order."""

    def __init__(self, values: Sequence[T], indices: Sequence[int]) -> None:
        self.values: Sequence[T] = values
        self.indices: Sequence[int] = indices
        if isinstance(values, Chosen):  # so that a choice from a choice is no slower than one
            self.values, self.indices = values.values, [values.indices[i] for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Chosen[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Chosen[T]":
        if isinstance(index, slice):
            return Chosen(self.values, self.indices[index])
        return self.values[self.indices[index]]
