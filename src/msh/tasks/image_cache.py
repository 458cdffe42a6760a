"""Decode image files once: into memory, or into a file from which batches are read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from msh.tasks.checks import SHOWN_PROBLEMS
from msh.tasks.image_step import ReadImages, as_floats
from msh.tasks.lazy import Inputs, LazyInputs, StoredTensor

log = logging.getLogger(__name__)

Cache = Literal["memory", "disk", "auto"]
Unreadable = Literal["error", "skip"]
IN_MEMORY = 2**30
"""Most bytes that images take in memory, as float32, with cache=auto."""
AT_ONCE = 64
FORMAT = 1
"""Version of the files; rises whenever images are decoded in another way."""


def load_images(
    files: Sequence[Path], step: ReadImages, unreadable: Unreadable, cache: Cache, cache_dir: str | None
) -> tuple[Inputs, Tensor]:
    """Read image files.

    Args:
        files: at least one.
        step: reads them.
        unreadable: "error": raise, and name all that cannot be read; "skip": log their names, and leave them out.
        cache: "memory", "disk", or "auto": disk if they take more than IN_MEMORY bytes as float32.
        cache_dir: folder for images on disk; None: `msh` in the user's cache folder.
    Returns:
        The images, as `step` returns them, and the rows of `files` that could be read, int64.
    Raises:
        ValueError: files cannot be read.
        OSError: the disk has too little room.
    """
    size = 4 * len(files) * math.prod(step.shape)
    if cache == "disk" or (cache == "auto" and size > IN_MEMORY):
        stored, damaged = _stored(files, step, _folder(cache_dir))
        kept = _kept(files, damaged, unreadable)
        return LazyInputs(stored, kept, (as_floats,)), kept
    images, damaged = torch.empty(len(files), *step.shape), {}
    for i, pixels in enumerate(_decoded(files, step)):
        if isinstance(pixels, str):
            damaged[i] = pixels
        else:
            images[i] = as_floats(torch.from_numpy(pixels).permute(2, 0, 1))
    kept = _kept(files, damaged, unreadable)
    return (images[kept] if damaged else images), kept


def _kept(files: Sequence[Path], damaged: dict[int, str], unreadable: Unreadable) -> Tensor:
    """Return the rows that could be read; raise or log the others."""
    if damaged and (unreadable == "error" or len(damaged) == len(files)):
        raise cannot_be_read(list(damaged.values()), len(files))
    if damaged:
        log.warning(
            "left out %d of %d images, which cannot be read: %s",
            len(damaged),
            len(files),
            ", ".join(str(files[i]) for i in damaged),
        )
    return torch.tensor([i for i in range(len(files)) if i not in damaged])


def cannot_be_read(problems: list[str], images: int) -> ValueError:
    """Build the error that lists what is wrong with some of the images."""
    more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    cure = "; source.unreadable=skip leaves them out" if len(problems) < images else ""
    start = f"{len(problems)} of {images} images cannot be read{cure}:"
    return ValueError("\n- ".join([start, *problems[:SHOWN_PROBLEMS], *more]))


def _decoded(files: Sequence[Path], step: ReadImages) -> Iterator[np.ndarray | str]:
    """Yield each file's pixels, or why it cannot be read; decode several at a time."""

    def read(file: Path) -> np.ndarray | str:
        try:
            return step.pixels(file, str(file))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(files), AT_ONCE):
            yield from pool.map(read, files[start : start + AT_ONCE])


def _folder(cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "msh" / "images"


def _stored(files: Sequence[Path], step: ReadImages, folder: Path) -> tuple[StoredTensor, dict[int, str]]:
    """Open the file with these images, or make it: (images, one row per file; row to why it cannot be read)."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(files, step)}.pixels"
    with FileLock(f"{path}.lock"):  # processes that start together decode once
        facts = _facts(path, (len(files), *step.shape))
        if facts is None:
            facts = _make(path, files, step)
        else:
            log.info("reading %d images from %s", len(files), path)
    damaged = {int(row): problem for row, problem in facts["unreadable"].items()}
    return StoredTensor(path, (len(files), *step.shape), getattr(torch, facts["dtype"])), damaged


def _key(files: Sequence[Path], step: ReadImages) -> str:
    """Digest all that decides the pixels: names, sizes and times of files, the step, and the decoder."""
    import PIL

    listed = [(str(file.absolute()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    content = json.dumps([FORMAT, PIL.__version__, asdict(step), listed])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _facts(path: Path, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Read what the file beside the images says of them; None unless both are whole."""
    try:
        facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        whole = path.stat().st_size == math.prod(shape) * np.dtype(facts["dtype"]).itemsize
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return facts if whole else None


def _make(path: Path, files: Sequence[Path], step: ReadImages) -> dict[str, Any]:
    """Decode all images into a file: as uint8, or as float32 if some are deeper than 8 bits."""
    path.with_suffix(".json").unlink(missing_ok=True)
    try:
        facts = _filled(path, files, step, np.uint8)
    except _DeeperError:
        facts = _filled(path, files, step, np.float32)
    with _replacing(path.with_suffix(".json")) as file:  # last: it says that the images are whole
        file.write(json.dumps(facts).encode())
    return facts


def _filled(path: Path, files: Sequence[Path], step: ReadImages, dtype: type[np.generic]) -> dict[str, Any]:
    """Write all images as one type.

    Raises:
        _DeeperError: it is uint8, and an image has more than 8 bits.
    """
    size = len(files) * math.prod(step.shape) * np.dtype(dtype).itemsize
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise OSError(
            f"decoded images need {size:,} bytes in {path.parent}, which has {free:,}: set source.cache_dir=DIR, "
            "or make images smaller with source.size"
        )
    log.info("decoding %d images once, into %s (%s bytes)", len(files), path, f"{size:,}")
    damaged, blank = {}, np.zeros(step.shape, dtype)
    with _replacing(path) as file:
        for i, pixels in enumerate(_decoded(files, step)):
            if isinstance(pixels, str):
                damaged[i] = pixels
            elif dtype is np.uint8 and pixels.dtype != np.uint8:
                raise _DeeperError
            image = blank if isinstance(pixels, str) else np.moveaxis(pixels, -1, 0)
            file.write(_as_type(image, dtype).tobytes())
    return {"dtype": np.dtype(dtype).name, "unreadable": damaged}


class _DeeperError(Exception):
    """An image has more than 8 bits."""


def _as_type(image: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    if image.dtype == dtype:
        return image
    floats: np.ndarray = as_floats(torch.from_numpy(np.ascontiguousarray(image))).numpy()
    return floats


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears whole, or, if the block does not end, not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
