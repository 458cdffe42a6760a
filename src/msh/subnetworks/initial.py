"""The values a task's weights start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msh.subnetworks.allocation import FREE


def start_scale(candidates: Tensor, base: Tensor | None, initial_norm: Tensor, size: int) -> float:
    """Factor that brings a tensor's norm to the one the backbone came with, beside what is read.

    Args:
        candidates: (k,), the free values.
        base: any shape, what the task reads of other tasks' weights in this tensor; None where it chooses among them:
            then its own take their share of the norm.
        initial_norm: (), Euclidean norm of the tensor as the backbone came.
        size: number of weights of the tensor.
    """
    norm = float(candidates.float().norm())
    if norm == 0.0 or not math.isfinite(norm):
        return 1.0
    target, read = float(initial_norm), math.inf if base is None else float(base.float().norm())
    share = candidates.numel() / size
    return math.sqrt(max(target**2 - read**2, share * target**2)) / norm


def fresh_values(count: int, initial_norm: Tensor, size: int, seed: tuple[int, int]) -> Tensor:
    """Random values (count,) as large as the backbone's own were, for weights that a released task gives back.

    Args:
        count: how many.
        initial_norm: (), Euclidean norm of the tensor as the backbone came.
        size: number of weights of the tensor.
        seed: (owner id, place of the tensor); the same seed gives the same values.
    """
    bound = math.sqrt(3.0 / size) * float(initial_norm)
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    return torch.empty(count).uniform_(-bound, bound, generator=generator)


def give_back(weight: Tensor, owners: Tensor, owner: int, initial_norm: Tensor, place: int) -> None:
    """Overwrite an owner's weights with `fresh_values` and free them, in place.

    Args:
        weight: (*shape), the dense tensor.
        owners: (*shape), its owner ids.
        owner: whose weights become free.
        initial_norm: (), Euclidean norm of the tensor as the backbone came.
        place: of the tensor among the prunable ones.
    """
    mask = owners == owner
    weight[mask] = fresh_values(int(mask.sum()), initial_norm, weight.numel(), (owner, place)).to(weight)
    owners[mask] = FREE


def norm_of(values: Tensor, mask: Tensor) -> Tensor:
    """Euclidean norm, (), of the values where mask."""
    norm: Tensor = values.masked_select(mask).float().norm()
    return norm


def rescale_to(values: Tensor, mask: Tensor, norm: Tensor) -> None:
    """Multiply the values where mask, in place, so that their Euclidean norm becomes `norm`; zeros stay."""
    now = norm_of(values, mask)
    if now > 0:
        values.copy_(torch.where(mask, values * (norm / now).to(values), values))
