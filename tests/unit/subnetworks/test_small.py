"""A task of whole units trains and predicts as the smaller dense network that it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers import load_network
from msh.backbones import MLP, PaperConv, ResNet18
from msh.files.state_file import save_network
from msh.inference.export import is_sliceable, sliced
from msh.subnetworks import (
    Budget,
    MultiSubnetwork,
    OverlappingUnits,
    Units,
    loss_gradients,
    plan_units,
    prune,
    trace_units,
)
from msh.subnetworks.modules import flops_share
from msh.subnetworks.sparse import FrozenForm


class NoBias(nn.Module):
    """A convolution, its norm and two linear layers, of which the last has no bias."""

    input_shape, features = (2, 6, 6), 12

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 12, bias=False))
        self.after = nn.BatchNorm1d(12)

    def forward(self, inputs):
        return self.after(self.rest(self.body(inputs)))


class EndsInChannels(nn.Sequential):
    """Convolutions whose last one feeds the head."""

    input_shape, features = (2, 6, 6), 10

    def __init__(self):
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), *pool)


class Blocks(nn.Module):
    """A residual block, an inverted residual with a gate, and a token mixer."""

    input_shape, features = (3, 6, 6), 8

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.back = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.expand, self.depthwise = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.inner = nn.BatchNorm2d(10)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.project, self.up, self.down = nn.Conv2d(10, 8, 1), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, inputs):
        stream = self.stem(inputs)
        stream = stream + self.back(functional.relu(self.norm(self.body(stream))))
        hidden = functional.hardswish(self.inner(self.depthwise(functional.relu6(self.expand(stream)))))
        gate = self.excite(functional.relu(self.squeeze(hidden.mean((2, 3), keepdim=True))))
        stream = stream + self.project(hidden * torch.sigmoid(gate))
        tokens = stream.flatten(2).transpose(1, 2)
        return (tokens + self.down(functional.gelu(self.up(tokens)))).mean(1)


class Residual(nn.Module):
    """Two stages of a residual stream, added in place and not, with normalisation before and after."""

    input_shape, features = (3, 6, 6), 10

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.back, self.after = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.short = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.Conv2d(8, 12, 1, 2)
        self.other, self.last = nn.BatchNorm2d(12), nn.Conv2d(12, 10, 3)

    def forward(self, inputs):
        stream = self.stem(inputs)
        branch = self.after(self.back(functional.relu(self.norm(self.body(stream)))))
        branch += stream
        stream = functional.relu(self.other(self.down(branch)) - self.short(functional.relu(branch)))
        return self.last(stream).mean((2, 3))


class Grouped(nn.Module):
    """A residual stream with groups of several sizes: normalization, convolutions; and instance normalization."""

    input_shape, features = (3, 6, 6), 10

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(8, 24)
        self.body, self.norm = nn.Conv2d(24, 12, 1, bias=False), nn.GroupNorm(6, 12)
        self.depthwise, self.inner = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.GroupNorm(4, 12, affine=False)
        self.back, self.after = nn.Conv2d(12, 24, 1), nn.GroupNorm(12, 24)
        self.short, self.each = nn.Conv2d(24, 8, 3, 2), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.plain = nn.InstanceNorm2d(8)
        self.flat, self.last = nn.Linear(24 * 9, 20), nn.Linear(20, 10)
        self.narrow, self.grouped = nn.Conv2d(8, 12, 1), nn.GroupNorm(6, 12)
        self.wider = nn.Conv2d(12, 24, 2, padding=1, groups=4)

    def forward(self, inputs):
        stream = functional.relu(self.first(self.stem(inputs)))
        hidden = functional.relu(self.norm(self.body(stream)))
        stream = stream + self.after(self.back(self.inner(self.depthwise(hidden))))
        each = self.plain(functional.relu(self.each(self.short(stream))))
        flat = functional.relu(self.wider(self.grouped(self.narrow(each)))).flatten(1)
        return self.last(functional.relu(self.flat(flat)))


class EndsInGroups(nn.Sequential):
    """Convolutions of which the last one's channels are normalized in groups, and each alone."""

    input_shape, features = (2, 6, 6), 12

    def __init__(self):
        norms = [nn.GroupNorm(6, 12), nn.InstanceNorm2d(12), nn.GroupNorm(4, 12)]
        pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 12, 3), *norms, *pool)


