"""Folders of images, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from msh.checked import check_promised
from msh.errors import one_of
from msh.tasks.build import RawData, hold_out
from msh.tasks.columns import TEST_FRACTION, check_test_fraction
from msh.tasks.task import Split

MODES = ("L", "RGB")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of image files, whatever they are called; Pillow would start other programs for some of the rest."""


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
        path: folder to learn from; its folders, in the order of their names, are the classes.
        test_path: folder with the test split, the same classes in it.
        test_fraction: without one, share of the images that become the test split, .2 when None.
        size: (height, width) that images are resized to, or one number for both; theirs, which must be one, when None.
        mode: "L" (grey) or "RGB" that images are converted to; theirs, which must be one, when None.
        strict: refuse JPEGs that are damaged and yet can be decoded; False takes what comes out.
    Returns:
        Inputs as float in [0, 1], (examples, channels, height, width).
    Raises:
        FileNotFoundError: there is no such folder, or it has no class folders or one without images.
        ValueError: an image is damaged, sizes or modes are mixed, or a setting is not allowed.
    """
    check_test_fraction(test_fraction, test_path is not None)
    if mode is not None:
        one_of("source.mode", mode, MODES)
    height_width = read_size(size)
    folders = [_listed(Path(folder).expanduser()) for folder in (path, test_path) if folder is not None]
    classes = folders[0].classes
    if len(folders) == 2 and folders[1].classes != classes:
        odd = sorted(set(classes) ^ set(folders[1].classes))
        raise ValueError(f"{path} and {test_path} need the same classes; only one of them has {', '.join(odd)}")
    files = [(Path(file), target) for folder in folders for file, target in folder.samples]
    pixels = read_images([file for file, _ in files], height_width, mode, strict)
    everything = Split(pixels, torch.tensor([target for _, target in files]))
    if test_path is None:
        parts = hold_out(everything, test_fraction or TEST_FRACTION, "classification")
    else:
        count = len(folders[0].samples)
        parts = (everything.take(torch.arange(count)), everything.take(torch.arange(count, len(files))))
    return RawData("classification", *parts, len(classes), classes=tuple(classes))


def read_size(size: Any) -> tuple[int, int] | None:
    """(height, width) that images are to have, from a config's `source.size`; None for None.

    Raises:
        ValueError: it is neither a number of pixels nor two of them.
    """
    if size is None:
        return None
    pair = [size, size] if isinstance(size, int) else list(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"source.size = {size} is not allowed: pixels are, or [height, width]")
    return pair[0], pair[1]


def _listed(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder  # takes long to import, and only image tasks need it

    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: paths.data_dir=DIR names the folder of the data")
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # says which class has no images, and not where
        raise FileNotFoundError(f"{folder}: {error}") from error


def read_images(files: list[Path], size: tuple[int, int] | None, mode: str | None, strict: bool = True) -> torch.Tensor:
    """Read image files.

    Args:
        files: at least one.
        size: (height, width) that they are resized to; None: theirs, which must be one.
        mode: of MODES that they are converted to; None: theirs, which must be one.
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
                "images need one size and one mode, or source.size and source.mode to convert them to"
            )
        images[i] = pixels
    assert images is not None
    return images


def _image(
    file: Path, size: tuple[int, int] | None, mode: str | None, strict: bool
) -> tuple[torch.Tensor, tuple[int, int, str]]:
    """(float (channels, height, width) in [0, 1], (height, width, mode))."""
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
        raise ValueError(f"{file} has the mode {image.mode}: convert it with source.mode, to one of {', '.join(MODES)}")
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).float() / 255.0
    channels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return channels, (image.height, image.width, image.mode)


def _check_jpeg(file: Path, mode: str) -> None:
    """Raise on damage after which a decoder can go on; Pillow keeps to itself what libjpeg has to say of it."""
    from simplejpeg import decode_jpeg

    try:
        decode_jpeg(file.read_bytes(), colorspace="CMYK" if mode == "CMYK" else "GRAY", strict=True)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): mend it or take it away; source.strict=false takes what can be decoded"
        ) from error


def _described(form: tuple[int, int, str]) -> str:
    return f"{form[0]}x{form[1]} {form[2]}"
