"""Compute inputs on access, from a tensor that several tasks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""Maps inputs (batch, ...) to inputs (batch, ...), each example separately."""


class LazyInputs:
    """A tensor's rows, passed through functions on access.

    Args:
        base: (examples, ...), shared and never changed.
        rows: int64, (examples,), rows of `base`.
        functions: applied in this order.
    """

    def __init__(self, base: Tensor, rows: Tensor, functions: tuple[Function, ...] = ()) -> None:
        self.base, self.rows, self.functions = base, rows, functions

    @property
    def shape(self) -> torch.Size:
        """Shape (examples, ...), as a tensor's."""
        return torch.Size((len(self.rows), *self._apply(self.base[:1]).shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """The rows' type after the functions."""
        return self._apply(self.base[:1]).dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the examples at the index, (batch, ...)."""
        return self._apply(self.base[self.rows[index]])

    def _apply(self, inputs: Tensor) -> Tensor:
        for function in self.functions:
            inputs = function(inputs)
        return inputs

    def take(self, rows: Tensor) -> LazyInputs:
        """Select rows, without computing them."""
        return LazyInputs(self.base, self.rows[rows], self.functions)

    def then(self, function: Function) -> LazyInputs:
        """Append a function."""
        return LazyInputs(self.base, self.rows, (*self.functions, function))
