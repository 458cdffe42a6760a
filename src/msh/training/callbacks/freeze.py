"""Freeze a stage's subnetworks when its last fit ends."""

from __future__ import annotations

import pytorch_lightning as pl

from msh.training.module import SubnetworkModule, TaskModule
from msh.training.ranks import from_rank_zero


class TakeFromRankZero(pl.Callback):
    """End a fit with rank 0's tensors on every rank: running statistics differ between ranks."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load rank 0's tensors."""
        assert isinstance(pl_module, TaskModule)
        for part in pl_module.groups().values():
            part.load_state_dict(from_rank_zero(pl_module, part.state_dict()))


class Freeze(TakeFromRankZero):
    """Freeze a fit's tasks when it ends: their parameters become buffers."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the tasks' weights into the dense tensors, where no optimizer finds them."""
        super().on_fit_end(trainer, pl_module)
        assert isinstance(pl_module, SubnetworkModule)
        for task in pl_module.context.tasks:
            pl_module.network.freeze(task)
