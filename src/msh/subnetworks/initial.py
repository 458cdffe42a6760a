"""Compute the values that a task's weights start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msh.subnetworks.allocation import FREE
from msh.subnetworks.tensors import widened


def start_values(
    start: Tensor, mask: Tensor, base: Tensor, initial_norm: Tensor, chooses: bool, norm: float | None = None
) -> Tensor:
    """Initialize a tensor of a task: its own values at the mask, the weights it reads elsewhere.

    Args:
        start: (*shape), values to start from, of any scale.
        mask: bool, (*shape): the task's candidates.
        base: (*shape), the other tasks' weights that it reads, else 0.
        initial_norm: (), Euclidean norm of the tensor when the backbone was wrapped.
        chooses: True if the task selects the weights it reads: its own weights then take their share of the norm.
            Otherwise own and read weights together have the initial norm.
        norm: Euclidean norm of its own values, if planned.
    Returns:
        (*shape).
    """
    if norm is None:
        always = None if chooses else base
        start = start * _start_scale(start.masked_select(mask), always, initial_norm, start.numel())
    values = torch.where(mask, start, base)
    if norm is not None:
        rescale_to(values, mask, torch.tensor(norm))
    return values


def _start_scale(candidates: Tensor, base: Tensor | None, initial_norm: Tensor, size: int) -> float:
    norm = float(widened(candidates).norm())
    if norm == 0.0 or not math.isfinite(norm):
        return 1.0
    target, read = float(initial_norm), math.inf if base is None else float(widened(base).norm())
    share = candidates.numel() / size
    return math.sqrt(max(target**2 - read**2, share * target**2)) / norm


def fresh_values(like: Tensor, initial_norm: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniform values around 0 with the norm that the tensor had when the backbone was wrapped.

    Args:
        like: (*shape), the tensor.
        initial_norm: (), that Euclidean norm.
        generator: on the CPU.
    Returns:
        (*shape), with the tensor's type and device.
    """
    bound = math.sqrt(3.0 / like.numel()) * float(initial_norm)
    drawn = widened(torch.empty(like.shape, dtype=like.dtype))  # on the CPU
    return drawn.uniform_(-bound, bound, generator=generator).to(like)


def give_back(weight: Tensor, owners: Tensor, owner: int, initial_norm: Tensor, index: int) -> None:
    """Free an owner's weights, in place, and overwrite them with `fresh_values` seeded by owner and index.

    Args:
        weight: (*shape), the dense tensor.
        owners: (*shape), its owner ids.
        owner: the id whose weights become free.
        initial_norm: (), Euclidean norm of the tensor when the backbone was wrapped.
        index: of the tensor among the prunable ones.
    """
    mask = owners == owner
    generator = torch.Generator().manual_seed(owner * 1_000_003 + index)
    weight[mask] = fresh_values(weight, initial_norm, generator)[mask]
    owners[mask] = FREE


def norm_of(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the Euclidean norm, (), of the values where mask."""
    norm: Tensor = widened(values.masked_select(mask)).norm()
    return norm


def rescale_to(values: Tensor, mask: Tensor, norm: Tensor) -> None:
    """Scale the values where mask, in place, to the Euclidean norm `norm`; zeros stay."""
    now = norm_of(values, mask)
    if now > 0:
        values.copy_(torch.where(mask, values * (norm / now).to(values), values))
