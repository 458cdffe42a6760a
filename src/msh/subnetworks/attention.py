"""Compute torch's attention from its parts: with some of the heads, or with projections in blocks."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from msh.subnetworks.sparse import SparseForm, costs_less, sparse_linear


class AttentionInParts(nn.MultiheadAttention):
    """Self- or cross-attention without its weights, whose projections subclasses compute.

    Attributes:
        heads: int64 (heads,), indices of its heads among all; or all.
    """

    heads: Tensor | slice = slice(None)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`, which computes what a subclass leaves to it.

        Raises:
            ValueError: see `computes`.
        """
        if not self.computes(query, key, value, need_weights):
            whole, others = (query, key, value, key_padding_mask), (attn_mask, average_attn_weights, is_causal)
            return super().forward(*whole, need_weights, *others)
        batched, inputs = query.dim() == 3, [query, key, value]
        if not batched:
            inputs = [each.unsqueeze(0) for each in inputs]
        elif not self.batch_first:
            inputs = [each.transpose(0, 1) for each in inputs]
        number = self.num_heads if isinstance(self.heads, slice) else len(self.heads)
        alike = query is key and key is value
        projected = self.projected_alike(inputs[0]) if alike else self.projected(*inputs)
        queries, keys, values = (each.unflatten(-1, (number, -1)).transpose(1, 2) for each in projected)
        causal = is_causal and key_padding_mask is None  # the mask is the causal one then
        mask = None if causal else self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(queries, keys, values, mask, dropout, causal)
        outputs = self.out_proj(attended.transpose(1, 2).flatten(2))  # (batch, tokens, width)
        if not batched:
            return outputs.squeeze(0), None
        return outputs if self.batch_first else outputs.transpose(0, 1), None

    def computes(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> bool:
        """Tell whether this class computes these inputs from its parts.

        Raises:
            ValueError: no class can.
        """
        raise NotImplementedError

    def projected(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Project queries, keys and values: each (batch, tokens, width) to (batch, tokens, heads x size)."""
        assert self.in_proj_weight is not None
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        parts = zip(inputs, self.in_proj_weight.chunk(3), biases, strict=True)
        return tuple(functional.linear(each, weight, bias) for each, weight, bias in parts)

    def projected_alike(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Project one input to queries, keys and values."""
        return self.projected(inputs, inputs, inputs)

    def _mask(self, among: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """Add up the masks, as numbers that are added to the attention: (batch, heads or 1, tokens, keys)."""
        total: Tensor | None = None
        if among is not None:  # (tokens, keys), or (batch x all heads, tokens, keys)
            parts = among.view(-1, self.num_heads, *among.shape[1:])[:, self.heads] if among.dim() == 3 else among
            total = _added(parts, like)
        if padding is not None:  # (batch, keys)
            padded = _added(padding.view(-1, 1, 1, padding.shape[-1]), like)
            total = padded if total is None else total + padded
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask that is True where nothing is attended to into numbers to add."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf)


class FewHeads(AttentionInParts):
    """Attention with some of the heads: its tensors are theirs alone, and it has no attention weights of others."""

    def computes(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> bool:
        """Return True, unless attention weights are needed, which is an error."""
        if need_weights:
            raise ValueError("a task of whole units has no attention weights of all heads: pass need_weights=False")
        return True


class TrainedAttention(AttentionInParts):
    """Attention in training whose joint projection comes from a task's values, as a `TrainedLinear`'s weight does.

    Attributes:
        form: of the joint projection, or the dense tensor.
    """

    form = cast(Any, None)

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """(3 x width, width), made on first use."""
        assert self.form is not None
        return self.form.dense() if isinstance(self.form, SparseForm) else self.form

    def computes(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> bool:
        """Return True for self-attention without more keys or attention weights, where the form costs less."""
        more = need_weights or self.add_zero_attn or self.bias_k is not None
        return query is key and key is value and not more and costs_less(self.form, query)

    def projected_alike(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Project one input with the form."""
        return sparse_linear(inputs, self.form.sparse(), self.form.pattern, self.in_proj_bias).chunk(3, -1)
