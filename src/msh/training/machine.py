"""Set torch's CPU threads and its treatment of subnormal numbers, for the whole process."""

from __future__ import annotations

import torch

from msh.training.config import RunConfig


def set_up_torch(config: RunConfig) -> None:
    """Apply `flush_denormal` and `threads` of a run's config.

    Call it before any tensor work: torch's threads inherit this setting from the thread that starts them.

    Args:
        config: the run's.
    """
    torch.set_flush_denormal(config.flush_denormal)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
