"""Tables: one specification, rendered for people, files and trackers."""

import csv
import io
from operator import itemgetter

import pytest
from rich.console import Console

from msh.runs.tables import Column, Table

COLUMNS = [
    Column("name", itemgetter(0), words=True),
    Column("size", itemgetter(1), ",", "weights"),
    Column("score", itemgetter(2), ".2f", mark=lambda row: "best" if row[2] == 0.75 else ""),
    Column("note", itemgetter(3), words=True, optional=True),
]


def table(notes=(None, None)):
    return Table("made", COLUMNS, [("a|b", 1234, 0.5, notes[0]), ("c", None, 0.75, notes[1])])


def printed(made, width=80):
    console = Console(file=io.StringIO(), width=width)
    made.print(console, "a title")
    return console.file.getvalue()


def test_values_are_unformatted_and_complete():
    assert table().names == ["name", "size", "score", "note"]
    assert table().values() == [["a|b", 1234, 0.5, None], ["c", None, 0.75, None]]


def test_csv_has_the_values_and_reads_back():
    rows = list(csv.reader(io.StringIO(table(('x, "y"', None)).csv())))
    assert rows == [["name", "size", "score", "note"], ["a|b", "1234", "0.5", 'x, "y"'], ["c", "", "0.75", ""]]


def test_markdown_has_formatted_cells_without_empty_optional_columns():
    assert table().markdown().splitlines() == [
        "| name | weights | score |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1,234 | 0.50 |",
        "| c |  | 0.75 |",
    ]


def test_the_terminal_shows_headers_title_and_the_best():
    text = printed(table(("[red]", None)))
    assert "a title" in text
    assert "weights" in text
    assert "0.75 *" in text
    assert "[red]" in text, "cells are no markup"


@pytest.mark.parametrize("width", [200, 40, 30, 22])
def test_cells_fold_in_a_narrow_terminal_and_lose_no_letter(width):
    long = Table("made", COLUMNS, [("a-long-name", 1_234_567, 0.5, "words of a note")])
    lines = printed(long, width).splitlines()
    assert max(map(len, lines)) <= width
    for letters in ("1,234,567", "0.50"):
        assert any(letters in line for line in lines)
    assert "…" not in "".join(lines)
