"""Compute inputs on access, from a tensor that several tasks share, in memory or in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""Maps inputs (batch, ...) to inputs (batch, ...), each example separately."""
CHUNK = 64
"""Examples computed at once where a whole split is read."""


class StoredTensor:
    """A tensor in a file, whose rows are read on access: no more of it is in memory than what is in use.

    Reading, unlike mapping the file, also keeps the process small where memory is free, and raises on a short file.

    Args:
        path: holds the numbers row by row, as this machine stores them.
        shape: (examples, ...).
        dtype: of the numbers.
        offset: bytes before the first row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> None:
        self.path, self.shape, self.dtype, self.offset = path, torch.Size(shape), dtype, offset
        self._row = math.prod(shape[1:]) * dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)

    def __reduce__(self) -> tuple[type[StoredTensor], tuple[object, ...]]:
        return StoredTensor, (self.path, tuple(self.shape), self.dtype, self.offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read rows.

        Raises:
            OSError: the file has been cut.
        """
        rows = torch.arange(len(self))[index].tolist()
        values = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        memory = values.view(torch.uint8).numpy().reshape(-1)
        for place, row in enumerate(rows):
            part = memory[place * self._row : (place + 1) * self._row]
            if os.preadv(self._file, [part.data], self.offset + row * self._row) != self._row:
                raise OSError(f"{self.path} has been cut: delete it, and start again")
        return values


class LazyInputs:
    """A tensor's rows, passed through functions on access.

    Args:
        base: (examples, ...), shared and never changed.
        rows: int64, (examples,), rows of `base`.
        functions: applied in this order.
    """

    def __init__(self, base: Tensor | StoredTensor, rows: Tensor, functions: tuple[Function, ...] = ()) -> None:
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
        return self._apply(rows_at(self.base, self.rows[index]))

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


Inputs = Tensor | LazyInputs
"""A split's inputs."""


def rows_at(inputs: Inputs | StoredTensor, index: Tensor) -> Tensor:
    """Return the rows at an index, int64 (rows,); `index_select` copies a tensor's in a third of `[]`'s time."""
    if isinstance(inputs, Tensor) and inputs.is_contiguous() and index.dim() == 1:
        return inputs.index_select(0, index)
    return inputs[index]


def is_stored(inputs: Inputs) -> bool:
    """Tell whether inputs are in a file, and may be more than memory holds."""
    return isinstance(inputs, LazyInputs) and isinstance(inputs.base, StoredTensor)


def chunks(inputs: Inputs) -> Iterator[Tensor]:
    """Yield all inputs in order, CHUNK at a time."""
    for start in range(0, len(inputs), CHUNK):
        yield inputs[start : start + CHUNK]


def equal(one: Inputs, other: Inputs) -> bool:
    """Tell whether inputs are the same, without computing all of them at once."""
    if one.shape != other.shape:
        return False
    return all(torch.equal(a, b) for a, b in zip(chunks(one), chunks(other), strict=True))
