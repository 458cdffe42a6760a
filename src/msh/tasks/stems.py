"""Stems that a task can choose: from its input to the backbone's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def linear(inputs: int, output_shape: Sequence[int]) -> nn.Sequential:
    """Flatten (batch, ...) of so many inputs, and lead them linearly to (batch, *output_shape) at the same scale."""
    layer = nn.Linear(inputs, math.prod(output_shape))
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, torch.Size(output_shape)))


class TokenStem(nn.Module):
    """A vector for each token, all of a text's flattened, and a linear layer to the backbone's input.

    Args:
        input_shape: (tokens per text,).
        output_shape: the backbone's input shape.
        vocabulary: number of token ids.
        width: of a token's vector.
    Raises:
        ValueError: the width is below 1.
    Source: Renn et al. 2022, experiment 4 (IMDB: 10,000 words, length 128, width 2).
    """

    def __init__(
        self, input_shape: Sequence[int], output_shape: Sequence[int], vocabulary: int, width: int = 2
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"stem.width = {width} is not allowed: at least 1 is")
        self.embedding = nn.Embedding(vocabulary, width)
        self.linear = linear(math.prod(input_shape) * width, output_shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens), int64, to (batch, *output_shape)."""
        outputs: Tensor = self.linear(self.embedding(tokens))
        return outputs
