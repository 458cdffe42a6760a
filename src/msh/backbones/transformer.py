"""Transformer encoders for token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msh.errors import Problems, at_least, invalid, one_of


class Transformer(nn.Module):
    """Token and position embeddings, encoder blocks, and the mean or maximum over the tokens.

    No token attends to padding, and pooling ignores it.

    Args:
        input_shape: (tokens per text,).
        vocabulary: number of token ids.
        width: size of a token's vector.
        heads: attention heads; they divide the width.
        hidden: units in the feed-forward layer.
        depth: number of blocks.
        dropout: probability, after each layer, in [0, 1).
        pooling: "mean" or "max"; "tokens": the features are (batch, tokens, width).
        padding: token id that stands for no token.
    Raises:
        ValueError: the input has another number of dimensions, or a setting is invalid.

    The default is the paper's network: Renn et al. 2022, experiment 8 (30,000 words, length 512).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        vocabulary: int = 30_000,
        width: int = 512,
        heads: int = 8,
        hidden: int = 1028,
        depth: int = 1,
        dropout: float = 0.1,
        pooling: str = "mean",
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        sizes = {"vocabulary": vocabulary, "width": width, "heads": heads, "hidden": hidden, "depth": depth}
        with Problems() as problems:
            if len(self.input_shape) != 1:
                problems.add(invalid("input_shape", "[number of tokens]", list(self.input_shape)))
            for key, size in sizes.items():
                problems.check(at_least, key, 1, size)
            if heads > 0 and width % heads:
                problems.add(invalid("width", f"a multiple of heads = {heads}", width))
            problems.check(one_of, "pooling", pooling, ("mean", "max", "tokens"))
            problems.check(at_least, "padding", 0, padding)
        self.vocabulary, self.features, self.pooling, self.padding = vocabulary, width, pooling, padding
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(self.input_shape[0], width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, hidden, dropout) for _ in range(depth)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 (batch, tokens) in [0, vocabulary), to features (batch, width), or one per token."""
        seen = tokens != self.padding  # (batch, tokens)
        seen[:, 0] |= ~seen.any(1)  # a text that is all padding needs something to attend to
        features: Tensor = self.dropout(self.tokens(tokens) + self.places.weight[: tokens.shape[1]])
        for block in self.blocks:
            features = block(features, seen)
        if self.pooling == "tokens":
            return features
        if self.pooling == "max":
            return features.masked_fill(~seen[..., None], -torch.inf).amax(1)
        weights = seen.to(features.dtype)[..., None]  # (batch, tokens, 1)
        return (features * weights).sum(1) / weights.sum(1)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each added to its input and normalised.

    It replaces nn.TransformerEncoderLayer, which in evaluation mode computes differently with and without gradients,
    and whose fused projections cannot use sparse weights.

    Args:
        width: size of a token's vector.
        heads: attention heads.
        hidden: units in the feed-forward layer.
        dropout: probability, after each layer and in the attention.
    Source: Vaswani et al. 2017, arXiv 1706.03762.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.attended.bias)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, seen: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape; tokens attend to those `seen`, bool (batch, tokens)."""
        features = self.norms[0](inputs + self.dropout(self._attention(inputs, seen)))
        outputs: Tensor = self.norms[1](features + self.dropout(self.feed_forward(features)))
        return outputs

    def _attention(self, inputs: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(inputs).chunk(3, -1)
        )  # (batch, heads, tokens, width / heads)
        dropout = self.dropout.p if self.training else 0.0
        values = F.scaled_dot_product_attention(query, key, value, seen[:, None, None], dropout)
        attended: Tensor = self.attended(values.transpose(1, 2).flatten(2))
        return attended
