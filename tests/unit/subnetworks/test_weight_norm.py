import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from msh.subnetworks.weight_norm import make_weight_norms_safe, normalized_weight

SHAPES = [(4, 3), (4, 3, 2), (4, 3, 5, 2), (5,), (1, 1)]


def new(layer, **options):
    return parametrizations.weight_norm(layer, **options)


def old(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


def tensors(layer):
    """Scale and direction."""
    if hasattr(layer, "parametrizations"):
        return layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    return layer.weight_g, layer.weight_v


def outcome(layer, inputs):
    """Outputs, and the gradients of scale and direction."""
    layer.zero_grad()
    outputs = layer(inputs)
    (outputs * torch.arange(outputs.numel()).view_as(outputs).add(1).sqrt()).sum().backward()
    return outputs.detach(), *(tensor.grad.clone() for tensor in tensors(layer))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_zero_rows_it_equals_torch_bitwise(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    for dim in (-1, *range(len(shape))):
        direction = torch.randn(shape, generator=generator).to(dtype)
        direction.view(-1)[::3] *= -1.0
        scale = torch.norm_except_dim(direction, 2, dim) * 1.7
        upstream = torch.randn(shape, generator=generator).to(dtype)
        results = []
        for function in (torch._weight_norm, normalized_weight):
            leaves = [direction.clone().requires_grad_(), scale.clone().requires_grad_()]
            weight = function(*leaves, dim)
            results.append((weight, *torch.autograd.grad(weight, leaves, upstream)))
        for theirs, ours in zip(*results, strict=True):
            assert theirs.dtype == ours.dtype
            assert torch.equal(theirs, ours)


@pytest.mark.parametrize("wrap", [new, old])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_compute_the_same_bits_after_the_replacement(wrap, dim, channels_last):
    torch.manual_seed(0)
    layer = wrap(nn.Conv2d(3, 4, 3), dim=dim)
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 5, 5)
    before = outcome(layer, inputs)
    make_weight_norms_safe(layer)
    make_weight_norms_safe(layer)  # a second call changes nothing
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(before, outcome(layer, inputs), strict=True))


@pytest.mark.parametrize("wrap", [new, old])
def test_a_row_of_zeros_gives_0_and_gradients_of_0(wrap):
    layer = wrap(nn.Linear(2, 3, bias=False))
    make_weight_norms_safe(layer)
    scale, direction = tensors(layer)
    with torch.no_grad():
        scale.copy_(torch.tensor([[10.0], [2.0], [7.0]]))
        direction.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]]))
    outputs = layer(torch.tensor([[1.0, 2.0]]))
    # rows: 10 * (3, 4) / 5 = (6, 8); 0; 7 * (0, -2) / 2 = (0, -7)
    assert torch.allclose(outputs, torch.tensor([[22.0, 0.0, -14.0]]))
    outputs.sum().backward()
    # scale: input . direction / norm = 11 / 5, 0, -2; direction: scale / norm * (input - (input . unit) unit)
    assert torch.allclose(scale.grad, torch.tensor([[2.2], [0.0], [-2.0]]))
    assert torch.allclose(direction.grad, torch.tensor([[-0.64, 0.48], [0.0, 0.0], [3.5, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_zero_direction_of_any_shape_gives_0_and_gradients_of_0(shape):
    for dim in (-1, *range(len(shape))):
        direction = torch.zeros(shape, requires_grad=True)
        scale = torch.norm_except_dim(torch.ones(shape), 2, dim).requires_grad_()
        weight = normalized_weight(direction, scale, dim)
        gradients = torch.autograd.grad(weight.sum(), (direction, scale))
        for tensor in (weight, *gradients):
            assert torch.equal(tensor, torch.zeros_like(tensor))
        assert gradients[1].shape == scale.shape


def test_rows_may_lie_on_another_axis():
    direction = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert normalized_weight(direction, torch.tensor([[5.0, 1.0]]), 1).equal(direction)
    assert normalized_weight(direction, torch.tensor(10.0), -1).equal(2 * direction)


def test_a_nan_is_not_hidden():
    direction = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])
    weight = normalized_weight(direction, torch.ones(2, 1), 0)
    assert weight[0].isnan().any()
    assert weight[1].equal(torch.zeros(2))


@pytest.mark.parametrize("wrap", [new, old])
def test_it_survives_copies_and_export(wrap):
    torch.manual_seed(0)
    backbone = nn.Sequential(wrap(nn.Linear(2, 3)), nn.ReLU(), wrap(nn.Linear(3, 2))).eval()
    make_weight_norms_safe(backbone)
    with torch.no_grad():
        tensors(backbone[0])[1][1] = 0.0
        outputs = backbone(inputs := torch.randn(4, 2))  # without gradients: the old form cannot be copied otherwise
    assert outputs.isfinite().all()
    copied = copy.deepcopy(backbone)
    assert torch.equal(copied(inputs), outputs)
    with torch.no_grad():
        tensors(copied[0])[0].mul_(2.0)
        assert torch.equal(backbone(inputs), outputs)
        assert not torch.equal(copied(inputs), outputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")  # the old form's way
        exported = torch.export.export(backbone, (inputs,)).module()
    assert torch.allclose(exported(inputs), outputs)


def test_only_weight_norm_is_replaced():
    class Doubled(nn.Module):
        def forward(self, tensor):
            return 2 * tensor

    layer = new(nn.Linear(2, 3))
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    spectral = parametrizations.spectral_norm(nn.Linear(2, 3))
    kinds = [type(part) for part in spectral.modules()]
    make_weight_norms_safe(nn.ModuleList([layer, spectral]))
    assert [type(part).__name__ for part in layer.parametrizations.weight] == ["SafeWeightNorm", "Doubled"]
    assert [type(part) for part in spectral.modules()] == kinds
    assert layer.weight.isfinite().all()
