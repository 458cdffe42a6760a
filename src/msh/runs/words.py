"""Numbers as people read them, the same in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

ARROWS = {"max": "↑", "min": "↓"}
"""Direction of a metric to the arrow that says which way is better."""


def number(score: float | None) -> str:
    """A score, to four places; nothing where there is none."""
    return "" if score is None else f"{score:.4f}"


def share(part: float, whole: float) -> str:
    """A part of a whole, in percent."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def bytes_of(size: int) -> str:
    """A file's size, in bytes or powers of 1000 of them."""
    for power, unit in enumerate(("B", "kB", "MB", "GB")):
        if size < 1000 ** (power + 1) or unit == "GB":
            return f"{size / 1000**power:.1f} {unit}" if power else f"{size} B"
    raise AssertionError


def duration(seconds: float) -> str:
    """Wall time, in its two largest units."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def counted(count: int, noun: str) -> str:
    """A number of things, such as "1 task" or "2 tasks"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(name: str, most: int = 24) -> str:
    """A name, with its middle left out where it is longer than so many characters."""
    if len(name) <= most:
        return name
    tail = (most - 1) * 2 // 3
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def listed(parts: Sequence[str], most: int = 8) -> str:
    """Parts with commas between, and the number of those after the first so many."""
    more = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {more} more" if more > 0 else "")
