"""Releasing a task frees exactly its weights and changes no other task."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import PRUNABLE, copy_state, differences, learn, make_batch, make_network

TASKS = ["a", "b", "c"]


def make_full_house(norm, seed, reuse="none"):
    network = make_network(norm, seed)
    for place, task in enumerate(TASKS):
        learn(network, task, reuse=reuse, seed=seed + place)
    return network


@settings(max_examples=15)
@given(st.sampled_from(TASKS), st.sampled_from(["none", "batch", "group"]), st.integers(0, 1000), st.booleans())
def test_release_frees_exactly_the_tasks_weights_and_changes_no_other(gone, norm, seed, in_training):
    network = make_full_house(norm, seed)
    inputs, _ = make_batch(seed)
    if in_training:
        network.add_task("d")
        network.begin("d")
    rest = [task for task in network.tasks if task != gone]
    network.eval()
    before = {task: (network(inputs, task), network.digest(task), network.masks(task)) for task in rest}
    mine, free = network.masks(gone), network.free()
    old = {name: weight.clone() for name, weight in network.weights()}
    network.release(gone)
    assert network.tasks == rest
    for name, weight in network.weights():
        assert torch.equal(network.free()[name], free[name] | mine[name])
        assert torch.equal(weight[~mine[name]], old[name][~mine[name]])
        assert not (weight == old[name])[mine[name]].any()
    for task, (output, digest, masks) in before.items():
        assert torch.equal(network(inputs, task), output)
        assert network.digest(task) == digest
        assert all(torch.equal(network.masks(task)[name], masks[name]) for name in PRUNABLE)


@settings(max_examples=15)
@given(st.sampled_from(TASKS), st.integers(0, 1000))
def test_a_new_task_in_the_released_weights_changes_no_other(gone, seed):
    network = make_full_house("batch", seed)
    inputs, _ = make_batch(seed)
    rest = [task for task in TASKS if task != gone]
    before = {task: network(inputs, task) for task in rest}
    network.release(gone)
    learn(network, "next", torch.optim.Adam, "masked", "all", seed)
    learn(network, "last", torch.optim.Adam, "dense", "none", seed)
    assert all(torch.equal(network(inputs, task), before[task]) for task in rest)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_a_task_that_no_other_reads_can_be_released(seed):
    network = make_full_house("none", seed)
    network.add_task("d", reuse="learned")
    network.begin("d")
    theirs, free = network.masks("b"), network.free()
    network.restrict("d", {name: theirs[name] | free[name] for name in PRUNABLE})
    network.freeze("d")
    assert network.state.readers("b") == ["d"]
    assert network.state.readers("a") == network.state.readers("c") == []
    output, digest = network(make_batch(seed)[0], "d"), network.digest("d")
    network.release("a")
    learn(network, "next", torch.optim.Adam, "masked", "learned", seed)
    assert torch.equal(network(make_batch(seed)[0], "d"), output)
    assert network.digest("d") == digest
    with pytest.raises(ValueError, match="'b' cannot be released: 'd'"):
        network.release("b")


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_release_is_refused_while_another_task_reads_the_weights(seed):
    network = make_full_house("none", seed, reuse="all")
    before = copy_state(network)
    with pytest.raises(ValueError, match="'a' cannot be released: 'b', 'c' read its weights"):
        network.release("a")
    assert differences(network.state_dict(), before) == []
    for task in ("c", "b", "a"):
        network.release(task)
    assert network.state.total().taken == 0
