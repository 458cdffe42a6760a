"""Read images: the first step of image tasks, from files, Pillow images and arrays to numbers in [0, 1]."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from msh.checked import check_promised
from msh.errors import invalid
from msh.tasks.checks import ListedProblems
from msh.tasks.steps import CONFIG, Dtype, unmasked

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsTransform

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted image formats, whatever the file's suffix; Pillow would start other programs for some others."""
LARGEST_SIDE = 2**14
ORIENTATION = 0x0112  # EXIF tag
SPACES = {"RGB": ("RGB", "RGBA", "P", "PA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",)}
"""A colour profile's space to modes of images that it can describe."""

CHANNELS = (1, 3, 4)
"""Numbers of channels that an array of an image may have."""

Mode = Literal["L", "RGB"]
Fit = Literal["stretch", "crop", "pad"]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


@plain_dataclass(frozen=True)
class Header:
    """The facts in an image file's header.

    Attributes:
        size: (height, width), upright.
        is_grey: it has no colours.
        is_animated: it has more than one frame.
        profile: name of its colour profile; "" for none, and for sRGB.
        is_converted: its colours can be converted from that profile to sRGB.
    """

    size: tuple[int, int]
    is_grey: bool
    is_animated: bool
    profile: str
    is_converted: bool


@dataclass(frozen=True, config=CONFIG)
class ReadImages:
    """Read images as people see them: upright, on a background, the first frame of an animation.

    Attributes:
        mode: "L" (grey) or "RGB".
        size: (height, width) of the result.
        fit: for images of another size. "stretch": resize both sides; "crop": resize to cover the size, and cut what
            exceeds it equally on both sides; "pad": resize to fit into the size, and fill the rest with `background`.
        background: grey level from 0 (black) to 255 (white), behind transparent pixels and padding.
        range: values that are black and white in images deeper than 8 bits; values beyond are clipped. None: 0 and
            65535 in images of 16 bits, 0 and 1 in images of floats, which may then have no others.
        strict: raise on JPEGs that are damaged but can be decoded; False accepts the decoder's output.
        profiles: convert colours to sRGB from the profile (ICC) in the image; False, as in earlier releases: ignore it.
    """

    mode: Mode
    size: tuple[Side, Side]
    fit: Fit = "stretch"
    background: Annotated[int, Field(ge=0, le=255)] = 255
    range: tuple[float, float] | None = None
    strict: bool = True
    profiles: bool = False
    step: Literal["images"] = "images"

    def __post_init__(self) -> None:
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise invalid("range", "[black, white], two numbers in ascending order", list(self.range))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of each result."""
        return (1 if self.mode == "L" else 3, *self.size)

    @property
    def dtype(self) -> Dtype:
        """Type of the pixels."""
        return "float32"

    def is_one(self, array: Any) -> bool:
        """Tell one image's array from several.

        With three axes, it is one image if an axis of 1, 3 or 4 can be its channels. It is several grey ones if these
        have the size of the task's images, and one image is less likely.

        Raises:
            ValueError: it can be either.
        """
        shape: tuple[int, ...] = tuple(array.shape)
        if len(shape) != 3:
            return len(shape) == 2
        first, last = (shape[axis] in CHANNELS for axis in (0, -1))
        has_task_size, has_task_channels = shape[1:] == self.size, shape[0] == self.shape[0]
        if shape[0] == 1 or not (first or last):
            return first
        if last and not has_task_size:
            return True
        if last and not (shape[:2] == self.size or has_task_channels):
            return False
        if not last and (has_task_channels or (has_task_size and self.mode == "L")):
            return has_task_channels
        raise ValueError(
            f"inputs: an array of the shape {shape} may be {shape[0]} grey images, or one with "
            f"{shape[-1] if last else shape[0]} channels: pass a list of images, or an array (images, height, width, "
            "channels)"
        )

    def __call__(self, inputs: Any) -> Tensor:
        """Read images.

        Args:
            inputs: a sequence of paths, bytes of encoded files, Pillow images and arrays, or an array whose first axis
                counts images. Arrays are (height, width) or have an additional axis of 1, 3 or 4 channels, the last
                of NumPy's and the first of torch's if several axes are so short. They hold uint8, uint16, booleans, or
                numbers as in `range`.
        Returns:
            float in [0, 1], (images, channels, height, width).
        Raises:
            ValueError: naming the images that cannot be read.
        """
        if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OUS":
            inputs = inputs.tolist()
        if isinstance(inputs, Tensor | np.ndarray):
            batch = self._of_array(_channels_last(inputs, axes=(3, 4)))
            return torch.empty(len(batch), *self.shape).copy_(as_floats(_channels_first(batch)))
        if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes):
            raise invalid("inputs", "a sequence of images or an array of them", type(inputs).__name__)
        images = torch.empty(len(inputs), *self.shape)
        with ListedProblems() as problems:
            for i, image in enumerate(inputs):
                pixels = problems.check(self.pixels, image, f"image {i}")
                if pixels is not None:
                    images[i] = as_floats(_channels_first(pixels[None]))[0]
        return images

    def pixels(self, image: Any, name: str) -> np.ndarray:
        """Read one image: uint8, or deeper ones as float32 in [0, 1], (height, width, channels).

        Args:
            image: as in `__call__`.
            name: of an image without a path, for messages.
        Raises:
            ValueError: it cannot be read.
        """
        if isinstance(image, str | os.PathLike):
            return self._of_file(Path(image), str(image))
        if isinstance(image, bytes):
            return self._of_file(image, name)
        try:
            if isinstance(image, Tensor | np.ndarray):
                return np.asarray(self._of_array(_channels_last(image, axes=(2, 3))[None])[0])
            return self._of_pillow(_upright(image))
        except Exception as error:  # Pillow raises nearly anything on a damaged image
            raise ValueError(f"{name} cannot be read: {error}") from error

    def _of_file(self, source: Path | bytes, name: str) -> np.ndarray:
        from PIL import Image

        try:
            held = len(source) if isinstance(source, bytes) else source.stat().st_size
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
                check_promised(opened.width * opened.height, held, "pixels")
                tiles = str(opened.tile)  # empty once loaded
                opened.load()
                _check_transparency(opened, tiles)
                jpeg_mode = opened.mode if opened.format == "JPEG" else None
                pixels = self._of_pillow(_upright(opened))
        except NotUnderstoodError as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            raise ValueError(f"{name} cannot be read: cut short or damaged, or not an image{_reason(error)}") from error
        if self.strict and jpeg_mode is not None:
            _check_jpeg(source if isinstance(source, bytes) else source.read_bytes(), jpeg_mode, name)
        return pixels

    def _of_pillow(self, image: Image) -> np.ndarray:
        from PIL import Image

        if 0 in image.size:
            raise NotUnderstoodError("it has no pixels")
        if image.mode == "F" or image.mode.startswith("I"):
            has_16_bits = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
            return np.asarray(self._of_levels(self._opaque(image)[None, ..., None], has_16_bits)[0])
        if self.profiles:
            image = _in_srgb(image)
        if image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, (self.background,) * 3 + (255,))
            image = Image.alpha_composite(canvas, image.convert("RGBA"))
        image = self._fitted(image if image.mode == self.mode else image.convert(self.mode), self.background)
        pixels = np.array(image)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _opaque(self, image: Image) -> np.ndarray:
        """Return the levels of a deep grey image; its transparent level, if it names one, becomes the background."""
        levels, clear = np.array(image), image.info.get("transparency")
        if image.format == "PNG" and isinstance(clear, int):
            low, high = self.range or (0, 2**16 - 1)
            levels = np.where(levels == clear, round(low + (high - low) * self.background / 255), levels)
        return levels

    def _fitted(self, image: Image, background: float) -> Image:
        from PIL import Image, ImageOps

        size = self.size[::-1]
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, Image.Resampling.BILINEAR)
        if self.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        colour: Any = background if len(image.getbands()) == 1 else (background,) * 3
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR, colour)

    def _of_array(self, array: np.ndarray) -> np.ndarray:
        """Read an array (images, height, width, channels)."""
        from PIL import Image

        if len(array) and not array.size:
            raise NotUnderstoodError("it has no pixels")
        if array.dtype == bool:
            array = array.astype(np.uint8) * np.uint8(255)
        if array.dtype != np.uint8:
            return self._of_levels(array, array.dtype == np.uint16)
        if array.shape[1:] == (*self.size, self.shape[0]):
            return array
        images = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in array)
        read = [self._of_pillow(image) for image in images]
        return np.stack(read) if read else np.empty((0, *self.size, self.shape[0]), np.uint8)

    def _of_levels(self, levels: np.ndarray, has_16_bits: bool) -> np.ndarray:
        """Read images deeper than 8 bits (images, height, width, channels) as float32 in [0, 1]."""
        if levels.dtype.kind not in "iuf" or not np.isfinite(levels).all():
            raise NotUnderstoodError("some values are no finite numbers")
        low, high = self.range or ((0, 2**16 - 1) if has_16_bits else (0, 1))
        if self.range is None and levels.size and not low <= levels.min() <= levels.max() <= high:
            raise NotUnderstoodError(
                f"its values are from {levels.min():g} to {levels.max():g}: images deeper than 8 bits must be uint16, "
                "or floats in [0, 1], unless source.range=[BLACK,WHITE] sets the values of black and white"
            )
        images = ((levels.astype(np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32)
        background = self.background / 255
        if images.shape[-1] == 4:
            images, alpha = images[..., :3], images[..., 3:]
            images = (images * alpha + (1 - alpha) * np.float32(background)).astype(np.float32)
        if self.mode == "L" and images.shape[-1] == 3:  # Pillow's weights; a product of matrices may round otherwise
            red, green, blue = (images[..., i : i + 1] for i in range(3))
            images = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
        if images.shape[1:3] != self.size:
            images = np.stack([self._fitted_levels(image, background) for image in images])
        return np.repeat(images, 3, -1) if self.mode == "RGB" and images.shape[-1] == 1 else images

    def _fitted_levels(self, image: np.ndarray, background: float) -> np.ndarray:
        from PIL import Image

        channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0))
        return np.stack([np.array(self._fitted(channel, background)) for channel in channels], -1)


class NotUnderstoodError(ValueError):
    """An intact image whose meaning is unknown."""


def as_floats(pixels: Tensor) -> Tensor:
    """Convert pixels to float in [0, 1]: uint8 by 255; floats are in it."""
    return pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels


def _reason(error: Exception) -> str:
    """Say in parentheses why Pillow cannot read a file, without the file's name; "" where it says no more than that."""
    from PIL import UnidentifiedImageError

    reason = "" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or str(error)
    return f" ({reason})" if reason else ""


