"""Stems: map a task's input to the backbone's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msh.errors import Problems, at_least, one_of
from msh.tasks.tokens import PADDING


def linear(inputs: int, output_shape: Sequence[int]) -> nn.Sequential:
    """Build a linear stem: (batch, ...), flattened to `inputs` numbers, to (batch, *output_shape) at the same scale."""
    layer = nn.Linear(inputs, math.prod(output_shape))
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, torch.Size(output_shape)))


class TokenStem(nn.Module):
    """Embed tokens, flatten or average each text's vectors, and map them linearly to the backbone's input.

    Padding has the vector 0 and does not count in the average. The vectors start small, as in Keras: from larger ones,
    training memorizes thousands of words before it learns their meaning.

    Args:
        input_shape: (tokens per text,).
        output_shape: the backbone's input shape.
        vocabulary: number of token ids.
        width: size of a token's vector.
        pooling: "none" (flattened: a token's position counts) or "mean".
        padding: token id that stands for no token.
    Raises:
        ValueError: the width is < 1, or the pooling is unknown.
    Source: Renn et al. 2022, experiment 4 (IMDB: 10,000 words, length 128, width 2, flattened).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        vocabulary: int,
        width: int = 2,
        pooling: str = "none",
        padding: int = PADDING,
    ) -> None:
        super().__init__()
        with Problems() as problems:
            problems.check(at_least, "stem.width", 1, width)
            problems.check(one_of, "stem.pooling", pooling, ("none", "mean"))
        self.pooling, self.padding = pooling, padding
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        with torch.no_grad():
            self.embedding.weight[padding] = 0.0
        self.linear = linear(width if pooling == "mean" else math.prod(input_shape) * width, output_shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 (batch, tokens), to (batch, *output_shape)."""
        vectors: Tensor = self.embedding(tokens)  # (batch, tokens, width)
        if self.pooling == "mean":
            count = (tokens != self.padding).sum(1, keepdim=True).clamp(min=1)  # (batch, 1)
            vectors = vectors.sum(1) / count  # (batch, width)
        outputs: Tensor = self.linear(vectors)
        return outputs
