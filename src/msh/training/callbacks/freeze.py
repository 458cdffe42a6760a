"""Freezing: what a stage has learned becomes nobody's parameter."""

from __future__ import annotations

import pytorch_lightning as pl

from msh.training.module import SubnetworkModule
from msh.training.ranks import from_rank_zero


class Freeze(pl.Callback):
    """Freeze the tasks of the fit when it ends."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the tasks' weights into the dense tensors; after this no optimizer can find them."""
        assert isinstance(pl_module, SubnetworkModule)
        for task in pl_module.learning:
            sub = pl_module.network.subnetwork(task)
            sub.load_state_dict(from_rank_zero(pl_module, sub.state_dict()))  # running statistics differ over ranks
            pl_module.network.freeze(task)