class EndsDepthwise(nn.Sequential):
    """A convolution and a depthwise one that computes the features."""

    input_shape, features = (2, 6, 6), 10

    def __init__(self):
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 10, 1, groups=10), *pool)


BACKBONES = {
    "linear": lambda: MLP((9,), 20, 3),
    "norm": lambda: MLP((9,), 20, 3, norm=True),
    "conv": lambda: PaperConv((1, 12, 12)),
    "no bias": NoBias,
    "channels": EndsInChannels,
}


class Attends(nn.Module):
    """Torch's encoder layers over patches: normalisation first and last, causal, with padding."""

    input_shape, features = (5, 8), 8

    def __init__(self):
        super().__init__()
        settings = {"dropout": 0.0, "activation": "gelu"}
        self.one = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, norm_first=True, **settings)
        self.two = nn.TransformerEncoderLayer(8, 2, 12, bias=False, **settings)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5), persistent=False)

    def forward(self, tokens):
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        padding[:, 4:] = True
        hidden = self.one(tokens, src_key_padding_mask=padding)
        return self.two(hidden.transpose(0, 1), src_mask=self.mask, is_causal=True).mean(0)


class Fused(nn.Module):
    """Attention with one projection to queries, keys and values, normalized per head, and sizes from attributes."""

    def __init__(self, width, heads, size):
        super().__init__()
        self.heads, self.size, self.inner = heads, size, heads * size
        self.qkv, self.project = nn.Linear(width, 3 * self.inner), nn.Linear(self.inner, width, bias=False)
        self.norm = nn.LayerNorm(size)

    def forward(self, tokens):
        batch, number, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, number, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        attended = functional.scaled_dot_product_attention(self.norm(queries), self.norm(keys), values)
        return self.project(attended.transpose(1, 2).reshape(batch, number, self.inner))