def read_header(file: Path) -> Header:
    """Read an image file's header.

    Raises:
        ValueError: it is damaged, or not an image.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            is_turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
            size = (image.width, image.height) if is_turned else (image.height, image.width)
            is_grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
            profile, conversion = _profile(image)
            return Header(size, is_grey, getattr(image, "is_animated", False), profile, conversion is not None)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise ValueError(f"{file} cannot be read: cut short or damaged, or not an image{_reason(error)}") from error


def _profile(image: Image) -> tuple[str, ImageCmsTransform | None]:
    """Return the name of an image's colour profile (ICC), "" for none and for sRGB; and the conversion to sRGB."""
    content = image.info.get("icc_profile")
    return _conversion(content, image.mode) if content else ("", None)


@lru_cache(maxsize=8)
def _conversion(content: bytes, mode: str) -> tuple[str, ImageCmsTransform | None]:
    """Return a colour profile's name, "" for sRGB; and its conversion to sRGB, None where it does not fit the mode."""
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        name = ImageCms.getProfileDescription(profile).strip() or "no name"
        space = profile.profile.xcolor_space.strip()
        if "srgb" in name.lower() or mode not in SPACES.get(space, ()):
            return "" if "srgb" in name.lower() else name, None
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE  # threads share the conversion
        return name, ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            "L" if space == "GRAY" else space,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return "unreadable", None


