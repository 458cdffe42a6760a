"""Format numbers and names for people, the same in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

ARROWS = {"max": "↑", "min": "↓"}
"""Direction of a metric to the arrow that points to better scores."""
SMALLEST = 0.001
"""Numbers below this one have three digits in place of four decimal places."""


def number(score: float | None) -> str:
    """Format a score: to four places, small ones in three digits; "" for None."""
    if score is None:
        return ""
    return format(score, ".3g" if 0 < abs(score) < SMALLEST else ".4f")


def quantity(value: float) -> str:
    """Format a value of any size: four digits, and all before the point."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def abbreviated(value: float) -> str:
    """Format a large number in three digits: "1.81 G"."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {unit}"
    return f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """Format a share, in percent."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def duration(seconds: float) -> str:
    """Format wall time, in its two largest units."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def counted(count: int, noun: str) -> str:
    """Count things: "1 task", "2 tasks"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shortened(name: str, most: int = 24) -> str:
    """Shorten a name to at most `most` characters: leave out its middle."""
    if len(name) <= most:
        return name
    tail = (most - 1) * 2 // 3
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def listed(parts: Sequence[str], most: int = 8) -> str:
    """Join parts with commas; count the rest after the first `most`."""
    more = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {more} more" if more > 0 else "")


def shape_of(sizes: Sequence[int]) -> str:
    """Format a tensor's shape: "6 × 4"."""
    return " × ".join(map(str, sizes))
