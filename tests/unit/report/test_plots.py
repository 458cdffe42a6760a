"""Figures and their captions: numbers worked out by hand."""

import base64
import zlib

import numpy as np
import pytest
import torch
from bokeh.models import ColumnDataSource

from helpers import make_state
from msh.report.plots import POINTS, Drawn, chart_plot, curves_plot, owner_maps, scores_plot, sparsity_plot
from msh.runs.colours import CHANGES
from msh.runs.facts import Curve
from msh.runs.results import Results, TaskResult
from msh.subnetworks import TaskState
from msh.tracking.figures import capacity_chart, change_of, matrix_chart, overlap_chart

COLOURS = {"a": "#000001", "b": "#000002", "c": "#000003"}


def columns(plot, *names):
    """Rows of the source that has these columns."""
    (source,) = [s for s in plot.figure.select(ColumnDataSource) if set(names) <= set(s.column_names)]
    return list(zip(*(source.data[name] for name in names), strict=True))


def owned(ids, reads=(), tasks="abc"):
    rows = [TaskState(t, i, reads=tuple(reads) if t == tasks[-1] else ()) for i, t in enumerate(tasks, start=1)]
    return make_state({"layer": ids}, rows)


# ---- curves


def test_curves_are_drawn_as_they_were_logged():
    drawn = [
        Drawn("a", "#1", Curve("a", "val", "accuracy", [1, 5], [0.5, 0.75])),
        Drawn("b", "#2", Curve("b", "val", "accuracy", [7], [0.25])),
    ]
    plot = curves_plot("k", "accuracy", drawn)
    assert columns(plot, "x", "y", "task") == [(1, 0.5, "a"), (5, 0.75, "a"), (7, 0.25, "b")]
    assert columns(plot, "xs", "ys") == [([1, 5], [0.5, 0.75]), ([7], [0.25])]
    assert plot.caption == "a from 0.5000 to 0.7500; b 0.2500."


def test_many_points_are_thinned_and_the_last_stays():
    long = Curve("a", "val", "accuracy", list(range(3 * POINTS)), [0.5] * 3 * POINTS)
    plot = curves_plot("k", "accuracy", [Drawn("a", "#1", long)])
    steps = [x for (x,) in columns(plot, "x")]
    assert len(steps) == POINTS
    assert steps[-1] == 3 * POINTS - 1
    assert plot.caption.endswith("Not every logged point is drawn.")


def test_the_caption_of_many_curves_names_their_last_values():
    drawn = [Drawn(f"t{n}", "#1", Curve(f"t{n}", "val", "accuracy", [1], [n / 100])) for n in range(200)]
    assert curves_plot("k", "", drawn).caption == "200 curves; they end between 0.0000 (t0) and 1.9900 (t199)."


@pytest.mark.parametrize(("values", "scale"), [([0.5, 0.01], "LogScale"), ([0.5, 0.0], "LinearScale")])
def test_losses_are_logarithmic_where_they_can_be(values, scale):
    plot = curves_plot("k", "loss", [Drawn("a", "#1", Curve("a", "train", "loss", [1, 2], values))])
    assert type(plot.figure.y_scale).__name__ == scale
    assert columns(plot, "dash") == [("dotted",)]


def test_a_score_that_is_not_finite_is_a_gap():
    plot = curves_plot("k", "", [Drawn("a", "#1", Curve("a", "val", "r2", [1, 2], [float("nan"), 0.5]))] * 13)
    assert plot.caption == "13 curves; they end between 0.5000 (a) and 0.5000 (a)."


def test_sparsity_is_held_until_the_training_ends():
    plot = sparsity_plot([Curve("a", "", "sparsity", [10, 20], [0.5, 0.9])], {"a": 50}, COLOURS)
    assert columns(plot, "x", "y") == [(10, 0.5), (20, 0.5), (20, 0.9), (50, 0.9)]
    assert plot.caption == "Sparsity after the last cut: a 0.900."


def test_identical_curves_lie_within_each_other():
    same = [Curve(name, "", "sparsity", [10], [0.9]) for name in "ab"]
    plot = sparsity_plot([*same, Curve("c", "", "sparsity", [10], [0.8])], dict.fromkeys("abc", 50), COLOURS)
    assert columns(plot, "task", "width") == [("a", 5), ("b", 2), ("c", 2)]
    assert plot.caption.endswith("Where tasks are pruned alike, a later task's line is inside an earlier one's.")


def test_scores_lie_in_their_tasks_row_each_in_a_separate_lane():
    plot = scores_plot(
        "k", "accuracy", {"x": {"a": 0.5, "b": 0.75}, "y": {"b": 1.0}}, {"x": "#1", "y": "#2"}, "accuracy"
    )
    found = [
        list(zip(*(s.data[n] for n in ("name", "row", "score")), strict=True))
        for s in plot.figure.select(ColumnDataSource)
    ]
    assert sorted(row for rows in found for row in rows) == [
        ("x", -0.175, 0.5),
        ("x", 0.825, 0.75),
        ("y", 1.175, 1.0),
    ]
    assert plot.caption == "Means over 2 tasks: x 0.6250, y 1.0000."


