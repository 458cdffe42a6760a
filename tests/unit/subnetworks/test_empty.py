"""Test that empty layers are refused, and that the recommended budget is the smallest that works."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import learn, make_network
from msh.subnetworks import CRITERIA, Budget, EmptyLayerError, least_budget, plan_counts, prune, select

SHAPES = {"stem": (4, 1, 3, 3), "wide": (20, 30), "narrow": (5, 20)}
SIZES = {"stem": 36, "wide": 600, "narrow": 100}
SCOPES = ["tensor", "erk", "epl", "network"]


def make_begun(reuse="none"):
    """Begin a task whose first layer (9 free weights) scores lower than its second (30)."""
    network = make_network()
    learn(network, "old")
    network.add_task("a", reuse=reuse)
    network.begin("a")
    network.subnetwork("a").values["2.weight"].data.mul_(1e-3)
    return network


def fails(budgets, sizes=SIZES, free=None):
    try:
        plan = plan_counts(sizes, budgets, free, SHAPES)
    except EmptyLayerError:
        return True
    assert all(count for counts in plan.values() for count in counts.values())
    return False


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_smallest_density_works_and_a_slightly_smaller_one_fails(scope, tasks):
    budgets = {f"task{i}": Budget(density=0.0001, scope=scope) for i in range(tasks)}
    with pytest.raises(EmptyLayerError, match="'task0'") as caught:
        plan_counts(SIZES, budgets, shapes=SHAPES)
    least = least_budget(SIZES, budgets, "task0", shapes=SHAPES)
    assert f"density must be >= {least.density}, got 0.0001" in str(caught.value)
    assert not fails(dict.fromkeys(budgets, least))
    assert fails(dict.fromkeys(budgets, replace(least, density=0.999 * least.density)))


def test_the_smallest_density_follows_from_the_layer_rounded_to_none():
    found = {s: least_budget(SIZES, {"x": Budget(density=1e-4, scope=s)}, "x", shapes=SHAPES).density for s in SCOPES}
    assert found["tensor"] == 0.01389  # 0.5 / 36
    assert found["epl"] == found["network"] == 0.003397  # 2.5 / 736


@given(st.sampled_from(SCOPES), st.integers(1, 9), st.integers(1, 4))
def test_the_smallest_number_of_weights_works_and_one_less_fails(scope, weights, tasks):
    budgets = {f"task{i}": Budget(weights=weights, scope=scope) for i in range(tasks)}
    least = least_budget(SIZES, budgets, "task0", shapes=SHAPES)
    assert not fails(dict.fromkeys(budgets, least))
    for fewer in range(1, least.weights):
        assert fails(dict.fromkeys(budgets, replace(least, weights=fewer)))


def test_a_task_alone_may_need_more_where_others_take_most_of_a_small_layer():
    budgets = {"x": Budget(weights=90, scope="epl"), "y": Budget(weights=10, scope="epl")}
    sizes, shapes = {"tiny": 2, "wide": 600}, {"tiny": (2, 1), "wide": (20, 30)}
    least = least_budget(sizes, budgets, "y", shapes=shapes)
    assert least.weights == 90
    with pytest.raises(EmptyLayerError, match="weights must be >= 90, got 10"):
        plan_counts(sizes, budgets, shapes=shapes)


def test_an_impossible_density_is_reported():
    budgets = {name: Budget(density=0.1) for name in "abc"}
    free = {"stem": 0, "wide": 600, "narrow": 100}
    assert least_budget({"small": 2}, budgets, "a") is None
    with pytest.raises(EmptyLayerError, match=r"'small', .* no density works, got 0\.1"):
        plan_counts({"small": 2}, budgets)
    with pytest.raises(EmptyLayerError, match=r"'stem', of which 0 are free: no density works, got 0\.1"):
        plan_counts(SIZES, {"x": Budget(density=0.1, scope="epl")}, free, SHAPES)
    with pytest.raises(EmptyLayerError, match="share 'equal' leaves too little for so many tasks"):
        plan_counts({"small": 2}, dict.fromkeys("abc", Budget(share="equal")))


def test_allowed_empty_layers_are_planned_but_no_empty_task():
    assert plan_counts(SIZES, {"x": Budget(density=0.01)}, allow_empty=True)["x"] == {"stem": 0, "wide": 6, "narrow": 1}
    with pytest.raises(EmptyLayerError, match="no weight of layer 'stem'"):
        plan_counts(SIZES, {"x": Budget(density=1e-5)}, allow_empty=True)


@pytest.mark.parametrize("choose", [prune, select])
def test_an_empty_layer_is_refused_unless_allowed(choose):
    network, kept = make_begun(), {"2.weight": 0, "6.weight": 5}
    with pytest.raises(EmptyLayerError, match=r"'a' would keep no weight of layer '2\.weight': .* >= 1, got 0"):
        choose(network, "a", kept)
    assert sum(int(mask.sum()) for mask in network.masks("a").values()) == 39
    choose(network, "a", kept, allow_empty=True)


def test_scores_that_empty_a_layer_are_refused_with_a_sufficient_number():
    network = make_begun()
    with pytest.raises(EmptyLayerError, match=r"\(density 0.5769\) .* density must be >= 0.5866 \(31 weights\)"):
        prune(network, "a", {"": 30})
    prune(network, "a", {"": 31})
    assert {name: int(mask.sum()) for name, mask in network.masks("a").items()} == {"2.weight": 1, "6.weight": 30}


def test_the_sufficient_number_breaks_ties_as_pruning_does():
    network = make_begun()
    for _, values in network.subnetwork("a").values.items():
        values.data.fill_(1.0)
    with pytest.raises(EmptyLayerError, match=r"'6\.weight'.*\(10 weights\)"):
        prune(network, "a", {"": 9})
    prune(network, "a", {"": 10})


@pytest.mark.parametrize("reuse", ["all", "learned"])
def test_a_layer_with_read_weights_is_not_empty(reuse):
    network = make_begun(reuse=reuse)
    if reuse == "learned":
        held = network.held("a")
        assert int(held["2.weight"].sum()) == 12
        scores = {name: (mask & ~network.masks("a")[name]).float() for name, mask in held.items()}
        for name, score in scores.items():  # the old task's weights score highest
            network.subnetwork("a").values[name].data = score + 1e-3 * torch.rand_like(score)
        prune(network, "a", {"2.weight": 2, "6.weight": 8}, CRITERIA["magnitude"])
    else:
        prune(network, "a", {"2.weight": 0, "6.weight": 8})
    assert int(network.masks("a")["2.weight"].sum()) == 0
    assert int(network.reading("a")["2.weight"].sum()) > 0
