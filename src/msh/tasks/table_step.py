"""Turn rows of a table into features: the first step of a table's preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from msh.errors import Problems, invalid, suggestion
from msh.tasks.cells import Where, column_cells, row_number
from msh.tasks.columns import AnyColumn, Category, Date
from msh.tasks.steps import CONFIG

CHUNK = 4096
"""Rows that features are written for at a time: as many as a processor's cache holds."""
GROUP = 16
"""Features, at least, that are read before they are written."""


@dataclass(frozen=True, config=CONFIG)
class ReadTable:
    """Read rows of a table as features, column by column.

    Attributes:
        columns: all columns of the training file, in the order of their features; dropped ones have none.
        dtype: of the features.
    """

    columns: tuple[AnyColumn, ...]
    dtype: Literal["float32", "float64"] = "float64"
    step: Literal["table"] = "table"

    @cached_property
    def inputs(self) -> list[str]:
        """Names of the columns that rows need."""
        return [column.name for column in self._used]

    @cached_property
    def shape(self) -> tuple[int]:
        """Shape of one row: its features."""
        return (sum(column.features for column in self._used),)

    @cached_property
    def _used(self) -> list[AnyColumn]:
        return [column for column in self.columns if column.role != "dropped"]

    def __call__(self, inputs: Any) -> Tensor:
        """Return the features (rows, features) of a DataFrame, of dicts (one per row), or of an array (rows, inputs).

        Additional columns are ignored. Arrays have the columns in `inputs`, in this order; masked cells are missing.

        Raises:
            ValueError: columns are missing, or a cell has a wrong value.
        """
        import pandas as pd

        if isinstance(inputs, pd.DataFrame):
            cells = self._cells_of_frame(inputs)
        elif isinstance(inputs, Tensor | np.ndarray):
            cells = self._cells_of_array(inputs if isinstance(inputs, np.ndarray) else np.asarray(inputs))
        elif isinstance(inputs, Sequence) and inputs and all(isinstance(row, Mapping) for row in inputs):
            cells = self._cells_of_rows(inputs)
        else:
            raise invalid("inputs", "a DataFrame, a list of dicts, or an array (rows, columns)", type(inputs).__name__)
        return self._read(cells, row_number, [np.arange(len(inputs))], reports=True)[0]

    def read(self, frame: Any, where: Where) -> Tensor:
        """Return the features of a DataFrame; `where` names its rows in errors."""
        return self.read_parts(frame, where, [np.arange(len(frame))])[0]

    def read_parts(self, frame: Any, where: Where, parts: Sequence[np.ndarray]) -> list[Tensor]:
        """Return the features of some rows of a DataFrame, without those of all rows in memory.

        Args:
            frame: pandas DataFrame (rows, columns).
            where: names its rows in errors.
            parts: rows of each part, int64 (rows,).
        """
        return self._read(self._cells_of_frame(frame), where, parts)

    def _read(
        self, cells: Sequence[Any], where: Where, parts: Sequence[np.ndarray], reports: bool = False
    ) -> list[Tensor]:
        """Return the features of some rows.

        Args:
            cells: of the columns in `inputs`, (rows,) each.
            where: names the rows in errors.
            parts: rows of each part, int64 (rows,).
            reports: warn of columns whose cells are hardly meant as they are read.
        """
        features = [np.empty((len(rows), *self.shape), dtype=self.dtype) for rows in parts]
        end = 0
        group: dict[int, np.ndarray] = {}  # first feature to values
        with Problems() as problems:
            for column, own in zip(self._used, cells, strict=True):
                values = problems.check(column.read, own, where)
                if values is not None:
                    group[end] = values
                    if reports and isinstance(column, Category | Date):
                        column.report(own, values)
                end += column.features
                if end - min(group, default=end) >= GROUP or column is self._used[-1]:
                    _write(group, parts, features)
                    group = {}
        return [torch.from_numpy(part) for part in features]

    def _check_columns(self, names: Sequence[str]) -> None:
        there = set(names)
        if missing := [name for name in self.inputs if name not in there]:
            raise ValueError(
                f"inputs: the columns {', '.join(map(repr, missing))} are missing; there are "
                f"{', '.join(map(repr, names)) or 'none'}{suggestion(missing[0], names)}"
            )
        if len(there) < len(names) and (repeated := [name for name in self.inputs if names.count(name) > 1]):
            raise ValueError(
                f"inputs: the columns {', '.join(map(repr, repeated))} are there more than once: name each column once"
            )

    def _cells_of_frame(self, frame: Any) -> list[Any]:
        """Return the columns' cells (rows,) of a DataFrame; those that are no columns may be in its index, by name."""
        names = [str(name).strip() for name in frame.columns]
        needed = set(self.inputs) - set(names)
        if in_index := [name for name in frame.index.names if name is not None and str(name).strip() in needed]:
            frame = frame.reset_index(level=in_index)
            names = [*(str(name).strip() for name in in_index), *names]
        self._check_columns(names)
        at = {name: place for place, name in enumerate(names)}
        frame = frame.reset_index(drop=True)
        return [column_cells(frame.iloc[:, at[name]]) for name in self.inputs]

    def _cells_of_rows(self, rows: Sequence[Mapping[Any, Any]]) -> list[np.ndarray]:
        """Return the columns' cells, objects (rows,), of dicts."""
        with Problems() as problems:
            for number, row in enumerate(rows):
                with_prefix = Problems(f"{row_number(number)}: ")
                with_prefix.check(self._check_columns, [str(name).strip() for name in row])
                problems.problems += with_prefix.problems
        rows = [{str(name).strip(): cell for name, cell in row.items()} for row in rows]
        # fromiter, since assignments would look into cells that are lists
        return [np.fromiter((row[name] for row in rows), dtype=object, count=len(rows)) for name in self.inputs]

    def _cells_of_array(self, array: np.ndarray) -> list[Any]:
        """Return the columns' cells (rows,) of an array (rows, inputs)."""
        import pandas as pd

        if array.ndim != 2 or array.shape[1] != len(self.inputs):
            raise invalid("inputs: the shape", f"(rows, {len(self.inputs)})", tuple(array.shape))
        frame = pd.DataFrame(array)
        return [column_cells(frame.iloc[:, place]) for place in range(len(self.inputs))]


def _write(group: Mapping[int, np.ndarray], parts: Sequence[np.ndarray], features: Sequence[np.ndarray]) -> None:
    """Copy columns into the parts' features, a chunk of rows at a time: whole columns would pass the cache each time.

    Args:
        group: first feature to the columns' values (rows, features).
        parts: rows of each part, int64 (rows,).
        features: of each part (rows, features).
    """
    for rows, part in zip(parts, features, strict=True):
        for first in range(0, len(rows), CHUNK):
            chosen, out = rows[first : first + CHUNK], part[first : first + CHUNK]
            for start, values in group.items():
                out[:, start : start + values.shape[1]] = values[chosen]
