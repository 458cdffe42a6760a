"""Asking for too many weights fails before anything changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import PRUNABLE, copy_state, differences, learn, make_network, quarter
from messages import says
from msh.subnetworks import Budget, CapacityError, check_free, plan_counts, prune


def make_second_in_training(seed):
    network = make_network(seed=seed)
    learn(network, "first", seed=seed)
    network.add_task("second")
    network.begin("second")
    return network


def free_counts(network):
    return {name: int(mask.sum()) for name, mask in network.free().items()}


@given(st.integers(1, 100), st.sampled_from([*PRUNABLE, ""]), st.integers(0, 50))
def test_pruning_to_more_than_the_candidates_is_refused_and_changes_nothing(excess, layer, seed):
    network = make_second_in_training(seed)
    counts = free_counts(network)
    kept = {"": sum(counts.values()) + excess} if layer == "" else {**counts, layer: counts[layer] + excess}
    before = copy_state(network)
    with pytest.raises(ValueError, match=says("k")):
        prune(network, "second", kept)
    assert differences(network.state_dict(), before) == []


@given(st.integers(0, 50), st.sampled_from(PRUNABLE))
def test_claiming_a_weight_of_another_task_is_refused_and_changes_nothing(seed, layer):
    network = make_second_in_training(seed)
    masks = network.masks("second")
    masks[layer] |= network.masks("first")[layer]
    before = copy_state(network)
    with pytest.raises(ValueError, match=f"'second'.*{layer!r}.*not candidates"):
        network.restrict("second", masks)
    assert differences(network.state_dict(), before) == []


@given(st.integers(0, 50))
def test_two_tasks_cannot_take_the_same_candidates(seed):
    network = make_second_in_training(seed)
    network.add_task("rival")
    network.begin("rival")
    prune(network, "second", quarter(network))
    network.compact("second")
    for step in (network.compact, network.freeze):
        before = copy_state(network)
        with pytest.raises(CapacityError, match=r"'rival' holds 3 weights of layer '2\.weight'"):
            step("rival")
        assert differences(network.state_dict(), before) == []


@given(st.integers(0, 50))
def test_beginning_when_nothing_is_free_is_refused_and_changes_nothing(seed):
    network = make_second_in_training(seed)
    network.freeze("second")
    network.add_task("third")
    before = copy_state(network)
    with pytest.raises(CapacityError, match="'third'"):
        network.begin("third")
    assert differences(network.state_dict(), before) == []


@given(st.floats(0.5, 1.0), st.sampled_from(["tensor", "network"]), st.integers(0, 50))
def test_a_budget_beyond_the_free_weights_is_refused_by_check_and_plan(density, scope, seed):
    network = make_second_in_training(seed)
    network.restrict("second", {name: mask & (mask.cumsum(-1) < 2) for name, mask in network.masks("second").items()})
    network.freeze("second")
    budget = Budget(density=min(1.0, density + 1e-9), scope=scope)
    before, free = copy_state(network), free_counts(network)
    wanted = budget.counts(network.sizes(), free)
    too_much = any(count > (free[name] if name else sum(free.values())) for name, count in wanted.items())
    assert _refused(lambda: check_free("third", wanted, free)) == too_much
    assert _refused(lambda: plan_counts(network.sizes(), {"third": budget}, free)) == too_much
    assert differences(network.state_dict(), before) == []


def _refused(call):
    try:
        call()
    except CapacityError:
        return True
    return False
