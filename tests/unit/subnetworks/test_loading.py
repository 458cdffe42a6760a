"""A state dict that holds the tasks in training alone, completed by the rest of the network."""

import pytest
import torch
from torch import nn

from helpers import PRUNABLE, differences, load_network, make_head, make_network
from msh.files.state_file import save_network
from msh.subnetworks import MultiSubnetwork
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


class Again(nn.Module):
    """Modules under several names: a block with its normalization, and a list of one layer three times."""

    input_shape, features = (8,), 8

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.layers = nn.ModuleList([nn.Linear(8, 8)] * 3)

    def forward(self, inputs):
        hidden = self.second(self.first(inputs))
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return hidden


@pytest.mark.parametrize("phase", ["masked", "compact", "frozen"])
def test_modules_with_several_names_are_loaded_from_files(phase, tmp_path):
    torch.manual_seed(0)
    network, inputs = MultiSubnetwork(Again()), torch.randn(6, 8)
    network.add_task("a", nn.Linear(8, 3))
    network.begin("a")
    network.restrict("a", every(0, network, "a"))
    network.train()
    network(inputs, "a").sum().backward()
    if phase != "masked":
        getattr(network, {"compact": "compact", "frozen": "freeze"}[phase])("a")
    expected = network.eval()(inputs, "a")
    save_network(tmp_path / "network.safetensors", network)
    loaded = MultiSubnetwork(Again())
    loaded.add_task("a", nn.Linear(8, 3))
    load_network(tmp_path / "network.safetensors", loaded)
    assert torch.equal(loaded.eval()(inputs, "a"), expected)
    assert loaded.digest("a") == network.digest("a")
    again = MultiSubnetwork(Again())
    again.add_task("a", nn.Linear(8, 3))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(inputs, "a"), expected)
