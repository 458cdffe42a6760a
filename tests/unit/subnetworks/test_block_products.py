"""Test that the form in blocks computes as the dense one, and the same bits each time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from msh.backbones import MLP, Transformer
from msh.subnetworks import Blocks, Budget, MultiSubnetwork, block_products, cut, plan_blocks, prune, select
from msh.subnetworks.block_products import BlockPattern, may_be_in_blocks
from msh.subnetworks.blocks import block_mask
from msh.subnetworks.forms import flat_index
from msh.subnetworks.sparse import SparseLinear, TrainedLinear, sparse_linear

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHAPES = [((12, 20), (3, 4)), ((12, 20), (5, 7)), ((7, 3), (2, 3)), ((4, 9), (4, 2)), ((1, 1), (1, 1))]


@pytest.fixture(params=[False, True], ids=["gathered", "per block"])
def per_block(request, monkeypatch):
    """Both ways of computing inputs that lie in rows: those of few, and of many inputs."""
    monkeypatch.setattr(block_products, "PER_BLOCK", 1 if request.param else 2**60)
    return request.param


def make_matrix(shape, size, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grid = [-(-length // side) for length, side in zip(shape, size, strict=True)]
    blocks = torch.rand(grid, generator=generator) < density
    blocks[0, 0] = True
    held = block_mask(blocks, shape, size)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) * held
    return weight, BlockPattern(held, flat_index(held), size)


def all_products(pattern, inputs, gradient, values, along_batch):
    outputs = pattern.outputs(inputs, values, None, along_batch)
    return outputs, *pattern.gradients(gradient, inputs, values, True, True, along_batch)


def gradients(outputs, *inputs):
    return torch.autograd.grad((outputs * torch.arange(outputs.numel()).view(outputs.shape).cos()).sum(), inputs)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("batch", [(), (1,), (300,), (2, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.usefixtures("per_block")
def test_it_is_a_linear_layer(shape, size, batch, with_bias):
    weight, pattern = make_matrix(shape, size)
    inputs = torch.randn(*batch, shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(shape[0], dtype=torch.float64, requires_grad=True) if with_bias else None
    values, dense = weight.take(pattern.index).requires_grad_(), weight.clone().requires_grad_()
    ours, theirs = sparse_linear(inputs, values, pattern, bias), F.linear(inputs, dense, bias)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(sparse_linear(inputs, values, pattern, bias), ours)
    extra = (bias,) if with_bias else ()
    of_inputs, of_values, *of_bias = gradients(ours, inputs, values, *extra)
    of_inputs_too, of_dense, *of_bias_too = gradients(theirs, inputs, dense, *extra)
    torch.testing.assert_close(of_inputs, of_inputs_too)
    torch.testing.assert_close(of_values, of_dense.take(pattern.index))
    torch.testing.assert_close(of_bias, of_bias_too)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3)])
def test_the_next_layer_may_change_the_outputs_in_place(shape, size, batch):
    weight, pattern = make_matrix(shape, size)
    values, inputs = weight.take(pattern.index).requires_grad_(), torch.randn(*batch, shape[1], dtype=torch.float64)
    (found,) = gradients(F.hardswish(sparse_linear(inputs, values, pattern), inplace=True), values)
    (expected,) = gradients(F.hardswish(sparse_linear(inputs, values, pattern)), values)
    assert torch.equal(found, expected)


def test_inputs_in_parts_that_fit_the_cache_give_the_same(monkeypatch, per_block):
    weight, pattern = make_matrix((12, 20), (3, 4))
    inputs, gradient = torch.randn(300, 20, dtype=torch.float64), torch.randn(300, 12, dtype=torch.float64)
    values = weight.take(pattern.index)
    whole = all_products(pattern, inputs, gradient, values, along_batch=False)
    monkeypatch.setattr(block_products, "AT_ONCE", 1)
    if per_block:
        monkeypatch.setattr(block_products, "PER_BLOCK", 128)
    assert [(here.start, here.stop) for here in pattern._slices(300, False)] == [(0, 150), (150, 300)]
    assert [here.stop - here.start for here in pattern._slices(1031, False)] == [129] * 7 + [128]
    torch.testing.assert_close(all_products(pattern, inputs, gradient, values, along_batch=False), whole)


@pytest.mark.usefixtures("per_block")
def test_either_order_of_memory_gives_the_same():
    weight, pattern = make_matrix((12, 20), (5, 7))
    inputs, gradient = torch.randn(30, 20, dtype=torch.float64), torch.randn(30, 12, dtype=torch.float64)
    values = weight.take(pattern.index)
    outputs, *gradients = all_products(pattern, inputs, gradient, values, along_batch=False)
    turned, *others = all_products(pattern, inputs, gradient, values, along_batch=True)
    torch.testing.assert_close(turned.t(), outputs)
    torch.testing.assert_close(others, gradients)
    outputs, of_inputs, _ = all_products(pattern, inputs.t().contiguous().t(), gradient, values, along_batch=True)
    assert torch.equal(outputs, turned)
    assert of_inputs.t().is_contiguous()


def test_many_inputs_are_multiplied_per_block(monkeypatch):
    weight, pattern = make_matrix((12, 20), (3, 4))
    values, tokens = weight.take(pattern.index), torch.randn(4, block_products.PER_BLOCK // 4, 20, dtype=torch.float64)
    monkeypatch.setattr(pattern, "_gathered", lambda *_: pytest.fail("gathered"))
    torch.testing.assert_close(sparse_linear(tokens, values, pattern), tokens @ weight.t())
    with pytest.raises(pytest.fail.Exception, match="gathered"):
        sparse_linear(tokens[:, 1:], values, pattern)


@pytest.mark.parametrize("laid_out", ["expanded", "strided"])
def test_gradients_of_any_layout_are_multiplied_per_block(laid_out, per_block):
    weight, pattern = make_matrix((12, 20), (3, 4))
    inputs, values = torch.randn(30, 20, dtype=torch.float64), weight.take(pattern.index)
    gradient = torch.randn(30, 12, dtype=torch.float64)
    other = gradient[:1].expand(30, 12) if laid_out == "expanded" else gradient.t().contiguous().t()
    found = all_products(pattern, inputs.t().contiguous().t(), other, values, along_batch=False)
    torch.testing.assert_close(found, all_products(pattern, inputs, other.contiguous(), values, along_batch=False))


def test_only_matrices_that_fit_the_cache_run_along_the_batch():
    _, pattern = make_matrix((1000, 500), (50, 50), density=0.1)
    found = [pattern.along_batch(torch.zeros(*shape, 500)) for shape in [(), (1,), (524,), (525,), (2, 3)]]
    assert found == [True, True, True, False, False]


def test_sums_that_take_each_lines_members_are_the_same():
    """As on processors that would add in the order in which their threads finish."""
    weight, pattern = make_matrix((40, 60), (10, 20))
    inputs, gradient = torch.randn(7, 60, dtype=torch.float64), torch.randn(7, 40, dtype=torch.float64)
    values = weight.take(pattern.index)
    for along_batch in (True, False):
        expected = all_products(pattern, inputs, gradient, values, along_batch)
        pattern._members = [block_products._members(*each) for each in zip(pattern._lines, pattern.grid, strict=True)]
        torch.testing.assert_close(all_products(pattern, inputs, gradient, values, along_batch), expected)
        pattern._members = None


def test_batches_of_many_sizes_keep_few_orders_of_blocks():
    weight, pattern = make_matrix((40, 60), (10, 20))
    values = weight.flatten()[pattern.index]
    for batch in range(2, 40):
        inputs = torch.randn(batch, 60, dtype=torch.float64)
        torch.testing.assert_close(pattern.outputs(inputs, values, None, False), inputs @ weight.t(), **CLOSE)
        assert len(pattern._made_sources) <= 9


@pytest.mark.usefixtures("per_block")
def test_rows_and_columns_without_blocks_give_zeros():
    held = torch.zeros(40, 60, dtype=torch.bool)
    held[10:20, 20:40] = held[30:, :20] = True
    pattern = BlockPattern(held, flat_index(held), (10, 20))
    weight = torch.randn(40, 60) * held
    values = weight.flatten()[pattern.index]
    for batch in (1, 7):
        inputs, gradient = torch.randn(batch, 60), torch.randn(batch, 40)
        for along_batch in (True, False):
            outputs, back, _ = all_products(pattern, inputs, gradient, values, along_batch)
            torch.testing.assert_close(outputs.t() if along_batch else outputs, inputs @ weight.t(), **CLOSE)
            torch.testing.assert_close(back, gradient @ weight, **CLOSE)


def test_its_backward_pass_can_be_differentiated():
    weight, pattern = make_matrix((12, 20), (3, 4))
    inputs = torch.randn(5, 20, dtype=torch.float64, requires_grad=True)
    values, dense = weight.take(pattern.index).requires_grad_(), weight.clone().requires_grad_()

    def twice(outputs, *to):
        first = torch.autograd.grad(outputs.square().sum(), to, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), to)

    ours = twice(sparse_linear(inputs, values, pattern), inputs, values)
    theirs = twice(F.linear(inputs, dense * (weight != 0)), inputs, dense)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1].take(pattern.index))


@pytest.mark.usefixtures("per_block")
def test_only_needed_gradients_are_computed():
    weight, pattern = make_matrix((12, 20), (3, 4))
    inputs, values = torch.randn(5, 1, 20, dtype=torch.float64), weight.take(pattern.index)
    (sparse_linear(inputs, values.requires_grad_(), pattern)).sum().backward()
    assert inputs.grad is None
    assert values.grad is not None
    through = inputs.clone().requires_grad_()
    sparse_linear(through, values.detach(), pattern).sum().backward()
    torch.testing.assert_close(through.grad, weight.sum(0).expand(5, 1, 20))


def test_a_weight_that_never_changes_is_ordered_once():
    weight, pattern = make_matrix((12, 20), (5, 7))
    inputs, values = torch.randn(5, 20, dtype=torch.float64, requires_grad=True), weight.take(pattern.index)
    expected = sparse_linear(inputs, values, pattern)
    pattern.fix(values)
    assert torch.equal(sparse_linear(inputs, values, pattern), expected)
    torch.testing.assert_close(gradients(sparse_linear(inputs, values, pattern), inputs), gradients(expected, inputs))


@pytest.mark.parametrize("along_batch", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_inputs_give_the_same_bits(threads, along_batch):
    torch.set_num_threads(threads)
    weight, pattern = make_matrix((512, 512), (32, 32), density=0.1)
    weight = weight.float()
    inputs, gradient, values = torch.randn(200, 512), torch.randn(200, 512), weight.take(pattern.index)
    first = all_products(pattern, inputs, gradient, values, along_batch)
    for _ in range(20):
        again = all_products(pattern, inputs, gradient, values, along_batch)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))


@pytest.mark.parametrize(
    ("shape", "kept", "size", "dtype", "expected"),
    [
        ((1000, 1000), 100_000, (50, 50), torch.float32, True),
        ((1000, 1000), 100_000, (50, 50), torch.float64, True),
        ((1000, 1000), 250_000, (50, 50), torch.float32, True),
        ((1000, 1000), 250_001, (50, 50), torch.float32, False),
        ((1000, 1000), 0, (50, 50), torch.float32, False),
        ((1000, 1000), 100_000, (4, 500), torch.float32, False),
        ((1000, 1000), 100_000, (20, 20), torch.float32, False),
        ((1000, 1000), 100_000, (50, 50), torch.bfloat16, False),
        ((500, 500), 25_000, (50, 50), torch.float32, True),
        ((300, 300), 9_000, (50, 50), torch.float32, False),
        ((1000, 1000, 1), 100_000, (50, 50), torch.float32, False),
    ],
)
def test_weights_for_which_blocks_may_cost_less(shape, kept, size, dtype, expected):
    assert may_be_in_blocks(shape, torch.zeros(1, dtype=dtype), kept, size) is expected


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [((192, 768), 31, False), ((192, 768), 32, True), ((512, 512), 1, True), ((512, 512), 0, False)],
)
def test_small_weights_compute_few_inputs_densely(shape, batch, expected):
    _, pattern = make_matrix(shape, (32, 32), density=0.1)
    assert pattern.suits(torch.zeros(batch, shape[1])) is expected


def make_network(backbone, density=0.1, compact=True, granularity="block"):
    torch.manual_seed(0)
    network = MultiSubnetwork(backbone)
    blocks = Blocks.of(network)
    network.add_task("a", nn.Linear(backbone.features, 3), granularity=granularity, blocks=blocks.sizes)
    network.begin("a")
    sizes = network.sizes()
    wanted = plan_blocks(blocks.counts(sizes), sum(sizes.values()), {"a": Budget(density=density)})["a"]
    cut(network, "a", select(network, "a", wanted, granularity=blocks), granularity=blocks)
    if compact:
        network.compact("a")
    return network


def in_blocks(module):
    """Names of the layers that compute in blocks."""
    found = {name: vars(child).get("form") for name, child in module.named_modules() if isinstance(child, SparseLinear)}
    return [n for n, form in found.items() if isinstance(getattr(form, "pattern", None), BlockPattern)]


@pytest.mark.parametrize("compact", [True, False])
def test_a_task_computes_in_blocks_as_the_dense_form(compact, monkeypatch):
    network = make_network(MLP((600,), 512, 2), compact=compact)
    inputs = torch.randn(9, 600)
    outputs = network(inputs)
    module = network.module("a")
    assert in_blocks(module) == ["backbone.layers.1", "backbone.layers.3"]
    outputs.square().sum().backward()
    values = network.subnetwork("a").values
    grads = {name: values[name].grad.clone() for name in values}
    network.zero_grad()
    monkeypatch.setattr(block_products, "FULLEST", 0.0)
    monkeypatch.setattr("msh.subnetworks.forms.may_be_sparse", lambda *_: False)
    network.derive(network.subnetwork("a"))
    again = network(inputs)
    assert in_blocks(module) == []
    torch.testing.assert_close(again, outputs, **CLOSE)
    again.square().sum().backward()
    for name, grad in grads.items():
        torch.testing.assert_close(values[name].grad, grad, **CLOSE)


def test_a_frozen_task_computes_the_bits_of_its_training():
    network = make_network(MLP((600,), 512, 2)).eval()
    inputs = {batch: torch.randn(batch, 600) for batch in (1, 32, 300)}
    with torch.no_grad():
        before = {batch: network(x) for batch, x in inputs.items()}
        network.freeze("a")
        assert in_blocks(network.module("a")) == ["backbone.layers.1", "backbone.layers.3"]
        other = copy.deepcopy(network)
        for batch, x in inputs.items():
            assert torch.equal(network(x), before[batch])
            assert torch.equal(other(x), before[batch])
    exported = torch.export.export(network.module("a"), (inputs[32],)).module()
    torch.testing.assert_close(exported(inputs[32]), before[32], **CLOSE)


def test_autocast_and_half_precision_use_the_dense_form():
    network = make_network(MLP((600,), 512, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(4, 600)).dtype == torch.bfloat16
    half = make_network(MLP((600,), 512, 2).bfloat16())
    half(torch.randn(4, 600))
    assert in_blocks(half.module("a")) == []


def test_masks_that_are_no_blocks_use_another_form():
    network = make_network(MLP((600,), 512, 2), compact=False)
    masks = network.masks("a")
    masks["layers.1.weight"][0] = False
    network.restrict("a", masks)
    network(torch.randn(4, 600))
    assert in_blocks(network.module("a")) == ["backbone.layers.3"]


def test_projections_of_attention_compute_in_blocks():
    network = make_network(Transformer((4,), 50, width=512, heads=4, hidden=1024))
    network(torch.randint(0, 50, (2, 4))).sum().backward()
    block = "backbone.blocks.0"
    layers = [f"{block}.{name}" for name in ("project", "attended", "feed_forward.0", "feed_forward.2")]
    assert in_blocks(network.module("a")) == layers
    assert isinstance(network.module("a").get_submodule(layers[0]), TrainedLinear)


def test_a_task_without_block_sizes_does_not_compute_in_blocks():
    network = MultiSubnetwork(MLP((600,), 512, 1))
    network.add_task("a", nn.Linear(512, 3))
    network.begin("a")
    prune(network, "a", {"layers.1.weight": 20}, granularity=Blocks.of(network))
    network(torch.randn(4, 600))
    assert in_blocks(network.module("a")) == []
