"""Convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PaperConv(nn.Module):
    """The paper's convolutional network.

    Two 3x3 convolutions of 32 channels, max-pooling 2x2 with stride 1, two of 64 channels, the same pooling, two
    linear layers of 256; ReLU after each. The convolutions are unpadded.

    Args:
        input_shape: (channels, height, width), height and width at least 11.
        norm: batch normalisation after each convolution.
    Raises:
        ValueError: the input has another number of dimensions, or is too small.
    Source: Renn et al. 2022, experiment 2.
    """

    def __init__(self, input_shape: Sequence[int], norm: bool = False) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        if len(self.input_shape) != 3 or min(self.input_shape[1:]) < 11:
            raise ValueError(
                f"input_shape = {list(self.input_shape)}: must be channels, height and width, both at least 11"
            )
        self.features = 256
        channels = self.input_shape[0]
        layers: list[nn.Module] = []
        for width in (32, 64):
            layers += [*_conv(channels, width, norm), *_conv(width, width, norm), nn.MaxPool2d(2, stride=1)]
            channels = width
        layers.append(nn.Flatten())
        with torch.no_grad():
            flat = nn.Sequential(*layers).eval()(torch.zeros(1, *self.input_shape)).shape[1]
        layers += [nn.Linear(flat, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        self.layers = nn.Sequential(*layers).train()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) to features (batch, 256)."""
        features: Tensor = self.layers(inputs)
        return features


def _conv(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, bias=not norm)
    return [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU()]
