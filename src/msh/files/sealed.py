"""Files with a checksum in their names, of which the newest few are kept to fall back to."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

KEPT = 2
SEALED = re.compile(r".+\.(?P<checksum>[0-9a-f]{16})\.[a-z]+")


def seal(path: Path) -> Path:
    """Put the checksum of a file into its name, `NAME.ckpt` becoming `NAME.0123456789abcdef.ckpt`; returns the new one.

    A file that was only half written, or not sealed before its process died, never has such a name.
    """
    return path.replace(path.with_name(f"{path.stem}.{_checksum(path)}{path.suffix}"))


def is_whole(path: Path) -> bool:
    """Whether a sealed file's content is what was sealed."""
    match = SEALED.fullmatch(path.name)
    return match is not None and match["checksum"] == _checksum(path)


def sealed_files(folder: Path, pattern: str) -> list[Path]:
    """The sealed files of a folder whose names match, in reverse alphabetical order: the newest first if they count."""
    return sorted((path for path in folder.glob(pattern) if SEALED.fullmatch(path.name)), reverse=True)


def drop_old(folder: Path, pattern: str) -> None:
    """Remove all but the newest sealed files that match."""
    for old in sealed_files(folder, pattern)[KEPT:]:
        old.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    """The first 64 bits of SHA-256: against torn files, not against forgers."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
