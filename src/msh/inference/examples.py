"""Turn the inputs that a caller passes in, one or several, into a sequence of examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from msh.errors import invalid
from msh.inference.router import TEXTS
from msh.tasks.steps import ReadNamed, Steps

WANTED = {
    "table": "a DataFrame of pandas, a dictionary per row, or an array (rows, columns)",
    "images": "paths, bytes of files, Pillow images or arrays",
    "arrays": "arrays of numbers",
    "named": "arrays by name",
    **dict.fromkeys(TEXTS, "texts"),
}
"""First step of a task to the inputs that it reads."""
SHOWN_COLUMNS = 8
"""Columns of a DataFrame that an error lists."""


def as_examples(steps: Steps, inputs: Any) -> Any:
    """Return several inputs, as a list, an array, or for tables a DataFrame, from one or several.

    Args:
        steps: the task's; the first one reads the inputs.
        inputs: one input (a path, text, bytes, image or dictionary; an array of an example's shape), or several.
    Raises:
        ValueError: inputs of this type are not what the task reads, or have no order.
    """
    first: Any = steps[0]
    kind = first.step
    if is_frame(inputs):
        if kind == "table" and hasattr(inputs, "iloc"):
            return inputs
        raise _refused_frame(kind, inputs)
    if is_column(inputs):
        if kind == "table":
            return inputs.to_frame().T
        is_number = kind == "arrays" and getattr(inputs.dtype, "kind", "O") in "buif"
        inputs = inputs.to_numpy() if is_number else inputs.tolist()
    if isinstance(first, ReadNamed):
        return first.examples(inputs if isinstance(inputs, Mapping | tuple) else _listed(kind, inputs))
    if kind == "table" and isinstance(inputs, Mapping):
        _check_row(inputs, first.inputs)
    if isinstance(inputs, str | bytes | Path | Mapping) or hasattr(inputs, "getexif"):
        return [inputs]
    if not hasattr(inputs, "ndim"):
        return _listed(kind, inputs)
    if inputs.ndim == 0 and (kind != "arrays" or first.shape):
        return [inputs.item()]
    if kind in TEXTS or (kind == "images" and getattr(inputs.dtype, "kind", "") in ("O", "U", "S")):
        return inputs.tolist()
    is_one = first.is_one(inputs) if hasattr(first, "is_one") else inputs.ndim == len(first.shape)
    return inputs[None] if is_one else inputs


def is_column(inputs: Any) -> bool:
    """Tell whether inputs are a Series of pandas: a column of a table, or a row."""
    return hasattr(inputs, "iloc") and inputs.ndim == 1


def is_frame(inputs: Any) -> bool:
    """Tell whether inputs are a DataFrame of pandas, or a table of another library, such as polars or pyarrow."""
    if hasattr(inputs, "iloc"):
        return bool(inputs.ndim == 2)
    return hasattr(inputs, "to_pandas") and any(hasattr(inputs, name) for name in ("columns", "column_names"))


def read_once(inputs: Any) -> Any:
    """Return the inputs; those of an iterator, which can be read only once, as a list."""
    return list(inputs) if isinstance(inputs, Iterator) else inputs


def _listed(kind: str, inputs: Any) -> list[Any]:
    if isinstance(inputs, set | frozenset):
        raise invalid("inputs", "a list, as a set has no order", type(inputs).__name__)
    if not isinstance(inputs, Iterable):
        raise invalid("inputs", WANTED[kind], inputs)
    return list(inputs)


def _check_row(row: Mapping[Any, Any], needed: Sequence[str]) -> None:
    """Raise for a dictionary of columns, each with the cells of several rows: a dictionary is one row.

    Args:
        row: column to cell.
        needed: the columns that the task reads.
    """
    for name, cell in row.items():
        several = isinstance(cell, list | tuple | dict | np.ndarray | Tensor) or is_column(cell)
        if several and str(name).strip() in needed:
            raise ValueError(
                f"inputs: a dictionary is one row, but column {name!r} has a {type(cell).__name__}: pass a dictionary "
                "per row, or a DataFrame"
            )


def _refused_frame(kind: str, frame: Any) -> ValueError:
    """Build the error for a DataFrame that a task cannot read: it says what to pass instead."""
    names = [*(frame.columns if hasattr(frame, "iloc") else getattr(frame, "column_names", None) or frame.columns)]
    listed = ", ".join(map(repr, names[:SHOWN_COLUMNS])) + (", ..." if len(names) > SHOWN_COLUMNS else "")
    column = f"pass one of its columns, such as df[{names[0] if names else ''!r}]"
    advice = {
        "table": "convert it with its to_pandas()",
        "arrays": "pass its numbers, such as df.to_numpy()",
        "named": "pass a dictionary of arrays",
    }
    return ValueError(
        f"inputs must be {WANTED[kind]}, got a {type(frame).__name__} with the columns {listed or 'none'}: "
        f"{advice.get(kind, column)}"
    )
