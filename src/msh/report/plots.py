"""Draw figures with Bokeh, each with its message in words."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper, NumeralTickFormatter
from bokeh.plotting import figure

from msh.runs.colours import FREE_COLOUR
from msh.runs.facts import Curve
from msh.runs.ownership import owner_matrix, spaced
from msh.runs.words import counted, listed, number, shape_of, shortened
from msh.tracking.figures import Chart, capacity_caption, owner_indices

if TYPE_CHECKING:
    from msh.subnetworks.state import NetworkState

TOOLS = "pan,wheel_zoom,zoom_in,zoom_out,reset"
TOOLBAR_STYLE = ".bk-divider { visibility: hidden; } @media print { :host { visibility: hidden; } }"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INKS = {"light": "#1a1e26", "dark": "#e6e9ee"}
"""Colours of text on light and on dark pages."""
POINTS, MARKED = 8_000, 400
"""Most points of a figure, about, and most that have a mark each."""
MARKS = ("circle", "diamond", "triangle", "square", "inverted_triangle", "hex")
ROW, LANE, LANES = 22, 9, 0.7
"""Pixels of a row, and of the lane of a mark in it if there is room; the share of a row that lanes take."""
FEW, COLUMN_NAME, ROW_NAME = 12, 14, 20
"""Most rows and columns of a matrix with labelled cells; most letters of their names."""
MAP_CELLS, ALL_MAP_CELLS = 1 << 16, 3 << 18
"""Most weights to show of one layer, and of all layers together."""


@dataclass(frozen=True)
class Plot:
    """A figure on a page.

    Attributes:
        key: its name on the page.
        figure: Bokeh's.
        caption: its message, in numbers.
        title: above it.
        width: pixels that it needs; on a narrower page, it scrolls.
    """

    key: str
    figure: Any
    caption: str
    title: str = ""
    width: int = 300


def new_figure(height: int, **settings: Any) -> Any:
    """Make an empty figure in the page's style: as wide as the page; it pans and zooms on demand.

    Args:
        height: in pixels.
        settings: see Bokeh's `figure`.
    """
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=TOOLS,
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **settings,
    )
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [TOOLBAR_STYLE]
    plot.toolbar.active_drag = plot.toolbar.active_scroll = None
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
    return plot


def _rows(count: int, row: int = ROW, more: int = 0, **settings: Any) -> Any:
    """Make an empty figure with `count` rows, the first one at the top."""
    return new_figure(110 + more + row * max(count, 1), y_range=(count - 0.5, -0.5), **settings)


def name_axis(axis: Any, names: Sequence[str], most: int = 24) -> None:
    """Label an axis with names at 0, 1, ..."""
    axis.ticker = FixedTicker(ticks=list(range(len(names))))
    axis.major_label_overrides = {index: shortened(name, most) for index, name in enumerate(names)}
    axis.major_tick_line_color = axis.axis_line_color = None


def add_tips(plot: Any, tips: Mapping[str, str], drawn: Any) -> None:
    """Show the fields, by label, under a pointer over `drawn`."""
    plot.add_tools(HoverTool(tooltips=list(tips.items()), renderers=[drawn], visible=False))


def write(plot: Any, source: ColumnDataSource, field: str, **style: Any) -> None:
    """Write texts at "x" and "y" in two colours: the page shows the one for its background."""
    style = {"text_font_size": "12px", "text_font": value(FONT)} | style
    for page, ink in INKS.items():
        plot.text("x", "y", text=field, source=source, text_color=ink, name=f"on {page}", **style)


def source_of(rows: Sequence[Mapping[str, Any]]) -> ColumnDataSource:
    """Turn rows into columns. A page's search looks at "task" and sets "alpha"."""
    return ColumnDataSource({name: [row[name] for row in rows] for name in rows[0]} | {"alpha": [1.0] * len(rows)})


# ---- matrices and bars


