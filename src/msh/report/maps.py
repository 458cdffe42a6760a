"""Pictures of a run, and what each of them says in words: the accuracy matrix, capacity, owner maps, overlap."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, LinearColorMapper, NumeralTickFormatter

from msh.report.plots import Plot, append, height_for, name_places, new_figure, plain_grid, write
from msh.runs.groups import Group, grouped, in_groups
from msh.runs.ownership import mask_overlap, owner_matrix, used_by_task
from msh.runs.results import Results
from msh.runs.words import counted, listed, number, share
from msh.subnetworks import Capacity, NetworkState

FREE_COLOUR = "#80808033"
CHANGES = {
    "worse by more than 5 %": "#e0501eb8",
    "worse": "#e0702e66",
    "the same": "#8080802e",
    "better": "#2f7fc159",
    "better by more than 5 %": "#2f7fc1b3",
}
"""How a score changed since its task was learned, to its colour."""
WRITTEN = 12
"""Rows and columns up to which cells have their numbers in them."""
LABEL = 20
"""Letters of a row's name that are written beside a matrix."""
CELLS = 50
"""Rows and columns that a matrix is drawn with: more are put into groups."""
BARS = (60, 40)
"""Layers and tasks that capacity is drawn with: more are put into groups."""
MAP_CELLS, ALL_MAP_CELLS = 1 << 16, 3 << 18
"""Weights that are shown of one layer, and of all layers together."""


# ---- the accuracy matrix


def change_of(now: float, learned: float, direction: str) -> str:
    """How a score changed since its task was learned: a name in CHANGES."""
    change = (now - learned) * (1 if direction == "max" else -1)
    if change == 0:
        return "the same"
    names = list(CHANGES)
    strong = abs(change) > 0.05 * abs(learned)
    return names[0 if strong else 1] if change < 0 else names[4 if strong else 3]


