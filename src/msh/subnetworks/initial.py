"""The values a task's weights start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msh.subnetworks.allocation import FREE
from msh.subnetworks.tensors import widened


def start_values(
    start: Tensor, mask: Tensor, base: Tensor, initial_norm: Tensor, chooses: bool, norm: float | None = None
) -> Tensor:
    """A tensor of a task that begins: its own values where mask, what it reads elsewhere.

    Args:
        start: (*shape), values to start from, of any scale.
        mask: bool, (*shape): the task's candidates.
        base: (*shape), what it reads of other tasks' weights, else 0.
        initial_norm: (), Euclidean norm of the tensor as the backbone came.
        chooses: the task chooses among what it reads: then its own weights take their share of the norm. Otherwise they
            bring the tensor's norm to the initial one, beside what is read.
        norm: Euclidean norm of its own values, where it is known already.
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
    """Random values in place of a tensor's: uniform around 0, as large as the backbone's own were.

    Args:
        like: (*shape), the tensor.
        initial_norm: (), its Euclidean norm as the backbone came.
        generator: on the CPU.
    Returns:
        (*shape), of the tensor's type and device.
    """
    bound = math.sqrt(3.0 / like.numel()) * float(initial_norm)
    drawn = widened(torch.empty(like.shape, dtype=like.dtype))  # on the CPU
    return drawn.uniform_(-bound, bound, generator=generator).to(like)


def give_back(weight: Tensor, owners: Tensor, owner: int, initial_norm: Tensor, place: int) -> None:
    """Overwrite an owner's weights with `fresh_values` and free them, in place; the same ones for owner and place.

    Args:
        weight: (*shape), the dense tensor.
        owners: (*shape), its owner ids.
        owner: whose weights become free.
        initial_norm: (), Euclidean norm of the tensor as the backbone came.
        place: of the tensor among the prunable ones.
    """
    mask = owners == owner
    generator = torch.Generator().manual_seed(owner * 1_000_003 + place)
    weight[mask] = fresh_values(weight, initial_norm, generator)[mask]
    owners[mask] = FREE


def norm_of(values: Tensor, mask: Tensor) -> Tensor:
    """Euclidean norm, (), of the values where mask."""
    norm: Tensor = widened(values.masked_select(mask)).norm()
    return norm


def rescale_to(values: Tensor, mask: Tensor, norm: Tensor) -> None:
    """Multiply the values where mask, in place, so that their Euclidean norm becomes `norm`; zeros stay."""
    now = norm_of(values, mask)
    if now > 0:
        values.copy_(torch.where(mask, values * (norm / now).to(values), values))
