"""Learning-rate schedulers whose length is that of the fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

SchedulerFactory = Callable[..., LRScheduler]

LENGTHS = ("total_steps", "T_max", "total_iters")
"""What torch's schedulers call the number of steps."""


def build_scheduler(factory: SchedulerFactory, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build a scheduler for a fit.

    Args:
        factory: a scheduler class, or a partial of one; its length is filled in where it has one and it is not set.
        optimizer: whose rate it schedules.
        steps: optimizer steps of the fit.
    """
    accepted = inspect.signature(factory).parameters
    given = getattr(factory, "keywords", {})
    lengths = {name: max(1, steps) for name in LENGTHS if name in accepted and name not in given}
    return factory(optimizer, **lengths)
