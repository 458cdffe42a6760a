"""Load labelled texts: from files, folders and Hugging Face."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, at_least, invalid, one_of
from msh.tasks.build import RawData, check_test_fraction
from msh.tasks.labels import find_classes, read_labels
from msh.tasks.options import Kind
from msh.tasks.table_files import Table
from msh.tasks.table_splits import Rows, SplitBy, split_rows
from msh.tasks.targets import Targets, find_targets
from msh.tasks.task import Split
from msh.tasks.text_files import UNITS, read_documents, read_texts, texts_of
from msh.tasks.tokens import MARKS, Texts, TokenizerFile, Unicode, check_tokens, read_tokenizer

log = logging.getLogger(__name__)


def texts(
    path: str,
    text: str = "text",
    label: str = "label",
    kind: Kind = "classification",
    threshold: float | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    empty: str = "error",
    vocabulary: int | None = None,
    length: int = 128,
    missing_labels: str = "drop",
    val_path: str | None = None,
    split: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
    unicode: Unicode = "NFC",
    unit: str | None = None,
) -> RawData:
    """Load texts from a table (CSV, TSV, Parquet, Excel), JSON Lines, or a folder with a folder of files per class.

    Args:
        path: the training file or folder; a file's suffix says which kind (.parquet, .xlsx, .jsonl, .json).
        text: column with the texts.
        label: column to predict; a classification's has names or numbers, and classes in natural order. In a folder,
            labels are the names of the folders.
        kind: classification or regression; lm: a language model, which needs no labels. Then `path` may also be a plain
            text file, or any folder of them.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path, val_path: the split's file or folder.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        encoding: the files' encoding.
        delimiter: character between a CSV file's cells; None: found from the first rows.
        empty: rows without text: "error" raises, "drop" drops them and logs their number.
        vocabulary, length: number of token ids, and tokens per text; see `Texts`.
        missing_labels: for rows without a label: "drop" drops and counts them, "error" raises.
        split: as in `msh.tasks.tables.table`.
        tokenizer: path of a tokenizer.json of Hugging Face's library; None: the training split's words are the tokens.
        unicode: form to which texts are normalized, or "none".
        unit: lm: how plain text files are parted into texts; see `read_documents`.
    Raises:
        ValueError: a file has another encoding, a column is missing, a text is empty, or a setting is invalid.
    """
    with Problems() as problems:
        problems.check(one_of, "source.empty", empty, ("error", "drop"))
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        by = problems.check(SplitBy.parse, split, {"test_path": test_path, "val_path": val_path})
        file = problems.check(checked_tokenizer, tokenizer, vocabulary, length, unicode)
        problems.check(_check_kind, kind, unit, threshold, vocabulary)
    paths = {part: p for part, p in (("train", path), ("val", val_path), ("test", test_path)) if p is not None}
    written = {text} | ({label} if kind == "classification" and threshold is None else set())
    whole = _read_files(paths, kind, text, label, unit, encoding, delimiter, written, by)
    tables, values, targets = _labelled(whole, text, label, empty, kind, threshold, missing_labels)
    found = kind if targets is None else targets.kind
    rows = split_rows(tables["train"], values[0], found, by, test_fraction, None, test_path is not None)
    splits = splits_of(dict(zip(tables, values, strict=True)), rows)
    cells = _texts_of_splits(splits, tables, text)
    files = Path(path).expanduser().is_dir()
    return _raw_data(splits, Texts(cells, vocabulary, length, file, unicode, files), targets)


def _raw_data(splits: Mapping[str, Split], texts: Texts, targets: Targets | None) -> RawData:
    """Put the parts together; without targets, for a language model."""
    kind, number, names = ("lm", texts.ids, ()) if targets is None else (targets.kind, targets.outputs, targets.names)
    return RawData(kind, splits["train"], splits["test"], number, texts, names, val=splits.get("val"))


def _read_files(
    paths: Mapping[str, str],
    kind: Kind,
    text: str,
    label: str,
    unit: str | None,
    encoding: str,
    delimiter: str | None,
    written: set[str],
    by: SplitBy | None,
) -> dict[str, Table]:
    """Read the file or folder of each split, the training split's first: the others' numbers are read as its are.

    All problems are reported together.
    """
    written = written | (set() if by is None or by.by == "time" else {by.name})
    tables, shares = dict[str, Table](), set[str]()
    with Problems() as problems:
        for part, path in paths.items():
            if kind == "lm":
                read = problems.check(read_documents, path, text, unit, encoding, delimiter)
            else:
                alone = part != "train"
                read = problems.check(read_texts, path, text, label, encoding, delimiter, written, alone, shares)
                if read is not None and not alone:
                    written, shares = written | read.forms.keys(), read.shares
            tables |= {} if read is None else {part: read}
    return tables


def _check_kind(kind: Kind, unit: str | None, threshold: float | None, vocabulary: int | None) -> None:
    """Raise unless settings fit the kind of task."""
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, ("classification", "regression", "auto", "lm"))
        if unit is not None:
            problems.check(one_of, "source.unit", unit, UNITS)
        if unit is not None and kind != "lm":
            problems.add(invalid("source.unit", "left out without source.kind=lm", unit))
        if kind == "lm" and threshold is not None:
            problems.add(invalid("source.threshold", "left out with source.kind=lm, which has no labels", threshold))
        if kind == "lm" and vocabulary is not None:
            problems.check(at_least, "source.vocabulary", 3 + len(MARKS), vocabulary)


csv_text = texts
"""The name of earlier releases."""


def checked_tokenizer(path: str | None, vocabulary: int | None, length: int, unicode: str) -> TokenizerFile | None:
    """Read the tokenizer, and check the settings of `Texts`, before any text is read."""
    file = None if path is None else read_tokenizer(path)
    check_tokens(vocabulary, length, file, unicode)
    return file


def _labelled(
    tables: Mapping[str, Table],
    text: str,
    label: str,
    empty: str,
    kind: Kind,
    threshold: float | None,
    missing_labels: str,
) -> tuple[dict[str, Table], list[Tensor], Targets | None]:
    """Return the tables' rows with a text and a target, the targets, and how these are read; see `texts`.

    A language model has no labels: its targets are empty, and None says how they are read.
    """
    with Problems() as problems:
        whole = {part: problems.check(texts_of, t, "source.text", text, empty) or t for part, t in tables.items()}
        if kind == "lm":
            return whole, [torch.zeros(len(table.frame), 0) for table in whole.values()], None
        targets: Any = problems.check(
            find_targets, whole["train"], "source.label", label, kind, threshold, missing_labels
        )
        pairs = [problems.check(targets.read, t, "source.label") for t in whole.values() if targets is not None]
    read = [pair for pair in pairs if pair is not None]
    return dict(zip(whole, [table for table, _ in read], strict=True)), [values for _, values in read], targets


def splits_of(targets: Mapping[str, Tensor], rows: Rows) -> dict[str, Split]:
    """Build the splits of texts from those of files.

    Args:
        targets: of each file, in the order of its texts; "train" is split, others are whole splits.
        rows: of the training file in each split.
    """
    return _chosen(dict(zip(targets, _splits(list(targets.values())), strict=True)), rows)


def _chosen(wholes: Mapping[str, Split], rows: Rows) -> dict[str, Split]:
    """Take train, test and val from the training file, or whole from files of their own."""
    splits = {part: split for part, split in wholes.items() if part != "train"}
    for part, chosen in (("train", rows.train), ("val", rows.val), ("test", rows.test)):
        if chosen is not None and part not in splits:
            splits[part] = wholes["train"].take(torch.from_numpy(chosen))
    return splits


def _texts_of_splits(splits: Mapping[str, Split], tables: Mapping[str, Table], column: str) -> list[str]:
    """Return the texts of all tables; warn of those outside the training split that are also in it.

    Args:
        splits: with indices of the texts as inputs.
        tables: the splits' files, in the order of their texts.
        column: with the texts.
    """
    cells = np.concatenate([table.frame[column].to_numpy() for table in tables.values()])
    place = [(table, row) for table in tables.values() for row in range(len(table.frame))]
    training = {cells[row]: row for row in reversed(splits["train"].inputs[:].tolist())}
    for part in sorted(splits.keys() - {"train"}):
        twins = [(row, training[cells[row]]) for row in splits[part].inputs[:].tolist() if cells[row] in training]
        if twins:
            (table, row), (train, first) = (place[at] for at in twins[0])
            example = f"{table.row(row)} is {train.row(first).removeprefix(f'{table.path}, ')}"
            count = f"{len(twins)} of {len(splits[part])}"
            log.warning("%s texts of the %s split are also training texts: %s", count, part, example)
    texts: list[str] = cells.tolist()
    return texts


def _splits(targets: list[Tensor]) -> list[Split]:
    """Build splits whose inputs are indices of texts: one file's follow the other's."""
    rows = torch.arange(sum(map(len, targets))).split([len(values) for values in targets])
    return [Split(*pair) for pair in zip(rows, targets, strict=True)]


def _load_parts(name: str, config: str | None, parts: Sequence[str], root: str, revision: str | None) -> list[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"{name} comes through Hugging Face's datasets: pip install 'msh[text]'") from error
    loaded = []
    for part in parts:
        try:
            loaded.append(load_dataset(name, config, split=part, cache_dir=root, revision=revision))
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}, split {part}, cannot be loaded into {root}: {error}") from error
    return loaded


def hugging_face(
    name: str,
    root: str,
    text: str = "text",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    revision: str | None = None,
    vocabulary: int | None = None,
    length: int = 128,
    config: str | None = None,
    tokenizer: str | None = None,
    unicode: Unicode = "NFC",
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
        tokenizer, unicode: as in `texts`.
    Raises:
        ValueError: the library is not installed, the data set cannot be loaded, a field is missing, a text is empty, or
            a class is in the test split only.
    """
    file = checked_tokenizer(tokenizer, vocabulary, length, unicode)
    parts = _load_parts(name, config, (train, test), root, revision)
    fields = [field for field in parts[0].column_names if field in parts[1].column_names]
    with Problems() as problems:
        problems.check(one_of, "source.text", text, fields)
        problems.check(one_of, "source.label", label, fields)
    columns: list[list[str]] = [list(part[text]) for part in parts]
    labels = [read_labels(part[label]) for part in parts]
    classes = find_classes(f"{name}, split {train}", labels[0])
    targets = [classes.number(part) for part in labels]
    with Problems() as problems:
        for part, cells, numbers in zip((train, test), columns, targets, strict=True):
            if empty := [row for row, cell in enumerate(cells) if not cell.strip()]:
                problems.add(f"{name}, split {part}, row {empty[0]}: the text is empty (first of {len(empty)} rows)")
            if part == train and (numbers < 0).any():
                problems.add(f"{name}, split {part}: {(numbers < 0).sum()} rows have no label")
        unknown = sorted({str(labels[1].texts[code]) for code in labels[1].codes[targets[1] < 0]})
        if unknown:
            problems.add(f"{name}: classes of the split {test} are not in {train}: {', '.join(map(repr, unknown))}")
    splits = _splits([torch.from_numpy(numbers) for numbers in targets])
    both = Texts([*columns[0], *columns[1]], vocabulary, length, file, unicode)
    return RawData("classification", splits[0], splits[1], len(classes.names), both, classes.names)
