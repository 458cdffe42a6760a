"""Settings of torch that hold for a whole process: CPU threads, and how it treats subnormal numbers."""

from __future__ import annotations

import torch

from msh.training.config import RunConfig


def set_up_torch(config: RunConfig) -> None:
    """Apply `flush_denormal` and `threads` of a run's config.

    Call it before any tensor work: torch's threads take over how the thread that starts them treats subnormal numbers.

    Args:
        config: of a run.
    """
    torch.set_flush_denormal(config.flush_denormal)
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def flushes_denormal() -> bool:
    """Test whether this thread computes 0 where a result is subnormal: below 2**-126 in float32."""
    smallest = torch.tensor([2.0**-126])
    return float((smallest * torch.tensor([0.5])).view(torch.int32)) == 0
