"""The weights of the best epoch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from msh.training.module import SubnetworkModule


class RestoreBest(pl.Callback):
    """End a fit with each task's weights of its best epoch on the validation split, the latest among equals.

    Only the tasks' own subnetworks are kept, in memory; a parallel stage's tasks each have their own best epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: dict[str, float] = {}
        self.states: dict[str, dict[str, Tensor]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of every task that is at its best."""
        assert isinstance(pl_module, SubnetworkModule)
        if trainer.sanity_checking:
            return
        for name in pl_module.learning:
            task = pl_module.tasks[name]
            found = trainer.callback_metrics.get(f"{name}/val/{task.metric}")
            if found is None:
                continue
            score = float(found) if task.direction == "max" else -float(found)
            if name not in self.scores or score >= self.scores[name]:
                self.scores[name] = score
                self.states[name] = _copy(pl_module, name)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back."""
        assert isinstance(pl_module, SubnetworkModule)
        for name, state in self.states.items():
            pl_module.network.subnetwork(name).load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Best scores and weights so far."""
        return {"scores": self.scores, "states": self.states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.scores, self.states = dict(state_dict["scores"]), dict(state_dict["states"])


def _copy(module: SubnetworkModule, name: str) -> dict[str, Tensor]:
    return {key: t.detach().clone() for key, t in module.network.subnetwork(name).state_dict().items()}
