"""Write a file completely or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from msh.errors import invalid

LONGEST = 200
"""Bytes of a file's name, at most, that its temporary file's has in it: file systems allow 255."""


def check_output(key: str, path: Path, needs_file: bool = False) -> None:
    """Raise unless a file can be written there: before work that would be lost.

    Args:
        key: the argument that names the path.
        path: of a file, which need not exist; or of a pipe or a device such as /dev/stdout.
        needs_file: it is read again, so that no pipe or device will do.
    Raises:
        ValueError: a folder is there, or something else that takes no bytes.
    """
    kind = _kind(path)
    if kind not in ("", "a file") and (needs_file or kind not in STREAMS):
        raise invalid(key, "a file" if needs_file else "a file or a pipe", f"{path}, {kind}")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically: at every moment it has the whole old or the whole new content.

    Links are followed: they stay, and the file that they name is replaced. It keeps its mode. A pipe, or a device such
    as /dev/stdout, is written to.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is unchanged.
        ValueError: a folder is there, or something else that takes no bytes.
    """
    check_output("path", path)
    if _kind(path) in STREAMS:
        with path.open("wb") as stream:
            stream.write(content)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.name if len(os.fsencode(target.name)) <= LONGEST else hashlib.sha256(path.name.encode()).hexdigest()
    temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Replace a text file atomically, in UTF-8."""
    write_bytes(path, content.encode())


KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
STREAMS = ("a pipe", "a character device")
"""Kinds that take bytes one after the other, and cannot be replaced."""


def _kind(path: Path) -> str:
    """Name the kind of what a path leads to; "" if nothing is there."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode), "something else")
    except OSError:  # writing raises it again, with its cause
        return ""
