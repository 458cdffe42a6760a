"""Find image files and their labels: in a folder per class, or in a table."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, invalid
from msh.tasks.cells import PLAIN, NumberForm, as_text, find_form, numbers_or_bad
from msh.tasks.checks import ListedProblems
from msh.tasks.labels import Classes, find_classes, read_labels, too_few
from msh.tasks.options import Kind
from msh.tasks.table_files import Table, read_table

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Of image files, in lower case."""
LITTER = frozenset(
    ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir", "lost+found")
)
"""Files and folders that systems create, besides those whose names start with a dot."""

SHOWN = 5
"""Rows of a file that a warning lists."""


@dataclass(frozen=True)
class Labelled:
    """Image files with targets.

    Attributes:
        files: their paths.
        targets: as in `Split`.
        names: of the classes, labels or values, in order.
        forms: the ways in which the table writes the numbers of each target; () for classes and lists of labels.
    """

    files: list[Path]
    targets: Tensor
    names: tuple[str, ...]
    forms: tuple[NumberForm, ...] = ()

    @property
    def shares(self) -> tuple[str, ...]:
        """Values that are written in percent."""
        return tuple(name for name, form in zip(self.names, self.forms, strict=False) if form.mark == "%")


def is_litter(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that a system creates."""
    return name.startswith(".") or name.lower() in LITTER


def in_class_folders(folder: Path) -> Labelled:
    """Find the images in a folder that holds a folder per class, at any depth; hidden ones are ignored.

    Raises:
        FileNotFoundError: it has no class folders, or some without images.
    """
    found = class_folders(folder, "images")
    classes = list(found)
    images = {name: [file for file in files if file.suffix.lower() in SUFFIXES] for name, files in found.items()}
    if empty := [name for name in classes if not images[name]]:
        raise FileNotFoundError(
            f"{folder}: the class folders {', '.join(map(repr, empty))} have no images: add some, or delete the folders"
        )
    if others := [file for files in found.values() for file in files if file.suffix.lower() not in SUFFIXES]:
        log.warning("%s: %d files are no images, and ignored, such as %s", folder, len(others), others[0])
    targets = [number for number, name in enumerate(classes) for _ in images[name]]
    return Labelled([file for files in images.values() for file in files], torch.tensor(targets), tuple(classes))


def class_folders(folder: Path, what: str) -> dict[str, list[Path]]:
    """Find the folders in a folder, and the files of each, at any depth; hidden ones are ignored.

    Args:
        folder: holds a folder per class.
        what: the files hold, for the error.
    Raises:
        FileNotFoundError: it has no class folders.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_litter(entry.name))
    if not classes:
        raise FileNotFoundError(f"there is no class folder in {folder}: {what} need a folder per class")
    return {name: list(files_below(folder / name)) for name in classes}


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those below it, in order."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_litter(name)]
        found.append((place, sorted(name for name in names if not is_litter(name))))
    for place, names in sorted(found):
        yield from (Path(place, name) for name in names)


def in_table(
    path: str,
    folder: Path,
    kind: Kind,
    file: str,
    target: Sequence[str],
    training: Labelled | None = None,
    missing_labels: str = "drop",
    encoding: str = "utf-8",
) -> Labelled:
    """Read labels from a table with a header: CSV, Parquet or Excel.

    Args:
        path: the table's path.
        folder: holds the images.
        kind: "classification": a class per row; "multilabel": columns of 0 and 1, or one column with labels separated
            by ";"; "regression": numbers.
        file: column with the images' paths, below `folder`.
        target: columns to predict.
        training: the training split, whose classes, labels and ways of writing numbers hold here, too; None: they are
            found in the file, classes and labels sorted.
        missing_labels: for rows without a label: "drop" drops and counts them, "error" raises.
        encoding: a CSV file's.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns, cells or images are missing or invalid, or an image has several classes; all are reported.
    """
    names, shares = (None, ()) if training is None else (training.names, training.shares)
    read = read_table(path, encoding, texts=None, shares=shares)
    table = read.path
    columns = _columns(read, kind, file, target)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    has_lists = kind == "multilabel" and len(target) == 1
    cells = {line: [row[column] for column in target] for line, row in enumerate(rows, 2)}
    with ListedProblems() as problems:
        for line, named in enumerate(rows, 2):
            if not (image := folder / named[file]).is_file():
                problems.add(f"{table}, row {line}, column {file!r}: there is no file {image}")
        if not has_lists:  # an empty list is a list
            cells = problems.check(_labelled, table, cells, target, kind, names, missing_labels) or cells
    images = {line: folder / rows[line - 2][file] for line in cells}
    files = list(images.values())
    _report_repeated(table, images)
    if not has_lists and kind != "classification":
        values, forms = _numbers(read, cells, kind, target, training)
        return Labelled(files, values, tuple(target), forms)
    if has_lists:
        cells = {line: [name for part in row[0].split(";") if (name := part.strip())] for line, row in cells.items()}
    is_training = names is None
    numbers, names = _numbered(table, cells, names)
    if not has_lists:
        if is_training and len(names) == 1:
            missing = np.array([line not in cells for line in range(2, len(rows) + 2)])
            raise too_few(f"{table}, column {target[0]!r}", names[0], columns[target[0]], missing)
        _check_classes(read, images, [names[number] for (number,) in numbers], target[0])
        return Labelled(files, torch.tensor([number for (number,) in numbers]), names)
    flags = torch.zeros(len(files), len(names))
    for i, labels in enumerate(numbers):
        flags[i, labels] = 1
    return Labelled(files, flags, names)


