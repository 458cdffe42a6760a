"""Texts with a label each, from CSV files and from Hugging Face."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from msh.errors import one_of
from msh.tasks.build import RawData, hold_out
from msh.tasks.columns import TEST_FRACTION, Table, check_test_fraction, find_targets, read_table, sorted_names
from msh.tasks.task import Kind, Split
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
        path: of the file to learn from.
        text: column of texts.
        label: column to predict; of a classification, names or numbers, classes in rising order.
        kind: classification or regression.
        threshold: makes two classes of a column of numbers: class 1 is above it.
        test_path: file with the test split.
        test_fraction: without one, share of the rows that become the test split, .2 when None; the same for every seed.
        encoding: of the files.
        delimiter: character between cells.
        empty: what becomes of rows whose text is empty: "error" refuses them, "drop" leaves them out and logs how many.
        vocabulary: number of token ids; see `Texts`.
        length: tokens per text.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the encoding is another one, a column is missing, a text is empty, or a setting is not allowed.
    """
    one_of("source.empty", empty, ("error", "drop"))
    check_test_fraction(test_fraction, test_path is not None)
    files = [path] if test_path is None else [path, test_path]
    tables = [_without_empty(read_table(file, encoding, delimiter), text, empty) for file in files]
    targets = find_targets(tables[0], "source.label", label, kind, threshold)
    values = [targets.read(table, "source.label") for table in tables]
    texts = [cell for table in tables for cell in table.cells[text]]
    train, test = _splits(values, kind, test_fraction)
    return RawData(kind, train, test, targets.outputs, Texts(texts, vocabulary, length), targets.classes)


def _without_empty(table: Table, text: str, empty: str) -> Table:
    cells = table.column("source.text", text)
    rows = [row for row, cell in enumerate(cells) if cell.strip()]
    if len(rows) == len(cells):
        return table
    dropped = len(cells) - len(rows)
    if empty == "error" or not rows:
        first = next(row for row, cell in enumerate(cells) if not cell.strip())
        raise table.error(text, first, "is an empty text; source.empty=drop leaves such rows out", dropped)
    log.warning("%s: %d rows left out, their text is empty", table.path, dropped)
    kept = {name: [column[row] for row in rows] for name, column in table.cells.items()}
    return Table(table.path, kept, [table.lines[row] for row in rows])


def _splits(targets: list[Tensor], kind: Kind, test_fraction: float | None) -> tuple[Split, Split]:
    """Splits whose inputs are the places of texts, those of the second file after those of the first."""
    places = torch.arange(sum(map(len, targets))).split([len(values) for values in targets])
    splits = [Split(*pair) for pair in zip(places, targets, strict=True)]
    if len(splits) == 1:
        return hold_out(splits[0], test_fraction or TEST_FRACTION, kind)
    return splits[0], splits[1]


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
        name: of the data set on the hub.
        root: folder in which the library keeps (or is to put) the files.
        text: field of the texts.
        label: field of the classes, names or numbers, taken in rising order.
        train: name of the split to learn from.
        test: name of the test split.
        revision: of the data set; the newest when None.
        vocabulary: number of token ids; see `Texts`.
        length: tokens per text.
        config: which of the data set's configurations, if it has several.
    Raises:
        ValueError: the library is not installed, the data set cannot be loaded, a field is missing, a text is empty, or
            a class is only in the test.
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
    for part in parts:
        for key, field in (("text", text), ("label", label)):
            one_of(f"source.{key}", field, part.column_names)
    texts: list[list[str]] = [list(part[text]) for part in parts]
    labels: list[list[Any]] = [[str(value) for value in part[label]] for part in parts]
    for part, found in zip((train, test), texts, strict=True):
        if empty := [row for row, one in enumerate(found) if not one.strip()]:
            raise ValueError(f"{name}, split {part}, row {empty[0]}: an empty text; {len(empty)} rows are so")
    place = {value: i for i, value in enumerate(sorted_names(labels[0]))}
    if strange := sorted(set(labels[1]) - set(place)):
        raise ValueError(f"{name}: the class {strange[0]!r} is in the split {test}, but not in {train}")
    targets = [torch.tensor([place[value] for value in values]) for values in labels]
    splits = _splits(targets, "classification", None)
    together = Texts([*texts[0], *texts[1]], vocabulary, length)
    return RawData("classification", *splits, len(place), together, tuple(place))
