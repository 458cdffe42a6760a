"""Faces whose labels are in the names of their files."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from msh.errors import one_of
from msh.tasks.build import RawData, hold_out
from msh.tasks.columns import TEST_FRACTION, check_test_fraction
from msh.tasks.images import read_images, read_size
from msh.tasks.lazy import LazyInputs
from msh.tasks.task import Split

log = logging.getLogger(__name__)

CLASSES = {"age": 10, "gender": 2, "ethnicity": 5}
OLDEST = 150


def utkface(
    path: str,
    label: str,
    size: int | tuple[int, int],
    test_fraction: float | None = None,
    strict: bool = True,
) -> RawData:
    """Load UTKFace: JPEGs named <age>_<gender>_<ethnicity>_<time>.jpg in one folder.

    Files whose names miss a label, as a few of the original do, are left out, and their number is logged. The same
    images are the test split of all three labels.

    Args:
        path: the folder.
        label: "age" (ten classes: up to 10 years, up to 20, ..., over 90), "gender" (2) or "ethnicity" (5).
        size: (height, width) that images are resized to, or one number for both.
        test_fraction: share of the images that become the test split, .2 when None.
        strict: refuse images that are damaged and yet can be decoded; False takes what comes out.
    Returns:
        Inputs as float in [0, 1], (examples, 3, height, width).
    Raises:
        FileNotFoundError: there is no such folder, or it has no JPEG with all three labels.
        ValueError: an image is damaged, or a setting is not allowed.
    Source: Zhang, Song and Qi 2017 (the data); Renn et al. 2022, experiment 9 (the classes of age).
    """
    one_of("source.label", label, CLASSES)
    check_test_fraction(test_fraction, False)
    height_width = read_size(size)
    if height_width is None:
        raise ValueError("source.size = null is not allowed: faces have many sizes; pixels are, or [height, width]")
    pixels, labels = _read(Path(path).expanduser(), height_width, strict)
    inputs = LazyInputs(pixels, torch.arange(len(pixels)))  # which the three tasks share
    everything = Split(inputs, labels[:, list(CLASSES).index(label)])
    train, test = hold_out(everything, test_fraction or TEST_FRACTION, "regression")  # not by class: alike for all
    return RawData("classification", train, test, CLASSES[label])


@lru_cache(maxsize=1)
def _read(folder: Path, size: tuple[int, int], strict: bool) -> tuple[Tensor, Tensor]:
    """(images, labels (images, 3) in the order of CLASSES); read once for the three tasks."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: paths.data_dir=DIR names the folder of the data")
    files = sorted(folder.glob("*.jpg"))
    found = {file: labels for file in files if (labels := _labels(file.name)) is not None}
    if not found:
        raise FileNotFoundError(f"{folder} has no file named <age>_<gender>_<ethnicity>_<time>.jpg")
    if len(found) < len(files):
        odd = next(file.name for file in files if file not in found)
        log.warning("%s: %d files left out, their names miss a label, such as %s", folder, len(files) - len(found), odd)
    return read_images(list(found), size, "RGB", strict), torch.tensor(list(found.values()))


def _labels(name: str) -> tuple[int, int, int] | None:
    """(class of age, gender, ethnicity), or None if the name does not have them all."""
    parts = name.split("_")
    if len(parts) < 4 or not all(part.isdecimal() for part in parts[:3]):
        return None
    age, gender, ethnicity = map(int, parts[:3])
    if age > OLDEST or gender >= CLASSES["gender"] or ethnicity >= CLASSES["ethnicity"]:
        return None
    return min(max(age - 1, 0) // 10, 9), gender, ethnicity
