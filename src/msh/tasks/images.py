"""Load images from folders, one per class, or with labels in a table."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from msh.errors import Problems, invalid, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.checks import check_names, existing
from msh.tasks.image_cache import Cache, Unreadable, cannot_be_read, load_images
from msh.tasks.image_files import Labelled, in_class_folders, in_table
from msh.tasks.image_step import LARGEST_SIDE, Fit, Mode, ReadImages, read_header
from msh.tasks.labels import MISSING_LABELS
from msh.tasks.lazy import Inputs
from msh.tasks.options import ExampleKind
from msh.tasks.task import Split

log = logging.getLogger(__name__)

LONGEST_SIDE = 256
"""Longest side of images whose size nobody has set."""


def image_folder(
    path: str,
    test_path: str | None = None,
    test_fraction: float | None = None,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    strict: bool = True,
    fit: Fit = "stretch",
    background: int = 255,
    range: tuple[float, float] | None = None,
    unreadable: Unreadable = "error",
    cache: Cache = "auto",
    cache_dir: str | None = None,
    labels: str | None = None,
    test_labels: str | None = None,
    file: str = "file",
    target: str | Sequence[str] = "label",
    kind: ExampleKind = "classification",
    missing_labels: str = "drop",
    encoding: str = "utf-8",
) -> RawData:
    """Load JPEG, PNG and other images, from a folder that holds a folder per class, or with labels in a table.

    Images are read as people see them: see `ReadImages`. Hidden files and folders, and those that systems create, are
    ignored.

    Args:
        path: the training folder; without `labels`, its folders, in the order of their names, are the classes.
        test_path: the test split's folder, with the same classes.
        test_fraction: without one, the test split's share of the images, .2 if None.
        size: resize images to (height, width), or to one number for both; None: the size that all training images
            have, or the median of their sizes, which is logged.
        mode: convert images to "L" (grey) or "RGB"; None: RGB if a training image has colours.
        strict, fit, background, range: as in `ReadImages`.
        unreadable: "error", or "skip": leave out images that cannot be read, and log their names.
        cache, cache_dir: as in `load_images`.
        labels: table (CSV, Parquet, Excel) with a column of paths below `path`, and columns to predict.
        test_labels: table for the test split; its images are below `test_path`, or else `path`.
        file, target: names of the column of paths, and of the column to predict, or the columns.
        kind: "classification", "multilabel" (columns of 0 and 1, or one with labels separated by ";"), "regression".
        missing_labels: for rows without a label: "drop" drops and counts them, "error" raises.
        encoding: of a CSV file.
    Returns:
        Inputs as float in [0, 1], (examples, channels, height, width).
    Raises:
        FileNotFoundError: there is no such folder, or it has no class folders or one without images.
        ValueError: an image is damaged, a label is missing or invalid, or a setting is.
    """
    settings = Reading(size, mode, fit, background, range, strict, unreadable, cache, cache_dir)
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, (test_path or test_labels) is not None)
        problems.check(one_of, "source.kind", kind, get_args(ExampleKind))
        problems.check(settings.check)
        problems.check(one_of, "source.missing_labels", missing_labels, MISSING_LABELS)
        _check_labels(problems, kind, labels, test_path, test_labels, target)
    folders = [existing(folder, "folder") for folder in (path, test_path) if folder is not None]
    tables = [labels, test_labels]
    of_tables = (kind, file, target, missing_labels, encoding)
    parts = _of_classes(folders) if labels is None else _of_tables(tables, folders, *of_tables)
    return _read(parts, settings, test_fraction, kind)


@dataclass(frozen=True)
class Reading:
    """Settings that all sources of image files share.

    Attributes:
        size, mode, unreadable: as in `image_folder`.
        fit, background, range, strict: as in `ReadImages`.
        cache, cache_dir: as in `load_images`.
    """

    size: int | Sequence[int] | None
    mode: Mode | None
    fit: Fit = "stretch"
    background: int = 255
    range: tuple[float, float] | None = None
    strict: bool = True
    unreadable: Unreadable = "error"
    cache: Cache = "auto"
    cache_dir: str | None = None

    def check(self) -> None:
        """Raise unless all are valid."""
        with Problems() as problems:
            if self.size is not None:
                problems.check(check_size, self.size)
            if self.mode is not None:
                problems.check(one_of, "source.mode", self.mode, get_args(Mode))
            problems.check(one_of, "source.fit", self.fit, get_args(Fit))
            problems.check(one_of, "source.unreadable", self.unreadable, get_args(Unreadable))
            problems.check(one_of, "source.cache", self.cache, get_args(Cache))
            if type(self.background) is not int or not 0 <= self.background <= 255:
                problems.add(invalid("source.background", "a grey level from 0 to 255", self.background))
            if self.range is not None and not _is_range(self.range):
                bound = "[black, white], two numbers in ascending order"
                problems.add(invalid("source.range", bound, self.range))

    def step(self, mode: Mode, size: tuple[int, int]) -> ReadImages:
        """Return the step that reads images as these settings say."""
        return ReadImages(mode, size, self.fit, self.background, self.range, self.strict, profiles=True)

    def load(self, files: Sequence[Path], step: ReadImages) -> tuple[Inputs, Tensor]:
        """Read image files: see `load_images`."""
        return load_images(files, step, self.unreadable, self.cache, self.cache_dir)


def _is_range(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    return numbers and value[0] < value[1]


def check_size(size: Any) -> tuple[int, int]:
    """Convert a config's `source.size` to (height, width).

    Raises:
        ValueError: it is neither a number of pixels nor two.
    """
    pair = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in pair):
        raise invalid("source.size", f"a number of pixels up to {LARGEST_SIDE}, or [height, width]", size)
    return pair[0], pair[1]


def _check_labels(
    problems: Problems,
    kind: ExampleKind,
    labels: str | None,
    test_path: str | None,
    test_labels: str | None,
    target: str | Sequence[str],
) -> None:
    problems.check(check_names, "source.target", [target] if isinstance(target, str) else target)
    if labels is None and kind != "classification":
        problems.add(f"source.kind = {kind} needs source.labels, a table: folders are classes")
    if labels is None and test_labels is not None:
        problems.add("source.test_labels needs source.labels")
    if labels is not None and test_path is not None and test_labels is None:
        problems.add("source.test_path with source.labels needs source.test_labels, a table")


def _of_classes(folders: Sequence[Path]) -> list[Labelled]:
    parts = [in_class_folders(folder) for folder in folders]
    if parts[0].names != parts[-1].names:
        unmatched = sorted(set(parts[0].names) ^ set(parts[-1].names))
        raise ValueError(f"{folders[0]} and {folders[-1]} need the same classes; only one has {', '.join(unmatched)}")
    return parts


def _of_tables(
    tables: Sequence[str | None],
    folders: Sequence[Path],
    kind: ExampleKind,
    file: str,
    target: str | Sequence[str],
    missing_labels: str,
    encoding: str,
) -> list[Labelled]:
    columns, parts = [target] if isinstance(target, str) else list(target), list[Labelled]()
    for table, folder in zip(tables, (folders[0], folders[-1]), strict=True):
        if table is not None:
            training = parts[0] if parts else None
            parts.append(in_table(table, folder, kind, file, columns, training, missing_labels, encoding))
    return parts


def _read(parts: Sequence[Labelled], settings: Reading, test_fraction: float | None, kind: ExampleKind) -> RawData:
    files = [file for part in parts for file in part.files]
    rows = Split(torch.arange(len(files)), torch.cat([part.targets for part in parts]))
    if len(parts) == 2:
        train, test = torch.arange(len(files)).split([len(part.files) for part in parts])
    else:
        train, test = (cast(Tensor, part.inputs) for part in hold_out(rows, test_fraction, kind))
    _report_duplicates([files[row] for row in train.tolist()], [files[row] for row in test.tolist()])
    step = _chosen([files[row] for row in train.tolist()], settings)
    inputs, kept = settings.load(files, step)
    targets, names = rows.targets[kept], parts[0].names
    if kind == "classification" and (lost := set(torch.arange(len(names)).tolist()) - set(targets.tolist())):
        raise ValueError(f"no image of {', '.join(names[number] for number in sorted(lost))} can be read")
    places = torch.full((len(files),), -1)
    places[kept] = torch.arange(len(kept))
    everything = Split(inputs, targets)
    first, second = (everything.take(places[part][places[part] >= 0]) for part in (train, test))
    return RawData(kind, first, second, len(names) or targets.shape[1], classes=names, steps=(step,))


def _report_duplicates(train: Sequence[Path], test: Sequence[Path]) -> None:
    """Warn of files of the test split that are also in the training split."""
    training = set(map(os.path.normpath, train))
    if twins := [file for file in test if os.path.normpath(file) in training]:
        text = "%d of %d images of the test split are also training images, such as %s"
        log.warning(text, len(twins), len(test), twins[0])


def _chosen(files: Sequence[Path], settings: Reading) -> ReadImages:
    """Choose mode and size, where they are not set, from the training images' headers; log what is not obvious."""
    headers, problems = [], []
    for file in files:
        try:
            headers.append((file, read_header(file)))
        except ValueError as error:  # listed or left out with all others that cannot be decoded
            problems.append(str(error))
    if not headers:
        raise cannot_be_read(problems, len(files))
    if animated := [file for file, header in headers if header.is_animated]:
        log.info("%d images have several frames, such as %s: the first frame is read", len(animated), animated[0])
    for is_converted, level, effect in (
        (True, logging.INFO, "colours are converted to sRGB"),
        (False, logging.WARNING, "they are damaged or for other kinds of images, and ignored"),
    ):
        foreign = [(f, h.profile) for f, h in headers if h.profile and h.is_converted == is_converted]
        if foreign:
            text = "%d images have colour profiles other than sRGB, such as %s (%s): %s"
            log.log(level, text, len(foreign), *foreign[0], effect)
    grey, mode, size = [file for file, header in headers if header.is_grey], settings.mode, settings.size
    if mode is None:
        mode = "L" if len(grey) == len(headers) else "RGB"
        if 0 < len(grey) < len(headers):
            text = "%d of %d images are grey, such as %s: all are read as RGB; source.mode changes that"
            log.warning(text, len(grey), len(headers), grey[0])
    return settings.step(mode, check_size(size or _usual_size([header.size for _, header in headers])))


def _usual_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the size of all images, or else the median height and width, reduced to LONGEST_SIDE."""
    if len(set(sizes)) == 1:
        return sizes[0]
    median = [statistics.median_low(sides) for sides in zip(*sizes, strict=True)]
    factor = min(1.0, LONGEST_SIDE / max(median))
    height, width = (max(1, round(side * factor)) for side in median)
    text = (
        "images have %d sizes (height x width), from %dx%d to %dx%d: all are resized to %dx%d, the median%s; "
        "source.size and source.fit change that"
    )
    reduced = f" reduced to {LONGEST_SIDE} pixels" if factor < 1 else ""
    log.warning(text, len(set(sizes)), *min(sizes, key=math.prod), *max(sizes, key=math.prod), height, width, reduced)
    return height, width
