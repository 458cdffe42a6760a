"""Pictures of a run, and what each of them says in words: curves and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure

from msh.runs.facts import Curve
from msh.runs.ownership import spaced
from msh.runs.words import counted, listed, number, shortened

TOOLS = "pan,wheel_zoom,zoom_in,zoom_out,reset"
TOOLBAR_STYLE = ".bk-divider { visibility: hidden; } @media print { :host { visibility: hidden; } }"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
POINTS = 8_000
"""Points of one picture, about: of more, some are left out, evenly spaced."""
MARKED = 400
"""Points of one picture up to which each has a mark."""
MARKS = ("circle", "diamond", "triangle", "square", "inverted_triangle", "hex")
"""Shapes that tell kinds apart beside their colours."""
ROW = 22
"""Height of a row of bars, in pixels."""
LANE, LANES = 9, 0.7
"""Height of a mark's own lane within a row, in pixels, if it has room, and the share of the row that lanes take."""


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        key: its name on the page.
        figure: what is drawn.
        caption: what it shows, in numbers.
        title: above it.
        width: pixels that it needs; where the page is narrower, it scrolls in a box of its own.
    """

    key: str
    figure: Any
    caption: str
    title: str = ""
    width: int = 300


def new_figure(height: int, hover: Sequence[tuple[str, str]] = (), **settings: Any) -> Any:
    """An empty figure in the page's style: as wide as there is room, pans and zooms when asked to.

    Args:
        height: in pixels.
        hover: (label, what is told) of what the pointer is over.
        settings: of Bokeh's figure.
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
    if hover:
        plot.add_tools(HoverTool(tooltips=list(hover), visible=False))
    return plot


def name_places(axis: Any, names: Sequence[str], most: int = 24) -> None:
    """Write names at 0, 1, ... of an axis, in place of numbers."""
    axis.ticker = FixedTicker(ticks=list(range(len(names))))
    axis.major_label_overrides = {place: shortened(name, most) for place, name in enumerate(names)}
    axis.major_tick_line_color = None
    axis.axis_line_color = None


def plain_grid(plot: Any, along: str = "y") -> None:
    """Leave the grid's lines of one axis only."""
    (plot.xgrid if along == "y" else plot.ygrid).grid_line_color = None


def write(plot: Any, source: ColumnDataSource, column: str, **style: Any) -> None:
    """Write a column's texts at "x" and "y": in dark letters for light pages, in light ones for dark pages.

    Args:
        plot: to write into.
        source: with the columns.
        column: the texts.
        style: further settings of Bokeh's text.
    """
    style = {"text_font_size": "12px", "text_font": value(FONT)} | style
    for page, ink in (("light", "#1a1e26"), ("dark", "#e6e9ee")):
        plot.text("x", "y", text=column, source=source, text_color=ink, name=f"on {page}", **style)


# ---- over the steps of the run


@dataclass(frozen=True)
class Drawn:
    """A curve, and how it is drawn.

    Attributes:
        name: what it is called.
        colour: "#rrggbb".
        curve: what is drawn; training losses are dotted.
        width: in pixels.
    """

    name: str
    colour: str
    curve: Curve
    width: int = 2


