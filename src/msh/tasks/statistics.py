"""Compute the scales of inputs in a file, a chunk at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from msh.tasks.lazy import Inputs, chunks


def mean_and_std(inputs: Inputs, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (mean, standard deviation, largest magnitude) in float64, and return them as the inputs' type.

    Args:
        inputs: (examples, ...).
        dims: dimensions over which they are computed; kept, with size 1, besides that of the examples.
    """
    count, sums, squares, largest = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for chunk in chunks(inputs):
        sums = sums + chunk.sum(dims, keepdim=True, dtype=torch.float64)
        squares = squares + chunk.double().square().sum(dims, keepdim=True)
        largest = torch.maximum(largest, chunk.abs().amax(dims, keepdim=True))
        count += chunk.numel() // sums.numel()
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean[0].to(inputs.dtype), std[0].to(inputs.dtype), largest[0].to(inputs.dtype)


def lowest_and_highest(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Compute each input's (lowest, highest) value over all examples."""
    first, *_ = chunks(inputs)
    low, high = first[0], first[0]
    for chunk in chunks(inputs):
        low, high = torch.minimum(low, chunk.amin(0)), torch.maximum(high, chunk.amax(0))
    return low, high
