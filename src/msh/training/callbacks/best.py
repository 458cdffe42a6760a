"""Restore the weights of the best epoch."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from msh.subnetworks.tensors import same_bits
from msh.training.module import TaskModule


class RestoreBest(pl.Callback):
    """End a fit with each task's weights from its best epoch on the validation split, the latest among equals.

    Only the subnetworks in training are copied, in memory. Tasks that train the same weights share one best epoch: see
    `TaskModule.val_score`.

    Args:
        by: "metric" or "loss", decides which epoch is best.
    """

    def __init__(self, by: str = "metric") -> None:
        super().__init__()
        self.by = by
        self.scores: dict[str, float] = {}
        self.states: dict[str, dict[str, Tensor]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights of every task that is at its best."""
        assert isinstance(pl_module, TaskModule)
        if trainer.sanity_checking:
            return
        better = {}
        for group, part in pl_module.groups().items():
            name, score = "+".join(group), pl_module.val_score(trainer.callback_metrics, group, self.by)
            if score is not None and (name not in self.scores or score >= self.scores[name]):
                self.scores[name], better[name] = score, part
        if better:
            with pl_module.whole():
                for name, part in better.items():
                    self.states[name] = {key: t.detach().clone() for key, t in part.state_dict().items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights."""
        assert isinstance(pl_module, TaskModule)
        with pl_module.whole():
            for group, part in pl_module.groups().items():
                if (name := "+".join(group)) in self.states:
                    part.load_state_dict(self.states[name])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store weights that are still the present ones once."""
        assert isinstance(pl_module, TaskModule)
        if pl_module.context.sharded:  # no process has the present weights as a whole
            return
        now = {"+".join(group): part.state_dict() for group, part in pl_module.groups().items()}
        checkpoint["callbacks"][self.state_key]["states"] = {
            name: {key: now[name][key] if same_bits(t, now[name][key]) else t for key, t in best.items()}
            for name, best in self.states.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores and weights so far."""
        return {"scores": self.scores, "states": self.states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.scores, self.states = dict(state_dict["scores"]), dict(state_dict["states"])
