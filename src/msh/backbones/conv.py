"""Convolutional networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PaperConv(nn.Module):
    """The paper's convolutional networks.

    In each block two 3x3 convolutions, unpadded, then max-pooling 2x2; after the blocks linear layers; ReLU after each.
    The defaults: blocks of 32 and 64 channels, pooling with stride 1, two linear layers of 256.

    Args:
        input_shape: (channels, height, width), height and width large enough: at least 11 for the defaults.
        norm: batch normalisation after each convolution.
        channels: of each block, at least one block.
        linear: units of the linear layers, at least one layer.
        pool_stride: of the pooling, at least 1.
    Raises:
        ValueError: the input has another number of dimensions, or is too small, or a number is not allowed.
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
        for key, values in (("channels", channels), ("linear", linear), ("pool_stride", [pool_stride])):
            if not values or min(values) < 1:
                raise ValueError(f"{key} = {list(values)}: must be at least 1 each, and at least one number")
        least = 1
        for _ in channels:
            least = (least - 1) * pool_stride + 6
        if len(self.input_shape) != 3 or min(self.input_shape[1:]) < least:
            raise ValueError(
                f"input_shape = {list(self.input_shape)}: must be channels, height and width, both at least {least}"
            )
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
        """(batch, channels, height, width) to features (batch, last of `linear`)."""
        features: Tensor = self.layers(inputs)
        return features


class ChannelsLast(nn.Sequential):
    """Convolutional layers, all but the first on images that lie in memory with their channels last.

    On a CPU convolutions and their backward pass are faster so, and in bfloat16 most of all. The images themselves
    are taken as they are: where they have one channel, torch cannot tell the two layouts apart.

    Args:
        layers: the first one a convolution.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) to what the last layer gives."""
        for place, layer in enumerate(self):
            inputs = layer(inputs)
            if place == 0:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs


def _conv(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, bias=not norm)
    return [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
