"""Fully connected networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from msh.errors import Problems, at_least


class MLP(nn.Module):
    """Linear layers with one width, each followed by ReLU.

    Args:
        input_shape: shape of one example; flattened.
        width: units per hidden layer.
        depth: number of hidden layers.
        norm: batch normalisation between each linear layer and its ReLU.
    Raises:
        ValueError: width or depth is < 1.

    The default is the paper's network: Renn et al. 2022, experiment 1. Weights are initialized as in torch.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 1000, depth: int = 6, norm: bool = False) -> None:
        super().__init__()
        with Problems() as problems:
            problems.check(at_least, "width", 1, width)
            problems.check(at_least, "depth", 1, depth)
        self.input_shape = tuple(input_shape)
        self.features = width
        sizes = [math.prod(self.input_shape), *[width] * depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, *input_shape) to features (batch, width)."""
        features: Tensor = self.layers(inputs)
        return features
