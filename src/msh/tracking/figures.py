"""Describe figures as data: matrices and bars, which Bokeh draws on pages and Pillow for trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from msh.runs.colours import CHANGES, FEW, FREE_COLOUR
from msh.runs.groups import Group, grouped, in_groups
from msh.runs.results import Matrix, Results
from msh.runs.words import counted, listed, number, share
from msh.subnetworks.description import Capacity

if TYPE_CHECKING:
    from msh.subnetworks.state import NetworkState

CELLS = 50
"""Most rows and columns of a matrix: of more, neighbours share a cell."""
BARS = (60, 40)
"""Most layers, and tasks of a layer, of bars: of more, neighbours are drawn as one."""


@dataclass(frozen=True)
class Chart:
    """Boxes in named rows: a matrix, or bars.

    Attributes:
        key: its name on a page.
        title: above it.
        caption: its message, in numbers.
        rows: names, from the top.
        columns: names, from the left; empty for bars.
        boxes: each with "row"; "left" and "right", around its column's index, or as shares in [0, 1]; "colour"; "task",
            by which a page's search finds it; and the fields that `label` and `tips` name.
        axis: label for a matrix's rows, or for bars' length.
        label: field that is written into the boxes, where there is room.
        tips: (label, field) under the pointer.
        legend: name to colour.
    """

    key: str
    title: str
    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    boxes: Sequence[Mapping[str, Any]]
    axis: str
    tips: Sequence[tuple[str, str]]
    label: str = ""
    legend: Mapping[str, str] = field(default_factory=dict)


def _cell(x: int, y: int) -> dict[str, Any]:
    return {"row": y, "left": x - 0.48, "right": x + 0.48}


# ---- the accuracy matrix


def change_of(now: float, learned: float, direction: str) -> str:
    """Return the name in CHANGES for a score that was `learned` when its task was learned."""
    change = (now - learned) * (1 if direction == "max" else -1)
    if change == 0:
        return "unchanged"
    size = " by more than 5 %" if abs(change) > 0.05 * abs(learned) else ""
    return ("worse" if change < 0 else "better") + size


def matrix_chart(key: str, title: str, matrix: Matrix, results: Results, stages: Sequence[str]) -> Chart:
    """Draw test scores (stages, tasks); a colour shows the change since the task was learned.

    Args:
        key: name on a page.
        title: the network's name.
        matrix: (stages so far, tasks), at least one stage; None for tasks not learned yet.
        results: with the tasks.
        stages: row names.
    """
    tasks, order = list(results.tasks), list(CHANGES)
    learned = [next((row[place] for row in matrix if row[place] is not None), None) for place in range(len(tasks))]
    rows, columns = in_groups(list(stages[: len(matrix)]), CELLS), in_groups(tasks, CELLS)
    boxes, fallen = [], set()
    for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
        cells = []  # (rank of the change, score) of all that share the box
        for stage, place in product(row.places, column.places):
            now, before = matrix[stage][place], learned[place]
            if now is not None and before is not None:
                change = change_of(now, before, results.tasks[tasks[place]].direction)
                cells.append((order.index(change), now))
                fallen |= {tasks[place]} if change.startswith("worse") else set()
        if cells:
            rank, score = min(cells)
            name = order[rank]
            about = {"task": column.name, "after": row.name, "score": number(score), "change": name}
            boxes.append(_cell(x, y) | about | {"colour": CHANGES[name]})
    message = f"worse than when learned: {listed(sorted(fallen))}" if fallen else "no score fell after it was learned"
    worst = " A group has the colour of its worst change." if len(columns) < len(tasks) else ""
    sizes = f"{counted(len(matrix), 'stage')}, {counted(len(tasks), 'task')}"
    caption = f"{sizes}; {message}.{grouped([*rows, *columns], 'neighbours')}{worst}"
    tips = [("task", "task"), ("after", "after"), ("score", "score"), ("", "change")]
    return Chart(key, title, caption, _names(rows), _names(columns), boxes, "after", tips, "score", CHANGES)


def _names(groups: Sequence[Group]) -> list[str]:
    return [group.name for group in groups]


# ---- overlap


def overlap_chart(state: NetworkState) -> Chart:
    """Draw, for each pair of tasks, the share of the first one's weights that the second computes with too."""
    from msh.runs.ownership import mask_overlap

    tasks, common = [*state.tasks], np.array(mask_overlap(state), dtype=np.float64)  # (tasks, tasks)
    groups = in_groups(tasks, CELLS)
    boxes = []
    for (y, row), (x, column) in product(enumerate(groups), enumerate(groups)):
        both = common[np.ix_(row.places, column.places)].sum()
        own = sum(common[place, place] for place in row.places) * len(column.places)
        part = both / own if own else 0.0
        about = {"task": row.name, "other": column.name, "share": f"{part:.0%}"}
        boxes.append(_cell(x, y) | about | {"colour": f"{FEW[0]}{round(0.75 * 255 * part):02x}"})
    read = {t: sum(n for other, n in counts.items() if other != t) for t, counts in state.holdings().used.items()}
    shares = [f"{task} {read[task]:,} of {int(common[place, place]):,}" for place, task in enumerate(tasks)]
    caption = f"Other tasks' weights among those that a task computes with: {listed(shares)}.{grouped(groups, 'tasks')}"
    tips = [("weights of", "task"), ("share", "share"), ("also used by", "other")]
    return Chart("overlap", "", caption, _names(groups), _names(groups), boxes, "weights of", tips, "share")