def _columns(table: Table, kind: Kind, file: str, target: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of the columns that settings name, as texts."""
    with Problems() as problems:
        for key, column in [("file", file), *(("target", column) for column in target)]:
            problems.check(table.column, f"source.{key}", column)
        if kind == "classification" and len(target) > 1:
            problems.add(invalid("source.target", "one column in a classification", list(target)))
    return {name: [as_text(cell, ()) or "" for cell in table.frame[name]] for name in (file, *target)}


Cells = dict[int, list[str]]
"""A table's cells by row."""


def _labelled(
    table: Path, cells: Cells, target: Sequence[str], kind: Kind, names: tuple[str, ...] | None, missing_labels: str
) -> Cells:
    """Return the rows with all labels; the others are dropped and counted, or an error."""
    classes = None if names is None else Classes(names, (0,) * len(names))
    columns = [[row[at] for row in cells.values()] for at in range(len(target))]
    is_class = kind == "classification"
    absent = [read_labels(column, classes).missing if is_class else _absent(column) for column in columns]
    missing = {line: flags.index(True) for line, *flags in zip(cells, *absent, strict=True) if any(flags)}
    if not missing:
        return cells
    if missing_labels == "error" or len(missing) == len(cells):
        cure = "; source.missing_labels=drop drops such rows" if len(missing) < len(cells) else ""
        with ListedProblems() as problems:
            for line, at in missing.items():
                cell = cells[line][at]
                problems.add(f"{table}, row {line}, column {target[at]!r}: the label is missing, {cell!r}{cure}")
    log.warning("%s: dropped %d rows without a label, such as row %d", table, len(missing), next(iter(missing)))
    return {line: row for line, row in cells.items() if line not in missing}


def _repeated(files: Mapping[int, Path]) -> list[list[int]]:
    """Return the rows of each file that several rows name."""
    rows = defaultdict(list)
    for row, file in files.items():
        rows[os.path.normpath(file)].append(row)
    return [lines for lines in rows.values() if len(lines) > 1]


def _report_repeated(table: Path, files: Mapping[int, Path]) -> None:
    if repeated := _repeated(files):
        lines = ", ".join(map(str, repeated[0][:SHOWN]))
        text = "%s: %d files are listed more than once, such as %s (rows %s)"
        log.warning(text, table, len(repeated), files[repeated[0][0]], lines)


def _check_classes(table: Table, files: Mapping[int, Path], classes: Sequence[str], column: str) -> None:
    """Raise if rows give a file several classes.

    Args:
        table: with the labels.
        files: row to the file that it names.
        classes: of each row in `files`.
        column: the labels'.
    """
    by_row = dict(zip(files, classes, strict=True))
    with ListedProblems() as problems:
        for lines in _repeated(files):
            first = {by_row[line]: line for line in reversed(lines)}
            if len(first) > 1:
                rows = sorted((line, name) for name, line in first.items())
                shown = ", ".join(f"{name!r} (row {line})" for line, name in rows[:SHOWN])
                problems.add(
                    f"{table.path}, column {column!r}: {files[lines[0]]} has several classes, {shown}: keep one of its "
                    "rows, or set source.kind=multilabel for images with several labels"
                )


def _absent(column: list[str]) -> list[bool]:
    return [as_text(cell) is None for cell in column]


def _numbered(table: Path, listed: Cells, names: tuple[str, ...] | None) -> tuple[list[list[int]], tuple[str, ...]]:
    """Return each row's labels by number, and the labels' names: those passed, or the ones in the file."""
    cells = [name for row in listed.values() for name in row]
    classes = None if names is None else Classes(names, (0,) * len(names))
    labels = read_labels(cells, classes)
    classes = classes or find_classes(str(table), labels)
    rows = [line for line, row in listed.items() for _ in row]
    numbers = classes.number(labels).tolist()
    with ListedProblems() as problems:
        for line, cell, number in zip(rows, cells, numbers, strict=True):
            if number < 0:
                problems.add(f"{table}, row {line}: {cell!r} is no label of the training images")
    left = iter(numbers)
    return [list(islice(left, len(row))) for row in listed.values()], classes.names


def _numbers(
    table: Table, cells: Cells, kind: Kind, target: Sequence[str], training: Labelled | None
) -> tuple[Tensor, tuple[NumberForm, ...]]:
    """Return a regression's targets, float64 (rows, targets), or flags, float32, and how they are written."""
    numbers, lines = torch.empty(len(cells), len(target), dtype=torch.float64), list(cells)
    forms = [PLAIN] * len(target) if training is None else list(training.forms)
    with ListedProblems() as problems:
        for i, column in enumerate(target):
            own = table.frame[column].iloc[[line - 2 for line in lines]]
            where = partial(_row, table, lines)
            if training is None:
                forms[i] = problems.check(find_form, own, where, column, decimal=table.decimal) or PLAIN
            values, bad = numbers_or_bad(own, form=forms[i])
            numbers[:, i] = torch.tensor(values)
            for row in np.flatnonzero(bad | np.isnan(values)).tolist():
                problems.add(f"{where(row)}, column {column!r}: {cells[lines[row]][i]!r} is no number")
    return numbers if kind == "regression" else _flags(table, cells, target, numbers), tuple(forms)


def _row(table: Table, lines: Sequence[int], row: int) -> str:
    return f"{table.path}, row {lines[row]}"


def _flags(table: Table, cells: Cells, target: Sequence[str], values: Tensor) -> Tensor:
    """Return numbers (rows, labels) as float32 if all are 0 or 1."""
    flags, lines = values.float(), list(cells)
    with ListedProblems() as problems:
        for i, j in ((flags != 0) & (flags != 1)).nonzero().tolist():
            line = lines[i]
            problems.add(f"{table.path}, row {line}, column {target[j]!r}: {cells[line][j]!r} is neither 0 nor 1")
    return flags
