"""Convolutional networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msh.errors import Problems, at_least, invalid


class PaperConv(nn.Module):
    """The paper's convolutional networks.

    Each block has two unpadded 3x3 convolutions, then 2x2 max-pooling; linear layers follow the blocks; ReLU after each
    layer. The defaults: blocks with 32 and 64 channels, pooling with stride 1, two linear layers with 256 units.

    Args:
        input_shape: (channels, height, width); the smallest height and width depend on the blocks: 11 by default.
        norm: batch normalisation after each convolution.
        channels: per block, at least one block.
        linear: units per linear layer, at least one layer.
        pool_stride: stride in pooling, >= 1.
    Raises:
        ValueError: the input is too small or has other dimensions, or a number is invalid.
    Source: Renn et al. 2022, experiments 2 and (channels 16, 32, 64, linear 128, 128, 128, stride 2) 9.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        norm: bool = False,
        channels: Sequence[int] = (32, 64),
        linear: Sequence[int] = (256, 256),
        pool_stride: int = 1,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        with Problems() as problems:
            for key, sizes in (("channels", channels), ("linear", linear)):
                if not sizes or min(sizes) < 1:
                    problems.add(invalid(key, "a list of numbers >= 1, not empty", list(sizes)))
            problems.check(at_least, "pool_stride", 1, pool_stride)
        least = 1  # height and width that a block needs: its pooling gives 1, then what the next block needs
        for _ in channels:
            least = (least - 1) * pool_stride + 6
        if len(self.input_shape) != 3 or min(self.input_shape[1:]) < least:
            bound = f"[channels, height, width], height and width >= {least}"
            raise invalid("input_shape", bound, list(self.input_shape))
        self.features = linear[-1]
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise([self.input_shape[0], *channels]):
            layers += [*_conv(before, width, norm), *_conv(width, width, norm), nn.MaxPool2d(2, stride=pool_stride)]
        layers.append(nn.Flatten())
        with torch.no_grad():
            flat = nn.Sequential(*layers).eval()(torch.zeros(1, *self.input_shape)).shape[1]
        for before, width in itertools.pairwise([flat, *linear]):
            layers += [nn.Linear(before, width), nn.ReLU()]
        self.layers = ChannelsLast(*layers).train()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to features (batch, last of `linear`)."""
        features: Tensor = self.layers(inputs)
        return features


class ChannelsLast(nn.Sequential):
    """Convolutional layers; all but the first compute in the channels-last memory format.

    On a CPU this speeds up convolutions and their backward pass, most of all in bfloat16. The input keeps its format:
    with one channel, torch cannot tell the two formats apart.

    Args:
        layers: the first is a convolution.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the last layer's outputs."""
        for number, layer in enumerate(self):
            inputs = layer(inputs)
            if number == 0:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs


def _conv(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, bias=not norm)
    return [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
