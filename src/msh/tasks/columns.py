"""Read CSV columns as numbers, classes or texts; errors name file, line, column and cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, invalid, one_of
from msh.tasks.build import TEST_FRACTION, RawData, check_test_fraction, empty_part, hold_out
from msh.tasks.checks import existing
from msh.tasks.outputs import Kind
from msh.tasks.task import Split

DELIMITERS = (",", ";", "\t", "|")
"""The delimiters of most CSV files."""


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file with a header.

    Attributes:
        path: the file's path.
        cells: column name to its cells, as written.
        lines: line number on which each row ends, from 1.
    """

    path: Path
    cells: dict[str, list[str]]
    lines: list[int]

    def column(self, key: str, name: str) -> list[str]:
        """Return a column's cells.

        Raises:
            ValueError: there is no such column; `key` is the setting that names it.
        """
        if name not in self.cells:
            raise invalid(key, f"a column of {self.path} ({', '.join(map(repr, self.cells))})", name, self.cells)
        return self.cells[name]

    def numbers(self, key: str, names: Sequence[str]) -> Tensor:
        """Return columns as numbers: float32, (rows, columns).

        Raises:
            ValueError: naming every column that is missing or has a cell that is not a finite number.
        """
        with Problems() as problems:
            columns = [problems.check(self._numbers_of, key, name) for name in names]
        return torch.from_numpy(np.stack([column for column in columns if column is not None], 1))

    def _numbers_of(self, key: str, name: str) -> np.ndarray:
        cells = self.column(key, name)
        try:
            with np.errstate(over="ignore"):
                numbers = np.array(cells, dtype=np.float64).astype(np.float32)
        except ValueError:
            numbers = np.array([_number(cell) for cell in cells], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise self.error(name, int(bad[0]), "is not a finite number", len(bad))
        return numbers

    def error(self, name: str, row: int, problem: str, count: int = 1) -> ValueError:
        """Build the error for a cell, the first of `count` with the same problem in its column."""
        more = f" (first of {count} such rows)" if count > 1 else ""
        return ValueError(
            f"{self.path}, line {self.lines[row]}, column {name!r}: {self.cells[name][row]!r} {problem}{more}"
        )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def read_table(path: str, encoding: str = "utf-8", delimiter: str = ",") -> Table:
    """Read a CSV file with a header.

    Args:
        path: the file's path.
        encoding: the file's encoding.
        delimiter: character between cells.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another encoding, other delimiters, no rows, or rows with more or fewer cells than the
            header; or the delimiter is not one character.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"':
        raise invalid("source.delimiter", "one character, such as ; or a tab", delimiter)
    file = existing(path, "file")
    content = _decoded(file, encoding)
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # the default limit is too small for texts
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
        raise ValueError(f"{file} has no rows: it needs a header and at least one row below it")
    header = rows.pop(0)
    if len(header) == 1 and (others := [mark for mark in DELIMITERS if mark != delimiter and mark in header[0]]):
        raise ValueError(
            f"{file}: with source.delimiter = {delimiter!r} the whole header, {header[0]!r}, is one column; "
            f"try source.delimiter={others[0]!r}"
        )
    with Problems() as problems:
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            problems.add(f"{file}: the header names {', '.join(map(repr, repeated))} more than once")
        uneven = [(line, len(row)) for row, line in zip(rows, lines[1:], strict=True) if len(row) != len(header)]
        if uneven:
            more = f" (first of {len(uneven)} such lines)" if len(uneven) > 1 else ""
            line, cells = uneven[0]
            problems.add(f"{file}, line {line}: {cells} cells, but the header names {len(header)} columns{more}")
    return Table(file, dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)), lines[1:])


def _decoded(file: Path, encoding: str) -> str:
    content = file.read_bytes()
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        cause = ""
        if isinstance(error, UnicodeDecodeError):
            line = content.count(b"\n", 0, error.start) + 1
            cause = f": byte {error.start} (line {line}) is 0x{content[error.start]:02x}"
        raise ValueError(
            f"{file} is not in {encoding}{cause}; set source.encoding to its encoding, such as latin-1 or utf-16"
        ) from error
    except LookupError as error:
        bound = "an encoding that Python knows, such as utf-8 or latin-1"
        raise invalid("source.encoding", bound, encoding) from error


@dataclass(frozen=True)
class Targets:
    """Read a column as targets; the test file has the training file's classes.

    Attributes:
        column: its name.
        kind: "classification" or "regression".
        threshold: classification: class 1 above it, else class 0; None: a class per value.
        classes: their values, in order; empty with a threshold and in regression.
    """

    column: str
    kind: Kind
    threshold: float | None
    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """The head's size."""
        return 1 if self.kind == "regression" else len(self.classes) or 2

    def read(self, table: Table, key: str) -> Tensor:
        """Return a classification's targets, int64 (rows,), or a regression's, float32 (rows, 1).

        Raises:
            ValueError: a cell is not a number, or not a class.
        """
        if self.kind == "regression":
            return table.numbers(key, [self.column])
        if self.threshold is not None:
            return (table.numbers(key, [self.column])[:, 0] > self.threshold).long()
        numbers = {name: number for number, name in enumerate(self.classes)}
        cells = table.column(key, self.column)
        if unknown := [row for row, cell in enumerate(cells) if cell not in numbers]:
            problem = f"is no class of the training file ({', '.join(self.classes)})"
            raise table.error(self.column, unknown[0], problem, len(unknown))
        return torch.tensor([numbers[cell] for cell in cells])


def find_targets(table: Table, key: str, column: str, kind: Kind, threshold: float | None) -> Targets:
    """Find the classes in the training file's column, in ascending order.

    Args:
        table: the training file.
        key: the setting that names the column.
        column: its name.
        kind: "classification" or "regression".
        threshold: see `Targets`.
    Raises:
        ValueError: the column is missing or has an empty cell, or the kind or the threshold is invalid.
    """
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, ("classification", "regression"))
        if threshold is not None and kind == "regression":
            problems.add(f"source.threshold = {threshold} needs source.kind=classification, not {kind}")
        cells = problems.check(table.column, key, column) or []
        if "" in cells:
            problems.add(table.error(column, cells.index(""), "is no target", cells.count("")))
        names = sorted_names(cells) if kind == "classification" and threshold is None else ()
        if len(names) == 1:
            problems.add(f"{table.path}, column {column!r}: every row has {names[0]!r}; needs at least two classes")
    return Targets(column, kind, threshold, names)


