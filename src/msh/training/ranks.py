"""What every process of a distributed fit must agree on."""

from __future__ import annotations

from typing import TypeVar

import pytorch_lightning as pl

T = TypeVar("T")


def from_rank_zero(module: pl.LightningModule, value: T) -> T:
    """The value that rank 0 has; the value itself outside a fit, or in a single process."""
    if module._trainer is not None and module.trainer.world_size > 1:
        found: T = module.trainer.strategy.broadcast(value)
        return found
    return value
