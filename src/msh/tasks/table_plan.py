"""Decide each column's role from the training rows: number, category, date and so on, or dropped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from msh.errors import Problems, invalid, one_of
from msh.tasks.cells import (
    CODE,
    DATE,
    NO_DATE,
    PLAIN,
    NumberForm,
    Where,
    are_nested,
    cell_error,
    coded,
    find_date_format,
    find_form,
    have_values,
    may_be_numbers,
    merged,
    number_as_text,
    numbers_or_bad,
    read_booleans,
    read_dates,
    read_numbers,
    report_short_years,
    spelling,
)
from msh.tasks.columns import Amount, Boolean, Category, Column, Date, Dropped, Hashed, Number, Text
from msh.tasks.table_files import NAMELESS, Table
from msh.tasks.table_step import ReadTable

ROLES = ("number", "category", "date", "boolean", "text", "drop")
MOST_VALUES = 32
"""Values of a column that get a feature each; with more frequent ones, they are hashed."""
BUCKETS, TEXT_BUCKETS = 64, 256
"""Features of a column whose values, or whose words, are hashed."""
RARE = 5
"""Values in fewer rows share a feature, in tables of 500 rows and more."""
INDEX_NAME = re.compile(r"(index|id|idx|key|(row|record|obs)[ _.]?(id|names?|number|no|nr)?|.*[ _.]id|.*[a-z]I[dD])")
"""Names of columns that number the rows, apart from columns without a name."""
BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"}, {"on", "off"})
SHOWN = 40
"""Columns that the plan shows; the rest is counted."""


@dataclass(frozen=True)
class Wishes:
    """Settings about a table's columns.

    Attributes:
        reserved: columns that are no features, with the reason, such as {"price": "target"}.
        features: columns to use, in this order, even if they look like an index; None: all others.
        columns: roles by name, one of ROLES; a date may name its format: "date %d.%m.%Y".
        exclude: columns to drop.
    """

    reserved: Mapping[str, str]
    features: Sequence[str] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    exclude: Collection[str] = ()

    def check(self, table: Table) -> None:
        """Raise if names or roles are unknown, or no column is left; all problems together."""
        reasons = " and ".join(f"the {reason} {name!r}" for name, reason in self.reserved.items())
        names = self.names(table)
        with Problems() as problems:
            if not names or self.reserved.keys() & set(names):
                problems.add(invalid("source.features", f"at least one column besides {reasons}", names))
            for key, group in (("features", names), ("columns", self.columns), ("exclude", self.exclude)):
                for name in group:
                    problems.check(table.column, f"source.{key}", name)
            for name, role in self.columns.items():
                problems.check(one_of, f"source.columns.{name}", str(role).partition(" ")[0], ROLES)
                if name in self.exclude and role != "drop":
                    problems.add(f"source.columns.{name} = {role}, but source.exclude names it too: remove one")

    def names(self, table: Table) -> list[str]:
        """Return the columns to plan."""
        if self.features is not None:
            return list(self.features)
        return [name for name in table.frame.columns if name not in self.reserved]


def plan_columns(table: Table, wishes: Wishes, rows: np.ndarray | None = None) -> ReadTable:
    """Fit the step that reads a table.

    Args:
        table: with a header.
        wishes: settings; unknown columns are skipped, because `Wishes.check` reports them.
        rows: to fit on, int64 (rows,): all but the test split's; None: all of the table.
    Raises:
        ValueError: cells fit no role, or no column has features; all problems together.
    """
    names = [name for name in wishes.names(table) if name in table.frame.columns]
    where: Where = table.row if rows is None else lambda row: table.row(int(rows[row]))
    with Problems() as problems:
        planned: list[Any] = []
        for name in names:
            role = "drop" if name in wishes.exclude else wishes.columns.get(name)
            cells = table.frame[name] if rows is None else table.frame[name].take(rows)  # one column at a time
            form = table.forms.get(name)
            planned.append(
                problems.check(_plan, cells, where, name, role, wishes.features is not None, form, table.decimal)
            )
    chosen = set(names)
    unused = [name for name in table.frame.columns if name not in chosen]
    step = ReadTable(
        (*planned, *(Dropped(name, wishes.reserved.get(name, "not in source.features")) for name in unused))
    )
    if not step.inputs:
        reasons = "; ".join(f"{column.name!r}: {column.note}" for column in step.columns)
        raise ValueError(
            f"{table.path} has no column to predict from ({reasons}): source.features keeps columns by name"
        )
    return step


def describe(step: ReadTable) -> str:
    """Describe the plan as text of at most 80 columns: each column with its role, number of features and a note."""
    used = [column for column in step.columns if column.role != "dropped"]
    dropped = [column for column in step.columns if column.role == "dropped"]
    lines = [f"{'column':<24} {'role':<8} {'features':>8}  note"]
    for group in (used, dropped):
        for column in group[:SHOWN]:
            line = f"{_cut(column.name, 24):<24} {column.role:<8} {column.features or '':>8}  {column.note}"
            lines.append(_cut(line.rstrip(), 80))
        if len(group) > SHOWN:
            roles = Counter(column.role for column in group[SHOWN:])
            lines.append(f"... and {', '.join(f'{count} more ({role})' for role, count in roles.items())}")
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _plan(
    cells: Any, where: Where, name: str, role: str | None, kept: bool, form: NumberForm | None, decimal: str | None
) -> Column:
    """Plan one column.

    Args:
        cells: a pandas Series (rows,).
        where: names a row.
        name: the column's.
        role: the one that a setting chooses, or None.
        kept: do not drop it for what it looks like.
        form: the way in which its numbers are written, if it is known.
        decimal: the decimal mark of numbers, if the file or a setting decides it.
    """
    kind, _, wanted = (role or "").partition(" ")
    if kind == "drop":
        return Dropped(name, "source.exclude or source.columns")
    if problem := _unreadable(cells):
        if kept or role is not None:
            raise ValueError(f"column {name!r} has {problem}; source.exclude drops the column")
        return Dropped(name, problem)
    if kind == "number":
        form = form or find_form(cells, where, name, decimal=decimal)
        return _number(name, read_numbers(cells, where, name, form), form)
    if kind == "boolean":
        return _boolean(name, read_booleans(cells, where, name))
    if kind == "date":
        return _date(cells, where, name, wanted or find_date_format(name, coded(cells)[1]) or "")
    if kind == "text":
        return Text(name, TEXT_BUCKETS)
    if kind == "category":
        return _category(name, *coded(cells))
    return _guess(cells, where, name, kept, form, decimal)


def _unreadable(cells: Any) -> str:
    """Name the values of a column that are none of numbers, dates and texts; "" if there are none."""
    import pandas as pd

    if pd.api.types.is_timedelta64_dtype(cells.dtype):
        return "durations: write them as numbers"
    if pd.api.types.is_object_dtype(cells.dtype) and are_nested(cells).any():
        return "lists or bytes in its cells: make columns of them"
    return ""


def _guess(cells: Any, where: Where, name: str, kept: bool, form: NumberForm | None, decimal: str | None) -> Column:
    """Decide a column's role from its cells."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_bool_dtype(cells.dtype):
        return _guess_number(name, read_numbers(cells, where, name), kept, form or PLAIN)
    codes, texts = coded(cells)
    present = int((codes >= 0).sum())
    if not present:
        return Dropped(name, "empty")
    if len(texts) == 1 and present == len(codes) and not kept:
        return Dropped(name, f"constant: {texts[0]}")
    if {text.casefold() for text in texts} in BOOLEANS:
        return _boolean(name, read_booleans(cells, where, name))
    if not any(map(CODE.fullmatch, texts)) and may_be_numbers(texts):
        form = form or find_form(cells, where, name, texts, decimal)
        values, bad = numbers_or_bad(cells, (codes, texts), form)
        if not bad.any():
            return _guess_number(name, values, kept, form)
        if form != PLAIN or 5 * int(bad.sum()) <= present:
            raise _mixed(where, name, cells, bad, form)
    if all(map(DATE.fullmatch, texts[:SHOWN])) and (format := find_date_format(name, texts)) is not None:
        return _date(cells, where, name, format)
    words = sum(len(text.split()) for text in texts) / len(texts)
    if words >= 3 and 2 * len(texts) > present:
        return Text(name, TEXT_BUCKETS) if kept else Dropped(name, f"text: source.columns={{{name}: text}} reads it")
    if len(texts) > max(9, 0.9 * present) and not kept:
        return Dropped(name, "identifier: a value per row")
    return _category(name, codes, texts)


