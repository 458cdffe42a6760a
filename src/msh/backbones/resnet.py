"""Residual networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from msh.backbones.conv import ChannelsLast
from msh.errors import Problems, at_least, invalid


class ResNet18(nn.Module):
    """ResNet-18 for small images: the first convolution is 3x3 with stride 1, and no pooling follows it.

    Args:
        input_shape: (channels, height, width).
        width: channels in the first stage; the later ones have 2, 4 and 8 times as many.
    Raises:
        ValueError: the input has another number of dimensions, or the width is < 1.
    Source: He et al. 2016, arXiv 1512.03385, in the form usual for CIFAR.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        with Problems() as problems:
            problems.check(at_least, "width", 1, width)
            if len(self.input_shape) != 3:
                problems.add(invalid("input_shape", "[channels, height, width]", list(self.input_shape)))
        self.features = 8 * width
        layers: list[nn.Module] = [*_conv(self.input_shape[0], width, 3, 1), nn.ReLU()]
        inputs = width
        for stage in range(4):
            outputs, stride = width * 2**stage, 1 if stage == 0 else 2
            shortcut = nn.Sequential(*_conv(inputs, outputs, 1, stride)) if stage else None
            layers += [BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)]
            inputs = outputs
        self.layers = ChannelsLast(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to features (batch, 8 x width)."""
        features: Tensor = self.layers(inputs)
        return features


def _conv(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
