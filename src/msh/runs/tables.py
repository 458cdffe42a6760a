"""Specify tables by columns that get and format values; render them for terminals, pages, files and trackers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import rich.table
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

R = TypeVar("R")
Mark = Literal["", "strong", "best", "bad"]
STYLES = {"strong": "bold", "best": "bold", "bad": "red"}
LOOKS = ((box.HEAVY_HEAD, (0, 1)), (box.SIMPLE_HEAD, (0, 1, 0, 0)), (box.SIMPLE_HEAD, (0, 0)))
"""(Lines, padding of cells) of a table in a terminal: the first one that fits is used."""


def _no_mark(row: Any) -> Mark:
    return ""


def _no_text(row: Any) -> str:
    return ""


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column; rows may have any type.

    Attributes:
        name: in files and trackers.
        value: gets a row's value; None where there is none.
        form: formats a value for people: a function, or a format specification such as ".4f".
        header: for people; the name when "".
        words: aligned left, as text is; numbers are aligned right.
        wraps: a cell may take several lines on a page.
        optional: people do not see the column where no row has a value.
        mark: a cell's emphasis; the terminal marks the best with "*".
    """

    name: str
    value: Callable[[R], Any]
    form: str | Callable[[Any], str] = ""
    header: str = ""
    words: bool = False
    wraps: bool = False
    optional: bool = False
    mark: Callable[[R], Mark] = _no_mark

    def cell(self, row: R) -> str:
        """Format a row's value; "" where there is none."""
        value = self.value(row)
        if value is None:
            return ""
        return format(value, self.form) if isinstance(self.form, str) else self.form(value)


@dataclass(frozen=True)
class Table(Generic[R]):
    """Rows and columns.

    Attributes:
        title: label on a page.
        columns: the first one names the row.
        rows: any objects.
        find: gets the text by which a page's search finds a row.
        colour: gets the colour for the mark before a row's name, on a page.
        link: gets the address that a row's name leads to, on a page.
        summary: a page folds the table under this.
    """

    title: str
    columns: Sequence[Column[R]]
    rows: Sequence[R]
    find: Callable[[R], str] = _no_text
    colour: Callable[[R], str] = _no_text
    link: Callable[[R], str] = _no_text
    summary: str = ""

    @property
    def shown(self) -> list[Column[R]]:
        """Columns for people: all but optional ones without a value."""
        return [c for c in self.columns if not c.optional or any(c.value(row) is not None for row in self.rows)]

    @property
    def names(self) -> list[str]:
        """All columns' names."""
        return [column.name for column in self.columns]

    def values(self) -> list[list[Any]]:
        """Return all columns' unformatted values, a list per row."""
        return [[column.value(row) for column in self.columns] for row in self.rows]

    def print(self, console: Console, title: str = "") -> None:
        """Print the table on a terminal; names fold where it is too narrow for all columns."""
        for lines, padding in LOOKS:
            edge = lines is box.HEAVY_HEAD
            table = rich.table.Table(title=title or None, box=lines, padding=padding, pad_edge=edge, show_edge=edge)
            for column in self.shown:
                header = Text(column.header or column.name)
                table.add_column(
                    header, justify="left" if column.words else "right", no_wrap=not column.words, overflow="fold"
                )
            for row in self.rows:
                table.add_row(*(_styled(column.cell(row), column.mark(row)) for column in self.shown))
            if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
                break
        console.print(table)

    def csv(self) -> str:
        """Return the unformatted values as CSV, with a header."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.names, *self.values()])
        return text.getvalue()

    def markdown(self) -> str:
        """Return the formatted cells as a Markdown table."""
        cells = [[column.cell(row) for column in self.shown] for row in self.rows]
        rule = ["---" if column.words else "---:" for column in self.shown]
        lines = [[column.header or column.name for column in self.shown], rule, *cells]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _styled(cell: str, mark: Mark) -> Text:
    return Text(f"{cell} *" if mark == "best" else cell, STYLES.get(mark, ""))
