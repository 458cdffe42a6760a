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

from msh.draws import drawing_apart
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
    """Check that a run's optimizer and schedulers can be built and take a step, with parameters made for it.

    Args:
        config: the run's.
        leave_out: keys of blocks that are known to be wrong; schedulers need the optimizer's.
    Raises:
        ValueError: naming each block, its settings, and the problem that its class reports.
    """
    if "optimizer" in leave_out:
        return
    _try(config, "optimizer", config.optimizer)
    _check_step(config)
    with Problems() as problems:
        for key, block in (("scheduler", config.scheduler), ("prune_scheduler", config.prune_scheduler)):
            if block and key not in leave_out:
                problems.check(_try, config, key, block)


def check_groups(config: RunConfig, together: int) -> None:
    """Check that the optimizer takes a parameter group for each of the tasks that train together.

    Args:
        config: the run's, of which `check_optimizer` approves.
        together: number of tasks in the run's largest stage.
    Raises:
        ValueError: naming the optimizer.
    """
    try:
        _built(config, groups=together)
    except Exception as error:  # a class may raise any type
        bound = (
            f"an optimizer that takes several parameter groups, one for each of {together} tasks that train together"
        )
        wrong = invalid("optimizer._target_", bound, config.optimizer["_target_"])
        raise ValueError(f"{wrong}: {described(error)}; or train them one after another") from error


def _built(config: RunConfig, groups: int) -> Optimizer:
    """Build the optimizer for a tensor in each of its groups."""
    optimizer: Optimizer = instantiate(config.optimizer)(
        [{"params": [nn.Parameter(torch.zeros(2))]} for _ in range(groups)]
    )
    return optimizer


def _check_step(config: RunConfig) -> None:
    """Raise unless the optimizer can take a step as Lightning does, with dense gradients.

    One that is not torch's may need another device than the CPU: it is tried only in runs on the CPU.
    """
    target = str(config.optimizer["_target_"])
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    if not target.startswith("torch.") and has_device and config.trainer.accelerator != "cpu":
        return
    optimizer = _built(config, groups=1)
    (parameter,) = optimizer.param_groups[0]["params"]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (parameter - 1.0).square().sum()
        loss.backward()
        return loss

    try:
        with drawing_apart(), torch.enable_grad():
            optimizer.step(closure=closure)
    except Exception as error:  # a class may raise any type
        raise ValueError(f"optimizer._target_ = {target} cannot take a step: {described(error)}") from error


def _try(config: RunConfig, key: str, block: Mapping[str, Any]) -> None:
    """Build the optimizer, and the scheduler if the key is of one."""
    settings = {name: value for name, value in block.items() if name != "_partial_"}
    target = str(block.get("_target_"))
    scheduler = None
    try:
        optimizer = _built(config, groups=1)
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
