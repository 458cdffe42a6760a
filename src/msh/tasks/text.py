"""Load labelled texts from CSV files and from Hugging Face."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msh.errors import Problems, one_of
from msh.tasks.build import RawData
from msh.tasks.columns import Table, find_targets, read_table, sorted_names, with_test_split
from msh.tasks.outputs import Kind
from msh.tasks.task import Split
from msh.tasks.tokens import Texts

log = logging.getLogger(__name__)


def csv_text(
    path: str,
    text: str,
    label: str,
    kind: Kind = "classification",
    threshold: float | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
    empty: str = "error",
    vocabulary: int = 10_000,
    length: int = 128,
) -> RawData:
    """Load texts from a CSV file with a header.

    Args:
        path: the training file.
        text: column with the texts.
        label: column to predict; a classification's has names or numbers, and classes in ascending order.
        kind: classification or regression.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path: the test split's file.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        encoding: the files' encoding.
        delimiter: character between cells.
        empty: rows without text: "error" raises, "drop" drops them and logs their number.
        vocabulary: number of token ids; see `Texts`.
        length: tokens per text.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another encoding, a column is missing, a text is empty, or a setting is invalid.
    """
    one_of("source.empty", empty, ("error", "drop"))
    files = [path] if test_path is None else [path, test_path]
    tables = [_without_empty(read_table(file, encoding, delimiter), text, empty) for file in files]
    targets = find_targets(tables[0], "source.label", label, kind, threshold)
    texts = Texts([cell for table in tables for cell in table.cells[text]], vocabulary, length)
    splits = _splits([targets.read(table, "source.label") for table in tables])
    data = with_test_split(splits[0], splits[1] if test_path is not None else None, targets, test_fraction)
    return replace(data, texts=texts)


def _without_empty(table: Table, text: str, empty: str) -> Table:
    cells = table.column("source.text", text)
    rows = [row for row, cell in enumerate(cells) if cell.strip()]
    if len(rows) == len(cells):
        return table
    dropped = len(cells) - len(rows)
    if empty == "error" or not rows:
        first = next(row for row, cell in enumerate(cells) if not cell.strip())
        raise table.error(text, first, "is an empty text; source.empty=drop drops such rows", dropped)
    log.warning("%s: dropped %d rows, their text is empty", table.path, dropped)
    columns = {name: [column[row] for row in rows] for name, column in table.cells.items()}
    return Table(table.path, columns, [table.lines[row] for row in rows])


def _splits(targets: list[Tensor]) -> list[Split]:
    """Build splits whose inputs are indices of texts: one file's follow the other's."""
    rows = torch.arange(sum(map(len, targets))).split([len(values) for values in targets])
    return [Split(*pair) for pair in zip(rows, targets, strict=True)]


def hugging_face(
    name: str,
    root: str,
    text: str = "text",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    revision: str | None = None,
    vocabulary: int = 10_000,
    length: int = 128,
    config: str | None = None,
) -> RawData:
    """Load texts with a class each from the Hugging Face Hub; needs `pip install 'msh[text]'`.

    Args:
        name: the data set's name on the hub.
        root: folder for the library's files.
        text: field with the texts.
        label: field with the classes, names or numbers, in ascending order.
        train: the training split's name.
        test: the test split's name.
        revision: the data set's revision; None: the newest.
        vocabulary: number of token ids; see `Texts`.
        length: tokens per text.
        config: the data set's configuration, if it has several.
    Raises:
        ValueError: the library is not installed, the data set cannot be loaded, a field is missing, a text is empty, or
            a class is in the test split only.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"{name} comes through Hugging Face's datasets: pip install 'msh[text]'") from error
    parts = []
    for part in (train, test):
        try:
            parts.append(load_dataset(name, config, split=part, cache_dir=root, revision=revision))
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}, split {part}, cannot be loaded into {root}: {error}") from error
    fields = [field for field in parts[0].column_names if field in parts[1].column_names]
    with Problems() as problems:
        problems.check(one_of, "source.text", text, fields)
        problems.check(one_of, "source.label", label, fields)
    texts: list[list[str]] = [list(part[text]) for part in parts]
    labels: list[list[Any]] = [[str(value) for value in part[label]] for part in parts]
    numbers = {value: number for number, value in enumerate(sorted_names(labels[0]))}
    with Problems() as problems:
        for part, cells in zip((train, test), texts, strict=True):
            if empty := [row for row, cell in enumerate(cells) if not cell.strip()]:
                problems.add(f"{name}, split {part}, row {empty[0]}: the text is empty (first of {len(empty)} rows)")
        if unknown := sorted(set(labels[1]) - set(numbers)):
            problems.add(f"{name}: classes of the split {test} are not in {train}: {', '.join(map(repr, unknown))}")
    splits = _splits([torch.tensor([numbers[value] for value in values]) for values in labels])
    both = Texts([*texts[0], *texts[1]], vocabulary, length)
    return RawData("classification", splits[0], splits[1], len(numbers), both, tuple(numbers))
