"""Test exports of whole-unit tasks: the same outputs, and no other task's tensors."""

import pytest
import torch
from torch import nn

from msh.backbones import MLP, PaperConv
from msh.inference.export import sliced
from msh.subnetworks import Budget, MultiSubnetwork, Units, plan_units, prune, trace_units

BACKBONES = {
    "mlp": lambda: MLP((2, 3), width=12, depth=3),
    "mlp-norm": lambda: MLP((2, 3), width=12, depth=3, norm=True),
    "conv": lambda: PaperConv((1, 11, 11)),
    "conv-norm": lambda: PaperConv((1, 11, 11), norm=True),
}


def make(backbone, bias=True, stem=None, tasks=("a", "b")):
    """Make a network with compact tasks whose biases and statistics have changed."""
    torch.manual_seed(0)
    network = MultiSubnetwork(backbone)
    graph = trace_units(network, "channel")
    plan = plan_units(graph, {task: Budget(density=0.15) for task in tasks})
    for task in tasks:
        network.add_task(task, nn.Linear(backbone.features, 3, bias=bias), stem)
        network.begin(task)
        prune(network, task, plan[task], granularity=Units(graph))
        network.compact(task)
        with torch.no_grad():
            for parameter in network.subnetwork(task).parameters():
                parameter.add_(torch.randn_like(parameter) / 10)
            shape = (8, 5) if stem is not None else (8, *backbone.input_shape)
            network.train()(torch.randn(shape), task)
        if task == tasks[0]:
            network.freeze(task)
    return network.eval(), plan


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("task", ["a", "b"], ids=["frozen", "compact"])
def test_an_export_computes_the_tasks_outputs(backbone, task):
    torch.manual_seed(0)  # of the backbone: with some weights, no unit is active
    network, _ = make(BACKBONES[backbone]())
    inputs = torch.randn(5, *network.backbone.input_shape)
    with torch.no_grad():
        expected, found = network(inputs, task), sliced(network, task)(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected, expected[0].expand_as(expected))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_exported_weight_is_the_tasks(backbone):
    network, plan = make(BACKBONES[backbone]())
    small = sliced(network, "a")
    weights = [p for p in small.backbone.parameters() if p.dim() > 1]
    assert [len(weight) for weight in weights] == list(plan["a"].values())
    assert sum(weight.numel() for weight in weights) == network.state.total().owned["a"]
    for (_, weight), mine, mask in zip(network.weights(), weights, network.masks("a").values(), strict=True):
        assert torch.equal(mine.flatten(), weight[mask])
    assert small.head.in_features == list(plan["a"].values())[-1]


def test_exported_modules_have_their_new_sizes():
    network, plan = make(BACKBONES["conv-norm"]())
    modules = [m for m in sliced(network, "a").backbone.modules() if not isinstance(m, nn.Sequential)]
    counts = list(plan["a"].values())
    assert [m.out_channels for m in modules if isinstance(m, nn.Conv2d)] == counts[:4]
    assert [m.num_features for m in modules if isinstance(m, nn.BatchNorm2d)] == counts[:4]
    assert [m.out_features for m in modules if isinstance(m, nn.Linear)] == counts[4:]


def test_a_head_without_a_bias_gets_one_for_the_constant_features():
    network, _ = make(BACKBONES["mlp"](), bias=False)
    inputs = torch.randn(5, 2, 3)
    torch.testing.assert_close(sliced(network, "a")(inputs), network(inputs, "a"), rtol=1e-4, atol=1e-6)


def test_the_stem_is_exported_too():
    network, _ = make(BACKBONES["mlp"](), stem=nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))), tasks=("a",))
    inputs, small = torch.randn(4, 5), sliced(network, "a")
    torch.testing.assert_close(small(inputs), network(inputs, "a"), rtol=1e-4, atol=1e-6)
    assert list(small.stem.parameters())


def test_an_export_is_a_copy_that_trains_like_any_network():
    network, _ = make(BACKBONES["mlp-norm"]())
    before = network.digest("a")
    small = sliced(network, "a").train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1.0)
    small(torch.randn(4, 2, 3)).square().sum().backward()
    optimizer.step()
    assert network.digest("a") == before
    assert all(parameter.grad is not None for parameter in small.parameters())


def make_task(**how):
    network = MultiSubnetwork(MLP((4,), width=6, depth=2))
    network.add_task("old")
    network.begin("old")
    prune(network, "old", {name: size // 4 for name, size in network.sizes().items()})
    network.freeze("old")
    network.add_task("a", how.get("head", nn.Linear(6, 2)), reuse=how.get("reuse", "none"))
    network.begin("a")
    if how.get("compact", True):
        network.compact("a")
    return network


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"compact": False}, "task 'a' is masked: only a compact or frozen task is exported"),
        ({"reuse": "all"}, "task 'a' reads other tasks' weights"),
        ({"head": nn.Sequential(nn.Linear(6, 2))}, "task 'a' has a head of type Sequential: only a Linear"),
    ],
)
def test_a_task_that_cannot_be_exported_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        sliced(make_task(**how), "a")


def test_a_task_of_single_weights_loses_the_units_that_it_does_not_use():
    network = MultiSubnetwork(MLP((4,), width=6, depth=2))
    network.add_task("a", nn.Linear(6, 2))
    network.begin("a")
    first, second = network.sizes()
    prune(network, "a", {first: 3, second: 2})
    network.freeze("a")
    small, inputs = sliced(network, "a"), torch.randn(3, 4)
    torch.testing.assert_close(small(inputs), network.eval()(inputs, "a"))
    assert sum(tensor.numel() for tensor in small.backbone.parameters()) < 24 + 36
