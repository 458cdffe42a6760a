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
    near = inputs[:1].mean(dims, keepdim=True)  # values near 0 keep their digits when squared
    count, sums, squares, largest = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for chunk in chunks(inputs):
        centred = chunk - near
        sums = sums + centred.sum(dims, keepdim=True, dtype=torch.float64)
        squares = squares + centred.square().sum(dims, keepdim=True, dtype=torch.float64)
        largest = torch.maximum(largest, chunk.abs().amax(dims, keepdim=True))
        count += chunk.numel() // sums.numel()
    offset = sums / count
    std = (squares / count - offset.square()).clamp(min=0).sqrt()
    return (near + offset)[0].to(inputs.dtype), std[0].to(inputs.dtype), largest[0].to(inputs.dtype)


def lowest_and_highest(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Compute each input's (lowest, highest) value over all examples."""
    low = high = inputs[:1][0]
    for chunk in chunks(inputs):
        low, high = torch.minimum(low, chunk.amin(0)), torch.maximum(high, chunk.amax(0))
    return low, high
