"""Test that torch.compile sees a task in the form that eager computation has, once, and changes no number."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

from msh.backbones import MLP, PaperConv
from msh.subnetworks import (
    WEIGHTS,
    Blocks,
    Budget,
    Groups,
    MultiSubnetwork,
    NofM,
    OverlappingUnits,
    Units,
    plan_groups,
    plan_units,
    prune,
    sparse,
    trace_units,
)
from msh.subnetworks.sparse import sparse_linear

KINDS = ["weight", "nm", "block", "unit", "overlapping"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
WIDTH, CLASSES = 512, 3
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(kind, tasks=("a",), density=0.1, build=lambda: MLP((64,), WIDTH, 3)):
    torch.manual_seed(0)
    network = MultiSubnetwork(build())
    for task in tasks:
        add(network, task, kind, density)
    return network


def add(network, task, kind, density=0.1, classes=CLASSES):
    units = trace_units(network)
    granularity = {
        "weight": lambda: WEIGHTS,
        "nm": lambda: NofM(Groups.of(network, 1, 8)),
        "block": lambda: Blocks.of(network),
        "unit": lambda: Units(units),
        "overlapping": lambda: OverlappingUnits(units),
    }[kind]()
    blocks = granularity.sizes if kind == "block" else None
    name = {"overlapping": "unit"}.get(kind, kind)
    network.add_task(task, nn.Linear(network.backbone.features, classes), granularity=name, blocks=blocks)
    network.begin(task, generator=torch.Generator().manual_seed(1))
    if kind == "nm":
        counts = plan_groups(granularity.groups, [task], network.free())[task]
    elif kind == "unit":
        counts = plan_units(units, {task: Budget(density=density)})[task]
    else:
        counts = Budget(density=density).counts(granularity.counts(network.sizes()), {})
    prune(network, task, counts, granularity=granularity)
    network.compact(task)


def drawn(network, batch=40):
    return torch.randn(batch, *network.backbone.input_shape, generator=torch.Generator().manual_seed(2))


def gradients(compute, network, inputs):
    outputs = compute(inputs)
    found = torch.autograd.grad(outputs.square().sum(), list(network.parameters()))
    return outputs.detach(), *found


class Counting:
    """A backend that leaves graphs as they are, and collects them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph

    @property
    def products(self):
        return sum("msh.sparse_linear" in str(node.target) for g in self.graphs for node in g.graph.nodes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_equals_the_eager_one(kind):
    network = make(kind)
    inputs = drawn(network)
    compiled = torch.compile(network.module("a"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        gradients(compiled, network, inputs), gradients(network, network, inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_frozen_task_equals_the_eager_one_whose_bits_stay(kind):
    network = make(kind)
    inputs = drawn(network)
    network.freeze("a")
    before = network(inputs, "a")
    with torch.no_grad():
        compiled = torch.compile(network.module("a"), backend="aot_eager", fullgraph=True)(inputs)
    torch.testing.assert_close(compiled, before, **CLOSE)
    assert torch.equal(network(inputs, "a"), before)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("kind", ["weight", "block"])
def test_a_module_without_the_rest_compiles(kind, rows):
    network = make(kind)
    inputs = drawn(network, rows)
    network.freeze("a")
    module = network.without_rest().module("a")
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), module(inputs), **CLOSE)


@pytest.mark.parametrize("phase", ["compact", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_task_compiles_once_in_each_mode_whatever_computes_in_between(kind, phase):
    network = make(kind)
    inputs, backend = drawn(network), Counting()
    if phase == "frozen":
        network.freeze("a")
    compiled = torch.compile(network.module("a"), backend=backend, fullgraph=True)
    for _ in range(2):
        gradients(compiled, network, inputs) if phase == "compact" else compiled(inputs)
        with torch.no_grad():
            network(inputs, "a")
            values = network.subnetwork("a").values
            for name in values:
                values[name].mul_(0.9)
    assert len(backend.graphs) == 1
    assert backend.products == {"weight": 2, "nm": 2, "block": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", ["weight", "block", "unit"])
def test_the_whole_network_compiles_once_for_each_task(kind):
    network = make(kind)
    add(network, "b", kind, classes=5)
    inputs, backend = drawn(network), Counting()
    compiled = torch.compile(network, backend=backend)
    for _ in range(2):
        for task in ("a", "b"):
            torch.testing.assert_close(compiled(inputs, task), network(inputs, task), **CLOSE)
            network.forget_modules(task)
    assert len(backend.graphs) == 2


@pytest.mark.parametrize("kind", ["unit", "overlapping"])
def test_units_compile_as_the_small_network(kind):
    network = make(kind)
    backend, inputs = Counting(), drawn(network)
    torch.compile(network.module("a"), backend=backend, fullgraph=True)(inputs)
    layers = [node for node in backend.graphs[0].graph.nodes if node.target is functional.linear]
    assert len(layers) == 4
    assert all(node.meta["example_value"].shape[-1] < WIDTH / 2 for node in layers)


def test_a_module_compiled_while_pruned_computes_what_is_kept():
    torch.manual_seed(0)
    network = MultiSubnetwork(PaperConv((1, 28, 28)))
    network.add_task("a", nn.Linear(network.backbone.features, CLASSES), granularity="unit")
    network.begin("a")
    inputs, units = drawn(network, 4), Units(trace_units(network))
    compiled = torch.compile(network.module("a"), backend=Counting(), fullgraph=True)
    torch.testing.assert_close(compiled(inputs), network(inputs), **CLOSE)
    prune(network, "a", plan_units(units.graph, {"a": Budget(density=0.1)})["a"], granularity=units)
    torch.testing.assert_close(compiled(inputs), network(inputs), **CLOSE)
    network.compact("a")
    torch.testing.assert_close(compiled(inputs), network(inputs), **CLOSE)


def test_a_task_compiled_before_its_weights_moved_computes_with_the_new_ones():
    network = make("weight")
    inputs, backend = drawn(network), Counting()
    compiled = torch.compile(network, backend=backend)
    compiled(inputs)
    owned = network.masks("a")
    for name, mask in owned.items():  # to other places, as regrowth moves them
        network.owners[name].copy_(network.owners[name].roll(1, 1))
        assert not torch.equal(network.masks("a")[name], mask)
    network.derive(network.subnetwork("a"))
    network.forget_modules("a")
    torch.testing.assert_close(compiled(inputs), network(inputs), **CLOSE)
    assert len(backend.graphs) == 1


@pytest.mark.parametrize("kind", ["weight", "block"])
def test_a_copied_network_compiles_with_its_own_indices(kind):
    network = make(kind)
    copied, inputs = copy.deepcopy(network), drawn(network)
    expected = network(inputs)
    del network
    torch.testing.assert_close(torch.compile(copied, backend="aot_eager")(inputs), expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*")  # torch's compiler
@pytest.mark.parametrize(("kind", "shape"), [("weight", (33,)), ("block", (33,)), ("block", (3, 11))])
@pytest.mark.parametrize("across", [True, False])
def test_the_operation_meets_torchs_contract(kind, shape, across):
    network = make(kind)
    pattern = network.subnetwork("a").patterns["layers.3.weight"]
    inputs = torch.randn(WIDTH, 33).t() if across else torch.randn(33, WIDTH)
    values = torch.randn(len(pattern.index), requires_grad=True)
    along_batch = pattern.along_batch(inputs.unflatten(0, shape))
    assert along_batch == (len(shape) == 1)
    arguments = inputs.requires_grad_(), values, pattern.handle, WIDTH, along_batch
    torch.library.opcheck(torch.ops.msh.sparse_linear.default, arguments)
    through = sparse_linear(inputs.unflatten(0, shape), values, pattern).flatten(0, -2)
    assert torch.equal(torch.ops.msh.sparse_linear(*arguments), through.t() if along_batch else through)


@pytest.mark.parametrize("kind", ["weight", "block"])
def test_exports_have_the_dense_form(kind):
    network = make(kind)
    network.freeze("a")
    inputs = drawn(network)
    exported = torch.export.export(network.module("a"), (inputs,))
    assert not any("msh" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(inputs), network(inputs, "a"), **CLOSE)


@COMPILER
def test_inductor_computes_the_same_step():
    network = make("weight", build=lambda: MLP((64,), WIDTH, 2))
    inputs = drawn(network)
    torch.testing.assert_close(
        gradients(torch.compile(network.module("a")), network, inputs),
        gradients(network, network, inputs),
        rtol=1e-4,
        atol=1e-5,
    )


def test_patterns_that_are_gone_are_forgotten():
    network, before = make("weight"), len(sparse._PATTERNS)
    network.freeze("a")
    assert len(sparse._PATTERNS) < before
