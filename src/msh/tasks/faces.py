"""Load faces whose file names hold their labels."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from msh.errors import Problems, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.checks import existing
from msh.tasks.image_cache import Cache, Unreadable
from msh.tasks.image_files import is_litter
from msh.tasks.image_step import ReadImages
from msh.tasks.images import Reading, check_size
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
    unreadable: Unreadable = "error",
    cache: Cache = "auto",
    cache_dir: str | None = None,
) -> RawData:
    """Load UTKFace: JPEGs named <age>_<gender>_<ethnicity>_<time>.jpg in one folder.

    Files whose names miss a label, as a few of the original do, are dropped, and their number is logged. All three
    labels have the same test images.

    Args:
        path: the folder.
        label: "age" (ten classes: up to 10 years, up to 20, ..., over 90), "gender" (2) or "ethnicity" (5).
        size: resize images to (height, width), or to one number for both.
        test_fraction: the test split's share of the images, .2 if None.
        strict: raise on images that are damaged but can be decoded; False accepts the decoder's output.
        unreadable, cache, cache_dir: as in `image_folder`.
    Returns:
        Inputs as float in [0, 1], (examples, 3, height, width).
    Raises:
        FileNotFoundError: there is no such folder, or it has no JPEG with all three labels.
        ValueError: an image is damaged, or a setting is invalid.
    Source: Zhang, Song and Qi 2017 (the data); Renn et al. 2022, experiment 9 (the classes of age).
    """
    settings = Reading(None, "RGB", strict=strict, unreadable=unreadable, cache=cache, cache_dir=cache_dir)
    with Problems() as problems:
        problems.check(settings.check)
        problems.check(one_of, "source.label", label, CLASSES)
        problems.check(check_test_fraction, test_fraction)
        height_width = problems.check(check_size, size)
    assert height_width is not None
    step = settings.step("RGB", height_width)
    inputs, labels = _read(existing(path, "folder"), settings, step)  # shared by the three tasks
    everything = Split(inputs, labels[:, list(CLASSES).index(label)])
    train, test = hold_out(everything, test_fraction, "regression")  # not stratified: the same images for all labels
    return RawData("classification", train, test, CLASSES[label], steps=(step,))


@lru_cache(maxsize=1)
def _read(folder: Path, settings: Reading, step: ReadImages) -> tuple[LazyInputs, Tensor]:
    """Read (images, labels (images, 3) in the order of CLASSES), once for the three tasks."""
    files = sorted(file for file in folder.glob("*.jpg") if not is_litter(file.name))
    labels = {file: numbers for file in files if (numbers := _labels(file.name)) is not None}
    if not labels:
        raise FileNotFoundError(f"{folder} has no file named <age>_<gender>_<ethnicity>_<time>.jpg")
    if dropped := [file.name for file in files if file not in labels]:
        log.warning("%s: dropped %d files, their names miss a label, such as %s", folder, len(dropped), dropped[0])
    images, kept = settings.load(list(labels), step)
    inputs = images if isinstance(images, LazyInputs) else LazyInputs(images, torch.arange(len(images)))
    return inputs, torch.tensor(list(labels.values()))[kept]


def _labels(name: str) -> tuple[int, int, int] | None:
    """Parse (class of the age, gender, ethnicity) from a name, or None if it misses one."""
    parts = name.split("_")
    if len(parts) < 4 or not all(part.isdecimal() for part in parts[:3]):
        return None
    age, gender, ethnicity = map(int, parts[:3])
    if age > OLDEST or gender >= CLASSES["gender"] or ethnicity >= CLASSES["ethnicity"]:
        return None
    return min(max(age - 1, 0) // 10, 9), gender, ethnicity