# ---- capacity


def capacity_chart(
    key: str,
    layers: Sequence[Capacity],
    colours: Mapping[str, str],
    title: str = "",
    noun: str = "layers",
    total: Capacity | None = None,
) -> Chart:
    """Draw a bar per layer: the share that each task owns, and the free share.

    Args:
        key: name on a page.
        layers: at least one, all with the same tasks.
        colours: task to its colour.
        title: above the figure.
        noun: for the bars.
        total: an additional bar, above the others.
    """
    tasks = list(layers[0].owned)
    rows, owners = in_groups([layer.name for layer in layers], BARS[0]), in_groups(tasks, BARS[1])
    members = {owner.name: [tasks[place] for place in owner.places] for owner in owners}
    shades = [*(colours[group[len(group) // 2]] for group in members.values()), FREE_COLOUR]
    bars = [Capacity.together(row.name, [layers[place] for place in row.places]) for row in rows]
    bars = [total, *bars] if total else bars
    boxes = []
    for y, bar in enumerate(bars):
        counts = [(name, sum(bar.owned[task] for task in group)) for name, group in members.items()]
        left = 0
        for (name, count), colour in zip([*counts, ("free", bar.free)], shades, strict=True):
            ends = {"row": y, "left": left / bar.size, "right": (left + count) / bar.size}
            about = {"task": name, "layer": bar.name, "weights": f"{count:,}", "share": share(count, bar.size)}
            boxes.append(ends | about | {"colour": colour})
            left += count
    caption = f"{capacity_caption(layers, noun)}{grouped(rows, noun)}{grouped(owners, 'tasks')}"
    tips = [("", "task"), ("of", "layer"), ("weights", "weights"), ("share", "share")]
    legend = {task: colours[task] for task in tasks} | {"free": FREE_COLOUR}
    return Chart(
        key, title, caption, [bar.name for bar in bars], [], boxes, "share of the weights", tips, legend=legend
    )


def capacity_caption(layers: Sequence[Capacity], noun: str = "layers") -> str:
    """Describe one layer's owners, or several layers' range of free shares."""
    if len(layers) == 1:
        (layer,) = layers
        owned = [f"{task} {share(count, layer.size)}" for task, count in layer.owned.items()]
        return f"{layer.name}: {layer.size:,} weights, {share(layer.free, layer.size)} free; owned by {listed(owned)}."
    ends = sorted(layers, key=lambda layer: layer.free / layer.size)
    low, high = (share(layer.free, layer.size) for layer in (ends[0], ends[-1]))
    if low == high:
        return f"{len(layers)} {noun}; {low} of each is free."
    return f"{len(layers)} {noun}; the free share is between {low} ({ends[0].name}) and {high} ({ends[-1].name})."


# ---- owner maps


def owner_indices(state: NetworkState) -> np.ndarray[Any, Any]:
    """Map owner ids to tasks: (largest id + 1,), 0 for free weights, i for the i-th task, counted from 1."""
    indices = np.zeros(max((entry.owner for entry in state.tasks.values()), default=0) + 1, dtype=np.uint16)
    for index, entry in enumerate(state.tasks.values(), start=1):
        indices[entry.owner] = index
    return indices.astype(np.uint8) if len(state.tasks) < 256 else indices