# ---- the accuracy matrix


def make_results(tasks=("a", "b")):
    found = {
        t: TaskResult("rmse" if t == "b" else "accuracy", "min" if t == "b" else "max", i) for i, t in enumerate(tasks)
    }
    return Results("toy", 0, [[t] for t in tasks], found, "x")


@pytest.mark.parametrize(
    ("now", "learned", "direction", "place"),
    [
        (0.5, 0.5, "max", 2),
        (0.49, 0.5, "max", 1),
        (0.4, 0.5, "max", 0),
        (0.51, 0.5, "max", 3),
        (0.9, 0.5, "max", 4),
        (60, 50, "min", 0),
        (49, 50, "min", 3),
    ],
)
def test_changes_are_relative_to_the_score_when_learned(now, learned, direction, place):
    assert change_of(now, learned, direction) == list(CHANGES)[place]


def test_the_matrix_has_a_cell_for_each_score():
    plot = chart_plot(matrix_chart("k", "", [[0.5, None], [0.4, 50.0]], make_results(), ["a", "b"]))
    assert columns(plot, "x", "row", "score", "change") == [
        (0, 0, "0.5000", "unchanged"),
        (0, 1, "0.4000", "worse by more than 5 %"),
        (1, 1, "50.0000", "unchanged"),
    ]
    assert plot.caption == "2 stages, 2 tasks; worse than when learned: a."


def test_a_group_of_cells_shows_its_worst_change():
    tasks = [f"t{n}" for n in range(100)]
    results = make_results(tasks)
    matrix = [[0.5 if task <= stage else None for task in range(100)] for stage in range(100)]
    matrix[99][3] = 0.1
    plot = chart_plot(matrix_chart("k", "", matrix, results, tasks))
    worse = [cell for cell in columns(plot, "task", "after", "score", "change") if cell[3] != "unchanged"]
    assert worse == [("t2 to t3", "t98 to t99", "0.1000", "worse by more than 5 %")]
    assert "worse than when learned: t3. Up to 2 neighbours are drawn as one." in plot.caption


# ---- ownership


def test_bars_are_shares_of_a_layer():
    ownership = owned([[1, 1, 0, 0], [2, 0, 0, 3]])
    plot = chart_plot(capacity_chart("k", ownership.capacity(), COLOURS))
    assert columns(plot, "task", "left", "right", "weights") == [
        ("a", 0, 0.25, "2"),
        ("b", 0.25, 0.375, "1"),
        ("c", 0.375, 0.5, "1"),
        ("free", 0.5, 1.0, "4"),
    ]
    assert plot.caption == "layer: 8 weights, 50.0% free; owned by a 25.0%, b 12.5%, c 12.5%."


def test_overlap_is_a_share_of_the_weights_that_a_task_computes_with():
    plot = chart_plot(overlap_chart(owned([[1, 1, 0, 0], [2, 0, 0, 3]], reads=["a"])))
    shares = {(row, column): part for row, column, part in columns(plot, "task", "other", "share") if part != "0%"}
    assert shares == {("a", "a"): "100%", ("b", "b"): "100%", ("c", "c"): "100%", ("a", "c"): "100%", ("c", "a"): "67%"}
    assert plot.caption.startswith(
        "Other tasks' weights among those that a task computes with: a 0 of 2, b 0 of 1, c 2 of 3."
    )


@pytest.mark.parametrize("tasks", [3, 300])
def test_owner_maps_hold_the_owners_indices_among_the_tasks(tasks):
    names = [f"t{n}" for n in range(tasks)]
    ids = torch.arange(tasks + 2).view(1, -1).repeat(2, 1)
    ids[ids == 1] = 0  # the first task was released: its id is free
    rows = [TaskState(name, owner) for owner, name in enumerate(names, start=2)]
    plot, (shown,) = owner_maps(make_state({"layer": ids}, rows), dict.fromkeys(names, "#123456"))
    dtype = np.uint8 if tasks < 256 else np.uint16
    cells = np.frombuffer(zlib.decompress(base64.b64decode(shown["cells"])), dtype).reshape(shown["shape"])
    assert cells.tolist() == [[0, 0, *range(1, tasks + 1)]] * 2
    assert shown["size"] == [2, tasks + 2]
    assert f"layer: {2 * (tasks + 2):,} weights" in shown["caption"]
    assert plot.figure.select_one({"name": "owner cells"}).data["image"][0].dtype == dtype


def test_the_caption_of_a_large_layers_map_counts_its_rows_and_columns():
    ownership = owned(torch.randint(0, 4, (1000, 500)).tolist())
    _, (shown,) = owner_maps(ownership, COLOURS)
    rows, columns = shown["shape"]
    assert rows * columns <= 1 << 16
    assert f"Shown are {rows} of 1,000 rows and {columns} of 500 columns, evenly spaced" in shown["caption"]
