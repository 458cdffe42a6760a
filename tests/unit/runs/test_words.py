"""Numbers and names for people, and groups of neighbours."""

import pytest

from msh.runs.groups import grouped, in_groups
from msh.runs.words import counted, duration, listed, number, shape_of, share, shortened


def test_one_task_is_no_plural():
    assert [counted(n, "task") for n in (0, 1, 2000)] == ["0 tasks", "1 task", "2,000 tasks"]


def test_scores_and_shares():
    assert [number(score) for score in (None, 0.97412, 58.94428)] == ["", "0.9741", "58.9443"]
    assert [number(score) for score in (0, 0.001, 9.996e-4, -3.2e-5, 1.005e-8)] == [
        *("0.0000", "0.0010", "0.001", "-3.2e-05", "1.01e-08")
    ]
    assert [share(1, 3), share(0, 0)] == ["33.3%", "0.0%"]


@pytest.mark.parametrize(("seconds", "text"), [(6.31, "6.3 s"), (67, "1 min 7 s"), (3720, "1 h 2 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_shapes():
    assert [shape_of(shape) for shape in ((6, 4), (3,), ())] == ["6 × 4", "3", ""]


def test_long_names_lose_their_middle():
    assert shortened("layers.1.weight") == "layers.1.weight"
    short = shortened("encoder.layers.0.self_attn.in_proj_weight", 24)
    assert len(short) == 24
    assert (short[:7], short[-10:]) == ("encoder", "roj_weight")


def test_long_lists_end_in_a_number():
    assert listed(["a", "b", "c"], 3) == "a, b, c"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 200])
def test_groups_hold_each_name_once_and_are_at_most_as_many_as_asked_for(count):
    names = [f"t{place}" for place in range(count)]
    groups = in_groups(names, 6)
    assert [place for group in groups for place in group.places] == list(range(count))
    assert len(groups) <= 6
    if count <= 6:
        assert [group.name for group in groups] == names
        assert grouped(groups, "tasks") == ""


def test_groups_are_named_for_their_ends():
    groups = in_groups([f"t{place}" for place in range(200)], 50)
    assert [groups[0].name, groups[-1].name] == ["t0 to t3", "t196 to t199"]
    assert grouped(groups, "tasks") == " Up to 4 tasks are drawn as one."


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        ("layers.0.weight", "layers.4.weight", "layers.0 to 4.weight"),
        ("block.0.conv1.weight", "block.1.conv2.weight", "block.0.conv1.weight to block.1.conv2.weight"),
        ("stem.weight", "head.fc.weight", "stem.weight to head.fc.weight"),
        ("a", "b", "a to b"),
    ],
)
def test_the_common_parts_of_dotted_names_are_named_once(first, last, name):
    assert in_groups([first, last], 1)[0].name == name