def matrix_plot(
    key: str, title: str, matrix: Sequence[Sequence[float | None]], results: Results, stages: Sequence[str]
) -> Plot:
    """Test scores of every task after every stage; a colour says how they changed since the task was learned.

    Args:
        key: of the picture.
        title: of the picture.
        matrix: row i: the scores after stage i; at least one.
        results: with the tasks that the columns are of.
        stages: names of the rows.
    """
    tasks = list(results.tasks)
    rows, columns = in_groups(list(stages[: len(matrix)]), CELLS), in_groups(tasks, CELLS)
    cells: dict[str, list[Any]] = {n: [] for n in ("x", "y", "task", "after", "score", "change", "colour", "alpha")}
    changed: set[str] = set()
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            found = [
                (*_change(matrix, stage, place, results.tasks[tasks[place]].direction), tasks[place])
                for place in column.places
                for stage in row.places
                if matrix[stage][place] is not None
            ]
            if not found:
                continue
            order, score, _ = min(found)
            changed |= {task for rank, _, task in found if rank < 2}
            name = list(CHANGES)[order]
            cell = (x, y, column.name, row.name, number(score), name, CHANGES[name], 1.0)
            append(cells, cell)
    plot = _grid(rows, columns, [("task", "@task"), ("after", "@after"), ("score", "@score"), ("", "@change")], "after")
    source = ColumnDataSource(cells)
    plot.rect("x", "y", 0.96, 0.92, source=source, fill_color="colour", fill_alpha="alpha", line_color=None)
    if max(len(rows), len(columns)) <= WRITTEN:
        _write(plot, source, "score")
    said = f"worse than when learned: {listed(sorted(changed))}" if changed else "no score fell after it was learned"
    more = " A group has the colour of its worst change." if max(map(len, (g.places for g in columns))) > 1 else ""
    sizes = f"{counted(len(matrix), 'stage')}, {counted(len(tasks), 'task')}"
    caption = f"{sizes}; {said}.{grouped([*rows, *columns], 'neighbours')}{more}"
    return Plot(key, plot, caption, title, 150 + min(84, max(14, 1000 // len(columns))) * len(columns))


def _change(matrix: Sequence[Sequence[float | None]], stage: int, place: int, direction: str) -> tuple[int, float]:
    """(place in CHANGES, score) of a task after a stage."""
    score = matrix[stage][place]
    learned = next(row[place] for row in matrix if row[place] is not None)
    assert score is not None
    assert learned is not None
    return list(CHANGES).index(change_of(score, learned, direction)), score


def _grid(rows: Sequence[Group], columns: Sequence[Group], hover: Sequence[tuple[str, str]], below: str) -> Any:
    """An empty matrix, its first row at the top; `below` says what rows are."""
    few = len(columns) <= WRITTEN
    plot = new_figure(height_for(len(rows)) + (14 if few else 70), hover, x_axis_location="above")
    plot.x_range.start, plot.x_range.end = -0.5, len(columns) - 0.5
    plot.y_range.start, plot.y_range.end = len(rows) - 0.5, -0.5
    name_places(plot.xaxis[0], [group.name for group in columns], 14)
    name_places(plot.yaxis[0], [group.name for group in rows], LABEL)
    if not few:
        plot.xaxis.major_label_orientation = "vertical"
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = None
    plot.yaxis.axis_label = below
    return plot


def _write(plot: Any, source: ColumnDataSource, column: str) -> None:
    """Write a column's texts into the cells."""
    write(plot, source, column, text_align="center", text_baseline="middle")


# ---- overlap


def overlap_plot(ownership: NetworkState) -> Plot:
    """For each two tasks, the share of what one computes with that the other computes with too."""
    tasks, common = [*ownership.tasks], np.array(mask_overlap(ownership), dtype=np.float64)
    groups = in_groups(tasks, CELLS)
    cells: dict[str, list[Any]] = {name: [] for name in ("x", "y", "task", "other", "share", "colour", "fill", "alpha")}
    for y, row in enumerate(groups):
        for x, column in enumerate(groups):
            both = common[np.ix_(row.places, column.places)].sum()
            own = sum(common[place, place] for place in row.places) * len(column.places)
            part = both / own if own else 0.0
            cell = (x, y, row.name, column.name, f"{part:.0%}", "#2f7fc1", 0.75 * part, 1.0)
            append(cells, cell)
    told = [("of what", "@task"), ("computes with", "@share"), ("is used by", "@other")]
    plot = _grid(groups, groups, told, "of")
    source = ColumnDataSource(cells)
    plot.rect("x", "y", 0.96, 0.92, source=source, fill_color="colour", fill_alpha="fill", line_color=None)
    if len(groups) <= WRITTEN:
        _write(plot, source, "share")
    read = {t: sum(n for other, n in counts.items() if other != t) for t, counts in used_by_task(ownership).items()}
    said = [f"{task} {read[task]:,} of {own:,}" for task, own in ((t, int(common[i, i])) for i, t in enumerate(tasks))]
    caption = f"Weights of others among those that a task computes with: {listed(said)}.{grouped(groups, 'tasks')}"
    return Plot("overlap", plot, caption, "", 150 + min(84, max(14, 1000 // len(groups))) * len(groups))


# ---- capacity


def capacity_plot(
    key: str, layers: Sequence[Capacity], colours: Mapping[str, str], title: str = "", noun: str = "layers"
) -> Plot:
    """A bar for each layer: the share of its weights that each task owns, and what is free.

    Args:
        key: of the picture.
        layers: at least one.
        colours: task to its colour.
        title: of the picture.
        noun: what the bars are of.
    """
    tasks = list(layers[0].owned)
    rows, owners = in_groups([layer.name for layer in layers], BARS[0]), in_groups(tasks, BARS[1])
    bars: dict[str, list[Any]] = {
        name: [] for name in ("y", "left", "right", "layer", "task", "weights", "share", "colour", "alpha")
    }
    for y, row in enumerate(rows):
        whole = Capacity.together(row.name, [layers[place] for place in row.places])
        size, left = whole.size, 0
        parts = [
            (owner.name, colours[named[len(named) // 2]], sum(whole.owned[task] for task in named))
            for owner, named in ((owner, [tasks[place] for place in owner.places]) for owner in owners)
        ]
        for name, colour, count in [*parts, ("free", FREE_COLOUR, whole.free)]:
            ends = (left / size, (left + count) / size)
            bar = (y, *ends, row.name, name, f"{count:,}", share(count, size), colour, 1.0)
            left += count
            append(bars, bar)
    told = [("", "@task"), ("of", "@layer"), ("weights", "@weights"), ("share", "@share")]
    plot = new_figure(height_for(len(rows)), told, x_axis_label="share of the weights")
    plot.hbar("y", left="left", right="right", height=0.78, source=ColumnDataSource(bars), line_color=None)
    plot.renderers[-1].glyph.fill_color, plot.renderers[-1].glyph.fill_alpha = "colour", "alpha"
    plot.x_range.start, plot.x_range.end = 0, 1
    plot.y_range.start, plot.y_range.end = len(rows) - 0.5, -0.5
    plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    name_places(plot.yaxis[0], [row.name for row in rows])
    plain_grid(plot, "x")
    caption = f"{_said_of(layers, noun)}{grouped(rows, noun)}{grouped(owners, 'tasks')}"
    return Plot(key, plot, caption, title)


def _said_of(layers: Sequence[Capacity], noun: str = "layers") -> str:
    if len(layers) > 1:
        ends = sorted(layers, key=lambda layer: layer.free / layer.size)
        shares = [share(layer.free, layer.size) for layer in (ends[0], ends[-1])]
        if shares[0] == shares[1]:
            return f"{len(layers)} {noun}; {shares[0]} of each is free."
        low, high = (f"{part} ({layer.name})" for part, layer in zip(shares, (ends[0], ends[-1]), strict=True))
        return f"{len(layers)} {noun}; the free share is between {low} and {high}."
    first = layers[0]
    owned = [f"{task} {share(count, first.size)}" for task, count in first.owned.items()]
    return f"{first.name}: {first.size:,} weights, {share(first.free, first.size)} free; owned by {listed(owned)}."


# ---- owner maps


def owner_maps(ownership: NetworkState, colours: Mapping[str, str]) -> tuple[Plot, list[dict[str, Any]]]:
    """A picture of a layer's owner map, and the maps of all layers that it can show.

    Args:
        ownership: of a network with at least one layer.
        colours: task to its colour.
    Returns:
        (the picture, still without a map; for each layer what the page shows in it: name, rows, columns, shape of
        the map, its cells as packed places of tasks, and a caption).
    """
    tasks = [*ownership.tasks]
    places = np.zeros(max((entry.owner for entry in ownership.tasks.values()), default=0) + 1, dtype=np.uint16)
    for place, entry in enumerate(ownership.tasks.values(), start=1):
        places[entry.owner] = place
    dtype = np.uint8 if len(tasks) < 256 else np.uint16
    most = min(MAP_CELLS, ALL_MAP_CELLS // len(ownership.owners))
    maps: list[dict[str, Any]] = []
    for layer in ownership.capacity():
        ids = owner_matrix(ownership, layer.name, most)
        shown, size = ids.shape, (layer.shape[0], math.prod(layer.shape[1:]))  # (rows, columns)
        cells = places[ids.numpy()].astype(dtype)
        caption = _said_of([layer])
        if shown != size:
            caption += f" Shown are {shown[0]:,} of {size[0]:,} rows and {shown[1]:,} of {size[1]:,}"
            caption += " columns, evenly spaced: every cell is one weight."
        maps.append(
            {
                "name": f"{layer.name} ({' × '.join(map(str, layer.shape))})",
                "size": list(size),
                "shape": list(shown),
                "cells": base64.b64encode(zlib.compress(cells.tobytes(), 9)).decode(),
                "caption": caption,
            }
        )
    plot = new_figure(420, name="owner map", x_axis_label="input", x_range=(0, 1), y_range=(1, 0))
    plot.yaxis.axis_label = "output unit"
    palette = [FREE_COLOUR, *(colours[task] for task in tasks)]
    mapper = LinearColorMapper(palette=palette, low=-0.5, high=len(tasks) + 0.5)
    empty = {"image": [np.zeros((1, 1), dtype=dtype)], "rows": [1], "columns": [1]}
    source = ColumnDataSource(empty, name="owner cells")
    plot.image("image", 0, 0, "columns", "rows", source=source, color_mapper=mapper)
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = None
    return Plot("owners", plot, maps[0]["caption"]), maps
