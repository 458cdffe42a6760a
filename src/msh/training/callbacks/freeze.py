"""Freeze a stage's subnetworks when its last fit ends: their parameters become buffers."""

from __future__ import annotations

import pytorch_lightning as pl

from msh.training.module import SubnetworkModule, TaskModule
from msh.training.ranks import from_rank_zero


class TakeFromRankZero(pl.Callback):
    """End a fit with the same tensors on every rank: running statistics differ until then."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what rank 0 has."""
        assert isinstance(pl_module, TaskModule)
        for part in pl_module.groups().values():
            part.load_state_dict(from_rank_zero(pl_module, part.state_dict()))


class Freeze(TakeFromRankZero):
    """Freeze the tasks of the fit when it ends."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the tasks' weights into the dense tensors; after this no optimizer can find them."""
        super().on_fit_end(trainer, pl_module)
        assert isinstance(pl_module, SubnetworkModule)
        for task in pl_module.context.tasks:
            pl_module.network.freeze(task)
