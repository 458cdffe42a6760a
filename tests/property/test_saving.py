"""Saving and loading is the identity, in every phase of a task's life."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import copy_state, differences, learn, live, make_batch, make_head, make_network, make_optimizer, train
from msh.subnetworks import prune

PHASES = ["new", "begun", "pruned", "compacted", "frozen"]


def make_in_phase(phase, norm, reuse, seed):
    """Make a frozen task and one in the phase, trained a little where possible."""
    network = make_network(norm, seed)
    learn(network, "old", seed=seed)
    if phase == "new":
        network.add_task("present", head=make_head(seed), reuse=reuse)
        return network
    for done in live(network, "present", torch.optim.SGD, "compact", reuse, seed):
        if done == phase:
            break
    if phase != "frozen":
        train(network, make_optimizer(torch.optim.SGD, network, momentum=0.0, weight_decay=0.0), seed=seed)
    return network


def make_fresh(norm, reuse="none"):
    """Make the same tasks in a network with another start."""
    network = make_network(norm, seed=12345)
    for task in ("old", "present"):
        network.add_task(task, head=make_head(9), reuse=reuse)
    return network


def go_on(network, phase):
    """Train the current task, or a later one, some more."""
    if phase == "frozen":
        network.add_task("present2", head=make_head(5), reuse="all")
    task = network.tasks[-1]
    if phase in ("new", "frozen"):
        network.begin(task)
    network.activate(task)
    train(network, make_optimizer(torch.optim.SGD, network, weight_decay=0.01), seed=77)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("phase", PHASES)
@settings(max_examples=4)
@given(reuse=st.sampled_from(["none", "all", "learned"]), seed=st.integers(0, 1000))
def test_a_loaded_network_equals_the_saved_one_and_trains_identically(phase, norm, reuse, seed):
    network = make_in_phase(phase, norm, reuse, seed)
    loaded = make_fresh(norm)
    loaded.load_state_dict(copy_state(network))
    assert differences(network.state_dict(), loaded.state_dict()) == []
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in network.named_parameters()]
    inputs, _ = make_batch(seed=3)
    network.eval(), loaded.eval()
    for task in ["old"] if phase == "new" else network.tasks:
        assert torch.equal(network(inputs, task), loaded(inputs, task))
    for each in (network, loaded):
        go_on(each.train(), phase)
    assert differences(network.state_dict(), loaded.state_dict()) == []


@pytest.mark.parametrize("reuse", ["none", "all", "learned"])
def test_a_state_saved_right_after_an_optimizer_step_loads_unchanged(reuse):
    """Momentum and weight decay have just moved values outside the mask; the state must not show it."""
    network = make_network()
    learn(network, "old")
    network.add_task("present", head=make_head(), reuse=reuse)
    network.begin("present")
    optimizer = make_optimizer(torch.optim.SGD, network)
    train(network, optimizer)
    prune(network, "present", {"": 10})
    train(network, optimizer, steps=1)
    loaded = make_fresh("none", reuse)
    loaded.load_state_dict(copy_state(network))
    assert differences(network.state_dict(), loaded.state_dict()) == []


@pytest.mark.parametrize("phase", PHASES)
def test_an_earlier_state_can_be_loaded_into_its_network(phase):
    network = make_in_phase(phase, "batch", "all", seed=4)
    saved, parameters = copy_state(network), [name for name, _ in network.named_parameters()]
    if phase == "new":
        network.begin("present")
    if phase != "frozen":
        network.freeze("present")
    network.load_state_dict(saved)
    assert differences(network.state_dict(), saved) == []
    assert [name for name, _ in network.named_parameters()] == parameters
