"""Tests of batch normalisation of few channels."""

import copy

import pytest
import torch
from torch import nn

from msh.subnetworks import narrow_norm
from msh.subnetworks.narrow_norm import NarrowBatchNorm2d


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


def images(channels=10, size=(4, 32, 32), seed=0, **options):
    """Images that are not centred, with channels last, and gradients (batch, channels, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = size
    inputs, gradient = (torch.randn(batch, channels, height, width, generator=generator) for _ in range(2))
    inputs = (inputs * 3 + 5).contiguous(memory_format=torch.channels_last)
    return inputs.requires_grad_(**options), gradient.contiguous(memory_format=torch.channels_last)


def both(channels=10, **options):
    """torch's layer and the narrow one, with the same weights."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(channels, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    narrow = copy.deepcopy(layer)
    narrow.__class__ = NarrowBatchNorm2d
    return layer, narrow


def computes_itself(narrow, inputs):
    """Whether the layer uses an operation of its own for these inputs."""
    return "_Normalise" in type(narrow(inputs).grad_fn).__name__


@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("channels", [10, 17, 41])
def test_outputs_gradients_and_statistics_are_torchs(channels, options):
    layers, results = both(channels, **options), []
    assert computes_itself(copy.deepcopy(layers[1]), images(channels)[0])
    for layer in layers:
        for batch in range(3):
            inputs, gradient = images(channels, seed=batch)
            outputs = nn.functional.elu(layer(inputs), inplace=True)
            outputs.backward(gradient)
        results.append([outputs, inputs.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    assert len(results[0]) == len(results[1]) > 1
    for of_torch, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, of_torch, rtol=1e-4, atol=1e-4)
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_gradients_are_torchs():
    penalties = []
    for layer in both():
        inputs, gradient = images()
        (first,) = torch.autograd.grad(layer(inputs), inputs, gradient, create_graph=True)
        penalties.append(torch.autograd.grad(first.square().sum(), [inputs, layer.weight]))
    for of_torch, ours in zip(*penalties, strict=True):
        torch.testing.assert_close(ours, of_torch, rtol=1e-3, atol=1e-3)


def test_a_gradient_may_lie_otherwise_in_memory():
    grads = []
    for layer in both():
        inputs, gradient = images()
        layer(inputs).backward(gradient.contiguous())
        grads.append(inputs.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_only_the_gradients_that_are_needed_are_computed():
    _, narrow = both()
    narrow.bias.requires_grad_(False)
    narrow.weight.requires_grad_(False)
    inputs, gradient = images()
    narrow(inputs).backward(gradient)
    assert inputs.grad is not None
    assert narrow.weight.grad is None
    assert narrow.bias.grad is None


@pytest.mark.parametrize(
    "inputs",
    [
        images()[0].detach().contiguous().requires_grad_(),
        images(channels=16)[0],
        images(channels=narrow_norm.MOST + 2)[0],
        images(size=(1, 8, 8))[0],
        images(size=(5, 33, 33))[0],
        images()[0].detach().double().requires_grad_(),
    ],
    ids=["channels first", "whole vectors", "many channels", "a small batch", "pixels that fill no rows", "float64"],
)
def test_torch_computes_what_it_computes_as_fast(inputs):
    layer, narrow = both(inputs.shape[1])
    layer, narrow = layer.to(inputs.dtype), narrow.to(inputs.dtype)
    assert not computes_itself(narrow, inputs)
    assert torch.equal(narrow(inputs), layer(inputs))


def test_evaluation_compilation_and_transformations_are_torchs():
    inputs, _ = images()
    layer, narrow = both(track_running_stats=False)
    assert not computes_itself(narrow.eval(), inputs)
    narrow.train()
    compiled = torch.compile(narrow, backend="eager", fullgraph=True)
    assert torch.equal(compiled(inputs), layer(inputs))
    grads = [torch.func.grad(lambda x, layer=layer: layer(x).square().sum())(inputs) for layer in (layer, narrow)]
    assert torch.equal(*grads)


def test_a_batch_of_one_pixel_per_channel_is_refused_as_by_torch():
    _, narrow = both()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        narrow(torch.zeros(1, 10, 1, 1).contiguous(memory_format=torch.channels_last))