def _mixed(where: Where, name: str, cells: Any, bad: np.ndarray, form: NumberForm) -> ValueError:
    written = "" if form == PLAIN else f" of the form {form.mark}{form.example}"
    problem = (
        f"is not a finite number{written}, as most cells of this column are; "
        f"source.columns={{{name}: category}} reads the column as categories"
    )
    return cell_error(where, name, cells, bad, problem)


def _guess_number(name: str, values: np.ndarray, kept: bool, form: NumberForm) -> Column:
    absent = np.isnan(values)
    if absent.all():
        return Dropped(name, "empty")
    if not kept and not absent.any():
        if values.min() == values.max():
            return Dropped(name, f"constant: {values[0]:g}")
        index = name.startswith(NAMELESS) or INDEX_NAME.fullmatch(name) or INDEX_NAME.fullmatch(name.casefold())
        if index and (values == np.round(values)).all() and len(np.unique(values)) == len(values):
            return Dropped(name, "identifier: numbers the rows")
    return _number(name, values, form)


def _number(name: str, values: np.ndarray, form: NumberForm) -> Column:
    fill, missing = _median(name, values)
    decimal: Any = form.decimal  # both are of the literals that columns have
    thousands: Any = form.thousands
    if form.mark:
        return Amount(name, fill, missing, decimal=decimal, thousands=thousands, mark=form.mark)
    return Number(name, fill, missing, decimal=decimal, thousands=thousands)


