"""Test the units that feed each layer's columns, and every refused backbone, by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import make_backbone
from messages import says
from msh.backbones import MLP, PaperConv
from msh.subnetworks import MultiSubnetwork, trace_units
from msh.subnetworks.unit_graph import UnitSource


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
    (Branching(), (2, 4), "operation 'bool': what it computes depends on the values"),
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Residual, "operation 'add': its effect on units is not known"),
        (Twice, r"module 'linear' \(Linear\): it is used more than once"),
        (Branching, "operation 'bool': what it computes depends on the values of its inputs"),
        (Two, "its outputs: they must be one tensor"),
    ],
)
def test_a_backbone_without_a_layer_for_units_is_refused_with_the_cause(kind, message):
    with pytest.raises(ValueError, match=rf"^granularity 'unit' does not work for this backbone: {message}"):
        trace(kind(), "unit")


class Block(nn.Module):
    """A residual block, an inverted residual with a gate, and a token mixer, which needs the whole stream."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.back = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)
        self.expand, self.depthwise = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.inner = nn.BatchNorm2d(10)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.project = nn.Conv2d(10, 8, 1)
        self.norms, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, inputs):
        stream = self.stem(inputs)
        stream = stream + self.back(F.relu(self.norm(self.body(stream))))
        hidden = F.hardswish(self.inner(self.depthwise(F.relu6(self.expand(stream)))))
        gate = self.excite(F.relu(self.squeeze(hidden.mean((2, 3), keepdim=True))))
        stream = stream + self.project(hidden * torch.sigmoid(gate))
        tokens = stream.flatten(2).transpose(1, 2)
        return (tokens + self.down(F.gelu(self.up(self.norms(tokens))))).mean(1)


def test_what_a_token_mixer_needs_stays_whole_and_the_rest_has_units():
    graph = trace(Block(), "unit", (2, 3, 4, 4))
    assert set(graph.whole) == {f"{name}.weight" for name in ("stem", "back", "project", "down")}
    assert "module 'norms' (LayerNorm): its effect on units is not known" in graph.whole["back.weight"]
    assert graph.whole["down.weight"] == graph.whole["back.weight"]
    assert graph.groups == {
        "body.weight": ["body.weight"],
        "expand.weight": ["expand.weight", "depthwise.weight", "excite.weight"],
        "squeeze.weight": ["squeeze.weight"],
        "up.weight": ["up.weight"],
    }
    fed = {name: layer.source and layer.source.layer for name, layer in graph.layers.items()}
    assert fed == {
        "stem.weight": None,
        "body.weight": None,
        "back.weight": "body.weight",
        "expand.weight": None,
        "depthwise.weight": None,
        "squeeze.weight": "depthwise.weight",
        "excite.weight": "squeeze.weight",
        "project.weight": "depthwise.weight",
        "up.weight": None,
        "down.weight": "up.weight",
    }
    assert graph.layers["down.weight"].source == UnitSource("up.weight")
    assert graph.norms == {"norm": UnitSource("body.weight"), "inner": UnitSource("depthwise.weight")}
    assert graph.output is None
    assert not graph.is_chain
    assert graph.small == set(graph.layers) - {"stem.weight"}


