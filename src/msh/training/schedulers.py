"""Build learning-rate schedulers that are as long as their fit; try optimizer and scheduler settings early."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from msh.errors import Problems, described, invalid
from msh.training.config import RunConfig

SchedulerFactory = Callable[..., LRScheduler]

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Names of torch's schedulers for the number of steps."""
TRIED_STEPS = 1000
"""Length of the fit that settings are tried with."""


def build_scheduler(factory: SchedulerFactory, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build a scheduler for a fit.

    Args:
        factory: a scheduler class, or a partial of one; its length is filled in unless it is set.
        optimizer: the one to schedule.
        steps: optimizer steps in the fit.
    """
    accepted = inspect.signature(getattr(factory, "func", factory)).parameters
    preset = getattr(factory, "keywords", {})
    lengths = {name: max(1, steps) for name in LENGTHS if name in accepted and name not in preset}
    return factory(optimizer, **lengths)


def check_optimizer(config: RunConfig, leave_out: Container[str] = ()) -> None:
    """Check that a run's optimizer and schedulers can be built, with a parameter made for it.

    Args:
        config: the run's.
        leave_out: keys of blocks that are known to be wrong; schedulers need the optimizer's.
    Raises:
        ValueError: naming each block, its settings, and the problem that its class reports.
    """
    if "optimizer" in leave_out:
        return
    _try(config, "optimizer", config.optimizer)
    with Problems() as problems:
        for key, block in (("scheduler", config.scheduler), ("prune_scheduler", config.prune_scheduler)):
            if block and key not in leave_out:
                problems.check(_try, config, key, block)


def _try(config: RunConfig, key: str, block: Mapping[str, Any]) -> None:
    """Build the optimizer, and the scheduler if the key is of one."""
    settings = {name: value for name, value in block.items() if name != "_partial_"}
    target = str(block.get("_target_"))
    scheduler = None
    try:
        optimizer = instantiate(config.optimizer)([{"params": [nn.Parameter(torch.zeros(1))]}])
        if key != "optimizer":
            scheduler = build_scheduler(instantiate(block), optimizer, TRIED_STEPS)
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
    except HydraException:
        raise  # there is no such class
    except Exception as error:  # a class may raise any type
        if not target.startswith("torch."):
            raise ValueError(f"{key}._target_ = {target} cannot be built: {described(error)}") from error
        raise ValueError(f"{key} cannot be built from {settings}: {error}") from error
    if scheduler is not None and not _steps_with_batches(scheduler):
        bound = "a torch.optim.lr_scheduler.LRScheduler that needs no metric, as it steps after each batch"
        raise invalid(f"{key}._target_", f"{bound}, such as torch's CosineAnnealingLR or OneCycleLR", target)
    if any(not 0.0 <= rate < math.inf for rate in rates):
        raise ValueError(f"{key} cannot be built from {settings}: it begins with a learning rate of {rates[0]:g}")


def _steps_with_batches(scheduler: Any) -> bool:
    """Tell whether a scheduler steps without arguments, as Lightning calls it; a plateau's would need a monitor."""
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        return False
    arguments = inspect.signature(scheduler.step).parameters.values()
    return all(
        argument.default is not argument.empty or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        for argument in arguments
    )
