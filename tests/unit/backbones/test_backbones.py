import pytest
import torch
from torch import nn

from msh.backbones import MLP, PaperConv

BACKBONES = {
    "MLP": lambda norm: MLP([3], 4, 2, norm),
    "PaperConv": lambda norm: PaperConv([1, 11, 11], norm),
}


def kinds(module):
    return [type(layer).__name__ for layer in module.modules() if not list(layer.children())]


def sizes(module):
    return [tuple(p.shape) for p in module.parameters() if p.dim() > 1]


def test_mlp_is_linear_layers_each_with_relu():
    mlp = MLP([2, 3], width=5, depth=2)
    assert kinds(mlp) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    assert sizes(mlp) == [(5, 6), (5, 5)]
    assert (mlp.features, mlp.input_shape) == (5, (2, 3))


def test_mlp_is_the_papers_network_by_default():
    mlp = MLP([1, 28, 28])
    assert sizes(mlp) == [(1000, 784), *[(1000, 1000)] * 5]


def test_mlp_normalises_before_relu_when_asked():
    assert kinds(MLP([6], width=5, depth=1, norm=True)) == ["Flatten", "Linear", "BatchNorm1d", "ReLU"]


def test_mlp_by_hand():
    mlp = MLP([2], width=2, depth=1)
    linear = next(layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        linear.bias.zero_()
    assert mlp(torch.tensor([[3.0, 4.0]])).tolist() == [[11.0, 0.0]]


@pytest.mark.parametrize(("width", "depth"), [(0, 1), (1, 0), (-3, 2)])
def test_mlp_without_units_or_layers_is_an_error(width, depth):
    with pytest.raises(ValueError, match=f"width = {width}, depth = {depth}"):
        MLP([4], width=width, depth=depth)


def test_conv_is_the_papers_network():
    conv = PaperConv([1, 12, 11])
    block = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    assert kinds(conv) == [*block, *block, "Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    # unpadded 3x3 convolutions take 2 from each side, pooling with stride 1 takes 1: 12x11 -> 2x1
    assert sizes(conv) == [(32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (256, 128), (256, 256)]
    assert conv(torch.zeros(2, 1, 12, 11)).shape == (2, conv.features)


def test_conv_normalises_after_each_convolution_when_asked():
    conv = PaperConv([1, 11, 11], norm=True)
    assert kinds(conv)[:6] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert all(layer.bias is None for layer in conv.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("shape", [[1, 10, 28], [1, 28, 10], [28, 28], [1, 1, 28, 28], [28]])
def test_conv_on_another_kind_of_input_is_an_error(shape):
    with pytest.raises(ValueError, match=r"input_shape = .*channels, height and width, both at least 11"):
        PaperConv(shape)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_new_backbone_is_in_training_mode(kind, norm):
    backbone = BACKBONES[kind](norm)
    assert [type(module).__name__ for module in backbone.modules() if not module.training] == []
    means = [buffer for name, buffer in backbone.named_buffers() if name.endswith("running_mean")]
    assert bool(means) == norm
    assert not any(mean.any() for mean in means)


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_seed_decides_the_weights(kind):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in BACKBONES[kind](False).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
