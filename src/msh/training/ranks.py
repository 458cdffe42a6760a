"""What every process of a distributed fit must agree on."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only

T = TypeVar("T")


def from_rank_zero(module: pl.LightningModule, value: T) -> T:
    """The value that rank 0 has; the value itself outside a fit, or in a single process."""
    try:
        trainer = module.trainer
    except RuntimeError:  # outside a fit
        return value
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value


def is_rank_zero() -> bool:
    """Whether this process is the one that writes; known from the environment before any Trainer is made."""
    import pytorch_lightning.utilities.rank_zero  # noqa: F401  (sets the rank)

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is a `fast_dev_run`: one batch of everything, which leaves nothing behind."""
    return bool(cast(Any, trainer).fast_dev_run)