class Stages(nn.Module):
    """Two stages of a residual stream, and layers behind it; an addition that the stream's units do not fit."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.back = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.down, self.short, self.norm = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.one, self.two, self.last = nn.Linear(12, 1), nn.Linear(12, 5), nn.Linear(5, 4)

    def forward(self, inputs):
        stream = self.stem(inputs)
        stream += self.back(F.relu(self.body(F.relu(stream))))
        stream = torch.sub(self.down(stream), self.short(stream), alpha=2)
        features = self.norm(stream).mean((2, 3))
        return self.last(self.one(features) + self.two(features))


def test_layers_whose_outputs_are_added_share_units():
    graph = trace(Stages(), "unit", (2, 3, 4, 4))
    assert graph.groups == {
        "stem.weight": ["stem.weight", "back.weight"],
        "body.weight": ["body.weight"],
        "down.weight": ["down.weight", "short.weight"],
        "last.weight": ["last.weight"],
    }
    assert list(graph.whole) == ["one.weight", "two.weight"]
    assert "operation 'add': its effect on units is not known" in graph.whole["one.weight"]
    fed = {name: graph.layers[name].source for name in graph.layers}
    assert graph.layers[fed["short.weight"].layer].group == "stem.weight"
    assert fed["one.weight"] == UnitSource("down.weight")
    assert fed["last.weight"] is None
    assert graph.norms == {"norm": UnitSource("down.weight")}


def in_groups(*behind):
    """A convolution of 12 channels, what is behind it, and another convolution."""
    return nn.Sequential(nn.Conv2d(3, 12, 1), *behind, nn.Conv2d(12, 5, 1))


GROUPED = {
    "norm": ([nn.GroupNorm(4, 12)], {"0.weight": (4, 3)}),
    "two norms": ([nn.GroupNorm(4, 12), nn.GroupNorm(6, 12)], {"0.weight": (2, 6)}),
    "convolution": ([nn.Conv2d(12, 12, 1, groups=6)], {"0.weight": (6, 2), "1.weight": (6, 2)}),
    "wider": ([nn.Conv2d(12, 24, 1, groups=4), nn.Conv2d(24, 12, 1)], {"0.weight": (4, 3), "1.weight": (4, 6)}),
    "depthwise": ([nn.Conv2d(12, 24, 1, groups=12), nn.Conv2d(24, 12, 1)], {"0.weight": (12, 1), "1.weight": (12, 2)}),
    "each": ([nn.InstanceNorm2d(12)], {"0.weight": (12, 1)}),
}


@pytest.mark.parametrize(("behind", "expected"), GROUPED.values(), ids=GROUPED)
def test_rows_that_are_computed_with_in_groups_are_one_unit(behind, expected):
    graph = trace(in_groups(*behind), "unit", (2, 3, 4, 4))
    assert not graph.whole
    assert {name: (graph.layers[name].units, graph.layers[name].size) for name in expected} == expected
    last = [*graph.layers.values()][-1]
    assert last.source.block * graph.layers[last.source.layer].units == last.shape[1]


@pytest.mark.parametrize("behind", [[nn.GroupNorm(1, 12)], [nn.GroupNorm(3, 12), nn.GroupNorm(4, 12)]], ids=len)
def test_a_layer_with_all_rows_in_one_group_stays_whole(behind):
    graph = trace(in_groups(*behind), "unit", (2, 3, 4, 4))
    assert graph.whole == {"0.weight": f"module '{len(behind)}' (GroupNorm): it needs all units together"}


class ByChannel(nn.Module):
    """An operation with a number per unit."""

    def __init__(self, operation, learned=False):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.operation, numbers = operation, torch.ones(6)
        if learned:
            self.numbers = nn.Parameter(numbers)
        else:
            self.register_buffer("numbers", numbers)

    def forward(self, inputs):
        return self.last(self.two(self.operation(self.one(inputs).sigmoid(), self.numbers)))


BY_CHANNEL = {
    "pow": torch.pow,
    "clamp": lambda hidden, numbers: hidden.clamp(min=numbers),
    "mul": torch.mul,
    "add": torch.add,
}


@pytest.mark.parametrize("name", BY_CHANNEL)
def test_a_layer_before_an_operation_with_a_number_per_unit_stays_whole(name):
    graph = trace(ByChannel(BY_CHANNEL[name]), "unit")
    assert list(graph.whole) == ["one.weight"]
    assert f"operation '{name}': its effect on units is not known" in graph.whole["one.weight"]


@pytest.mark.parametrize("name", BY_CHANNEL)
def test_a_parameter_with_a_number_per_unit_has_units_too(name):
    graph = trace(ByChannel(BY_CHANNEL[name], learned=True), "unit")
    assert not graph.whole
    assert graph.parameters.keys() == {"numbers"}
    assert (graph.parameters["numbers"].layer, graph.parameters["numbers"].dim) == ("one.weight", 0)
    assert graph.parameters["numbers"].units.tolist() == list(range(6))


TWICE = {
    "matmul": lambda hidden, numbers: hidden * numbers * (numbers @ numbers),
    "getitem": lambda hidden, numbers: hidden * numbers * numbers[:1],
    "sum": lambda hidden, numbers: hidden * numbers + numbers.sum(),
    "item": lambda hidden, numbers: hidden * numbers + numbers.detach()[0].item(),
    "cumsum": lambda hidden, numbers: hidden * numbers.cumsum(0) * numbers,
    "flip": lambda hidden, numbers: hidden * numbers * numbers.flip(0),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_layer_stays_whole_if_all_of_its_parameters_numbers_are_needed(name):
    graph = trace(ByChannel(TWICE[name], learned=True), "unit")
    assert "one.weight" in graph.whole
    assert not graph.parameters


@pytest.mark.parametrize(
    "operation",
    [
        lambda hidden, _: hidden**2,
        lambda hidden, _: hidden.clamp(min=torch.tensor(0.1)) * torch.tensor(2.0),
        lambda hidden, numbers: hidden.type_as(numbers),
        lambda hidden, numbers: hidden.to(numbers),
    ],
)
def test_a_layer_before_an_operation_with_one_number_has_units(operation):
    assert not trace(ByChannel(operation), "unit").whole


class Gated(nn.Module):
    """A gate whose two layers have the same units; a shared layer; a layer that computes with its weight otherwise."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs):
        hidden = self.down(F.silu(self.gate(inputs)) * self.up(inputs))
        return self.last(self.twice(torch.relu(self.twice(hidden)))) @ self.last.weight


