"""Load labelled texts from CSV files and from Hugging Face."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.cells import cell_error
from msh.tasks.labels import find_classes, read_labels
from msh.tasks.outputs import Kind
from msh.tasks.table_files import Table, read_table
from msh.tasks.targets import find_targets
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
    delimiter: str | None = None,
    empty: str = "error",
    vocabulary: int = 10_000,
    length: int = 128,
    missing_labels: str = "drop",
) -> RawData:
    """Load texts from a CSV, Parquet (.parquet) or Excel (.xlsx) file with a header.

    Args:
        path: the training file.
        text: column with the texts.
        label: column to predict; a classification's has names or numbers, and classes in natural order.
        kind: classification or regression.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path: the test split's file.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        encoding: the files' encoding.
        delimiter: character between cells; None: found from the first rows.
        empty: rows without text: "error" raises, "drop" drops them and logs their number.
        vocabulary: number of token ids; see `Texts`.
        length: tokens per text.
        missing_labels: for rows without a label: "drop" drops and counts them, "error" raises.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another encoding, a column is missing, a text is empty, or a setting is invalid.
    """
    one_of("source.empty", empty, ("error", "drop"))
    files = [path] if test_path is None else [path, test_path]
    written = {text, label} if kind == "classification" and threshold is None else {text}
    tables = [read_table(file, encoding, delimiter, texts=written) for file in files]
    targets = find_targets(tables[0], "source.label", label, kind, threshold, missing_labels)
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        tables = [t for table in tables if (t := problems.check(_without_empty, table, text, empty)) is not None]
        pairs = [pair for t in tables if (pair := problems.check(targets.read, t, "source.label")) is not None]
    texts = Texts([str(cell) for table, _ in pairs for cell in table.column("source.text", text)], vocabulary, length)
    splits = _splits([values for _, values in pairs])
    train, test = splits if test_path is not None else hold_out(splits[0], test_fraction, kind)
    return RawData(kind, train, test, targets.outputs, texts, targets.names)


def _without_empty(table: Table, text: str, empty: str) -> Table:
    cells = table.column("source.text", text)
    blank = np.array([not str(cell).strip() for cell in cells])
    if not blank.any():
        return table
    if empty == "error" or blank.all():
        raise cell_error(table.row, text, cells, blank, "is an empty text; source.empty=drop drops such rows")
    log.warning("%s: dropped %d rows, their text is empty", table.path, int(blank.sum()))
    return table.take(np.flatnonzero(~blank))


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
        label: field with the classes, names or numbers, in natural order.
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
    labels = [read_labels(part[label]) for part in parts]
    classes = find_classes(f"{name}, split {train}", labels[0])
    targets = [classes.number(part) for part in labels]
    with Problems() as problems:
        for part, cells, numbers in zip((train, test), texts, targets, strict=True):
            if empty := [row for row, cell in enumerate(cells) if not cell.strip()]:
                problems.add(f"{name}, split {part}, row {empty[0]}: the text is empty (first of {len(empty)} rows)")
            if part == train and (numbers < 0).any():
                problems.add(f"{name}, split {part}: {(numbers < 0).sum()} rows have no label")
        unknown = sorted({str(labels[1].texts[code]) for code in labels[1].codes[targets[1] < 0]})
        if unknown:
            problems.add(f"{name}: classes of the split {test} are not in {train}: {', '.join(map(repr, unknown))}")
    splits = _splits([torch.from_numpy(numbers) for numbers in targets])
    both = Texts([*texts[0], *texts[1]], vocabulary, length)
    return RawData("classification", splits[0], splits[1], len(classes.names), both, classes.names)
