"""Columns of CSV files as numbers, classes or texts; what does not fit is named with file, line, column and value."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msh.errors import one_of, suggestion
from msh.tasks.build import RawData, hold_out
from msh.tasks.task import Kind, Split

KINDS: tuple[Kind, ...] = ("classification", "regression")
DELIMITERS = (",", ";", "\t", "|")
"""What separates the columns of most CSV files."""
TEST_FRACTION = 0.2
"""Share of the examples that become the test split of a source that is given none."""


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file with a header.

    Attributes:
        path: of the file.
        cells: column name to its cells, as they are written.
        lines: line of the file on which each row ends, from 1.
    """

    path: Path
    cells: dict[str, list[str]]
    lines: list[int]

    def column(self, key: str, name: str) -> list[str]:
        """The cells of a column.

        Raises:
            ValueError: there is no such column; `key` is the setting that named it.
        """
        if name not in self.cells:
            raise ValueError(
                f"{key} = {name!r}: {self.path} has no such column, only {', '.join(map(repr, self.cells))}"
                f"{suggestion(name, self.cells)}"
            )
        return self.cells[name]

    def numbers(self, key: str, names: Sequence[str]) -> Tensor:
        """Columns of numbers: float32, (rows, columns).

        Raises:
            ValueError: a column is missing, or a cell is not a finite number.
        """
        columns = [self._numbers_of(name, self.column(key, name)) for name in names]
        return torch.from_numpy(np.stack(columns, 1))

    def _numbers_of(self, name: str, cells: list[str]) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                numbers = np.array(cells, dtype=np.float64).astype(np.float32)
        except ValueError:
            numbers = np.array([_number(cell) for cell in cells], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise self.error(name, int(bad[0]), "where a finite number belongs", len(bad))
        return numbers

    def error(self, name: str, row: int, problem: str, count: int = 1) -> ValueError:
        """What to raise about a cell, the first of so many in its column."""
        also = f"; {count} rows of this column are so" if count > 1 else ""
        return ValueError(
            f"{self.path}, line {self.lines[row]}, column {name!r}: {self.cells[name][row]!r} {problem}{also}"
        )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def read_table(path: str, encoding: str = "utf-8", delimiter: str = ",") -> Table:
    """Read a CSV file with a header.

    Args:
        path: of the file.
        encoding: of the file.
        delimiter: character between cells.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is in another encoding, has other delimiters, has no rows, or a row has more or fewer cells
            than the header; or the delimiter is not one character.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"':
        raise ValueError(f"source.delimiter = {delimiter!r} is not allowed: one character is, such as ; or a tab")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: paths.data_dir=DIR names the folder of the data")
    content = _decoded(file, encoding)
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # texts may be long
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: not a CSV file ({error})") from error
    if len(rows) < 2:
        raise ValueError(f"{file} has no rows: a header is needed, and at least one row below it")
    header = rows.pop(0)
    if len(header) == 1 and (found := [mark for mark in DELIMITERS if mark != delimiter and mark in header[0]]):
        raise ValueError(
            f"{file}: with source.delimiter = {delimiter!r} all of the header, {header[0]!r}, is one column; "
            f"{found[0]!r} may be what separates its columns"
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{file}: the header names {', '.join(map(repr, twice))} more than once")
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {len(row)} cells, but the header names {len(header)} columns")
    return Table(file, dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)), lines[1:])


def _decoded(file: Path, encoding: str) -> str:
    content = file.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        where = ""
        if isinstance(error, UnicodeDecodeError):
            line = content.count(b"\n", 0, error.start) + 1
            where = f": byte {error.start} (line {line}) is 0x{content[error.start]:02x}"
        raise ValueError(
            f"{file} is not in {encoding}{where}; name its encoding with source.encoding, such as latin-1 or utf-16"
        ) from error
    except LookupError as error:
        raise ValueError(
            f"source.encoding = {encoding!r} is not allowed: a name that Python knows is, such as utf-8 or latin-1"
        ) from error


@dataclass(frozen=True)
class Targets:
    """What a column is as targets, worked out on the training file and the same for the test file.

    Attributes:
        column: its name.
        kind: "classification" or "regression".
        threshold: classification: class 1 where the number is above it, else class 0; None: a class per value.
        classes: the values that stand for classes, in order; empty with a threshold and in regression.
    """

    column: str
    kind: Kind
    threshold: float | None
    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Size of the head."""
        return 1 if self.kind == "regression" else len(self.classes) or 2

    def read(self, table: Table, key: str) -> Tensor:
        """Classification: int64, (rows,); regression: float32, (rows, 1).

        Raises:
            ValueError: a cell is not a number, or stands for no class.
        """
        if self.kind == "regression":
            return table.numbers(key, [self.column])
        if self.threshold is not None:
            return (table.numbers(key, [self.column])[:, 0] > self.threshold).long()
        place = {name: i for i, name in enumerate(self.classes)}
        cells = table.column(key, self.column)
        for row, cell in enumerate(cells):
            if cell not in place:
                raise table.error(self.column, row, f"is no class of the training file ({', '.join(self.classes)})")
        return torch.tensor([place[cell] for cell in cells])


def find_targets(table: Table, key: str, column: str, kind: Kind, threshold: float | None) -> Targets:
    """Work out what the training file's column is as targets; classes come in rising order.

    Args:
        table: the training file.
        key: of the setting that names the column.
        column: its name.
        kind: "classification" or "regression".
        threshold: see `Targets`.
    Raises:
        ValueError: the column is missing or has an empty cell, or the kind or the threshold is not allowed.
    """
    one_of("source.kind", kind, KINDS)
    if threshold is not None and kind != "classification":
        raise ValueError(f"source.threshold = {threshold} is not allowed with kind {kind}: it makes two classes")
    cells = table.column(key, column)
    if "" in cells:
        raise table.error(column, cells.index(""), "where a target belongs", cells.count(""))
    names: tuple[str, ...] = ()
    if kind == "classification" and threshold is None:
        names = sorted_names(cells)
        if len(names) < 2:
            raise ValueError(f"{table.path}, column {column!r}: every row has {names[0]!r}; needs at least two classes")
    return Targets(column, kind, threshold, names)


def sorted_names(values: Sequence[str]) -> tuple[str, ...]:
    """The different values in rising order: of numbers where all are numbers, else of letters."""
    names = sorted(set(values))
    return tuple(names if any(np.isnan(_number(name)) for name in names) else sorted(names, key=float))


def with_test_split(
    split: Split, tests: Split | None, targets: Targets, test_fraction: float | None, test_seed: int | None = None
) -> RawData:
    """Raw data with the test split there is, or with a share of the examples taken for it.

    Raises:
        ValueError: a share or a seed is given beside a test split, or is out of its range.
    """
    check_test_fraction(test_fraction, tests is not None)
    if test_seed is not None and (tests is not None or not 0 <= test_seed < 2**32):
        raise ValueError(f"source.test_seed = {test_seed} is not allowed: 0 to 2**32 - 1, and no source.test_path")
    if test_seed is not None:
        split, tests = _last_shuffled(split, test_fraction or TEST_FRACTION, test_seed)
    elif tests is None:
        split, tests = hold_out(split, test_fraction or TEST_FRACTION, targets.kind)
    return RawData(targets.kind, split, tests, targets.outputs, classes=targets.classes)


def _last_shuffled(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    order = np.random.RandomState(seed).permutation(len(split))
    kept = int(len(split) * (1 - fraction))
    if kept in (0, len(split)):
        raise ValueError(f"source.test_fraction = {fraction} of {len(split)} rows leaves the train or test split empty")
    first, second = (split.take(torch.from_numpy(part)) for part in (order[:kept], order[kept:]))
    return first, second


def check_test_fraction(fraction: float | None, has_tests: bool) -> None:
    """Raise when a share for the test split is not in (0, 1), or given although there is a test split."""
    if fraction is not None and has_tests:
        raise ValueError(f"source.test_fraction = {fraction} is not allowed beside source.test_path: give one of them")
    if fraction is not None and not 0.0 < fraction < 1.0:
        raise ValueError(f"source.test_fraction = {fraction} is not allowed: in (0, 1)")