def _in_srgb(image: Image) -> Image:
    """Convert an image's colours to sRGB if it has another profile that fits its mode."""
    from PIL import ImageCms

    _, conversion = _profile(image)
    if conversion is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    source = "L" if image.mode in SPACES["GRAY"] else "CMYK" if image.mode == "CMYK" else "RGB"
    converted = ImageCms.applyTransform(image.convert(source), conversion)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _upright(image: Any) -> Image:
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise TypeError(f"a {type(image).__name__} is no path, bytes, Pillow image or array")
    form = image.format
    upright = ImageOps.exif_transpose(image)
    upright.format = form
    return upright


def _check_transparency(image: Image, tiles: str) -> None:
    """Raise for colours of 16 bits one of which is transparent: Pillow cuts them to 8 bits before it compares.

    Args:
        image: loaded.
        tiles: its form in the file.
    """
    if image.mode == "RGB" and "transparency" in image.info and "16B" in tiles:
        raise NotUnderstoodError("one of its colours of 16 bits is transparent: save it with an alpha channel")


def _channels_last(images: Tensor | np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """View arrays as (..., height, width, channels).

    Args:
        images: one or many.
        axes: their number of axes without and with one for channels.
    """
    first_is_usual = isinstance(images, Tensor)
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype in (torch.float16, torch.bfloat16) else images).numpy()
    array = unmasked("inputs", images)
    if array.ndim == axes[0]:
        return array[..., None]
    if array.ndim == axes[1]:
        is_first, is_last = (array.shape[axis] in CHANNELS for axis in (-3, -1))
        if is_last and not (is_first and first_is_usual):
            return array
        if is_first:
            return np.moveaxis(array, -3, -1)
    bound = "(height, width), (height, width, channels) or (channels, height, width), with 1, 3 or 4 channels"
    raise invalid("inputs: the shape of each image", bound, tuple(array.shape[axes[0] - 2 :]))


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Return a tensor (images, channels, height, width).

    Where an image has one channel, NumPy calls it contiguous whatever its strides, and torch may choose other kernels
    by them: copy it to a new tensor.
    """
    array = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_jpeg(content: bytes, mode: str, name: str) -> None:
    """Raise on damage that a decoder can skip: Pillow hides libjpeg's warnings about it."""
    from simplejpeg import decode_jpeg

    decode = partial(decode_jpeg, colorspace="CMYK" if mode == "CMYK" else "GRAY", strict=True)
    try:
        decode(content)
    except ValueError as error:
        raise ValueError(
            f"{name} is damaged ({error}): repair or delete it; source.strict=false accepts what can be decoded"
        ) from error
