"""Check settings, paths and shapes that several parts of this package take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from msh.errors import Problems, invalid

SHOWN_PROBLEMS = 20
"""Problems of many files or rows that an error lists; it counts the others."""


def check_fraction(key: str, value: float) -> None:
    """Raise unless a share is in (0, 1)."""
    if not 0.0 < value < 1.0:
        raise invalid(key, "in (0, 1)", value)


def check_image_shape(key: str, shape: Sequence[int], channels: str = "channels") -> None:
    """Raise unless an input shape is (channels, height, width).

    Args:
        key: the setting that needs images.
        shape: one example's shape.
        channels: their number, if it matters.
    """
    if len(shape) != 3 or channels not in ("channels", str(shape[0])):
        raise invalid(f"{key}: the input shape", f"({channels}, height, width)", tuple(shape))


def check_one_entry(key: str, entry: object, example: str) -> None:
    """Raise unless a list's entry is a mapping of one name to its argument."""
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise invalid(key, f"{{name: argument}}, such as {{{example}}}", entry)


def check_names(key: str, names: object, number: int | None = None) -> None:
    """Raise unless names are a list of different ones: answers would lose all but the last of a name.

    Args:
        key: the setting, or what the names are of.
        names: of classes, labels, values or columns; texts, or values that become texts, such as 1.
        number: how many there must be; None: any.
    Raises:
        ValueError: it is no list, a name is there twice, such as 1 and "1", or there are more or fewer.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise invalid(key, "a list of names", names)
    if twice := [name for name, count in Counter(map(str, names)).items() if count > 1]:
        raise ValueError(f"{key} names {', '.join(map(repr, twice))} more than once: give each its own name")
    if number is not None and len(names) != number:
        raise invalid(key, f"{number} names, one for each target", list(names))


class NoSuchPathError(FileNotFoundError):
    """There is no such file or folder of data."""

    def __init__(self, kind: str, path: Path) -> None:
        super().__init__(f"there is no {kind} {path}")
        self.path = path


def existing(path: str, kind: str) -> Path:
    """Return the path, its ~ expanded.

    Args:
        path: to data.
        kind: "file" or "folder".
    Raises:
        FileNotFoundError: there is none; a NoSuchPathError where nothing has this path.
    """
    expanded = Path(path).expanduser()
    if not (expanded.is_file() if kind == "file" else expanded.is_dir()):
        if expanded.exists():
            raise FileNotFoundError(f"{expanded} must be a {kind}, and is {'a folder' if kind == 'file' else 'a file'}")
        raise NoSuchPathError(kind, expanded)
    return expanded


class ListedProblems(Problems):
    """Collect the problems of many files or rows; list the first ones, and count the others."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if (more := len(self.problems) - SHOWN_PROBLEMS) > 0:
            self.problems = [*self.problems[:SHOWN_PROBLEMS], f"and {more} more"]
        super().__exit__(kind, error, trace)
