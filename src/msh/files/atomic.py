"""Write a file completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically: at every moment it has the whole old or the whole new content.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Replace a text file atomically, in UTF-8."""
    write_bytes(path, content.encode())
