"""Learning-rate schedulers whose length is that of the fit; settings of optimizers and schedulers, tried early."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from msh.training.config import RunConfig

SchedulerFactory = Callable[..., LRScheduler]

LENGTHS = ("total_steps", "T_max", "total_iters")
"""What torch's schedulers call the number of steps."""
TRIED_STEPS = 1000
"""Length of a fit with which settings are tried."""


def build_scheduler(factory: SchedulerFactory, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build a scheduler for a fit.

    Args:
        factory: a scheduler class, or a partial of one; its length is filled in where it has one and it is not set.
        optimizer: whose rate it schedules.
        steps: optimizer steps of the fit.
    """
    accepted = inspect.signature(getattr(factory, "func", factory)).parameters
    given = getattr(factory, "keywords", {})
    lengths = {name: max(1, steps) for name in LENGTHS if name in accepted and name not in given}
    return factory(optimizer, **lengths)


def check_optimizer(config: RunConfig) -> None:
    """Build a run's optimizer and schedulers for a parameter that nothing else has, to see that they can be built.

    Raises:
        ValueError: naming the block of settings, what it says, and what its class has against it.
    """
    blocks = {"optimizer": config.optimizer, "scheduler": config.scheduler, "prune_scheduler": config.prune_scheduler}
    for key, block in blocks.items():
        if not block:
            continue
        try:
            optimizer = instantiate(config.optimizer)([{"params": [nn.Parameter(torch.zeros(1))]}])
            if key != "optimizer":
                build_scheduler(instantiate(block), optimizer, TRIED_STEPS)
            rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
            if any(not 0.0 <= rate < math.inf for rate in rates):
                raise ValueError(f"it begins with a learning rate of {rates[0]:g}")
        except (TypeError, ValueError, ArithmeticError) as error:
            given = {name: value for name, value in block.items() if name != "_partial_"}
            raise ValueError(f"{key} cannot be built from {given}: {error}") from error
