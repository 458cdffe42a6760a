"""Inputs that are made when they are asked for, from a tensor that several tasks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""From inputs (batch, ...) to inputs (batch, ...), example by example."""


class LazyInputs:
    """Some rows of a tensor, each batch of them sent through functions.

    Args:
        base: (examples, ...), shared and never changed.
        rows: int64, (examples,), which of them.
        functions: applied in this order.
    """

    def __init__(self, base: Tensor, rows: Tensor, functions: tuple[Function, ...] = ()) -> None:
        self.base, self.rows, self.functions = base, rows, functions

    @property
    def shape(self) -> torch.Size:
        """(examples, ...), as a tensor's."""
        return torch.Size((len(self.rows), *self._made(self.base[:1]).shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """(batch, ...): the examples at the index."""
        return self._made(self.base[self.rows[index]])

    def _made(self, inputs: Tensor) -> Tensor:
        for function in self.functions:
            inputs = function(inputs)
        return inputs

    def take(self, rows: Tensor) -> LazyInputs:
        """Some of the rows, no example made yet."""
        return LazyInputs(self.base, self.rows[rows], self.functions)

    def then(self, function: Function) -> LazyInputs:
        """The same rows, sent through one more function."""
        return LazyInputs(self.base, self.rows, (*self.functions, function))
