"""Split a table's rows: at random, by a column that says so, by group or by time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from msh.errors import invalid, one_of
from msh.tasks.build import TEST_FRACTION, empty_part, hold_out
from msh.tasks.cells import (
    NO_DATE,
    cell_error,
    coded,
    find_date_format,
    merged,
    numbers_or_bad,
    read_dates,
    report_short_years,
)
from msh.tasks.labels import value_of
from msh.tasks.options import Kind
from msh.tasks.table_files import Table
from msh.tasks.task import Split

WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Cells of a column that names each row's split, in any case."""
VAL_FRACTION = 0.2
"""Share of the rows outside the test split that validate, where groups or time decide."""


@dataclass(frozen=True)
class SplitBy:
    """A column that splits the rows.

    Attributes:
        by: "column": names each row's split; "group": its values stay in one split; "time": the latest rows test.
        name: the column's.
        role: the one that a setting chooses for the column, such as "date %d.%m.%Y", in which times are written; or "".
    """

    by: Literal["column", "group", "time"]
    name: str
    role: str = ""

    @classmethod
    def parse(
        cls, split: Mapping[str, str] | None, others: Mapping[str, Any], roles: Mapping[str, str] | None = None
    ) -> SplitBy | None:
        """Read `source.split`.

        Args:
            split: {"column", "group" or "time": name of a column}, or None.
            others: settings that cannot be set beside it.
            roles: `source.columns`.
        """
        if split is None:
            return None
        if not isinstance(split, Mapping) or len(split) != 1 or not all(isinstance(n, str) for n in split.values()):
            raise invalid("source.split", "one of {column: NAME}, {group: NAME}, {time: NAME}", split)
        [(by, name)] = split.items()
        one_of("source.split", by, ("column", "group", "time"))
        if clash := [key for key, value in others.items() if value is not None]:
            raise ValueError(f"source.split = {dict(split)} cannot be set beside source.{clash[0]}: remove one")
        return cls(cast(Literal["column", "group", "time"], by), name, str((roles or {}).get(name, "")))


@dataclass(frozen=True)
class Rows:
    """Rows of the training file in each split, int64 (rows,); None: another file, or held out later."""

    train: np.ndarray
    val: np.ndarray | None = None
    test: np.ndarray | None = None

    @property
    def fitted(self) -> np.ndarray:
        """Rows outside the test split, in their order in the file."""
        return np.sort(self.train if self.val is None else np.concatenate([self.train, self.val]))


def split_rows(
    table: Table,
    targets: Tensor,
    kind: Kind,
    by: SplitBy | None,
    test_fraction: float | None,
    test_seed: int | None,
    has_tests: bool,
) -> Rows:
    """Split the rows of the training file.

    Args:
        table: the training file.
        targets: (rows, ...).
        kind: the task's; a classification's classes stay in proportion if there are enough examples.
        by: the column that decides; None: at random, the same for every seed.
        test_fraction: the test split's share.
        test_seed: see `table`.
        has_tests: the test split has its own file.
    Raises:
        ValueError: a split would be empty, or the column's cells do not fit.
    """
    rows = np.arange(len(targets))
    if has_tests:
        return Rows(rows)
    if test_seed is not None:
        return _last_shuffled(len(rows), test_fraction or TEST_FRACTION, test_seed)
    if by is None:
        halves = hold_out(Split(torch.from_numpy(rows), targets), test_fraction, kind)
        train, test = (cast(Tensor, half.inputs).numpy() for half in halves)
        return Rows(train, test=test)
    cells = table.column(f"source.split.{by.by}", by.name)
    if by.by == "column":
        return _named(table, by.name, cells)
    if by.by == "group":
        groups, _ = merged(*coded(cells), value_of)  # one group too few leaks nothing
        if (groups < 0).any():
            raise cell_error(table.row, by.name, cells, groups < 0, "is no group (source.split.group)")
        rest, test = _grouped(rows, groups, test_fraction or TEST_FRACTION)
        return Rows(*_grouped(rest, groups, VAL_FRACTION), test)
    order = np.argsort(_times(table, by.name, cells, by.role), kind="stable")
    rest, test = _cut(order, test_fraction or TEST_FRACTION)
    train, val = _cut(rest, VAL_FRACTION)
    return Rows(np.sort(train), np.sort(val), np.sort(test))


def _named(table: Table, name: str, cells: Any) -> Rows:
    parts = {word: part for part, words in WORDS.items() for word in words}
    codes, texts = coded(cells)
    named = np.array([parts.get(text.casefold(), "") for text in texts] + [""])[codes]
    if (named == "").any():
        raise cell_error(table.row, name, cells, named == "", "is no split: source.split.column has train, val, test")
    train, val, test = (np.flatnonzero(named == part) for part in WORDS)
    for part, chosen in (("train", train), ("test", test)):
        if not len(chosen):
            raise ValueError(f"{table.path}, column {name!r}: no row is of the {part} split (source.split.column)")
    return Rows(train, val if len(val) else None, test)


def _grouped(rows: np.ndarray, groups: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split rows so that a group is on one side: the second has about this share of the groups."""
    from sklearn.model_selection import GroupShuffleSplit

    if len(np.unique(groups[rows])) < 2:
        raise ValueError("source.split.group needs at least three groups: one for each split")
    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=0)
    try:
        [(first, second)] = splitter.split(rows, groups=groups[rows])
    except ValueError as error:
        raise ValueError(f"source.split.group: a share of {fraction} leaves a split without a group") from error
    return rows[np.sort(first)], rows[np.sort(second)]


def _times(table: Table, name: str, cells: Any, role: str) -> np.ndarray:
    """Read a column as times: as dates if its role says so or some cells are no numbers, else as numbers."""
    kind, _, format = role.partition(" ")
    times, bad = numbers_or_bad(cells)
    missing = np.isnan(times)
    are_dates = kind == "date" or bad.any()
    if are_dates:
        format = format or find_date_format(name, coded(cells)[1]) or ""
        times = read_dates(cells, format, table.row, name)
        missing = times == NO_DATE
    if missing.any():
        raise cell_error(table.row, name, cells, missing, "is no time (source.split.time)")
    if are_dates:
        report_short_years(cells, times, format, name)
    return times


def _cut(order: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    cut = len(order) - int(np.ceil(len(order) * fraction))
    if cut in (0, len(order)):
        raise empty_part(fraction, len(order))
    return order[:cut], order[cut:]


def _last_shuffled(rows: int, fraction: float, seed: int) -> Rows:
    order = np.random.RandomState(seed).permutation(rows)
    cut = int(rows * (1 - fraction))
    if cut in (0, rows):
        raise empty_part(fraction, rows)
    return Rows(order[:cut], test=order[cut:])
