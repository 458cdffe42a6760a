"""Pictures for trackers: every cell, bar and dot has its colour, and many tasks or layers do not break them."""

import numpy as np
import pytest
from PIL import Image

from helpers import make_state
from msh.runs.colours import colours_of
from msh.subnetworks import Capacity, TaskState
from msh.tracking.pictures import DARK, FREE_COLOUR, PALE, chosen_layers, heat_map, owner_map, same_size, stacked_bars


def colour(text):
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


def count(picture, rgb):
    return int((np.asarray(picture) == np.array(rgb)).all(-1).sum())


def layer(name, *owned, free=0):
    return Capacity(name, (10,), {f"t{i}": n for i, n in enumerate(owned)}, free)


def test_a_heat_map_is_as_dark_as_it_is_told_and_empty_where_nothing_is_known():
    picture = heat_map(["a", "b"], ["x", "y"], [[0.9, None], [0.8, 0.7]], [[1.0, 0.0], [0.0, 0.5]])
    assert count(picture, DARK) > 48 * 48 > 0
    assert count(picture, PALE) > 48 * 48


@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (1, 200), (3000, 3)])
def test_heat_maps_stay_small(rows, columns):
    values = [[0.5] * columns for _ in range(rows)]
    picture = heat_map([f"stage {i}" for i in range(rows)], [f"task {i}" for i in range(columns)], values, values)
    assert picture.width < 2000
    assert picture.height <= max(2000, 4 * rows + 100)


def test_bars_are_divided_by_the_share_of_each_owner():
    picture = stacked_bars([layer("a", 5, 2, free=3)])
    row = picture.crop((0, 20, 590, 21))  # of it, the bar and not the legend
    widths = [count(row, colour(name)) for name in (*colours_of(["t0", "t1"]).values(), FREE_COLOUR)]
    assert widths == [280, 112, 168]


def test_neighbours_share_a_bar_where_there_are_many_layers_and_not_all_tasks_are_named():
    layers = [layer(f"layers.{i}.weight", *([1] * 200), free=50) for i in range(100)]
    picture = stacked_bars(layers)
    assert picture.height < 1000
    assert picture.width < 1500
    assert picture.height == stacked_bars(layers[:34]).height  # 100 layers, three a bar


def ownership(ids):
    return make_state({"0.weight": ids}, [TaskState("a", 1), TaskState("b", 2)])


def test_an_owner_map_has_a_dot_for_each_weight_in_its_owners_colour():
    picture = owner_map(ownership([[1, 0], [2, 2]]), "0.weight")
    a, b = colours_of(["a", "b"]).values()
    assert picture.size == (256, 256)
    assert picture.getpixel((10, 10)) == colour(a)
    assert picture.getpixel((200, 10)) == colour(FREE_COLOUR)
    assert picture.getpixel((200, 200)) == picture.getpixel((10, 200)) == colour(b)


def test_a_large_layers_owner_map_is_bounded():
    picture = owner_map(ownership(np.tile(np.array([[1, 0, 2]], np.uint8), (900, 300))), "0.weight")
    assert picture.size == (256, 256)
    assert owner_map(ownership(np.ones((1000, 64), np.uint8)), "0.weight").size == (64, 256)


def test_pictures_of_a_row_have_one_size_and_their_shapes():
    grown = same_size({"a": Image.new("RGB", (20, 10), "red"), "b": Image.new("RGB", (5, 5), "blue")})
    assert {picture.size for picture in grown.values()} == {(20, 10)}
    assert count(grown["a"], (255, 0, 0)) == 200
    assert count(grown["b"], (0, 0, 255)) == 100


def test_layers_are_chosen_by_number_evenly_or_by_name():
    names = [f"{i}.weight" for i in range(10)]
    assert chosen_layers(names, 4) == ["0.weight", "3.weight", "6.weight", "9.weight"]
    assert chosen_layers(names, 1) == ["0.weight"]
    assert chosen_layers(names, 0) == []
    assert chosen_layers(names[:2], 4) == names[:2]
    assert chosen_layers(names, ["2.weight", "0.weight"]) == ["2.weight", "0.weight"]
    assert chosen_layers(names, "2.weight") == ["2.weight"]


@pytest.mark.parametrize(("wanted", "message"), [(["12.weight"], "did you mean '2.weight'"), (-1, "at least 0")])
def test_layers_that_are_not_there_are_refused(wanted, message):
    with pytest.raises(ValueError, match=rf"owner_maps .*{message}"):
        chosen_layers([f"{i}.weight" for i in range(3)], wanted)
