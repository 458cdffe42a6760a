"""Put checksums into file names, and keep the newest few files as fallbacks."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

KEPT = 2
SEALED = re.compile(r".+\.(?P<checksum>[0-9a-f]{16})\.[a-z]+")


def seal(path: Path) -> Path:
    """Rename `NAME.ckpt` to `NAME.0123456789abcdef.ckpt`, with its checksum; returns the new path.

    A half-written file, or one whose process died before sealing it, never has such a name.
    """
    return path.replace(path.with_name(f"{path.stem}.{_checksum(path)}{path.suffix}"))


def is_whole(path: Path) -> bool:
    """Return True if a sealed file's content has its checksum."""
    match = SEALED.fullmatch(path.name)
    return match is not None and match["checksum"] == _checksum(path)


def sealed_files(folder: Path, pattern: str) -> list[Path]:
    """List a folder's sealed files that match, in reverse alphabetical order: the newest first if names count up."""
    return sorted((path for path in folder.glob(pattern) if SEALED.fullmatch(path.name)), reverse=True)


def drop_old(folder: Path, pattern: str) -> None:
    """Remove all but the newest sealed files that match."""
    for old in sealed_files(folder, pattern)[KEPT:]:
        old.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    """Compute the first 64 bits of SHA-256: enough against torn files, not against forgers."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