class Rotated(nn.Module):
    """Attention whose queries share keys and values, with rotated halves, in products of matrices, and causal."""

    def __init__(self, width, heads, shared, size):
        super().__init__()
        self.size, self.times = size, heads // shared
        self.queries, self.keys = nn.Linear(width, heads * size), nn.Linear(width, shared * size)
        self.values, self.project = nn.Linear(width, shared * size), nn.Linear(heads * size, width)

    def rotated(self, heads):
        angles = torch.arange(heads.shape[2])[:, None] * torch.arange(1, self.size + 1).to(heads)
        one, other = heads[..., : heads.shape[-1] // 2], heads[..., heads.shape[-1] // 2 :]
        return heads * angles.cos() + torch.cat((-other, one), -1) * angles.sin()

    def forward(self, tokens):
        shape = (*tokens.shape[:-1], -1, self.size)
        queries, keys, values = (
            layer(tokens).view(shape).transpose(1, 2) for layer in (self.queries, self.keys, self.values)
        )
        batch, heads, number, size = keys.shape
        queries, keys = self.rotated(queries), self.rotated(keys)
        keys, values = (
            each[:, :, None]
            .expand(batch, heads, self.times, number, size)
            .reshape(batch, heads * self.times, number, size)
            for each in (keys, values)
        )
        weights = queries @ keys.transpose(2, 3) * size**-0.5
        weights = weights + torch.full((number, number), -torch.inf).triu(1).to(weights)
        attended = (weights.softmax(-1) @ values).transpose(1, 2).contiguous()
        return self.project(attended.flatten(2))


class Biased(nn.Module):
    """Attention with a table of position biases and a temperature per head, and a number per entry of its values."""

    def __init__(self, width, heads, size, tokens):
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.project = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        self.temperature, self.scale = nn.Parameter(torch.rand(heads, 1, 1)), nn.Parameter(torch.rand(heads * size))
        places = torch.arange(tokens)
        self.register_buffer("places", places[:, None] - places + tokens - 1, persistent=False)

    def forward(self, tokens):
        batch, number, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, number, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = functional.normalize(qkv, dim=-1).unbind(0)
        biases = self.table[self.places.view(-1)].view(number, number, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        weights = queries @ keys.mT * self.temperature.clamp(max=0.9).exp() + 4 * torch.sigmoid(biases)
        attended = (weights.softmax(-1) @ values).transpose(1, 2).reshape(batch, number, -1)
        return self.project(attended * self.scale)


class ByHead(nn.Module):
    """Attention whose rows are queries, keys and values of one head after the other; torch repeats the shared ones."""

    def __init__(self, width, heads, size):
        super().__init__()
        self.size = size
        self.qkv, self.project = nn.Linear(width, heads * 3 * size), nn.Linear(heads * size, width)
        self.more, self.gate = nn.Linear(width, 2 * heads * size), nn.Linear(width, heads * size)

    def forward(self, tokens):
        queries, keys, values = self.qkv(tokens).unflatten(-1, (-1, 3 * self.size)).transpose(1, 2).chunk(3, -1)
        more = self.more(tokens).unflatten(-1, (-1, self.size)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(more, keys, values, is_causal=True, enable_gqa=True)
        attended = attended.transpose(1, 2).flatten(2).unflatten(-1, (-1, 2, self.size)).sum(-2).flatten(2)
        return self.project((attended + queries.transpose(1, 2).flatten(2)) * torch.sigmoid(self.gate(tokens)))


class FromTheRight(nn.Module):
    """A layer that multiplies its inputs with its weight (inputs, outputs), as GPT-2's do."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.outputs = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, inputs):
        flat = torch.addmm(self.bias, inputs.view(-1, inputs.size(-1)), self.weight)
        return flat.view(*inputs.size()[:-1], self.outputs)


class Split(nn.Module):
    """Attention as in GPT-2."""

    def __init__(self, width, heads, size):
        super().__init__()
        self.size, self.inner = size, heads * size
        self.qkv, self.project = FromTheRight(width, 3 * self.inner), FromTheRight(self.inner, width)

    def forward(self, tokens):
        queries, keys, values = self.qkv(tokens).split(self.inner, dim=2)
        shape = (*queries.shape[:-1], -1, self.size)
        queries, keys, values = (each.view(shape).transpose(1, 2) for each in (queries, keys, values))
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2)
        return self.project(attended.reshape(*attended.shape[:-2], -1).contiguous())


class Heads(nn.Module):
    """Attention as libraries write it, and gated layers."""

    input_shape, features = (5, 8), 8

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            [Fused(8, 4, 6), Rotated(8, 6, 3, 4), ByHead(8, 3, 4), Split(8, 5, 2), Biased(8, 4, 3, 5)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in self.blocks])
        self.up, self.down, self.halves = nn.Linear(8, 24), nn.Linear(12, 8), nn.Linear(8, 20, bias=False)
        self.back = nn.Linear(10, 8)

    def forward(self, tokens):
        for norm, block in zip(self.norms, self.blocks, strict=True):
            tokens = tokens + block(norm(tokens))
        one, other = self.up(tokens).chunk(2, dim=-1)
        tokens = tokens + self.down(functional.silu(one) * other)
        return (tokens + self.back(functional.glu(self.halves(tokens)))).mean(1)


BRANCHED = {
    "heads": Heads,
    "blocks": Blocks,
    "depthwise": EndsDepthwise,
    "attention": Attends,
    "residual": Residual,
    "groups": Grouped,
    "ends in groups": EndsInGroups,
    "resnet": lambda: ResNet18((3, 8, 8), width=4),
}


def make(backbone, granularity, tasks=("a",), dtype=torch.float64, density=0.2, overlap=False):
    """Make a network with compact tasks of whole units."""
    torch.manual_seed(0)
    network = MultiSubnetwork((BACKBONES | BRANCHED)[backbone]().to(dtype))
    for number, task in enumerate(tasks):
        units = (OverlappingUnits if overlap else Units)(trace_units(network))
        budget = Budget(density=density)
        plan = {task: budget.counts(network.sizes(), {})} if overlap else plan_units(units.graph, {task: budget})
        head = nn.Linear(network.backbone.features, 3).to(dtype)
        network.add_task(task, head, granularity=granularity)
        network.begin(task, generator=torch.Generator().manual_seed(number))
        prune(network, task, plan[task], granularity=units)
        network.compact(task)
    return network


def batch(network, size=6):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, *network.backbone.input_shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (size,), generator=generator)


def train(network, task, steps=3):
    """Train with plain gradient descent; return the outputs of each step."""
    inputs, labels = batch(network)
    network.train()
    optimizer, outputs = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9), []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs.append(network(inputs, task))
        functional.cross_entropy(outputs[-1], labels).backward()
        optimizer.step()
    return torch.stack(outputs).detach()


@pytest.mark.parametrize(("tasks", "overlap"), [("a", False), ("a", True), ("bca", True)])
@pytest.mark.parametrize("backbone", [*BACKBONES, *BRANCHED])
def test_it_trains_as_with_matrices_of_full_size(backbone, tasks, overlap):
    if backbone in BRANCHED and not overlap:
        pytest.skip("its units overlap")
    small, whole = (make(backbone, kind, tasks, overlap=overlap) for kind in ("unit", "channel"))
    torch.testing.assert_close(train(small, "a"), train(whole, "a"), rtol=0, atol=1e-12)
    values = {name: dict(network.named_parameters()) for name, network in (("small", small), ("whole", whole))}
    for name, value in values["whole"].items():
        torch.testing.assert_close(values["small"][name], value, rtol=0, atol=1e-12, msg=name)
    inputs, _ = batch(small)
    for network in (small, whole):
        network.eval()
    torch.testing.assert_close(small(inputs, "a"), whole(inputs, "a"), rtol=0, atol=1e-12)
    for network in (small, whole):
        network.freeze("a")
    torch.testing.assert_close(small(inputs, "a"), whole(inputs, "a"), rtol=0, atol=1e-12)


def cut_twice(backbone, overlap, small):
    """Train a task of whole units before two cuts, between and after them, and compact; yield after each part."""
    network = MultiSubnetwork((BACKBONES | BRANCHED)[backbone]().double(), small_while_masked=small)
    units = (OverlappingUnits if overlap else Units)(trace_units(network))
    network.add_task("a", nn.Linear(network.backbone.features, 3).double(), granularity="unit")
    network.begin("a", generator=torch.Generator().manual_seed(0))
    yield network, train(network, "a")
    for density in (0.4, 0.2):
        budget = Budget(density=density)
        plan = budget.counts(network.sizes(), {}) if overlap else plan_units(units.graph, {"a": budget})["a"]
        prune(network, "a", plan, granularity=units)
        network.train()
        outputs = train(network, "a")
        network.settle("a")
        yield network, outputs
    network.compact("a")
    yield network, train(network, "a")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("backbone", [*BACKBONES, *BRANCHED])
def test_between_cuts_it_trains_as_with_matrices_of_full_size(backbone, overlap):
    if backbone in BRANCHED and not overlap:
        pytest.skip("its units overlap")
    parts = {}
    for small in (True, False):
        torch.manual_seed(0)
        parts[small] = [
            (outputs, {name: value.detach().clone() for name, value in network.named_parameters()}, is_small(network))
            for network, outputs in cut_twice(backbone, overlap, small)
        ]
    for (outputs, values, _), (expected, whole, _) in zip(parts[True], parts[False], strict=True):
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
        for name, value in whole.items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=1e-12, msg=name)
    assert [small for *_, small in parts[True]][2:] == [True, True]
    assert not parts[True][0][2]
    assert [small for *_, small in parts[False]] == [False, False, False, True]


@pytest.mark.parametrize("backbone", ["norm", "conv", "blocks"])
def test_between_cuts_gradients_of_the_candidates_are_those_of_the_whole_network(backbone):
    found = []
    for small in (True, False):
        torch.manual_seed(0)
        network, _ = list(zip(range(2), cut_twice(backbone, True, small), strict=False))[-1][1]
        assert is_small(network) == small
        inputs, labels = batch(network)

        def loss(network=network, inputs=inputs, labels=labels):
            return functional.cross_entropy(network(inputs, "a"), labels)

        once = loss_gradients(network, "a", loss)
        values = network.subnetwork("a").values
        leaves = [values[name] for name in once]
        slopes = torch.autograd.grad(loss(), leaves, create_graph=True)
        twice = torch.autograd.grad(sum((slope**2).sum() for slope in slopes), leaves)
        found.append((once, twice))
        assert all(bool((gradient[~network.masks("a")[name]] == 0).all()) for name, gradient in once.items())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def is_small(network):
    """Tell whether the task computes as a smaller network."""
    return network.module("a")._slices is not None


def test_a_task_without_units_of_a_convolution_computes_as_a_whole():
    outputs = []
    for phase in ("masked", "compact", "frozen"):
        torch.manual_seed(0)
        network = MultiSubnetwork(EndsInChannels().double())
        units = OverlappingUnits(trace_units(network))
        network.add_task("a", nn.Linear(10, 3).double(), granularity="unit")
        network.begin("a")
        prune(network, "a", {"0.weight": 0, "2.weight": 20}, granularity=units, allow_empty=True)
        if phase != "masked":
            getattr(network, {"compact": "compact", "frozen": "freeze"}[phase])("a")
        outputs.append(network.eval()(batch(network)[0], "a"))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
    assert not is_sliceable(network, "a")


def filled_up(width=600, task="last"):
    """Make a network whose tasks own almost all weights, and a compact task of what is left between its units."""
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((40,), width, 3))
    units = OverlappingUnits(trace_units(network))
    for name, share in (("first", 0.9), (task, 0.09)):
        network.add_task(name, nn.Linear(width, 3), granularity="unit")
        network.begin(name, generator=torch.Generator().manual_seed(len(name)))
        prune(network, name, Budget(density=share).counts(network.sizes(), {}), granularity=units)
        network.compact(name)
        if name != task:
            network.freeze(name)
    return network


def test_the_last_of_many_tasks_computes_by_sparse_products(tmp_path):
    network, whole = filled_up(), filled_up()
    whole.subnetwork("last").granularity = "channel"  # computes with matrices of full size
    whole.forget_modules()
    inputs, labels = torch.randn(16, 40), torch.randint(0, 3, (16,))
    for each in (network, whole):
        each.train()
        optimizer = torch.optim.SGD(each.subnetwork("last").parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(each(inputs, "last"), labels).backward()
            optimizer.step()
        each.freeze("last")
        each.eval()
    small = network.module("last").backbone
    assert [isinstance(getattr(layer, "form", None), FrozenForm) for layer in small.modules()].count(True) == 2
    outputs = network(inputs, "last")
    torch.testing.assert_close(outputs, whole(inputs, "last"), rtol=1e-4, atol=1e-5)
    many = torch.randn(4000, 40)  # for which dense products cost less
    torch.testing.assert_close(network(many, "last"), whole(many, "last"), rtol=1e-4, atol=1e-5)
    lean = network.without_rest()
    assert torch.equal(lean.module("last")(inputs), outputs)
    torch.testing.assert_close(lean.module("last")(many), network(many, "last"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sliced(network, "last")(inputs), outputs, rtol=1e-4, atol=1e-5)
    save_network(tmp_path / "network.safetensors", network)
    loaded = MultiSubnetwork(MLP((40,), 600, 3))
    for task in ("first", "last"):
        loaded.add_task(task, nn.Linear(600, 3))
    load_network(tmp_path / "network.safetensors", loaded)
    assert torch.equal(loaded.eval()(inputs, "last"), outputs)
    assert torch.equal(copy.deepcopy(network)(inputs, "last"), outputs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_computes_with_the_units_alone(backbone):
    network = make(backbone, "unit")
    inputs, _ = batch(network)
    seen = {}
    module = network.module("a")
    for name, layer in module.backbone.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda layer, *_, name=name: seen.update({name: layer.weight.numel()}))
    network(inputs, "a")
    owned = {name.rpartition(".")[0]: int(mask.sum()) for name, mask in network.masks("a").items()}
    assert {name: seen[name] for name in owned} == owned


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_frozen_task_holds_its_units_alone_and_stays_bitwise_the_same(backbone, tmp_path):
    network = make(backbone, "unit")
    train(network, "a")
    network.freeze("a")
    inputs, _ = batch(network)
    before = network(inputs, "a")
    kept = {name: tensor.clone() for name, tensor in network.module("a").state_dict().items()}
    owned = sum(int(mask.sum()) for mask in network.masks("a").values())
    weights = [f"backbone.{name}" for name in network.names.prunable]
    assert sum(kept[name].numel() for name in weights) == owned
    units = Units(trace_units(network))
    free = {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in network.masks("a").items()}
    plan = plan_units(units.graph, {"b": Budget(density=0.1)}, free)
    network.add_task("b", nn.Linear(network.backbone.features, 3).double(), granularity="unit")
    network.begin("b", generator=torch.Generator().manual_seed(5))
    prune(network, "b", plan["b"], granularity=units)
    network.compact("b")
    train(network, "b")
    network.freeze("b")
    assert torch.equal(network(inputs, "a"), before)
    path = tmp_path / "network.safetensors"
    save_network(path, network)
    loaded = MultiSubnetwork(BACKBONES[backbone]().double())
    for task in "ab":
        loaded.add_task(task, nn.Linear(network.backbone.features, 3).double())
    load_network(path, loaded)
    assert torch.equal(loaded.eval()(inputs, "a"), before)
    assert torch.equal(copy.deepcopy(network)(inputs, "a"), before)


@pytest.mark.parametrize("backbone", BRANCHED)
def test_branched_networks_compute_less_and_stay_bitwise_the_same(backbone, tmp_path):
    network = make(backbone, "unit", "ab", overlap=True)
    inputs, _ = batch(network)
    train(network, "a")
    network.freeze("a")
    before = network(inputs, "a")
    assert flops_share(network, "a") < 0.7
    train(network, "b")
    network.freeze("b")
    assert torch.equal(network(inputs, "a"), before)
    path = tmp_path / "network.safetensors"
    save_network(path, network)
    loaded = MultiSubnetwork(BRANCHED[backbone]().double())
    for task in "ab":
        loaded.add_task(task, nn.Linear(network.backbone.features, 3).double())
    load_network(path, loaded)
    assert torch.equal(loaded.eval()(inputs, "a"), before)
    torch.testing.assert_close(sliced(network, "a")(inputs), before)


def test_flops_of_attention_are_those_of_the_heads_that_are_left():
    network = MultiSubnetwork(Fused(8, 4, 6).double())
    network.backbone.input_shape = (5, 8)
    network.add_task("a", nn.Linear(8, 3).double(), granularity="unit")
    network.begin("a")
    masks = {name: torch.ones_like(mask) for name, mask in network.masks("a").items()}
    masks["qkv.weight"].view(3, 4, 6, 8)[:, 1:] = False
    masks["project.weight"][:, 6:] = False
    network.restrict("a", masks)
    network.compact("a")
    assert flops_share(network, "a") == 0.25


def test_running_statistics_of_the_units_are_stored_and_others_stay():
    network = make("norm", "unit")
    before = {name: tensor.clone() for name, tensor in network.subnetwork("a").private.items()}
    train(network, "a", steps=1)
    private, masks = dict(network.subnetwork("a").private.items()), network.masks("a")
    rows = masks["layers.1.weight"].any(1)
    mean = private["layers.2.running_mean"]
    assert bool((mean[rows] != before["layers.2.running_mean"][rows]).all())
    assert torch.equal(mean[~rows], before["layers.2.running_mean"][~rows])
    assert int(private["layers.2.num_batches_tracked"]) == 1


def test_a_half_precision_backbone_computes_in_its_type():
    network = make("linear", "unit", dtype=torch.bfloat16)
    inputs, _ = batch(network)
    assert network(inputs.bfloat16(), "a").dtype == torch.bfloat16
    network.freeze("a")
    assert network.module("a").backbone.layers[1].weight.dtype == torch.bfloat16
    assert torch.isfinite(network(inputs.bfloat16(), "a")).all()


@pytest.mark.parametrize("backbone", ["linear", "conv", "heads"])
def test_mixed_precision_and_compilation_compute_the_same_task(backbone):
    network = make(backbone, "unit", dtype=torch.float32, overlap=backbone in BRANCHED)
    inputs = batch(network)[0].float()
    expected = network.eval()(inputs, "a")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(inputs, "a").float(), expected, rtol=0.1, atol=0.05)
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(inputs, "a"), expected)
    network.freeze("a")
    exported = torch.export.export(network.module("a"), (inputs,)).module()
    torch.testing.assert_close(exported(inputs), expected)
