"""Test that the sparse form computes as the dense one, without a dense tensor."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from msh.backbones import MLP
from msh.subnetworks import (
    WEIGHTS,
    Blocks,
    Budget,
    MultiSubnetwork,
    OverlappingUnits,
    prune,
    sparse,
    trace_units,
)
from msh.subnetworks.sparse import (
    FrozenForm,
    Pattern,
    SparseForm,
    SparseLinear,
    TrainedLinear,
    may_be_sparse,
    sparse_linear,
    taken_values,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make_matrix(rows=7, columns=11, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    mask[0], mask[:, 0] = False, False
    weight = torch.randn(rows, columns, generator=generator) * mask
    pattern = Pattern(mask.reshape(-1).nonzero().squeeze(1), weight.shape)
    return weight, pattern


def gradients(outputs, *inputs):
    return torch.autograd.grad((outputs * torch.arange(outputs.numel()).view(outputs.shape).cos()).sum(), inputs)


@pytest.mark.parametrize("shape", [(11,), (1, 11), (5, 11), (2, 3, 11)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_sparse_linear_is_linear(shape, with_bias):
    weight, pattern = make_matrix()
    inputs, bias = torch.randn(shape, requires_grad=True), torch.randn(7, requires_grad=True)
    dense = weight.clone().requires_grad_()
    values = weight.take(pattern.index).requires_grad_()
    ours = sparse_linear(inputs, values, pattern, bias if with_bias else None)
    theirs = F.linear(inputs, dense, bias if with_bias else None)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    extra = (bias,) if with_bias else ()
    of_inputs, of_values, *of_bias = gradients(ours, inputs, values, *extra)
    of_inputs_too, of_dense, *of_bias_too = gradients(theirs, inputs, dense, *extra)
    torch.testing.assert_close(of_inputs, of_inputs_too, **CLOSE)
    torch.testing.assert_close(of_values, of_dense.take(pattern.index), **CLOSE)
    torch.testing.assert_close(of_bias, of_bias_too, **CLOSE)


def test_a_compressed_pattern_has_the_same_indices():
    weight, pattern = make_matrix()
    index, inputs = pattern.index, torch.randn(3, 11)
    expected = sparse_linear(inputs, weight.take(index), pattern)
    again = Pattern(index, weight.shape)
    again.compress()
    assert torch.equal(again.index, index)
    assert torch.equal(sparse_linear(inputs, weight.take(index), again), expected)
    assert torch.equal(again.transposed(3).parts[0].column, pattern.transposed(3).parts[0].column)


def test_its_backward_pass_can_be_differentiated():
    weight, pattern = make_matrix()
    inputs, values = torch.randn(5, 11, requires_grad=True), weight.take(pattern.index).requires_grad_()

    def twice(outputs, *to):
        first = torch.autograd.grad(outputs.square().sum(), to, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), to)

    dense = weight.clone().requires_grad_()
    ours = twice(sparse_linear(inputs, values, pattern), inputs, values)
    theirs = twice(F.linear(inputs, dense * (weight != 0)), inputs, dense)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(ours[1], theirs[1].take(pattern.index), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("block", "parts"), [(2**21, 1), (4 * 11 * 5 // 3, 4), (1, 16)])
def test_products_in_blocks_equal_the_whole_product(block, parts, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", block)
    weight, pattern = make_matrix()
    values = weight.take(pattern.index)
    inputs, outputs = torch.randn(5, 11), torch.randn(5, 7)
    matrix, transposed = pattern.matrix(5), pattern.transposed(5)
    assert len(matrix.parts) == parts
    torch.testing.assert_close(matrix.times(values, inputs), weight @ inputs.t(), **CLOSE)
    torch.testing.assert_close(transposed.times(values, outputs), (outputs @ weight).t(), **CLOSE)
    wanted = (outputs.t() @ inputs).take(pattern.index)
    torch.testing.assert_close(matrix.sampled(outputs, inputs), wanted, **CLOSE)


def test_products_follow_the_values():
    weight, pattern = make_matrix()
    values, inputs = weight.take(pattern.index), torch.randn(5, 11)
    pattern.matrix(5).times(values, inputs)
    values += 1.0
    weight.view(-1)[pattern.index] += 1.0
    torch.testing.assert_close(pattern.matrix(5).times(values, inputs), weight @ inputs.t(), **CLOSE)
    torch.testing.assert_close(pattern.matrix(5).times(2 * values, inputs), 2 * weight @ inputs.t(), **CLOSE)


def test_taken_values_send_their_gradient_back():
    values, index = torch.randn(2, 3, requires_grad=True), torch.tensor([1, 5])
    taken = taken_values(values, index)
    assert taken.tolist() == [values[0, 1].item(), values[1, 2].item()]
    (taken * torch.tensor([3.0, 4.0])).sum().backward()
    assert values.grad.tolist() == [[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]


def make_layer(density=0.4):
    """Make a layer in training, its dense weight, and a list that records when this was made."""
    weight, pattern = make_matrix(density=density)
    made = []

    def dense():
        made.append("dense")
        return weight

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.__class__ = TrainedLinear
    del layer._parameters["weight"]
    vars(layer)["form"] = SparseForm(pattern, lambda: weight.take(pattern.index), dense)
    return layer, weight, made


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(sparse, "SMALLEST", 1)
    monkeypatch.setattr(sparse, "DENSEST", 1.0)


def test_linear_layers_never_make_the_dense_tensor():
    layer, weight, made = make_layer()
    inputs = torch.randn(3, 11)
    torch.testing.assert_close(layer(inputs), F.linear(inputs, weight), **CLOSE)
    torch.testing.assert_close(layer(input=inputs[0]), inputs[0] @ weight.t(), **CLOSE)
    assert made == []


def test_reading_the_weight_makes_the_dense_tensor_once():
    layer, weight, made = make_layer()
    assert torch.equal(layer.weight + 1, weight + 1)
    assert layer.weight.shape == weight.shape
    assert made == ["dense"]


def test_a_tensor_made_without_gradients_is_made_again_with_them():
    """A reentrant checkpoint computes without gradients first."""
    layer, _, made = make_layer()
    with torch.no_grad():
        layer.weight  # noqa: B018
    layer.weight  # noqa: B018
    assert made == ["dense", "dense"]


def test_mixed_precision_and_empty_batches_get_the_dense_tensor():
    layer, _, made = make_layer()
    assert layer(torch.randn(0, 11)).shape == (0, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 11)).dtype == torch.bfloat16
    assert made == ["dense"]


def test_inputs_that_leave_the_cache_get_the_dense_tensor(monkeypatch):
    monkeypatch.setattr(sparse, "CACHED", 4 * 7 * 2)
    layer, _, made = make_layer()
    layer(torch.randn(2, 11))
    assert made == []
    layer(torch.randn(3, 11))
    assert made == ["dense"]


@pytest.mark.parametrize(
    ("shape", "dtype", "kept", "expected"),
    [
        ((512, 512), torch.float32, 26214, True),
        ((512, 512), torch.float32, 0, False),
        ((512, 512), torch.float32, 60000, False),
        ((512, 512), torch.float64, 26214, False),
        ((512, 511), torch.float32, 26214, False),
        ((512, 64, 3, 3), torch.float32, 26214, False),
    ],
)
def test_large_sparse_float_matrices_may_be_sparse(shape, dtype, kept, expected):
    assert may_be_sparse(shape, torch.zeros((), dtype=dtype), kept) is (expected and torch.backends.mkl.is_available())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 6)

    def forward(self, inputs):
        return self.out(self.norm(self.attention(inputs, inputs, inputs, need_weights=False)[0]))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU())

    def forward(self, inputs):
        return self.layers(inputs)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, inputs):
        return self.out(self.embedding(inputs))


BACKBONES = {
    "mlp": (lambda: MLP((5,), width=16, depth=2, norm=True), lambda: torch.randn(6, 5)),
    "attention": (Attention, lambda: torch.randn(6, 4, 8)),
    "convolutional": (Convolutional, lambda: torch.randn(6, 1, 4, 4)),
    "tied words": (Words, lambda: torch.randint(0, 9, (6, 4))),
}


def trained(make, inputs, phase):
    """Return (outputs while training, gradients, outputs when frozen) for a task taken to a phase."""
    torch.manual_seed(0)
    network = MultiSubnetwork(make())
    network.add_task("task")
    network.begin("task")
    prune(network, "task", Budget(density=0.3).counts(network.sizes(), {}))
    if phase == "compact":
        network.compact("task")
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        outputs = network(inputs)
        outputs.square().mean().backward()
        optimizer.step()
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    digest = network.digest("task")
    network.freeze("task")
    frozen = network(inputs)
    return outputs.detach(), found, frozen, digest, network


@pytest.mark.parametrize("phase", ["masked", "compact"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_network_trains_identically_in_either_form(backbone, phase, monkeypatch):
    make, draw = BACKBONES[backbone]
    inputs = draw()
    monkeypatch.setattr(sparse, "SMALLEST", 2**40)
    outputs, found, frozen, _, _ = trained(make, inputs, phase)
    monkeypatch.setattr(sparse, "SMALLEST", 1)
    monkeypatch.setattr(sparse, "DENSEST", 1.0)
    outputs_too, found_too, frozen_too, digest, network = trained(make, inputs, phase)
    torch.testing.assert_close(outputs_too, outputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(frozen_too, frozen, rtol=1e-3, atol=1e-3)
    for name, gradient in found.items():
        torch.testing.assert_close(found_too[name], gradient, rtol=1e-2, atol=1e-3)
    if phase == "compact":
        assert network.digest("task") == digest
    assert torch.equal(copy.deepcopy(network)(inputs), frozen_too)
    assert torch.equal(pickle.loads(pickle.dumps(network))(inputs), frozen_too)


def make_wide(compact=True):
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((784,), width=512, depth=2))
    network.add_task("task", nn.Linear(512, 3))
    network.begin("task")
    prune(network, "task", Budget(density=0.1).counts(network.sizes(), {}))
    if compact:
        network.compact("task")
    return network


def test_a_compact_task_of_linear_layers_makes_no_dense_buffer(monkeypatch):
    network = make_wide()
    network(torch.randn(4, 784)).sum().backward()
    assert list(network.subnetwork("task").dense) == []
    assert sum(p.numel() for p in network.subnetwork("task").values.parameters()) == sum(
        Budget(density=0.1).counts(network.sizes(), {}).values()
    )


def test_a_frozen_task_computes_with_its_values_alone(monkeypatch):
    network = make_wide()
    network.freeze("task")
    made = network.module("task")
    inputs = torch.randn(4, 784)
    expected = made(inputs)
    layers = [layer for layer in made.backbone.modules() if isinstance(layer, nn.Linear)]
    assert all(isinstance(layer, SparseLinear) for layer in layers)
    layers[-1].form.values.zero_()  # the dense weight stays
    assert not torch.equal(made(inputs), expected)


def make_frozen(kind):
    """Make a network with a frozen task in CSR or in blocks, and inputs for it."""
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((512,), width=512, depth=2))
    granularity = Blocks.of(network, (32, 32)) if kind == "blocks" else WEIGHTS
    sizes = granularity.sizes if kind == "blocks" else None
    network.add_task("a", nn.Linear(512, 3), granularity="block" if kind == "blocks" else "weight", blocks=sizes)
    network.begin("a")
    counts = Budget(density=0.1).counts(granularity.counts(network.sizes()), {})
    prune(network, "a", counts, granularity=granularity)
    network.freeze("a")
    return network.eval(), torch.randn(40, 512)


def module_of(network, lean):
    return network.without_rest().module("a") if lean else network.module("a")


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", ["csr", "blocks"])
def test_a_frozen_module_s_copies_compute_bitwise_as_it_does(kind, lean):
    network, inputs = make_frozen(kind)
    module = module_of(network, lean)
    expected = module(inputs)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).float()):
        assert torch.equal(again(inputs), expected)
    with torch.inference_mode():
        again = copy.deepcopy(module)
        torch.testing.assert_close(again(inputs), expected, **CLOSE)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", ["csr", "blocks"])
def test_a_frozen_module_follows_its_tensors(kind, lean):
    network, inputs = make_frozen(kind)
    module = module_of(network, lean)
    expected = module(inputs)
    torch.testing.assert_close(copy.deepcopy(module).double()(inputs.double()), expected.double(), **CLOSE)
    doubled = copy.deepcopy(module)
    doubled.load_state_dict({name: 2 * tensor for name, tensor in module.state_dict().items()})
    changed = copy.deepcopy(module)
    for tensor in changed.state_dict().values():
        tensor.mul_(2)
    plain = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    tensors = [tensor for layer in linear_layers(module) for tensor in (layer.weight, layer.bias)]
    plain.load_state_dict(dict(zip(plain.state_dict(), (2 * tensor for tensor in tensors), strict=True)))
    for other in (doubled, changed):
        torch.testing.assert_close(other(inputs), plain(inputs).detach(), **CLOSE)
    assert torch.equal(module(inputs), expected)


def linear_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("kind", ["csr", "blocks"])
def test_a_compiled_frozen_module_follows_loaded_tensors(kind):
    network, inputs = make_frozen(kind)
    module = network.module("a")
    compiled = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), module(inputs), **CLOSE)
    module.load_state_dict({name: 2 * tensor for name, tensor in module.state_dict().items()})
    assert not any(isinstance(layer.form, FrozenForm) for layer in linear_layers(module.backbone))
    torch.testing.assert_close(compiled(inputs), module(inputs), **CLOSE)


@pytest.mark.parametrize("kind", ["csr", "blocks"])
def test_a_frozen_module_is_exported_for_batches_of_any_size(kind):
    network, inputs = make_frozen(kind)
    module = network.module("a")
    program = torch.export.export(module, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for size in (1, 7, 40):
        torch.testing.assert_close(program.module()(inputs[:size]), module(inputs[:size]), **CLOSE)


@pytest.mark.parametrize("kind", ["csr", "blocks"])
def test_a_frozen_module_is_traced_with_its_weights(kind):
    network, inputs = make_frozen(kind)
    module = network.module("a")
    expected = module(inputs)
    whole = fx.symbolic_trace(module.backbone)
    torch.testing.assert_close(module.head(whole(inputs)), expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # torch's own, in its forward mode
@pytest.mark.parametrize("phase", ["masked", "compact", "frozen"])
@pytest.mark.parametrize("kind", ["csr", "blocks", "unit"])
def test_transformations_of_torch_func_work(kind, phase):
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((512,), width=512, depth=2))
    name = {"csr": "weight", "blocks": "block"}.get(kind, "unit")
    kinds = {"weight": lambda: WEIGHTS, "block": lambda: Blocks.of(network, (32, 32))}
    granularity = kinds.get(name, lambda: OverlappingUnits(trace_units(network)))()
    blocks = granularity.sizes if name == "block" else None
    network.add_task("a", nn.Linear(512, 3), granularity=name, blocks=blocks)
    network.begin("a")
    counts = Budget(density=0.1).counts(granularity.counts(network.sizes()), {})
    prune(network, "a", counts, granularity=granularity)
    for step in {"masked": [], "compact": [network.compact], "frozen": [network.freeze]}[phase]:
        step("a")
    module, inputs = network.eval().module("a"), torch.randn(33, 512)
    expected = torch.autograd.functional.jacobian(module, inputs)
    torch.testing.assert_close(torch.func.jacrev(module)(inputs), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(module)(inputs.view(33, 1, 512)).squeeze(1), module(inputs), **CLOSE)
    slope = torch.func.jvp(module, (inputs,), (torch.ones_like(inputs),))[1]
    torch.testing.assert_close(slope, expected.sum((-2, -1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("phase", ["masked", "compact"])
def test_a_network_is_copied_after_it_has_computed(phase):
    network = make_wide(phase == "compact")
    inputs = torch.randn(4, 784)
    network(inputs).sum().backward()
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert torch.equal(averaged(inputs), network(inputs))


def test_an_optimizer_that_moves_pruned_weights_is_undone_in_sparse_form_too(always):
    network = make_wide(compact=False)
    mask = network.masks("task")["layers.1.weight"]
    values = network.subnetwork("task").values["layers.1.weight"]
    with torch.no_grad():
        values += 1.0
    network(torch.randn(4, 784)).sum().backward()
    assert not values[~mask].any()
    assert not values.grad[~mask].any()


@pytest.mark.parametrize("compact", [True, False])
def test_the_training_step_compiles_with_the_dense_form(compact, always):
    network = make_wide(compact)
    inputs = torch.randn(4, 784)
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), network(inputs), **CLOSE)
    eager, traced = (
        torch.autograd.grad(run(inputs).square().sum(), list(network.parameters())) for run in (network, compiled)
    )
    torch.testing.assert_close(traced, eager, rtol=1e-3, atol=1e-4)


def test_the_next_layer_may_change_outputs_in_place():
    generator = torch.Generator().manual_seed(0)
    held = torch.rand(6, 5, generator=generator) < 0.4
    pattern = Pattern(held.reshape(-1).nonzero().squeeze(1), held.shape)
    inputs, values = torch.randn(3, 5, generator=generator), torch.randn(int(held.sum()), generator=generator)
    weight = torch.zeros(30).index_copy(0, pattern.index, values).view(6, 5)
    gradients = []
    for linear in (lambda x: sparse_linear(x, values, pattern), lambda x: x @ weight.t()):
        x = inputs.clone().requires_grad_()
        F.hardswish(linear(x), inplace=True).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
