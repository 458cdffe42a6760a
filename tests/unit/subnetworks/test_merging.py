"""Tasks into and out of states, by numbers that can be looked at; allocations that are fixed before training."""

import json

import pytest
import torch

from helpers import copy_state, differences, make_mlp
from msh.subnetworks import Allocation, CapacityError, MultiSubnetwork, lowest_ids, merge, release, split

NAMES = ["0.weight"]


def make_square():
    """Four weights, 1 to 4, and no biases."""
    network = MultiSubnetwork(make_mlp(2, 2, bias=False))
    network.backbone[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    network.initial_norms.set("0.weight", torch.tensor(30.0).sqrt())
    return network


def allocation(*places, norm):
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(places)] = True
    return Allocation({"0.weight": mask.view(2, 2)}, {"0.weight": norm})


def make_alone(task, *places, norm):
    network = make_square()
    network.add_task(task)
    network.begin(task, allocation(*places, norm=norm))
    network.freeze(task)
    return split(network.state_dict(), NAMES, task)


def rows(state):
    return [(row["task"], row["owner"], row["phase"]) for row in json.loads(state["_extra_state"])["tasks"]]


def test_a_task_begins_with_its_allocation_at_the_norm_that_was_planned():
    network = make_square()
    network.add_task("a")
    network.begin("a", allocation(2, 3, norm=10.0))
    assert torch.equal(network.masks("a")["0.weight"], torch.tensor([[False, False], [True, True]]))
    assert torch.allclose(network.subnetwork("a").values["0.weight"], torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    network.compact("a")
    assert [parameter.numel() for parameter in network.parameters()] == [2]


def test_what_others_have_learned_does_not_change_how_a_planned_task_begins():
    alone, second = make_square(), make_square()
    second.add_task("other")
    second.begin("other", allocation(0, 1, norm=7.0))
    second.freeze("other")
    for network in (alone, second):
        network.add_task("a")
        network.begin("a", allocation(3, norm=5.0))
    assert torch.equal(alone.subnetwork("a").values["0.weight"], second.subnetwork("a").values["0.weight"])


def test_an_allocation_that_another_task_owns_is_refused_and_nothing_has_begun():
    network = make_square()
    network.add_task("a")
    network.begin("a", allocation(0, 1, norm=1.0))
    network.freeze("a")
    network.add_task("b")
    before = copy_state(network)
    with pytest.raises(CapacityError, match=r"of the weights planned for task 'b', others own 1 of layer '0\.w"):
        network.begin("b", allocation(1, 2, norm=1.0))
    with pytest.raises(CapacityError, match="task 'b' has nothing to train"):
        network.begin("b", allocation(norm=1.0))
    assert differences(network.state_dict(), before) == []


def test_merged_tasks_lie_side_by_side():
    start = make_square().state_dict()
    parts = [("file b", make_alone("b", 3, norm=8.0)), ("file a", make_alone("a", 0, 1, norm=5.0**0.5 * 2))]
    merged = merge(start, NAMES, {}, parts, {"a": 1, "b": 2})
    assert torch.allclose(merged["backbone.0.weight"], torch.tensor([[2.0, 4.0], [3.0, 8.0]]))
    assert merged["owners.0/weight"].tolist() == [[1, 1], [0, 2]]
    assert rows(merged) == [("a", 1, "frozen"), ("b", 2, "frozen")]
    assert json.loads(merged["_extra_state"])["active"] == "b"
    assert differences(start, make_square().state_dict()) == []


def test_ids_that_no_byte_holds_widen_the_owner_map():
    part = make_alone("b", 3, norm=8.0)
    merged = merge(make_square().state_dict(), NAMES, {}, [("file", part)], {"b": 300})
    assert merged["owners.0/weight"].dtype == torch.int16
    assert merged["owners.0/weight"].tolist() == [[0, 0], [0, 300]]
    network = make_square()
    network.add_task("b")
    network.load_state_dict(merged)
    assert network.digest("b") == part.digest
    assert (
        merge(make_square().state_dict(), NAMES, {}, [("f", part)], {"b": 254})["owners.0/weight"].element_size() == 1
    )


def test_ids_that_are_not_in_use_are_given_by_name():
    start = make_square().state_dict()
    merged = merge(start, NAMES, {}, [("file", make_alone("x", 3, norm=8.0))], {"x": 2})
    assert lowest_ids(merged, ["c", "a", "b"]) == {"a": 1, "b": 3, "c": 4}


def test_released_weights_are_free_and_no_longer_what_they_were():
    parts = [("a", make_alone("a", 0, 1, norm=1.0)), ("b", make_alone("b", 3, norm=8.0))]
    merged = merge(make_square().state_dict(), NAMES, {}, parts, {"a": 1, "b": 2})
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in merged.items()}
    left = release(merged, NAMES, {}, "b")
    assert differences(merged, before) == []
    assert rows(left) == [("a", 1, "frozen")]
    assert json.loads(left["_extra_state"])["active"] is None
    assert left["owners.0/weight"].tolist() == [[1, 1], [0, 0]]
    assert left["backbone.0.weight"][1, 1] != 8.0
    network = make_square()
    for task in ("a", "b"):
        network.add_task(task)
    network.load_state_dict(merged)
    network.release("b")
    assert torch.equal(dict(network.weights())["0.weight"], left["backbone.0.weight"])


def test_split_of_a_task_that_is_not_there_names_the_tasks():
    merged = merge(make_square().state_dict(), NAMES, {}, [("file", make_alone("a", 0, norm=1.0))], {"a": 1})
    with pytest.raises(ValueError, match="there is no task 'z'; the tasks are a"):
        split(merged, NAMES, "z")
