"""Bitmaps for trackers: every cell, bar and dot has its colour; many tasks or layers do not break them."""

import numpy as np
import pytest
from PIL import Image

from helpers import make_state
from msh.runs.colours import CHANGES, FREE_COLOUR, colours_of
from msh.runs.results import Results, TaskResult
from msh.subnetworks import Capacity, TaskState
from msh.tracking.bitmaps import draw, owner_map, same_size
from msh.tracking.figures import capacity_chart, matrix_chart


def on_white(colour):
    """Red, green and blue of "#rrggbb" or "#rrggbbaa" over white."""
    *rgb, alpha = bytes.fromhex(f"{colour[1:]}ff"[:8])
    return tuple(255 + (part - 255) * alpha / 255 for part in rgb)


def count(image, colour):
    return int((abs(np.asarray(image).astype(int) - np.array(on_white(colour))) <= 1).all(-1).sum())


def layer(name, *owned, free=0):
    return Capacity(name, (10,), {f"t{i}": n for i, n in enumerate(owned)}, free)


def matrix(stages, tasks, score):
    results = Results("toy", 0, [], {f"t{i}": TaskResult("accuracy", "max", i) for i in range(tasks)}, "x")
    rows = [[score(stage, task) for task in range(tasks)] for stage in range(stages)]
    return draw(matrix_chart("k", "", rows, results, [f"stage {i}" for i in range(stages)]))


def test_a_matrix_has_the_colours_of_changes_and_empty_cells():
    image = matrix(2, 2, lambda stage, task: [[0.5, None], [0.4, 0.7]][stage][task])
    worse, unchanged = CHANGES["worse by more than 5 %"], CHANGES["unchanged"]
    assert 2500 < count(image, worse) < 64 * 64 + 200
    assert 5000 < count(image, unchanged) < 2 * 64 * 64 + 200


@pytest.mark.parametrize(("stages", "tasks"), [(200, 200), (1, 200), (3000, 3)])
def test_matrices_stay_small(stages, tasks):
    image = matrix(stages, tasks, lambda stage, task: 0.5)
    assert image.width < 2000
    assert image.height < 2000


def bars(layers):
    return draw(capacity_chart("k", layers, colours_of(list(layers[0].owned))))


def test_bars_are_divided_by_the_share_of_each_owner():
    image = bars([layer("a", 5, 2, free=3)])
    row = image.crop((0, 20, 590, 21))  # of the bar, without the legend
    widths = [count(row, name) for name in (*colours_of(["t0", "t1"]).values(), FREE_COLOUR)]
    assert widths == [280, 112, 168]


def test_neighbours_share_a_bar_and_a_legend_names_some_tasks_if_there_are_many():
    layers = [layer(f"layers.{i}.weight", *([1] * 200), free=50) for i in range(100)]
    image = bars(layers)
    assert image.height < 1300
    assert image.width < 1500
    assert image.height == bars(layers[:50]).height  # 100 layers, two a bar


def ownership(ids):
    return make_state({"0.weight": ids}, [TaskState("a", 1), TaskState("b", 2)])


def test_an_owner_map_has_a_dot_for_each_weight_in_its_owners_colour():
    image = owner_map(ownership([[1, 0], [2, 2]]), "0.weight")
    a, b = (on_white(colour) for colour in colours_of(["a", "b"]).values())
    assert image.size == (256, 256)
    assert image.getpixel((10, 10)) == a
    assert image.getpixel((200, 10)) == pytest.approx(on_white(FREE_COLOUR), abs=1)
    assert image.getpixel((200, 200)) == image.getpixel((10, 200)) == b


def test_a_large_layers_owner_map_is_bounded():
    image = owner_map(ownership(np.tile(np.array([[1, 0, 2]], np.uint8), (900, 300))), "0.weight")
    assert image.size == (256, 256)
    assert owner_map(ownership(np.ones((1000, 64), np.uint8)), "0.weight").size == (64, 256)


def test_bitmaps_of_a_row_have_one_size_and_their_aspect_ratios():
    enlarged = same_size({"a": Image.new("RGB", (20, 10), "red"), "b": Image.new("RGB", (5, 5), "blue")})
    assert {image.size for image in enlarged.values()} == {(20, 10)}
    assert count(enlarged["a"], "#ff0000") == 200
    assert count(enlarged["b"], "#0000ff") == 100