def _boolean(name: str, values: np.ndarray) -> Column:
    fill, missing = _median(name, values)
    return Boolean(name, fill, missing)


def _median(name: str, values: np.ndarray) -> tuple[float, bool]:
    """Return (the median of the present values, whether some are missing)."""
    absent = np.isnan(values)
    if absent.all():
        raise ValueError(f"column {name!r}: every cell is missing; source.exclude drops the column")
    present = values[~absent]  # a copy
    return float(np.median(present, overwrite_input=True)), bool(absent.any())


def _category(name: str, codes: np.ndarray, texts: list[str]) -> Column:
    if is_by_value := have_values(texts):
        codes, texts = merged(codes, texts, number_as_text)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    least = min(RARE, max(2, len(codes) // 100))
    frequent = sorted(text for text, count in zip(texts, counts, strict=True) if count >= least)
    missing = bool((codes < 0).any())
    if not frequent or len(frequent) > MOST_VALUES:
        return Hashed(name, BUCKETS, missing, is_by_value, tuple(sorted({spelling(text) for text in texts} - {""})))
    return Category(name, tuple(frequent), len(frequent) < len(texts), missing, is_by_value)


def _date(cells: Any, where: Where, name: str, format: str) -> Column:
    times = read_dates(cells, format, where, name)
    present = np.sort(times[times != NO_DATE])
    if not len(present):
        raise ValueError(f"column {name!r}: every cell is missing; source.exclude drops the column")
    report_short_years(cells, times, format, name)
    with_times = bool((present % 86_400_000_000).any())
    fill = int(present[len(present) // 2])
    return Date(name, int(present[0]), fill, format, with_times, len(present) < len(times))
