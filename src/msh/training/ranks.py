"""Agree on values across the processes of a distributed fit."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only

T = TypeVar("T")


def from_rank_zero(module: pl.LightningModule, value: T) -> T:
    """Broadcast rank 0's value; outside a fit, or with one process, return the value itself."""
    try:
        trainer = module.trainer
    except RuntimeError:  # outside a fit
        return value
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value


def is_rank_zero() -> bool:
    """Return true in the process that writes; the environment tells, before any Trainer is made."""
    import pytorch_lightning.utilities.rank_zero  # noqa: F401  (sets the rank)

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def is_trial(trainer: pl.Trainer) -> bool:
    """Return true for a `fast_dev_run`: one batch of everything, and no files."""
    return bool(cast(Any, trainer).fast_dev_run)
