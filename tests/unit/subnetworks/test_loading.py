"""A state dict that holds the tasks in training alone, completed by the rest of the network."""

import pytest
import torch

from helpers import PRUNABLE, differences, make_head, make_network
from msh.subnetworks.loading import completed, in_training


def every(start, network, task):
    """Mark each fifth of a task's candidates, from `start` on."""
    masks = network.masks(task).items()
    return {name: mask & (torch.arange(mask.numel()).view(mask.shape) % 5 == start) for name, mask in masks}


def make(*phases, reuse="none"):
    """A network with a frozen task, then tasks "a", "b" in these phases."""
    network = make_network("batch")
    for number, (task, phase) in enumerate(zip("zab", ("frozen", *phases), strict=False)):
        network.add_task(task, make_head(number), reuse=reuse)
        network.begin(task)
        network.restrict(task, every(number, network, task))
        if phase != "masked":
            getattr(network, {"frozen": "freeze", "compact": "compact"}[phase])(task)
    return network


def changed(network, *tasks):
    """Move the parameters of tasks, as training does."""
    for task in tasks:
        for number, parameter in enumerate(network.subnetwork(task).parameters(), 1):
            parameter.data += number
        network.settle(task)
    return network


@pytest.mark.parametrize("reuse", ["none", "all", "learned"])
@pytest.mark.parametrize("phases", [("masked",), ("compact",), ("compact", "compact"), ("masked", "masked")])
def test_a_network_and_what_trained_in_it_are_the_whole(phases, reuse):
    tasks = "ab"[: len(phases)]
    trained, start = changed(make(*phases, reuse=reuse), *tasks), make(*phases, reuse=reuse)
    whole = {f"network.{key}": value for key, value in trained.state_dict().items()} | {"other": torch.ones(2)}
    reduced = in_training(whole, tasks, "network.")
    assert not any(key.startswith(("network.backbone", "network.owners", "network.subnetworks.z")) for key in reduced)
    found = completed(reduced, start, "network.")
    assert torch.equal(found.pop("other"), torch.ones(2))
    start.load_state_dict({key.removeprefix("network."): value for key, value in found.items()})
    assert differences(start.state_dict(), trained.state_dict()) == []
    assert [start.digest(task) for task in start.tasks] == [trained.digest(task) for task in trained.tasks]


def test_what_a_masked_task_only_reads_is_left_out():
    network = changed(make("masked", reuse="all"), "a")
    reduced = in_training(network.state_dict(), ["a"])
    for name in PRUNABLE:
        values, mask = reduced[f"subnetworks.a.values.{name.replace('.', '/')}"], network.masks("a")[name]
        assert bool((network.subnetwork("a").values[name][~mask] != 0).any())
        assert bool((values[~mask] == 0).all())


def test_a_compact_task_gets_back_its_own_weights_if_others_were_chosen_here():
    trained = changed(make("compact"), "a")
    reduced = in_training(trained.state_dict(), ["a"])
    other = make_network("batch")
    for task, start in (("z", 0), ("a", 2)):
        other.add_task(task, make_head())
        other.begin(task)
        other.restrict(task, every(start, other, task))
        (other.freeze if task == "z" else other.compact)(task)
    other.load_state_dict(completed(reduced, other))
    assert differences(other.masks("a"), trained.masks("a")) == []
    assert other.digest("a") == trained.digest("a")


def test_weights_that_another_task_has_by_now_are_refused():
    reduced = in_training(make("compact").state_dict(), ["a"])
    other = make_network("batch")
    for task, start in (("z", 1), ("a", 2)):  # "a" had every fifth weight from 1 on
        other.add_task(task, make_head())
        other.begin(task)
        other.restrict(task, every(start, other, task))
        (other.freeze if task == "z" else other.compact)(task)
    with pytest.raises(ValueError, match=r"task 'a' owns weights of layer '2\.weight' that another task has by now"):
        completed(reduced, other)
