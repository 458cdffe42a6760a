"""Replace weights of compact tasks within a fit, at constant density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from msh.subnetworks import WEIGHTS, Granularity
from msh.subnetworks.regrowth import choose_regrown, move, move_state, share_at
from msh.tasks.seeds import derive_seed
from msh.training.callbacks.scoring import sample_gradients
from msh.training.module import SubnetworkModule, has_stepped
from msh.training.ranks import from_rank_zero, is_trial

Growth = Literal["gradient", "random"]


@dataclass(eq=False, repr=False)
class Regrowth(pl.Callback):
    """Replace each task's weakest elements by free ones, at evenly spaced training batches.

    Parameters stay the same objects, with the same shapes; the optimizer's state follows the weights. With accumulated
    gradients a replacement waits for the optimizer's step. Tasks of one stage take turns, in order.

    Args:
        tasks: compact tasks.
        share: of a task's elements replaced, which decays to 0 by a cosine.
        rounds: number of replacements.
        end: epochs, or a fraction, until the share is 0.
        by: choose free elements by their gradients, as in RigL, or at random, as in SET.
        sample: number of training examples for gradients.
        granularity: elements that are replaced as one.
        batch_size: most examples whose gradients are computed at once; see `sample_gradients`.
    Source: Mocanu et al. 2018, SET; Evci et al. 2020, RigL.
    """

    tasks: Sequence[str]
    share: float
    rounds: int
    end: float
    by: Growth = "gradient"
    sample: int = 500
    granularity: Granularity = WEIGHTS
    batch_size: int | None = None
    rounds_done: int = field(default=0, init=False)

    def rounds_due(self, step: int, steps_per_epoch: int) -> int:
        """Count the replacements that are due after this many batches: at the end the share would be 0."""
        steps = self.end * steps_per_epoch
        return sum(step >= round(steps * n / (self.rounds + 1)) for n in range(1, self.rounds + 1))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Replace weights if it is time to."""
        assert isinstance(pl_module, SubnetworkModule)
        if not has_stepped(trainer, batch_idx):
            return
        per_epoch = int(trainer.num_training_batches)
        due = self.rounds_due(trainer.current_epoch * per_epoch + batch_idx + 1, per_epoch)
        due = self.rounds if is_trial(trainer) else due
        if due > self.rounds_done:
            pl_module.stop_if_unusable(self.tasks)
            for task in self.tasks:
                self._replace(trainer, pl_module, task, due)
            pl_module.context.rewinds += 1
            self.rounds_done = due

    def _replace(self, trainer: pl.Trainer, module: SubnetworkModule, task: str, number: int) -> None:
        """Do a task's replacement: choose on rank 0, move on all."""
        network, gradients = module.network, None
        if self.by == "gradient":
            gradients = sample_gradients(module, task, self.sample, number, self.batch_size)
        share = share_at(self.share, number / (self.rounds + 1))
        masks = choose_regrown(network, task, share, self.granularity, gradients, self._draw(module, task, number))
        masks = from_rank_zero(module, masks)
        drawn = self._draw(module, task, -number)
        origins = move(network, task, masks, self.granularity, drawn)
        for optimizer in trainer.optimizers:
            move_state(network, task, origins, optimizer)

    def _draw(self, module: SubnetworkModule, task: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(module.seed, task, "regrow", number))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of replacements made."""
        return {"rounds_done": self.rounds_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.rounds_done = state_dict["rounds_done"]