def chart_plot(chart: Chart) -> Plot:
    """Draw a chart: boxes in named rows, with labels where they are few."""
    columns, few = len(chart.columns), len(chart.columns) <= FEW
    boxes = [{**box, "x": (box["left"] + box["right"]) / 2, "y": box["row"]} for box in chart.boxes]
    if columns:
        more = 14 if few else 70
        plot = _rows(len(chart.rows), more=more, x_axis_location="above", x_range=(-0.5, columns - 0.5))
        name_axis(plot.xaxis[0], chart.columns, COLUMN_NAME)
        plot.xaxis.major_label_orientation = "horizontal" if few else "vertical"
        plot.yaxis.axis_label = chart.axis
        plot.xgrid.grid_line_color = None
    else:
        plot = _rows(len(chart.rows), x_range=(0, 1), x_axis_label=chart.axis)
        plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    plot.ygrid.grid_line_color = None
    name_axis(plot.yaxis[0], chart.rows, ROW_NAME if columns else 24)
    source, colours = source_of(boxes), {"fill_color": "colour", "fill_alpha": "alpha"}
    drawn = plot.hbar("row", left="left", right="right", height=0.92 if columns else 0.78, source=source, **colours)
    drawn.glyph.line_color = None
    add_tips(plot, {label: f"@{field}" for label, field in chart.tips}, drawn)
    if chart.label and max(columns, len(chart.rows)) <= FEW:
        write(plot, source, chart.label, text_align="center", text_baseline="middle")
    width = 150 + min(84, max(14, 1000 // columns)) * columns if columns else 300
    return Plot(chart.key, plot, chart.caption, chart.title, width)


# ---- over the steps of the run


@dataclass(frozen=True)
class Drawn:
    """A curve with its name, colour ("#rrggbb") and width (pixels). Training losses are dotted."""

    name: str
    colour: str
    curve: Curve
    width: int = 2


def curves_plot(key: str, title: str, drawn: Sequence[Drawn]) -> Plot:
    """Draw curves over optimizer steps; losses on a logarithmic axis, if they are all above 0.

    Args:
        key: name on the page.
        title: the quantity.
        drawn: at least one.
    """
    losses = all(d.curve.quantity == "loss" for d in drawn)
    scale = "log" if losses and all(y > 0 for d in drawn for y in d.curve.values) else "linear"
    plot = new_figure(320, x_axis_label="optimizer steps of the run", y_axis_type=scale)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xgrid.grid_line_color = None
    most = max(4, POINTS // len(drawn))
    lines, points = [], []
    for d in drawn:
        indices = spaced(len(d.curve.steps), most)
        steps, values = [d.curve.steps[index] for index in indices], [d.curve.values[index] for index in indices]
        about = {"task": d.curve.task, "name": d.name, "colour": d.colour}
        dash = "dotted" if d.curve.split == "train" else "solid"
        lines.append(about | {"xs": steps, "ys": values, "dash": dash, "width": d.width})
        points += [about | {"x": x, "y": y} for x, y in zip(steps, values, strict=True)]
    style = {"line_color": "colour", "line_alpha": "alpha", "line_dash": "dash", "line_width": "width"}
    plot.multi_line("xs", "ys", source=source_of(lines), line_join="round", **style)
    dots = plot.scatter("x", "y", source=source_of(points), size=5, line_color=None, fill_color="colour")
    dots.glyph.fill_alpha = "alpha" if len(points) <= MARKED else 0.0
    add_tips(plot, {"": "@name", "step": "@x{0,0}", title or "value": "@y{0.0000}"}, dots)
    thinned = " Not every logged point is drawn." if any(len(d.curve.steps) > most for d in drawn) else ""
    return Plot(key, plot, _curves_caption(drawn) + thinned, title)


def _curves_caption(drawn: Sequence[Drawn]) -> str:
    """Name each curve's ends, or the lowest and the highest last value if there are many."""

    def end(d: Drawn, index: int) -> str:
        value = d.curve.values[index]
        return format(value, ".3g") if d.curve.quantity == "loss" else number(value)

    if len(drawn) <= 12:
        ways = [f"from {end(d, 0)} to {end(d, -1)}" if len(d.curve.steps) > 1 else end(d, -1) for d in drawn]
        return "; ".join(f"{d.name} {way}" for d, way in zip(drawn, ways, strict=True)) + "."
    last = sorted((d for d in drawn if math.isfinite(d.curve.values[-1])), key=lambda d: d.curve.values[-1])
    if not last:
        return f"{len(drawn)} curves."
    low, high = (f"{end(d, -1)} ({d.name})" for d in (last[0], last[-1]))
    return f"{len(drawn)} curves; they end between {low} and {high}."


def sparsity_plot(curves: Sequence[Curve], last_steps: Mapping[str, int], colours: Mapping[str, str]) -> Plot:
    """Draw each task's sparsity, constant between cuts and until its training ends.

    Args:
        curves: sparsities, at least one.
        last_steps: task to its last logged step.
        colours: task to its colour.
    """
    held = []
    for curve in curves:
        ends = [*curve.steps[1:], max(last_steps.get(curve.task, 0), curve.steps[-1])]
        steps = [step for pair in zip(curve.steps, ends, strict=True) for step in pair]
        values = [sparsity for sparsity in curve.values for _ in range(2)]
        held.append(Drawn(curve.task, colours[curve.task], replace(curve, steps=steps, values=values)))
    ways = [(d.curve.steps, d.curve.values) for d in held]
    later = [ways[index + 1 :].count(way) for index, way in enumerate(ways)]  # identical curves: the first is widest
    nested = [replace(d, width=d.width + 3 * min(count, 7)) for d, count in zip(held, later, strict=True)]
    plot = curves_plot("sparsity", "", nested)
    plot.figure.y_range.start, plot.figure.y_range.end = 0, 1.02
    same = " Where tasks are pruned alike, a later task's line is inside an earlier one's." if any(later) else ""
    last = [f"{curve.task} {curve.values[-1]:.3f}" for curve in curves]
    return replace(plot, caption=f"Sparsity after the last cut: {listed(last)}.{same}")


# ---- scores


def scores_plot(
    key: str, title: str, scores: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], label: str
) -> Plot:
    """Draw a row per task, with a mark per network that has a score.

    Args:
        key: name on the page.
        title: the metric.
        scores: network or run to {task: score}.
        colours: network or run to its colour.
        label: for the axis.
    """
    tasks = list(dict.fromkeys(task for by_task in scores.values() for task in by_task))
    lane = LANES / len(scores)
    plot = _rows(len(tasks), max(ROW, round(LANE * len(scores) / LANES)), x_axis_label=label)
    name_axis(plot.yaxis[0], tasks)
    rows = [
        {"score": score, "row": tasks.index(task) + (order - (len(scores) - 1) / 2) * lane, "task": task, "name": name}
        | {"colour": colours[name], "mark": mark, "fill": "#00000000" if order else colours[name]}
        for order, (mark, (name, by_task)) in enumerate(zip(cycle(MARKS), scores.items(), strict=False))
        for task, score in by_task.items()
    ]
    style = {
        "line_color": "colour",
        "line_alpha": "alpha",
        "fill_color": "fill",
        "fill_alpha": "alpha",
        "marker": "mark",
    }
    drawn = plot.scatter("score", "row", source=source_of(rows), size=9, line_width=2, **style)
    add_tips(plot, {"": "@name", "task": "@task", label: "@score{0.0000}"}, drawn)
    means = [f"{name} {number(sum(row.values()) / len(row))}" for name, row in scores.items() if row]
    return Plot(key, plot, f"Means over {counted(len(tasks), 'task')}: {listed(means)}.", title)


# ---- owner maps


def owner_maps(state: NetworkState, colours: Mapping[str, str]) -> tuple[Plot, list[dict[str, Any]]]:
    """Draw an empty owner map, and pack all layers' maps for the page to show in it.

    Args:
        state: a network with at least one layer.
        colours: task to its colour.
    Returns:
        (plot; per layer: name, size of the layer, shape of the map, its packed cells, caption). A cell is 0 where its
        weight is free, i where the i-th task owns it.
    """
    indices, most = owner_indices(state), min(MAP_CELLS, ALL_MAP_CELLS // len(state.owners))
    maps: list[dict[str, Any]] = []
    for layer in state.capacity():
        ids, size = owner_matrix(state, layer.name, most), (layer.shape[0], math.prod(layer.shape[1:]))
        caption, (rows, columns) = capacity_caption([layer]), ids.shape
        if (rows, columns) != size:
            caption += f" Shown are {rows:,} of {size[0]:,} rows and {columns:,} of {size[1]:,} columns, "
            caption += "evenly spaced: every cell is one weight."
        cells = base64.b64encode(zlib.compress(indices[ids.numpy()].tobytes(), 9)).decode()
        about = {"name": f"{layer.name} ({shape_of(layer.shape)})", "size": list(size)}
        maps.append(about | {"shape": [rows, columns], "cells": cells, "caption": caption})
    plot = new_figure(420, name="owner map", x_axis_label="input", x_range=(0, 1), y_range=(1, 0))
    plot.yaxis.axis_label = "output unit"
    palette = [FREE_COLOUR, *(colours[task] for task in state.tasks)]
    mapper = LinearColorMapper(palette=palette, low=-0.5, high=len(palette) - 0.5)
    empty = {"image": [np.zeros((1, 1), indices.dtype)], "rows": [1], "columns": [1]}
    source = ColumnDataSource(empty, name="owner cells")
    plot.image("image", 0, 0, "columns", "rows", source=source, color_mapper=mapper)
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = None
    return Plot("owners", plot, maps[0]["caption"]), maps
