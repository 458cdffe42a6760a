"""Agree on values across the processes of a distributed run."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_only

T = TypeVar("T")


def from_rank_zero(module: pl.LightningModule, value: T) -> T:
    """Broadcast rank 0's value; outside a fit, or with one process, return the value itself."""
    try:
        trainer = module.trainer
    except RuntimeError:  # outside a fit
        return value
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value


def are_connected() -> bool:
    """Return true if this is one of several processes that can exchange values."""
    return dist.is_available() and dist.is_initialized()


@cache
def leave_at_exit() -> None:
    """Leave the group of processes when this one ends, if it is in one.

    Lightning does so for NCCL alone. The threads of gloo's group would outlive the interpreter, and sometimes abort the
    process at its end, after a run that has succeeded.
    """
    atexit.register(lambda: dist.destroy_process_group() if are_connected() else None)


def agree(decide: Callable[[], T]) -> T:
    """Let rank 0 decide for all connected processes; an unconnected process decides for itself.

    Args:
        decide: called on rank 0 alone; its result is pickled.
    Raises:
        Exception: that `decide` raises, on every rank.
    """
    if not are_connected():
        return decide()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def is_rank_zero() -> bool:
    """Return true in the process that writes; the environment tells, before any Trainer is made."""
    import pytorch_lightning.utilities.rank_zero  # noqa: F401  (sets the rank)

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def is_trial(trainer: pl.Trainer) -> bool:
    """Return true for a `fast_dev_run`: one batch of everything, and no files."""
    return bool(cast(Any, trainer).fast_dev_run)