def test_layers_whose_outputs_multiply_share_units_and_a_shared_layer_stays_whole():
    graph = trace(Gated(), "unit")
    assert graph.groups == {"gate.weight": ["gate.weight", "up.weight"]}
    assert graph.layers["down.weight"].source == UnitSource("up.weight") or graph.layers["down.weight"].source
    for name in ("down", "twice", "last"):
        assert f"{name}.weight" in graph.whole
    assert "it is used more than once" in graph.whole["twice.weight"]


class Attending(nn.Module):
    def __init__(self, weights=False, **how):
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(12, 4, batch_first=True, **how), weights
        self.up, self.down = nn.Linear(12, 5), nn.Linear(5, 12)

    def forward(self, inputs):
        hidden = inputs + self.attention(inputs, inputs, inputs, need_weights=self.weights)[0]
        return hidden + self.down(F.relu(self.up(hidden)))


def test_heads_are_units_of_attention():
    graph = trace(Attending(), "unit", (2, 5, 12))
    inner = graph.layers["attention.in_proj_weight"]
    assert (inner.units, inner.parts, inner.size, inner.source) == (4, 3, 3, None)
    assert graph.layers["attention.out_proj.weight"].source == UnitSource("attention.in_proj_weight", 3)
    assert list(graph.whole) == ["attention.out_proj.weight", "down.weight"]
    heads = torch.tensor([False, True, False, True])
    assert inner.rows(heads).view(3, 4, 3).all((0, 2)).tolist() == heads.tolist()
    assert inner.by_unit(inner.rows(heads)).any(1).tolist() == inner.by_unit(inner.rows(heads)).all(1).tolist()


@pytest.mark.parametrize(
    "how", [{"weights": True}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 12, "vdim": 12}, {"kdim": 6}]
)
def test_other_attention_stays_whole(how):
    class Other(Attending):
        def forward(self, inputs):
            keys = inputs[..., : how.get("kdim", 12)]
            hidden = inputs + self.attention(inputs, keys, inputs, need_weights=self.weights)[0]
            return hidden + self.down(F.relu(self.up(hidden)))

    if how == {"kdim": 12, "vdim": 12}:
        assert trace(Other(**how), "unit", (2, 5, 12)).small >= {"attention.in_proj_weight"}
        return
    assert trace(Other(**how), "unit", (2, 5, 12)).small == {"up.weight", "down.weight"}


class Scaled(nn.Linear):
    """A linear layer that scales its inputs."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(inputs))

    def forward(self, inputs):
        return super().forward(inputs * self.scale)


def test_a_layer_with_more_tensors_than_weight_and_bias_stays_whole():
    graph = trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), Scaled(4, 4), nn.Linear(4, 3)), "unit")
    assert set(graph.whole) == {"2.weight", "3.weight"}
    assert "module '3' (Scaled)" not in graph.whole["2.weight"]
    assert graph.whole["3.weight"] == "operation 'linear': it has more tensors than a weight and a bias: scale"


class Tokens(nn.Module):
    """Skips its mask where no token is padding, as language models do."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, tokens):
        mask, hidden = tokens != 0, self.table(tokens)
        hidden = hidden if mask.all() else hidden * mask[..., None]
        return hidden + self.down(F.gelu(self.up(hidden)))


def test_code_may_branch_on_padding():
    graph = trace_units(MultiSubnetwork(Tokens()), example=torch.ones(1, 3, dtype=torch.int64))
    assert graph.small == {"up.weight", "down.weight"}


class Plus(nn.Module):
    """A layer whose outputs need another number of channels to be known."""

    def __init__(self, number):
        super().__init__()
        self.one, self.two, self.number = nn.Linear(4, 6), nn.Linear(6, 3), number

    def forward(self, inputs):
        return self.two((self.one(inputs) * 2 + 1).clamp(min=0) if self.number else self.one(inputs) + self.one.bias)


def test_a_number_treats_units_alike_and_a_tensor_does_not():
    assert not trace(Plus(True), "unit").whole
    assert set(trace(Plus(False), "unit").whole) == {"one.weight"}


def test_neurons_of_a_convolution_are_channels():
    with pytest.raises(ValueError, match=r"granularity 'neuron' .* module 'layers.0' \(Conv2d\).*use 'unit'"):
        trace_units(MultiSubnetwork(PaperConv((1, 12, 12))), "neuron")


def test_single_weights_are_no_units():
    with pytest.raises(ValueError, match=r"granularity must be one of unit, neuron, channel.*, got 'weight'"):
        trace(MLP((4,), 3, 1), "weight")


def test_a_backbone_without_a_shape_needs_an_example():
    with pytest.raises(ValueError, match="Sequential has no input_shape: pass an example"):
        trace_units(MultiSubnetwork(nn.Sequential(nn.Linear(4, 3))))
