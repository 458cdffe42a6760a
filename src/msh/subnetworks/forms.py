"""The form in which a task computes with each weight: dense, masked, scattered or sparse."""

from __future__ import annotations

import torch
from torch import Tensor

from msh.subnetworks.sparse import Pattern, SparseWeight, may_be_sparse, taken_values
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tensors import mask_bits, masked_weight, restore, scattered_weight


def prepare(sub: Subnetwork, name: str, held: Tensor, base: Tensor) -> None:
    """Work out what a masked or compact task computes a tensor with, until what it holds changes.

    Args:
        sub: masked or compact.
        name: of the tensor.
        held: bool, (*shape): its candidates, or the weights it owns.
        base: (*shape) or (), what it reads of other tasks there.
    """
    sub.base.set(name, base, persistent=False)
    if sub.phase == "masked":
        if bool(held.all()):
            sub.whole.add(name)
            return
        sub.bits.set(name, mask_bits(held, sub.values[name]), persistent=False)
        restore(sub.values[name], sub.bits[name], base)  # what is looked at before the next forward is right too
    else:
        sub.index.set(name, places(held), persistent=False)
    if base.dim() == 0 and may_be_sparse(held.shape, sub.values[name], int(held.sum())):
        index = sub.index[name] if name in sub.index else places(held)
        sub.patterns[name] = Pattern(index, held.shape)


def places(held: Tensor) -> Tensor:
    """Int64, (k,): flat places where a bool tensor is True, rising."""
    return held.reshape(-1).nonzero().squeeze(1)


def training_weight(sub: Subnetwork, name: str, like: Tensor) -> Tensor:
    """What a masked or compact task computes with; its gradient reaches only the task's own weights.

    Args:
        sub: masked or compact.
        name: of the tensor.
        like: (*shape), the network's dense tensor, for its shape, type and device.
    Returns:
        (*shape).
    """
    values = sub.values[name]
    if name in sub.whole:
        return values
    if torch.compiler.is_compiling():
        return _traceable(sub, name, like)
    if sub.phase == "masked":
        restore(values, sub.bits[name], sub.base[name])
    pattern = sub.patterns.get(name)
    if pattern is None:
        return _dense(sub, name, like)
    return SparseWeight.of(like, pattern, lambda: _values(sub, name, pattern), lambda: _dense(sub, name, like))


def _values(sub: Subnetwork, name: str, pattern: Pattern) -> Tensor:
    return sub.values[name] if sub.phase == "compact" else taken_values(sub.values[name], pattern.index)


def _dense(sub: Subnetwork, name: str, like: Tensor) -> Tensor:
    values = sub.values[name]
    if sub.phase == "masked":
        return masked_weight(values, sub.bits[name])
    if name not in sub.dense:
        with torch.inference_mode(False):  # it outlives an inference pass
            buffer = sub.base[name].expand(like.shape).clone(memory_format=torch.contiguous_format)
        sub.dense.set(name, buffer, persistent=False)
    unchanged = sub.written.get(name) == values._version
    weight = scattered_weight(values, sub.dense[name], sub.index[name], unchanged)
    sub.written[name] = values._version
    return weight


def _traceable(sub: Subnetwork, name: str, like: Tensor) -> Tensor:
    """What `_dense` gives, by operations that torch.compile can follow and fuse."""
    if sub.phase == "masked":
        return torch.where(sub.masks[name], sub.values[name], sub.base[name])
    start = sub.base[name].expand(like.shape).reshape(-1)
    return start.index_copy(0, sub.index[name], sub.values[name].to(start.dtype)).view(like.shape)


def frozen_weight(weight: Tensor, readable: Tensor) -> Tensor:
    """What a frozen task computes with: 0 where it neither owns nor reads.

    Args:
        weight: (*shape), the network's dense tensor.
        readable: bool, (*shape).
    Returns:
        (*shape).
    """
    return torch.where(readable, weight, weight.new_zeros(()))


def shown_weight(weight: Tensor, readable: Tensor, reads: bool) -> Tensor:
    """`frozen_weight`, in the form in which the task has been trained: sparse where it may be and reads no other."""
    if reads or not may_be_sparse(weight.shape, weight, int(readable.sum())):
        return frozen_weight(weight, readable)
    pattern = Pattern(places(readable), weight.shape)
    values = weight.take(pattern.index)
    return SparseWeight.of(weight, pattern, lambda: values, lambda: frozen_weight(weight, readable))
