"""Backbones that come in bfloat16 or float16: they train, and what they read is cast."""

import pytest
import torch
from torch import nn

from helpers import copy_state, quarter
from msh.subnetworks import MultiSubnetwork, prune
from msh.training.shared import SharedNetwork

HALF = [torch.bfloat16, torch.float16]


def make_network(dtype, master=True, tasks=()):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)).to(dtype)
    network = MultiSubnetwork(backbone, master_weights=master)
    for task in tasks:
        network.add_task(task, head=nn.Linear(8, 2))
    return network


def make_batch():
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs[:, 0] > 0).long()


def train(network, steps):
    inputs, targets = make_batch()
    optimizer = torch.optim.SGD(network.parameters(), 0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs).float(), targets)
        loss.backward()
        optimizer.step()
    return loss.item()


def learn(network, task):
    network.add_task(task, head=nn.Linear(8, 2))
    network.begin(task, generator=torch.Generator().manual_seed(2))
    before = train(network, 1)
    prune(network, task, quarter(network))
    train(network, 20)
    network.compact(task)
    assert train(network, 40) < before
    network.freeze(task)


@pytest.mark.parametrize(("dtype", "master"), [(d, True) for d in HALF] + [(torch.bfloat16, False)])
def test_a_half_precision_backbone_trains_and_stays_frozen(dtype, master):
    network = make_network(dtype, master)
    learn(network, "a")
    outputs, digest = network(make_batch()[0], "a"), network.digest("a")
    assert {weight.dtype for _, weight in network.weights()} == {dtype}
    assert network.subnetwork("a").private["0.bias"].dtype == dtype
    learn(network, "b")
    assert torch.equal(network(make_batch()[0], "a"), outputs)
    assert network.digest("a") == digest


@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("compact", [True, False])
def test_values_train_in_float32_or_their_own_type(master, compact):
    network = make_network(torch.bfloat16, master)
    network.add_task("a", head=nn.Linear(8, 2))
    network.begin("a")
    prune(network, "a", quarter(network))
    if compact:
        network.compact("a")
    sub = network.subnetwork("a")
    found = {p.dtype for bag in (sub.values, sub.private) for p in bag.parameters()}
    assert found == {torch.float32 if master else torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in sub.head.parameters())


def test_small_steps_are_not_lost_in_master_weights():
    """A step by a thousandth of a weight is below bfloat16's precision."""
    for master, moves in ((True, True), (False, False)):
        network = make_network(torch.bfloat16, master)
        network.add_task("a", head=nn.Linear(8, 2))
        network.begin("a")
        values = network.subnetwork("a").values["0.weight"]
        with torch.no_grad():
            values.fill_(1.0)
            values.add_(0.001)
        assert bool((values != 1.0).all()) is moves


@pytest.mark.parametrize("inputs", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_of_any_precision_are_cast(inputs):
    network = make_network(torch.bfloat16)
    learn(network, "a")
    assert network(make_batch()[0].to(inputs), "a").dtype == torch.float32


def test_a_state_in_training_is_restored_with_its_master_weights():
    network = make_network(torch.bfloat16)
    network.add_task("a", head=nn.Linear(8, 2))
    network.begin("a")
    train(network, 3)
    loaded = make_network(torch.bfloat16, tasks=["a"])
    loaded.load_state_dict(copy_state(network))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))
    network.freeze("a")
    loaded.load_state_dict(copy_state(network))
    assert loaded.digest("a") == network.digest("a")
    assert torch.equal(loaded(make_batch()[0], "a"), network(make_batch()[0], "a"))


def test_a_compiled_step_equals_the_plain_one():
    network = make_network(torch.bfloat16)
    network.add_task("a", head=nn.Linear(8, 2))
    network.begin("a")
    prune(network, "a", quarter(network))
    network.compact("a")
    network.eval()
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(make_batch()[0]), network(make_batch()[0]), rtol=1e-2, atol=1e-2)


class Mixed(nn.Module):
    """One layer in another type, for which the forward pass casts."""

    def __init__(self, dtype, first):
        super().__init__()
        self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 8)
        (self.one if first else self.two).to(dtype)

    def forward(self, inputs):
        hidden = torch.relu(self.one(inputs))
        return self.two(hidden.to(self.two.weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("first", [False, True])
def test_a_backbone_of_several_types_reads_inputs_in_its_first_weights_type(dtype, first):
    torch.manual_seed(0)
    network = MultiSubnetwork(Mixed(dtype, first))
    learn(network, "a")
    outputs = network(make_batch()[0], "a")
    assert outputs.dtype == torch.float32
    assert {weight.dtype for _, weight in network.weights()} == {dtype, torch.float32}
    learn(network, "b")
    assert torch.equal(network(make_batch()[0], "a"), outputs)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("first", [False, True])
def test_a_shared_backbone_of_several_types_computes_in_them(dtype, first):
    torch.manual_seed(0)
    backbone = Mixed(dtype, first)
    inputs = make_batch()[0]
    expected = backbone(inputs.to(backbone.one.weight.dtype)).detach()
    network = SharedNetwork(backbone)
    network.add_task("a", nn.Identity())
    assert torch.equal(network(inputs, "a"), expected)
    types = backbone.one.weight.dtype, backbone.two.weight.dtype  # in which they train
    assert set(types) == {dtype if dtype == torch.float64 else torch.float32, torch.float32}
