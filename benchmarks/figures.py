"""Draw a figure for each row of docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.scores import BESIDE, MEAN

MANY = 6
"""Number of tasks from which a row is drawn as lines over the tasks."""
COLOURS = {
    "subnetworks": "#1f4e9c",
    "dense": "#222222",
    "joint": "#4f9d69",
    "finetune": "#c9822b",
    "authors": "#9a9a9a",
}
SHOWN = {"subnetworks": "mean", **{name: name for name in BESIDE}, "authors": "authors"}
"""Name in figures to key in records."""


def draw(records: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw a row's scores: a panel per task; with many tasks, one panel with all.

    Args:
        records: one row's.
        title: above the figure.
        path: of the PNG.
    """
    tasks = [record for record in records if record["task"] != MEAN]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        if len(tasks) >= MANY and not any(record["forgetting"] is None for record in tasks):
            further = any(record["finetune"] is not None for record in tasks)
            figure = Figure(figsize=(10 if further else 6, 3), layout="constrained")
            panels = figure.subplots(1, 2 if further else 1, squeeze=False)[0]
            _lines(panels[0], tasks, [name for name in SHOWN if name not in ("authors", "finetune")])
            if further:
                _lines(panels[1], tasks, [name for name in SHOWN if name != "authors"])
            panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            figure = Figure(figsize=(max(5.0, 3.2 * min(len(tasks), 3)), 1.8 * -(-len(tasks) // 3) + 0.4))
            figure.set_layout_engine("constrained")
            panels = figure.subplots(-(-len(tasks) // 3), min(len(tasks), 3), squeeze=False).flatten()
            for panel, record in zip(panels, tasks, strict=False):
                _panel(panel, record)
            for panel in panels[len(tasks) :]:
                panel.set_axis_off()
        figure.suptitle(title, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _panel(panel: Axes, record: Mapping[str, Any]) -> None:
    """Draw a task's scores as points; a fine-tuned network outside the axis is drawn at the edge."""
    scores = {name: record[key] for name, key in SHOWN.items() if record[key] is not None}
    near = [score for name, score in scores.items() if name != "finetune"]
    near += [record["target"]] if record["target"] is not None else []
    low, high = min(near), max(near)
    if "finetune" in scores and 2 * low - high <= scores["finetune"] <= 2 * high - low:
        low, high = min(low, scores["finetune"]), max(high, scores["finetune"])
    margin = max(0.15 * (high - low), 0.002 * high, 1.5 * (record["std"] or 0.0))
    low, high = low - margin, high + margin
    for place, (name, score) in enumerate(scores.items()):
        outside = not low <= score <= high
        marker = ("<" if score < low else ">") if outside else "o"
        spread = record["std"] if name == "subnetworks" else None
        shown = min(max(score, low), high)
        panel.errorbar(shown, place, xerr=spread, fmt=marker, color=COLOURS[name], capsize=3, clip_on=False)
    if record["target"] is not None:
        panel.axvline(record["target"], color=COLOURS["subnetworks"], linestyle=":", linewidth=1)
    panel.set_yticks(range(len(scores)), [f"{name} {score:.4f}" for name, score in scores.items()])
    panel.set_ylim(len(scores) - 0.5, -0.5)
    panel.set_xlim(low, high)
    panel.locator_params(axis="x", nbins=2)
    arrow = "↑" if record["direction"] == "max" else "↓"
    panel.set_title(f"{record['task']}: {record['metric']} {arrow}", fontsize=9, loc="right")


def _lines(panel: Axes, tasks: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Draw scores over the tasks in learning order."""
    for name in names:
        scores = [record[SHOWN[name]] for record in tasks]
        if None not in scores:
            places = range(1, len(tasks) + 1)
            panel.plot(places, scores, "o-", markersize=3, linewidth=1, color=COLOURS[name], label=name)
    panel.set_xlabel("task")
    panel.set_ylabel(f"{tasks[0]['metric']} {'↑' if tasks[0]['direction'] == 'max' else '↓'}")
