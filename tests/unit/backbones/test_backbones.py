"""Backbones: layers, shapes, values by hand, errors."""

import pytest
import torch
from torch import nn

from messages import says
from msh.backbones import MLP, PaperConv, ResNet18, Transformer
from msh.subnetworks import MultiSubnetwork, prune

BACKBONES = {
    "MLP": lambda norm: MLP([3], 4, 2, norm),
    "PaperConv": lambda norm: PaperConv([1, 11, 11], norm),
}
SEEDED = BACKBONES | {
    "ResNet18": lambda norm: ResNet18([3, 8, 8], width=2),
    "Transformer": lambda norm: Transformer([5], vocabulary=9, width=4, heads=2, hidden=6),
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


def test_mlp_can_normalise_before_relu():
    assert kinds(MLP([6], width=5, depth=1, norm=True)) == ["Flatten", "Linear", "BatchNorm1d", "ReLU"]


def test_mlp_by_hand():
    mlp = MLP([2], width=2, depth=1)
    linear = next(layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        linear.bias.zero_()
    assert mlp(torch.tensor([[3.0, 4.0]])).tolist() == [[11.0, 0.0]]


@pytest.mark.parametrize(("width", "depth"), [(0, 1), (1, 0), (-3, 2)])
def test_mlp_without_units_or_layers_is_rejected(width, depth):
    key, size = ("width", width) if width < 1 else ("depth", depth)
    with pytest.raises(ValueError, match=says(key, ">= 1", size)):
        MLP([4], width=width, depth=depth)


def test_all_bad_sizes_are_reported_together():
    with pytest.raises(ValueError, match=says("width", ">= 1", 0)) as caught:
        MLP([4], width=0, depth=0)
    caught.match(says("depth", ">= 1", 0))


def test_conv_is_the_papers_network():
    conv = PaperConv([1, 12, 11])
    block = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"]
    assert kinds(conv) == [*block, *block, "Flatten", "Linear", "ReLU", "Linear", "ReLU"]
    # unpadded 3x3 convolutions take 2 from each side, pooling with stride 1 takes 1: 12x11 -> 2x1
    assert sizes(conv) == [(32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (256, 128), (256, 256)]
    assert conv(torch.zeros(2, 1, 12, 11)).shape == (2, conv.features)


def test_conv_has_the_requested_blocks_layers_and_pooling():
    conv = PaperConv([3, 48, 48], channels=[16, 32, 64], linear=[128, 128, 128], pool_stride=2)
    blocks = [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
    # each block takes 4 from a side and then halves it: 48 -> 22 -> 9 -> 2
    assert sizes(conv) == [*blocks, (128, 256), (128, 128), (128, 128)]
    assert kinds(conv).count("MaxPool2d") == 3
    assert conv.features == 128


@pytest.mark.parametrize(("stride", "least"), [(1, 16), (2, 36), (3, 66)])
def test_the_smallest_input_of_three_blocks(stride, least):
    settings = {"channels": [2, 2, 2], "linear": [4], "pool_stride": stride}
    assert PaperConv([1, least, least], **settings)(torch.zeros(2, 1, least, least)).shape == (2, 4)
    bound = f"[channels, height, width], height and width >= {least}"
    with pytest.raises(ValueError, match=says("input_shape", bound, [1, least - 1, least])):
        PaperConv([1, least - 1, least], **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, says("channels", value=[])),
        ({"channels": [4, 0]}, says("channels", value=[4, 0])),
        ({"linear": []}, says("linear", value=[])),
        ({"linear": [-1]}, says("linear", value=[-1])),
        ({"pool_stride": 0}, says("pool_stride", ">= 1", 0)),
    ],
)
def test_conv_without_channels_units_or_stride_is_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        PaperConv([1, 28, 28], **settings)


def test_conv_can_normalise_after_each_convolution():
    conv = PaperConv([1, 11, 11], norm=True)
    assert kinds(conv)[:6] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert all(layer.bias is None for layer in conv.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("shape", [[1, 10, 28], [1, 28, 10], [28, 28], [1, 1, 28, 28], [28]])
def test_conv_rejects_other_inputs(shape):
    with pytest.raises(
        ValueError, match=says("input_shape", "[channels, height, width], height and width >= 11", shape)
    ):
        PaperConv(shape)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_new_backbone_is_in_training_mode(kind, norm):
    backbone = BACKBONES[kind](norm)
    assert [type(module).__name__ for module in backbone.modules() if not module.training] == []
    means = [buffer for name, buffer in backbone.named_buffers() if name.endswith("running_mean")]
    assert bool(means) == norm
    assert not any(mean.any() for mean in means)


@pytest.mark.parametrize("kind", SEEDED)
def test_the_seed_decides_the_weights(kind):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([p.detach().flatten() for p in SEEDED[kind](False).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def make_input(kind, batch=6):
    generator = torch.Generator().manual_seed(3)
    if kind == "Transformer":
        return torch.randint(0, 9, (batch, 5), generator=generator)
    shape = SEEDED[kind](False).input_shape
    return torch.randn(batch, *shape, generator=generator)


@pytest.mark.parametrize("kind", SEEDED)
def test_features_have_the_promised_size(kind):
    backbone = SEEDED[kind](False)
    assert backbone(make_input(kind)).shape == (6, backbone.features)


@pytest.mark.parametrize("kind", SEEDED)
def test_a_frozen_task_keeps_its_bits_while_another_trains(kind):
    torch.manual_seed(0)
    network = MultiSubnetwork(SEEDED[kind](True))
    inputs, outputs = make_input(kind), {}
    for task in ("one", "two"):
        network.add_task(task, head=nn.Linear(network.backbone.features, 2))
        network.begin(task)
        prune(network, task, {name: size // 3 for name, size in network.sizes().items()})
        network.compact(task)
        before = {name: tensor.detach().clone() for name, tensor in network.subnetwork(task).values.items()}
        optimizer = torch.optim.SGD(network.subnetwork(task).parameters(), lr=0.001, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            network(inputs, task).square().sum().backward()
            optimizer.step()
        assert any(not tensor.equal(before[name]) for name, tensor in network.subnetwork(task).values.items())
        network.freeze(task)
        outputs[task] = network(inputs, task)
    assert outputs["one"].isfinite().all()
    with torch.no_grad():
        assert torch.equal(network(inputs, "one"), outputs["one"])
    assert torch.equal(network(inputs, "one"), outputs["one"])
    assert not torch.equal(outputs["one"], outputs["two"])


# ---- ResNet-18


def test_resnet_is_resnet_18_for_small_images():
    resnet = ResNet18([3, 32, 32])
    assert (
        sum(p.numel() for p in resnet.parameters()) == 11_168_832
    )  # torchvision's 11,689,512, its stem and head changed
    assert resnet.features == 512
    first = next(module for module in resnet.modules() if isinstance(module, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert "MaxPool2d" not in kinds(resnet)
    assert kinds(resnet).count("Conv2d") == 20


def test_resnet_halves_the_image_three_times():
    resnet = ResNet18([1, 16, 24], width=2)
    seen = []
    resnet.layers[-2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    resnet(torch.zeros(2, 1, 16, 24))
    assert seen == [(2, 16, 2, 3)]


@pytest.mark.parametrize(
    ("shape", "width", "message"),
    [([28, 28], 4, says("input_shape", value=[28, 28])), ([1, 8, 8], 0, says("width", ">= 1", 0))],
)
def test_resnet_rejects_bad_inputs_and_widths(shape, width, message):
    with pytest.raises(ValueError, match=message):
        ResNet18(shape, width=width)


# ---- transformer


def small_transformer(**settings):
    torch.manual_seed(0)
    return Transformer([5], **({"vocabulary": 9, "width": 8, "heads": 2, "hidden": 6} | settings))


def test_transformer_is_the_papers_block_by_default():
    transformer = Transformer([512])
    assert sizes(transformer) == [(30_000, 512), (512, 512), (1536, 512), (512, 512), (1028, 512), (512, 1028)]
    assert transformer.features == 512
    assert {module.p for module in transformer.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert transformer.blocks[0].heads == 8


def test_a_block_computes_the_same_as_torchs_encoder_layer():
    block = small_transformer(dropout=0.0).blocks[0]
    layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
    pairs = {
        "self_attn.in_proj_weight": block.project.weight,
        "self_attn.in_proj_bias": block.project.bias,
        "self_attn.out_proj.weight": block.attended.weight,
        "self_attn.out_proj.bias": block.attended.bias,
        "linear1.weight": block.feed_forward[0].weight,
        "linear1.bias": block.feed_forward[0].bias,
        "linear2.weight": block.feed_forward[2].weight,
        "linear2.bias": block.feed_forward[2].bias,
    }
    for number, norm in enumerate(block.norms, 1):
        pairs |= {f"norm{number}.weight": norm.weight, f"norm{number}.bias": norm.bias}
    layer.load_state_dict(pairs)
    inputs, seen = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    expected = layer(inputs, src_key_padding_mask=~seen)
    torch.testing.assert_close(block(inputs, seen)[seen], expected[seen])


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_padding_does_not_affect_the_features(pooling):
    transformer = small_transformer(pooling=pooling).eval()
    one, more = torch.tensor([[3, 4, 0, 0, 0]]), torch.tensor([[3, 4, 0, 0, 5]])
    features = transformer(one)
    with torch.no_grad():
        transformer.tokens.weight[0] += 7
    torch.testing.assert_close(transformer(one), features)
    assert not torch.allclose(transformer(more), features)
    assert transformer(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()


def test_the_order_of_words_matters():
    transformer = small_transformer().eval()
    assert not torch.allclose(
        transformer(torch.tensor([[3, 4, 0, 0, 0]])), transformer(torch.tensor([[4, 3, 0, 0, 0]]))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, says("width", "a multiple of heads = 3", 8)),
        ({"heads": 0}, says("heads", ">= 1", 0)),
        ({"depth": 0}, says("depth", ">= 1", 0)),
        ({"pooling": "sum"}, says("pooling", "one of mean, max, tokens", "sum")),
    ],
)
def test_a_transformer_rejects_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        small_transformer(**settings)


def test_a_transformer_takes_only_tokens():
    with pytest.raises(ValueError, match=says("input_shape", value=[1, 28, 28])):
        Transformer([1, 28, 28])
