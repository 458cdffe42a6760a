"""One colour for each task, the same in every picture."""

from __future__ import annotations

from collections.abc import Sequence

FEW = ("#2f7fc1", "#e0702e", "#1fa187", "#c8649a", "#d3a01c", "#7a6fd0", "#6aa84f", "#a0785a")
"""Told apart with any kind of colour vision, on white and on black. Source: after Okabe and Ito 2008."""
RAMP = ("#5b3fa8", "#3f6fc4", "#1f96a8", "#2fae6f", "#9bb536", "#e0a32e")
"""From the first task to the last where there are more: hue and lightness rise together."""


def colours_of(tasks: Sequence[str]) -> dict[str, str]:
    """Task to its colour, "#rrggbb".

    Up to eight tasks have colours of their own; of more, each has its place on a ramp from the first to the last.
    """
    if len(tasks) <= len(FEW):
        return dict(zip(tasks, FEW, strict=False))
    return {task: _on_ramp(place / (len(tasks) - 1)) for place, task in enumerate(tasks)}


def _on_ramp(place: float) -> str:
    """The colour at a place in [0, 1] of the ramp."""
    at = place * (len(RAMP) - 1)
    left = min(int(at), len(RAMP) - 2)
    ends = [[int(RAMP[i][start : start + 2], 16) for start in (1, 3, 5)] for i in (left, left + 1)]
    mixed = (round(a + (b - a) * (at - left)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