def sorted_names(values: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct values in ascending order: by number if all are numbers, else by letter."""
    names = sorted(set(values))
    return tuple(names if any(np.isnan(_number(name)) for name in names) else sorted(names, key=float))


def with_test_split(
    split: Split, tests: Split | None, targets: Targets, test_fraction: float | None, test_seed: int | None = None
) -> RawData:
    """Build raw data with the test split, or with a share of the examples as the test split.

    Raises:
        ValueError: a share or a seed is set beside a test split, or out of range.
    """
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, tests is not None)
        if test_seed is not None and not 0 <= test_seed < 2**32:
            problems.add(invalid("source.test_seed", "in [0, 2**32)", test_seed))
        if test_seed is not None and tests is not None:
            problems.add(f"source.test_seed = {test_seed} cannot be set beside source.test_path: remove one")
    if test_seed is not None:
        split, tests = _last_shuffled(split, test_fraction or TEST_FRACTION, test_seed)
    elif tests is None:
        split, tests = hold_out(split, test_fraction, targets.kind)
    return RawData(targets.kind, split, tests, targets.outputs, classes=targets.classes)


def _last_shuffled(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    order = np.random.RandomState(seed).permutation(len(split))
    cut = int(len(split) * (1 - fraction))
    if cut in (0, len(split)):
        raise empty_part(fraction, len(split))
    first, second = (split.take(torch.from_numpy(part)) for part in (order[:cut], order[cut:]))
    return first, second