def curves_plot(key: str, title: str, drawn: Sequence[Drawn]) -> Plot:
    """Curves over the steps of the run; losses on a logarithmic axis, where they are all above 0.

    Args:
        key: of the picture.
        title: of the picture.
        drawn: at least one.
    """
    losses = all(d.curve.quantity == "loss" for d in drawn)
    scale = "log" if losses and all(value > 0 for d in drawn for value in d.curve.values) else "linear"
    plot = new_figure(320, x_axis_label="optimizer steps of the run", y_axis_type=scale)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    most = max(4, POINTS // len(drawn))
    lines: dict[str, list[Any]] = {name: [] for name in ("xs", "ys", "task", "colour", "dash", "width", "alpha")}
    points: dict[str, list[Any]] = {name: [] for name in ("x", "y", "task", "name", "colour", "alpha")}
    for d in drawn:
        kept = [int(place) for place in spaced(len(d.curve.steps), most)]
        steps, values = [d.curve.steps[place] for place in kept], [d.curve.values[place] for place in kept]
        dash = "dotted" if d.curve.split == "train" else "solid"
        append(lines, (steps, values, d.curve.task, d.colour, dash, d.width, 1.0))
        for x, y in zip(steps, values, strict=True):
            append(points, (x, y, d.curve.task, d.name, d.colour, 1.0))
    style = {"line_color": "colour", "line_alpha": "alpha", "line_dash": "dash", "line_width": "width"}
    plot.multi_line("xs", "ys", source=ColumnDataSource(lines), line_join="round", **style)
    dots = plot.scatter("x", "y", source=ColumnDataSource(points), size=5, line_color=None, fill_color="colour")
    dots.glyph.fill_alpha = "alpha" if len(points["x"]) <= MARKED else 0.0
    told = [("", "@name"), ("step", "@x{0,0}"), (title or "value", "@y{0.0000}")]
    plot.add_tools(HoverTool(tooltips=told, renderers=[dots], visible=False))
    plain_grid(plot)
    left_out = " Not every logged point is drawn." if any(len(d.curve.steps) > most for d in drawn) else ""
    return Plot(key, plot, _said_of_curves(drawn) + left_out, title)


def append(columns: Mapping[str, list[Any]], row: Sequence[Any]) -> None:
    """Add a row to columns, which are in the row's order."""
    for column, cell in zip(columns.values(), row, strict=True):
        column.append(cell)


def _said_of_curves(drawn: Sequence[Drawn]) -> str:
    """From where to where curves go; of many, where they end."""
    if len(drawn) <= 12:
        return "; ".join(f"{d.name} {_way(d.curve)}" for d in drawn) + "."
    last = sorted((d for d in drawn if math.isfinite(d.curve.values[-1])), key=lambda d: d.curve.values[-1])
    if not last:
        return f"{len(drawn)} curves."
    low, high = (f"{_said(d.curve, -1)} ({d.name})" for d in (last[0], last[-1]))
    return f"{len(drawn)} curves; they end between {low} and {high}."


def _way(curve: Curve) -> str:
    """From where to where a curve goes; of one value, what it is."""
    first, last = _said(curve, 0), _said(curve, -1)
    return f"from {first} to {last}" if len(curve.steps) > 1 else last


def _said(curve: Curve, place: int) -> str:
    """A value of a curve; losses to three digits."""
    return f"{curve.values[place]:.3g}" if curve.quantity == "loss" else number(curve.values[place])


def sparsity_plot(curves: Sequence[Curve], last_steps: Mapping[str, int], colours: Mapping[str, str]) -> Plot:
    """Each task's sparsity after each cut, held until its training ends.

    Args:
        curves: of sparsity, at least one.
        last_steps: task to the last step at which anything was logged of its training.
        colours: task to its colour.
    """
    held = []
    for curve in curves:
        last = max(last_steps.get(curve.task, 0), curve.steps[-1])
        steps, values = [], []
        for place, (step, sparsity) in enumerate(zip(curve.steps, curve.values, strict=True)):
            steps += [step, curve.steps[place + 1] if place + 1 < len(curve.steps) else last]
            values += [sparsity, sparsity]
        curve_held = Curve(curve.task, curve.split, curve.quantity, steps, values)
        held.append(Drawn(curve.task, colours[curve.task], curve_held))
    nested = nest(held)
    plot = curves_plot("sparsity", "", nested)
    plot.figure.y_range.start, plot.figure.y_range.end = 0, 1.02
    ends = [f"{c.task} {c.values[-1]:.3f}" for c in curves]
    same = " Where tasks are pruned alike, a later one's line is inside an earlier one's." if nested != held else ""
    return Plot("sparsity", plot.figure, f"Sparsity after the last cut: {listed(ends)}.{same}")


def nest(drawn: Sequence[Drawn]) -> list[Drawn]:
    """The same curves; of those that are the same, each but the last one wider, so that it shows beside the later."""
    ways = [(tuple(d.curve.steps), tuple(d.curve.values)) for d in drawn]
    later = [ways[place + 1 :].count(way) for place, way in enumerate(ways)]
    return [replace(d, width=d.width + 3 * min(count, 7)) for d, count in zip(drawn, later, strict=True)]


# ---- scores


def scores_plot(
    key: str, title: str, scores: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], label: str
) -> Plot:
    """A row for each task, a mark for each that has a score of it.

    Args:
        key: of the picture.
        title: of the picture.
        scores: who (a run, or a kind of network) to {task: score}.
        colours: who to its colour.
        label: of the axis.
    """
    tasks = list(dict.fromkeys(task for found in scores.values() for task in found))
    place = {task: row for row, task in enumerate(tasks)}
    lane = LANES / len(scores)
    height = height_for(len(tasks), max(ROW, round(LANE * len(scores) / LANES)))
    plot = new_figure(height, [("", "@who"), ("task", "@task"), (label, "@score{0.0000}")], x_axis_label=label)
    plot.y_range.start, plot.y_range.end = len(tasks) - 0.5, -0.5
    name_places(plot.yaxis[0], tasks)
    for order, (mark, (who, found)) in enumerate(zip(cycle(MARKS), scores.items(), strict=False)):
        aside = (order - (len(scores) - 1) / 2) * lane
        rows = {"score": list(found.values()), "row": [place[task] + aside for task in found], "task": list(found)}
        source = ColumnDataSource(rows | {"who": [who] * len(found), "alpha": [1.0] * len(found)})
        style = {"line_color": colours[who], "line_width": 2, "line_alpha": "alpha", "fill_alpha": "alpha"}
        filled = colours[who] if who == next(iter(scores)) else None
        plot.scatter("score", "row", source=source, size=9, marker=mark, fill_color=filled, **style)
    means = [f"{who} {number(sum(found.values()) / len(found))}" for who, found in scores.items() if found]
    return Plot(key, plot, f"Means over {counted(len(tasks), 'task')}: {listed(means)}.", title)


def height_for(rows: int, row: int = ROW) -> int:
    """Pixels of a picture with so many rows, of so many pixels each."""
    return 110 + row * max(rows, 1)
