"""Pictures of a sweep: its jobs as lines over their settings, score against density, what matters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.transform import linear_cmap

from msh.report.importance import numbers_of, pareto_front
from msh.report.plots import Plot, append, height_for, name_places, new_figure, plain_grid, write
from msh.report.sweeps import JobRow, short
from msh.runs.colours import RAMP
from msh.runs.words import listed, number

LINE = "#2f7fc1"
FRONT = "#e0702e"
DECADES = 1.2
"""Powers of ten from a setting's lowest value to its highest from which on its axis is logarithmic."""
NAMED = 12
"""Values of a setting that are no numbers, up to which each is named at its axis."""


@dataclass(frozen=True)
class Scale:
    """An axis of parallel coordinates.

    Attributes:
        name: of what it shows.
        places: of each job, in [0, 1] from the bottom.
        ticks: (place, text) at its side.
    """

    name: str
    places: list[float]
    ticks: list[tuple[float, str]]


def scale_of(name: str, values: Sequence[str]) -> Scale:
    """Lay values out on an axis: numbers by size, logarithmically where they span decades; names one above another.

    Args:
        name: of what they are.
        values: one of each job, at least one.
    """
    numbers = numbers_of(values)
    if numbers is None:
        names = sorted(set(values))
        place = {value: rank / max(len(names) - 1, 1) for rank, value in enumerate(names)}
        ticks = [(at, value or "–") for value, at in place.items()]
        return Scale(name, [place[value] for value in values], ticks if len(ticks) <= NAMED else [])
    low, high = min(numbers), max(numbers)
    if low == high:
        return Scale(name, [0.5] * len(numbers), [(0.5, f"{low:.4g}")])
    at = math.log10 if low > 0 and math.log10(high / low) >= DECADES else float
    places = [(at(value) - at(low)) / (at(high) - at(low)) for value in numbers]
    return Scale(name, places, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")])


def parallel_plot(rows: Sequence[JobRow]) -> Plot:
    """A line for each job over its settings, its density and its score.

    Args:
        rows: of jobs that have a score, at least one.
    """
    found = [row.numbers() for row in rows]
    scales = [scale_of(key, [row.settings[key] for row in rows]) for key in rows[0].settings]
    scales += [scale_of(name, [repr(numbers[name]) for numbers in found]) for name in ("density", "mean_score")]
    scores = [numbers["mean_score"] for numbers in found]
    plot = new_figure(380, x_range=(-0.45, len(scales) - 0.55), y_range=(-0.1, 1.1))
    name_places(plot.xaxis[0], [scale.name for scale in scales], most=18)
    plot.yaxis.visible = False
    plot.ygrid.grid_line_color = None
    lines: dict[str, list[Any]] = {name: [] for name in ("xs", "ys", "task", "score", "alpha")}
    for job in sorted(range(len(rows)), key=scores.__getitem__):  # the best on top
        places = [scale.places[job] for scale in scales]
        append(lines, (list(range(len(scales))), places, told(rows[job]), scores[job], 1.0))
    drawn = plot.multi_line(
        "xs", "ys", source=ColumnDataSource(lines), line_width=2, line_alpha="alpha", line_color=score_colours(scores)
    )
    plot.add_tools(HoverTool(tooltips=[("", "@task"), ("score", "@score{0.0000}")], renderers=[drawn], visible=False))
    _label(plot, scales)
    best = rows[scores.index(max(scores))]
    caption = f"{len(rows)} jobs; the best score, {number(max(scores))}, is that of job {told(best)}."
    return Plot("parallel", plot, caption, width=max(300, 95 * len(scales)))


def _label(plot: Any, scales: Sequence[Scale]) -> None:
    """Write ticks above, below, or beside the axes, where lines do not cross them."""
    labels: dict[str, list[Any]] = {name: [] for name in ("x", "y", "text", "align", "baseline", "right", "up")}
    where = {0.0: ("center", "top", 0, 4), 1.0: ("center", "bottom", 0, -4)}
    for axis, scale in enumerate(scales):
        for at, text in scale.ticks:
            append(labels, (axis, at, text, *where.get(at, ("left", "middle", 5, 0))))
    style = {"text_align": "align", "text_baseline": "baseline", "x_offset": "right", "y_offset": "up"}
    write(plot, ColumnDataSource(labels), "text", text_font_size="11px", **style)


def score_colours(scores: Sequence[float]) -> Any:
    """Colours of lines by their `score`, from the lowest to the highest."""
    low, high = min(scores), max(scores)
    return linear_cmap("score", list(RAMP), low, high if high > low else low + 1)


def told(row: JobRow) -> str:
    """A job in a line: its name and settings."""
    return " ".join([row.name, *(f"{key}={short(value)}" for key, value in row.settings.items())])


def front_plot(rows: Sequence[JobRow]) -> Plot:
    """Each job's score against its density, and the front of those that no other one beats in both.

    Args:
        rows: of jobs that have a score, at least one.
    """
    points = {row.name: (row.numbers()["density"], row.numbers()["mean_score"]) for row in rows}
    densities = [density for density, _ in points.values()]
    wide = min(densities) > 0 and math.log10(max(densities) / min(densities)) >= DECADES
    plot = new_figure(
        360,
        x_axis_type="log" if wide else "linear",
        x_axis_label="density, mean over the tasks",
        y_axis_label="mean score on validation data",
    )
    if wide:
        plot.xaxis.ticker = FixedTicker(ticks=_ticks(min(densities), max(densities)))
    front = pareto_front(points)
    xs, ys = zip(*(points[name] for name in front), strict=True)
    plot.line(list(xs), list(ys), line_color=FRONT, line_width=2)
    columns = {
        "density": densities,
        "score": [point[1] for point in points.values()],
        "task": [told(row) for row in rows],
        "alpha": [1.0] * len(rows),
        "colour": [FRONT if name in front else LINE for name in points],
    }
    style = {"size": 10, "line_color": "colour", "fill_color": "colour", "line_alpha": "alpha"}
    drawn = plot.scatter("density", "score", source=ColumnDataSource(columns), **style)
    drawn.glyph.fill_alpha = "alpha"
    tips = [("", "@task"), ("density", "@density{0.0000}"), ("score", "@score{0.0000}")]
    plot.add_tools(HoverTool(tooltips=tips, renderers=[drawn], visible=False))
    ends = [f"{number(points[name][1])} at density {points[name][0]:.3g} (job {name})" for name in front]
    return Plot("front", plot, f"The front: {listed(ends)}.")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, from below a range to above it."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{times}e{power}") for power in powers for times in (1, 2, 5)]


def importance_plot(shares: Mapping[str, float]) -> Plot:
    """A bar for each setting: the share of the scores' variance that it explains.

    Args:
        shares: setting to its share, at least one.
    """
    plot = new_figure(height_for(len(shares)), [("@setting", "@share{0.0%}")], x_axis_label="share of the variance")
    plot.x_range.start = 0
    plot.xaxis.formatter = NumeralTickFormatter(format="0%")
    plot.y_range.start, plot.y_range.end = len(shares) - 0.5, -0.5
    name_places(plot.yaxis[0], list(shares))
    plain_grid(plot, "x")
    columns = {"setting": list(shares), "share": list(shares.values()), "row": list(range(len(shares)))}
    plot.hbar("row", right="share", height=0.6, source=ColumnDataSource(columns), color=LINE)
    return Plot("importance", plot, listed([f"{key} {share:.0%}" for key, share in shares.items()]) + ".")
