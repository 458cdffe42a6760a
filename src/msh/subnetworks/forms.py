"""Compute each weight in the form that suits a task: dense, masked, scattered or sparse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from msh.compat import is_transformed, version_of
from msh.subnetworks.block_products import BlockPattern, may_be_in_blocks
from msh.subnetworks.blocks import BlockSize, is_in_blocks
from msh.subnetworks.sparse import FrozenForm, Pattern, SparseForm, may_be_sparse, taken_values
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tensors import count_true, mask_bits, masked_weight, restore, scattered_weight, without_row


def prepare(
    sub: Subnetwork, name: str, held: Tensor, base: Tensor, dtype: torch.dtype, padding: int | None = None
) -> None:
    """Prepare the form of a masked or compact task's tensor, until its masks change.

    Args:
        sub: masked or compact.
        name: of the tensor.
        held: bool, (*shape): its candidates, or the weights it owns.
        base: (*shape) or (), the weights it reads from other tasks.
        dtype: type it computes in.
        padding: row of an embedding that stays 0, for which no mask is needed.
    """
    sub.base.set(name, base, persistent=False)
    if sub.phase == "masked":
        if bool(held.all()):
            sub.whole[name] = None
            return
        if padding is not None and count_true(held) == held.numel() - held[padding].numel() and not held[padding].any():
            sub.whole[name] = padding
            return
        sub.bits.set(name, mask_bits(held, sub.values[name]), persistent=False)
        restore(sub.values[name], sub.bits[name], base)  # correct before the next forward pass too
    else:
        sub.index.set(name, flat_index(held), persistent=False)
    plain = base.dim() == 0 and name not in sub.scores and sub.values[name].dtype == dtype
    if plain and (pattern := pattern_of(held, sub.values[name], sub.blocks.get(name))):
        sub.patterns[name] = pattern


def pattern_of(held: Tensor, values: Tensor, size: BlockSize | None) -> Pattern | None:
    """Find the form in which a weight costs less than as a dense one, in blocks or in CSR; None if there is none.

    Args:
        held: bool (*shape), where it is not 0.
        values: for type and device.
        size: rows and columns of its blocks, if it has any.
    """
    kept = count_true(held)
    if size is not None and may_be_in_blocks(held.shape, values, kept, size) and is_in_blocks(held, size):
        return BlockPattern(held, flat_index(held), size)
    return Pattern(flat_index(held), held.shape) if may_be_sparse(held.shape, values, kept) else None


def flat_index(held: Tensor) -> Tensor:
    """List the flat indices where a bool tensor is True, rising: int64, (k,)."""
    return held.reshape(-1).nonzero().squeeze(1)


def training_weight(sub: Subnetwork, name: str, like: Tensor) -> Tensor | SparseForm:
    """Compute a masked or compact task's weight; its gradient reaches only the task's own weights.

    Args:
        sub: masked or compact.
        name: of the tensor.
        like: (*shape), the network's dense tensor, for its shape, type and device.
    Returns:
        (*shape), or its sparse form where that may cost less.
    """
    if name in sub.exposed:
        return sub.exposed[name].to(like.dtype)
    weight = _held_weight(sub, name, like)
    if isinstance(weight, SparseForm):
        return weight
    if name in sub.scores:
        weight = weight * straight_through(sub, name)
    return weight.to(like.dtype)


def _held_weight(sub: Subnetwork, name: str, like: Tensor) -> Tensor | SparseForm:
    values = sub.values[name]
    if name in sub.whole:
        row = sub.whole[name]
        return values if row is None else without_row(values, row)
    pattern = sub.patterns.get(name)
    if torch.compiler.is_compiling() or is_transformed():
        if pattern is None or sub.phase == "masked":
            return _traceable(sub, name, like)
        return SparseForm(pattern, lambda: values, lambda: _traceable(sub, name, like))
    if sub.phase == "masked":
        restore(values, sub.bits[name], sub.base[name])
    if pattern is None:
        return _dense(sub, name, like)
    return SparseForm(pattern, lambda: _values(sub, name, pattern), lambda: _dense(sub, name, like))


def straight_through(sub: Subnetwork, name: str) -> Tensor:
    """Compute the factor of a masked task's weights: 1 where chosen, else 0, with the gradient of the scores.

    Args:
        sub: with scores; while they do not choose yet, all weights are chosen.
        name: of the tensor.
    Returns:
        (*shape).
    Source: Mallya et al. 2018, Piggyback, sec. 3; Kang et al. 2022, Winning SubNetworks, eq. 4.
    """
    scores = sub.scores[name]
    passing = scores - scores.detach()
    return passing + (sub.chosen[name] if sub.kept else 1.0)


def _values(sub: Subnetwork, name: str, pattern: Pattern) -> Tensor:
    return sub.values[name] if sub.phase == "compact" else taken_values(sub.values[name], pattern.index)


def _dense(sub: Subnetwork, name: str, like: Tensor) -> Tensor:
    values = sub.values[name]
    if sub.phase == "masked":
        return masked_weight(values, sub.bits[name])
    if name not in sub.dense:
        with torch.inference_mode(False):  # the buffer outlives an inference pass
            start = sub.base[name].to(like.dtype).expand(like.shape)
            buffer = start.clone(memory_format=torch.contiguous_format)
        sub.dense.set(name, buffer, persistent=False)
    unchanged = sub.written.get(name) == version_of(values)
    weight = scattered_weight(values, sub.dense[name], sub.index[name], unchanged)
    sub.written[name] = version_of(values)
    return weight


@contextmanager
def felt_by(sub: Subnetwork, held: Mapping[str, Tensor]) -> Iterator[None]:
    """Let gradients of a masked task's values reach all weights it holds, the read ones too, inside the context.

    Args:
        sub: masked, with what lies outside its masks restored.
        held: tensor name to bool (*shape): its candidates, its own and other tasks'.
    """
    before = {name: sub.bits[name] for name in sub.bits}
    if sub.selective:
        for name in before:
            sub.bits.set(name, mask_bits(held[name], sub.values[name]), persistent=False)
    try:
        yield
    finally:
        for name, bits in before.items():
            sub.bits.set(name, bits, persistent=False)


def _traceable(sub: Subnetwork, name: str, like: Tensor) -> Tensor:
    """Compute `_dense` by operations that torch.compile can follow and fuse."""
    if sub.phase == "masked":
        return torch.where(sub.masks[name], sub.values[name], sub.base[name])
    start = sub.base[name].expand(like.shape).reshape(-1)
    return start.index_copy(0, sub.index[name], sub.values[name].to(start.dtype)).view(like.shape)


def shown_form(
    weight: Tensor, owned: Tensor, size: BlockSize | None = None, dense: Tensor | None = None
) -> FrozenForm | None:
    """Rebuild the sparse form in which a task that reads no other was trained, where it may be sparse.

    Args:
        weight: (*shape), the network's or the task's.
        owned: bool (*shape), the frozen task's own weights.
        size: rows and columns of its blocks, if it has any.
        dense: (*shape), the weight of its layer; None: this has the values alone.
    """
    pattern = pattern_of(owned, weight, size)
    return None if pattern is None else FrozenForm(pattern, weight.take(pattern.index), dense)
