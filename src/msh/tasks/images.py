"""Load images from folders, one per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from msh.checked import check_promised
from msh.errors import Problems, invalid, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.checks import existing
from msh.tasks.task import Split

MODES = ("L", "RGB")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted image formats, whatever the file's suffix; Pillow would start other programs for some others."""


def image_folder(
    path: str,
    test_path: str | None = None,
    test_fraction: float | None = None,
    size: int | tuple[int, int] | None = None,
    mode: str | None = None,
    strict: bool = True,
) -> RawData:
    """Load JPEG, PNG and other images from a folder that holds a folder per class.

    Args:
        path: the training folder; its folders, in the order of their names, are the classes.
        test_path: the test split's folder, with the same classes.
        test_fraction: without one, the test split's share of the images, .2 if None.
        size: resize images to (height, width), or to one number for both; None: all must have one size.
        mode: convert images to "L" (grey) or "RGB"; None: all must have one mode.
        strict: raise on JPEGs that are damaged but can be decoded; False accepts the decoder's output.
    Returns:
        Inputs as float in [0, 1], (examples, channels, height, width).
    Raises:
        FileNotFoundError: there is no such folder, or it has no class folders or one without images.
        ValueError: an image is damaged, sizes or modes are mixed, or a setting is invalid.
    """
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        if mode is not None:
            problems.check(one_of, "source.mode", mode, MODES)
        height_width = None if size is None else problems.check(check_size, size)
    folders = [_listed(existing(folder, "folder")) for folder in (path, test_path) if folder is not None]
    classes = folders[0].classes
    if len(folders) == 2 and folders[1].classes != classes:
        unmatched = sorted(set(classes) ^ set(folders[1].classes))
        raise ValueError(f"{path} and {test_path} need the same classes; only one has {', '.join(unmatched)}")
    files = [(Path(file), target) for folder in folders for file, target in folder.samples]
    pixels = read_images([file for file, _ in files], height_width, mode, strict)
    everything = Split(pixels, torch.tensor([target for _, target in files]))
    if test_path is None:
        parts = hold_out(everything, test_fraction, "classification")
    else:
        count = len(folders[0].samples)
        parts = (everything.take(torch.arange(count)), everything.take(torch.arange(count, len(files))))
    return RawData("classification", *parts, len(classes), classes=tuple(classes))


def check_size(size: Any) -> tuple[int, int]:
    """Convert a config's `source.size` to (height, width).

    Raises:
        ValueError: it is neither a number of pixels nor two.
    """
    pair = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise invalid("source.size", "a number of pixels, or [height, width]", size)
    return pair[0], pair[1]


def _listed(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder  # slow to import, and only image tasks need it

    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # names the class without images, but not the folder
        raise FileNotFoundError(f"{folder}: {error}") from error


def read_images(files: list[Path], size: tuple[int, int] | None, mode: str | None, strict: bool = True) -> torch.Tensor:
    """Read image files.

    Args:
        files: at least one.
        size: resize them to (height, width); None: all must have one size.
        mode: convert them to one of MODES; None: all must have one mode.
        strict: see `image_folder`.
    Returns:
        float in [0, 1], (images, channels, height, width).
    Raises:
        ValueError: an image is damaged, or sizes or modes are mixed.
    """
    first, images = None, None
    for i, file in enumerate(files):
        pixels, form = _image(file, size, mode, strict)
        if images is None or first is None:
            first, images = form, torch.empty(len(files), *pixels.shape)
        if form != first:
            raise ValueError(
                f"{files[0]} is {_described(first)}, but {file} is {_described(form)}: "
                "images need one size and one mode; source.size and source.mode convert them"
            )
        images[i] = pixels
    assert images is not None
    return images


def _image(
    file: Path, size: tuple[int, int] | None, mode: str | None, strict: bool
) -> tuple[torch.Tensor, tuple[int, int, str]]:
    """Read a file: (float (channels, height, width) in [0, 1], (height, width, mode))."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as opened:
            check_promised(opened.width * opened.height, file.stat().st_size, "pixels")
            opened.load()
            jpeg_mode = opened.mode if opened.format == "JPEG" else None
            image = opened if mode is None or opened.mode == mode else opened.convert(mode)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise ValueError(f"{file} cannot be read: cut short or damaged, or not an image ({error})") from error
    if strict and jpeg_mode is not None:
        _check_jpeg(file, jpeg_mode)
    if image.mode not in MODES:
        raise ValueError(f"{file} has the mode {image.mode}: convert it with source.mode={' or '.join(MODES)}")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).float() / 255.0
    channels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return channels, (image.height, image.width, image.mode)


def _check_jpeg(file: Path, mode: str) -> None:
    """Raise on damage that a decoder can skip: Pillow hides libjpeg's warnings about it."""
    from simplejpeg import decode_jpeg

    try:
        decode_jpeg(file.read_bytes(), colorspace="CMYK" if mode == "CMYK" else "GRAY", strict=True)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): repair or delete it; source.strict=false accepts what can be decoded"
        ) from error


def _described(form: tuple[int, int, str]) -> str:
    return f"{form[0]}x{form[1]} {form[2]}"
