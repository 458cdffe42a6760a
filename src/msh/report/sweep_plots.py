"""Draw a sweep's figures: settings and scores, score against density, importance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import FixedTicker
from bokeh.transform import linear_cmap

from msh.report.importance import numbers_of, pareto_front
from msh.report.plots import Plot, add_tips, name_axis, new_figure, source_of, write
from msh.report.sweeps import JobRow, described
from msh.runs.colours import FEW, SCORES
from msh.runs.words import listed, number
from msh.tracking.figures import Chart

DECADES = 1.2
"""Powers of ten between the lowest and the highest value of a setting from which on its axis is logarithmic."""
NAMED = 12
"""Most values of a setting without numbers that are written at its axis."""
TICK_STYLE = {"text_align": "align", "text_baseline": "baseline", "x_offset": "right", "y_offset": "up"}
TICK_PLACES = {0.0: ("center", "top", 0, 4), 1.0: ("center", "bottom", 0, -4)}
"""Height to the fields of TICK_STYLE, where lines do not cross the text."""


def scale_of(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Lay out values on an axis: numbers by size, logarithmically if they span decades; names one above another.

    Args:
        values: one per job, at least one.
    Returns:
        (heights, one per job, in [0, 1] from the bottom; ticks: (height, text)).
    """
    numbers = numbers_of(values)
    if numbers is None:
        names = sorted(set(values))
        height = {value: rank / max(len(names) - 1, 1) for rank, value in enumerate(names)}
        ticks = [(at, value or "–") for value, at in height.items()]
        return [height[value] for value in values], ticks if len(ticks) <= NAMED else []
    low, high = min(numbers), max(numbers)
    if low == high:
        return [0.5] * len(numbers), [(0.5, f"{low:.4g}")]
    at = math.log10 if _spans_decades(low, high) else float
    heights = [(at(value) - at(low)) / (at(high) - at(low)) for value in numbers]
    return heights, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]


def _spans_decades(low: float, high: float) -> bool:
    return low > 0 and math.log10(high / low) >= DECADES


def parallel_plot(rows: Sequence[JobRow]) -> Plot:
    """Draw a line for each job through its settings, its density and its score.

    Args:
        rows: jobs with a score, at least one.
    """
    values = {key: [row.settings[key] for row in rows] for key in rows[0].settings}
    values |= {name: [repr(getattr(row, name)) for row in rows] for name in ("density", "mean_score")}
    scales = [scale_of(column) for column in values.values()]
    scores: list[Any] = [row.mean_score for row in rows]
    plot = new_figure(380, x_range=(-0.45, len(scales) - 0.55), y_range=(-0.1, 1.1))
    name_axis(plot.xaxis[0], list(values), 18)
    plot.yaxis.visible = False
    plot.ygrid.grid_line_color = None
    across = list(range(len(scales)))
    lines = [
        {
            "xs": across,
            "ys": [heights[job] for heights, _ in scales],
            "task": described(rows[job]),
            "score": scores[job],
        }
        for job in sorted(range(len(rows)), key=scores.__getitem__)  # the best on top
    ]
    low, high = min(scores), max(scores)
    colours = linear_cmap("score", list(SCORES), low, high if high > low else low + 1)
    drawn = plot.multi_line("xs", "ys", source=source_of(lines), line_width=2, line_alpha="alpha", line_color=colours)
    add_tips(plot, {"": "@task", "score": "@score{0.0000}"}, drawn)
    texts = [
        {"x": axis, "y": at, "text": text}
        | dict(zip(TICK_STYLE.values(), TICK_PLACES.get(at, ("left", "middle", 5, 0)), strict=True))
        for axis, (_, ticks) in enumerate(scales)
        for at, text in ticks
    ]
    if texts:
        write(plot, source_of(texts), "text", text_font_size="11px", **TICK_STYLE)
    best = rows[scores.index(high)]
    caption = f"{len(rows)} jobs; the best score is {number(high)}, of job {described(best)}."
    return Plot("parallel", plot, caption, width=max(300, 95 * len(scales)))


def front_plot(rows: Sequence[JobRow]) -> Plot:
    """Draw each job's score against its density, and the Pareto front.

    Args:
        rows: jobs with a score, at least one.
    """
    points: dict[str, Any] = {row.name: (row.density, row.mean_score) for row in rows}
    low, high = (choose(density for density, _ in points.values()) for choose in (min, max))
    wide = _spans_decades(low, high)
    labels = {"x_axis_label": "density, mean over the tasks", "y_axis_label": "mean score on validation data"}
    plot = new_figure(360, x_axis_type="log" if wide else "linear", **labels)
    if wide:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        plot.xaxis.ticker = FixedTicker(ticks=[float(f"{n}e{power}") for power in powers for n in (1, 2, 5)])
    front = pareto_front(points)
    xs, ys = zip(*(points[name] for name in front), strict=True)
    plot.line(list(xs), list(ys), line_color=FEW[1], line_width=2)
    jobs = [
        {"density": row.density, "score": row.mean_score, "task": described(row), "colour": FEW[row.name in front]}
        for row in rows
    ]
    style = {"line_color": "colour", "fill_color": "colour", "line_alpha": "alpha", "fill_alpha": "alpha"}
    drawn = plot.scatter("density", "score", source=source_of(jobs), size=10, **style)
    add_tips(plot, {"": "@task", "density": "@density{0.0000}", "score": "@score{0.0000}"}, drawn)
    ends = [f"{number(points[name][1])} at density {points[name][0]:.3g} (job {name})" for name in front]
    return Plot("front", plot, f"The front: {listed(ends)}.")


def importance_chart(shares: Mapping[str, float]) -> Chart:
    """Draw a bar per setting: its share in the scores' variance.

    Args:
        shares: setting to its share, at least one.
    """
    boxes = [
        {"row": row, "left": 0, "right": share, "colour": FEW[0], "task": key, "share": f"{share:.0%}"}
        for row, (key, share) in enumerate(shares.items())
    ]
    caption = listed([f"{box['task']} {box['share']}" for box in boxes]) + "."
    return Chart(
        "importance", "", caption, list(shares), [], boxes, "share of the variance", [("", "task"), ("share", "share")]
    )
