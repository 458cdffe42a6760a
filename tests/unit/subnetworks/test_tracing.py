"""Test the units that feed each layer's columns, and every refused backbone, by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import make_backbone
from messages import says
from msh.backbones import MLP, PaperConv
from msh.subnetworks import MultiSubnetwork, trace_units
from msh.subnetworks.tracing import UnitSource


def trace(backbone, granularity="channel", shape=(2, 4)):
    return trace_units(MultiSubnetwork(backbone), granularity, torch.zeros(shape))


def sources(graph):
    return {name: layer.source for name, layer in graph.layers.items()}


def test_an_mlp_is_a_chain():
    graph = trace_units(MultiSubnetwork(MLP((2, 3), width=5, depth=2, norm=True)), "neuron")
    first, second = "layers.1.weight", "layers.4.weight"
    assert sources(graph) == {first: None, second: UnitSource(first)}
    assert [layer.shape for layer in graph.layers.values()] == [(5, 6), (5, 5)]
    assert graph.norms == {"layers.2": UnitSource(first), "layers.5": UnitSource(second)}
    assert graph.output == UnitSource(second)


def test_a_flattened_channel_is_a_block_of_columns():
    graph = trace_units(MultiSubnetwork(PaperConv((3, 12, 12), norm=True)), "channel")
    found = [source and source.block for source in sources(graph).values()]
    assert found == [None, 1, 1, 1, 4, 1]  # two by two positions are left
    assert list(graph.norms.values()) == [UnitSource(name) for name in list(graph.layers)[:4]]
    assert [layer.kernel for layer in graph.layers.values()] == [9, 9, 9, 9, 1, 1]


def test_operations_before_the_first_layer_do_not_matter():
    assert sources(trace(make_backbone("batch"))) == {"2.weight": None, "6.weight": UnitSource("2.weight", 2)}
    assert sources(trace(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)))) == {"1.weight": None}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.linear = nn.Conv1d(1, 3, 2), nn.AvgPool1d(3), nn.Linear(3, 2)

    def forward(self, inputs):
        hidden = self.pool(F.relu(self.conv(inputs.unsqueeze(1))))
        return torch.tanh(self.linear(hidden.flatten(1)))


def test_functions_are_followed_as_modules_are():
    graph = trace(Functional())
    assert sources(graph) == {"conv.weight": None, "linear.weight": UnitSource("conv.weight", 1)}
    assert graph.output == UnitSource("linear.weight")


def test_tracing_changes_neither_statistics_nor_mode():
    network = MultiSubnetwork(MLP((4,), width=3, depth=1, norm=True)).train()
    before = {name: tensor.clone() for name, tensor in network.backbone.named_buffers()}
    trace_units(network, "neuron", torch.randn(5, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbone.named_buffers())
    assert all(module.training for module in network.modules())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs):
        hidden = self.linear(inputs)
        return hidden + inputs


class Branching(Residual):
    def forward(self, inputs):
        return self.linear(inputs) if inputs.sum() > 0 else inputs


class Twice(Residual):
    def forward(self, inputs):
        return self.linear(self.linear(inputs))


class Unused(Residual):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, inputs):
        return self.linear(inputs)


class Two(Residual):
    def forward(self, inputs):
        return self.linear(inputs), inputs


class Reshaped(Residual):
    def forward(self, inputs):
        return self.linear(inputs).view(-1, 2)


REFUSED = [
    (Residual(), (2, 4), "operation 'add': .*units"),
    (Branching(), (2, 4), "Branching: it cannot be traced by torch.fx"),
    (Twice(), (2, 4), r"module 'linear' \(Linear\): it is used more than once"),
    (Unused(), (2, 4), "table.weight: no linear layer or convolution"),
    (Two(), (2, 4), "its outputs: they must be one tensor"),
    (Reshaped(), (2, 4), "operation 'view'"),
    (make_backbone("layer"), (2, 4), r"module '3' \(LayerNorm\)"),
    (make_backbone("group"), (2, 4), r"module '3' \(GroupNorm\)"),
    (nn.Sequential(nn.Linear(4, 3)), (2, 5, 4), r"module '0' \(Linear\): its input has 3 dimensions, not 2"),
    (nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), (2, 4, 5), r"module '0' \(Conv1d\): " + says("groups", "1", 2)),
    (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(5, 5)), (2, 4, 5), r"module '1' \(Linear\): its input has 3"),
    (nn.Sequential(nn.Linear(4, 6), nn.MaxPool1d(2)), (2, 4), r"module '1' \(MaxPool1d\)"),
    (nn.Sequential(nn.ConvTranspose1d(4, 3, 2)), (2, 4, 5), "0.weight: no linear layer or convolution"),
]


@pytest.mark.parametrize(("backbone", "shape", "message"), REFUSED, ids=lambda value: type(value).__name__)
def test_unknown_modules_and_operations_are_refused_by_name(backbone, shape, message):
    with pytest.raises(ValueError, match=rf"^granularity 'channel' .*{message}"):
        trace(backbone, shape=shape)


def test_neurons_of_a_convolution_are_channels():
    with pytest.raises(ValueError, match=r"granularity 'neuron' .* module 'layers.0' \(Conv2d\).*use 'unit'"):
        trace_units(MultiSubnetwork(PaperConv((1, 12, 12))), "neuron")


def test_single_weights_are_no_units():
    with pytest.raises(ValueError, match=r"granularity must be one of unit, neuron, channel.*, got 'weight'"):
        trace(MLP((4,), 3, 1), "weight")


def test_a_backbone_without_a_shape_needs_an_example():
    with pytest.raises(ValueError, match="Sequential has no input_shape: pass an example"):
        trace_units(MultiSubnetwork(nn.Sequential(nn.Linear(4, 3))))
