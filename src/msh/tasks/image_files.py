"""Find image files and their labels: in a folder per class, or in a CSV file."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from msh.errors import Problems, invalid, one_of
from msh.tasks.checks import ListedProblems, existing
from msh.tasks.labels import Classes, find_classes, read_labels
from msh.tasks.outputs import Kind

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Of image files, in lower case."""
LITTER = frozenset(
    ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir", "lost+found")
)
"""Files and folders that systems create, besides those whose names start with a dot."""


@dataclass(frozen=True)
class Labelled:
    """Image files with targets.

    Attributes:
        files: their paths.
        targets: as in `Split`.
        names: of the classes or labels, in the order of their numbers; () in a regression.
    """

    files: list[Path]
    targets: Tensor
    names: tuple[str, ...]


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
    path: str, folder: Path, kind: Kind, file: str, target: Sequence[str], names: tuple[str, ...] | None = None
) -> Labelled:
    """Read labels from a CSV file with a header.

    Args:
        path: the CSV file's path.
        folder: holds the images.
        kind: "classification": a class per row; "multilabel": columns of 0 and 1, or one column with labels separated
            by ";"; "regression": numbers.
        file: column with the images' paths, below `folder`.
        target: columns to predict.
        names: of the training split's classes or labels; None: found in the file, sorted.
    Raises:
        FileNotFoundError: there is no such CSV file.
        ValueError: columns, cells or images are missing or invalid; all are reported.
    """
    table = existing(path, "file")
    rows = _rows(table)
    with Problems() as problems:
        for key, column in [("file", file), *(("target", column) for column in target)]:
            problems.check(one_of, f"source.{key}", column, rows[0])
        if kind == "classification" and len(target) > 1:
            problems.add(invalid("source.target", "one column in a classification", list(target)))
    files = [folder / row[file] for row in rows]
    cells = [[row[column] for column in target] for row in rows]
    has_lists = kind == "multilabel" and len(target) == 1
    with ListedProblems() as problems:
        for line, (image, labels) in enumerate(zip(files, cells, strict=True), 2):
            if not image.is_file():
                problems.add(f"{table}, row {line}, column {file!r}: there is no file {image}")
            if "" in labels and not has_lists:
                problems.add(f"{table}, row {line}, column {target[labels.index('')]!r}: the label is missing")
    if kind == "regression":
        return Labelled(files, _numbers(table, cells, target), ())
    if kind == "multilabel" and not has_lists:
        return Labelled(files, _flags(table, cells, target), tuple(target))
    listed = [[name for part in row[0].split(";") if (name := part.strip())] for row in cells] if has_lists else cells
    numbers, names = _numbered(table, listed, names)
    if not has_lists:
        return Labelled(files, torch.tensor([number for (number,) in numbers]), names)
    flags = torch.zeros(len(files), len(names))
    for i, row in enumerate(numbers):
        flags[i, row] = 1
    return Labelled(files, flags, names)


def _numbered(
    table: Path, listed: list[list[str]], names: tuple[str, ...] | None
) -> tuple[list[list[int]], tuple[str, ...]]:
    """Return each row's labels by number, and the labels' names: those passed, or the ones in the file."""
    cells = [name for row in listed for name in row]
    classes = None if names is None else Classes(names, (0,) * len(names))
    labels = read_labels(cells, classes)
    classes = classes or find_classes(str(table), labels)
    rows = [line for line, row in enumerate(listed, 2) for _ in row]
    numbers = classes.number(labels).tolist()
    with ListedProblems() as problems:
        for line, cell, number in zip(rows, cells, numbers, strict=True):
            if number < 0:
                problems.add(f"{table}, row {line}: {cell!r} is no label of the training images")
    left = iter(numbers)
    return [list(islice(left, len(row))) for row in listed], classes.names


def _rows(table: Path) -> list[dict[str, str]]:
    """Read a CSV file's rows as column to cell, without spaces around cells."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(opened, strict=True) if row] or [[]]
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{table} is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{table} has no rows: it needs a header and at least one row below it")
    with ListedProblems() as problems:
        for line, row in enumerate(rows, 2):
            if len(row) != len(header):
                problems.add(f"{table}, row {line}: {len(row)} cells, but the header names {len(header)} columns")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _numbers(table: Path, cells: list[list[str]], target: Sequence[str]) -> Tensor:
    numbers = torch.empty(len(cells), len(target), dtype=torch.float64)
    with ListedProblems() as problems:
        for line, row in enumerate(cells, 2):
            for i, (column, cell) in enumerate(zip(target, row, strict=True)):
                try:
                    numbers[line - 2, i] = float(cell)
                except ValueError:
                    problems.add(f"{table}, row {line}, column {column!r}: {cell!r} is no number")
    return numbers


def _flags(table: Path, cells: list[list[str]], target: Sequence[str]) -> Tensor:
    flags = _numbers(table, cells, target).float()
    with ListedProblems() as problems:
        for i, j in ((flags != 0) & (flags != 1)).nonzero().tolist():
            problems.add(f"{table}, row {i + 2}, column {target[j]!r}: {cells[i][j]!r} is neither 0 nor 1")
    return flags
