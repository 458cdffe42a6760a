"""Colours: one for each task, the same in every figure, and those that all figures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEW = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Distinct with any colour vision, on white and on black. Source: Okabe and Ito 2008, without black and yellow."""
MANY = ("#882e72", "#1965b0", "#7bafde", "#4eb265", "#ee8026", "#dc050c")
"""From the first of many tasks to the last. Source: Tol 2021, discrete rainbow, without its lightest colours."""
SCORES = ("#7801a8", "#9f1a9b", "#c03b81", "#db5b67", "#ef7d4f", "#fba337")
"""From the lowest score to the highest. Source: matplotlib's plasma, without its darkest and lightest parts."""
FREE_COLOUR = "#80808033"
"""Weights that no task owns, "#rrggbbaa"."""
CHANGES = {
    "worse by more than 5 %": f"{FEW[1]}c0",
    "worse": f"{FEW[1]}66",
    "unchanged": "#8080802e",
    "better": f"{FEW[0]}59",
    "better by more than 5 %": f"{FEW[0]}b3",
}
"""Change of a score since its task was learned, to its colour "#rrggbbaa"; the worst first."""


def colours_of(tasks: Sequence[str]) -> dict[str, str]:
    """Map each task to a colour, "#rrggbb": from FEW, or on a ramp along MANY if there are more tasks."""
    if len(tasks) <= len(FEW):
        return dict(zip(tasks, FEW, strict=False))
    ends = np.array([list(bytes.fromhex(colour[1:])) for colour in MANY])  # (colours, 3)
    at = np.linspace(0, len(MANY) - 1, len(tasks))
    mixed = np.stack([np.interp(at, np.arange(len(MANY)), channel) for channel in ends.T], 1)  # (tasks, 3)
    return {task: "#" + bytes(rgb).hex() for task, rgb in zip(tasks, mixed.round().astype(int).tolist(), strict=True)}
