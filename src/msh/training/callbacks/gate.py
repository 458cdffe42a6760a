"""Pruning for as long as the validation metric allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from msh.subnetworks import (
    WEIGHTS,
    Criterion,
    Granularity,
    Schedule,
    candidate_counts,
    cut,
    empty_layers,
    go_back,
    keep_state,
)
from msh.subnetworks.allocation import choose
from msh.training.callbacks.prune import IterativePruning, log_sparsity
from msh.training.config import GateConfig
from msh.training.module import SubnetworkModule
from msh.training.ranks import from_rank_zero

log = logging.getLogger(__name__)


class GatedPruning(IterativePruning):
    """Narrow the candidates of the tasks down to their budgets, then each one's further while it stays good enough.

    The dense reference of a task is its best validation metric before the first cut. From the last cut to the budget
    on, each epoch ends with a look at the metric. Within the tolerance, the task's weights and mask are kept as
    acceptable and the sparsity is raised by a step; where it is not for `patience` epochs, the task goes back to what
    was acceptable last and trains no more. A step that would leave it no weight of a layer is not taken: the task ends
    there. A task that never comes near its reference keeps its budget. The fit ends
    when all tasks have ended.

    Args:
        gate: step, maximum, patience and tolerance; its `until` is the end of the fit.
        wanted: as the further ones, those of `IterativePruning`; the most that tasks may keep.
    Source: Renn et al. 2022, arXiv 2207.08821, and their library beyondml, RSN2.
    """

    def __init__(
        self,
        gate: GateConfig,
        wanted: Mapping[str, Mapping[str, int]],
        criterion: Criterion,
        schedule: Schedule,
        begin: float,
        end: float,
        rounds: int,
        rescale: bool = True,
        rewind_epoch: int | None = None,
        sample: int = 1000,
        granularity: Granularity = WEIGHTS,
        allow_empty: bool = False,
        batch_size: int | None = None,
    ) -> None:
        own = (rescale, rewind_epoch, sample, granularity, allow_empty, batch_size)
        super().__init__(wanted, criterion, schedule, begin, end, rounds, *own)
        assert gate.step is not None
        self.gate, self.step = gate, gate.step
        self.reference: dict[str, float] = {}
        self.level = dict.fromkeys(self.wanted, 0)
        """Steps below the budget that each task has gone."""
        self.waited = dict.fromkeys(self.wanted, 0)
        self.accepted: dict[str, dict[str, Tensor]] = {}
        self.ended: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In a resumed fit, tasks that had ended stay so."""
        assert isinstance(pl_module, SubnetworkModule)
        super().on_train_start(trainer, pl_module)
        pl_module.stop(self.ended)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the sparsity that the metrics belong to."""
        assert isinstance(pl_module, SubnetworkModule)
        log_sparsity(pl_module, self.wanted)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how good the dense network is; once the budgets are reached, decide for each task."""
        assert isinstance(pl_module, SubnetworkModule)
        found = {task: pl_module.val_score(trainer.callback_metrics, (task,)) for task in self.wanted}
        scores = {task: score for task, score in from_rank_zero(pl_module, found).items() if score is not None}
        done = trainer.current_epoch + 1
        if done <= self.begin:
            self.reference = {task: max(s, self.reference.get(task, -math.inf)) for task, s in scores.items()}
        if self.rounds_done < self.rounds:
            return
        with pl_module.whole():
            for task, score in scores.items():
                if task not in self.ended:
                    self._decide(pl_module, task, score, last=done == trainer.max_epochs)
        pl_module.stop(self.ended)

    def _decide(self, module: SubnetworkModule, task: str, score: float, last: bool) -> None:
        """Take the next step, wait, or go back and end."""
        self.waited[task] += 1
        reference = self.reference[task]
        at_maximum = self._sparsity(module, task, self.level[task]) >= self.gate.maximum - 1e-9
        if score >= reference - self.gate.tolerance * abs(reference):
            if last or at_maximum:
                self._end(task, "is acceptable")
                return
            accepted = keep_state(module.network, task)
            masks = self._further(module, task, self.level[task] + 1)
            empty = [] if self.allow_empty else empty_layers(module.network, task, masks)
            if empty:
                self._end(task, f"is acceptable; a further step would leave it no weight of layer {empty[0]!r}")
                return
            self.accepted[task] = accepted
            self.level[task] += 1
            self.waited[task] = 0
            cut(module.network, task, self.granularity.weights(masks), self.rescale, self.granularity)
        elif last or self.waited[task] == self.gate.patience:
            if task in self.accepted:
                go_back(module.network, task, self.accepted[task])
                self.level[task] -= 1
                self._end(task, "was acceptable last")
            else:
                self._end(task, "is its budget; the metric was never acceptable there")

    def _end(self, task: str, why: str) -> None:
        self.ended.append(task)
        self.accepted.pop(task, None)
        log.info("%s ends %d steps below its budget, which %s", task, self.level[task], why)

    def _sparsity(self, module: SubnetworkModule, task: str, level: int) -> float:
        """Share of the network's weights that the task does without, so many steps below its budget."""
        budget = sum(self.wanted[task].values()) / sum(module.network.sizes().values())
        return min(1.0 - budget + level * self.step, self.gate.maximum)

    def _further(self, module: SubnetworkModule, task: str, level: int) -> dict[str, Tensor]:
        """Choose weights at the sparsity of a level: in every tensor the same share of the budget, at least one.

        Returns:
            Tensor name to bool, (*shape), or (units,) with units.
        """
        network, budget = module.network, self.wanted[task]
        share = (1.0 - self._sparsity(module, task, level)) * sum(network.sizes().values()) / sum(budget.values())
        now = candidate_counts(network, task, budget, self.granularity)
        kept = {name: min(now[name], max(1, round(share * count))) for name, count in budget.items()}
        scores = self._score(module, task, self.rounds + level)
        return from_rank_zero(module, choose(scores, kept, self.granularity.candidates(network, task)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, beside what pruning to the budgets does."""
        own = ("reference", "level", "waited", "accepted", "ended")
        return super().state_dict() | {name: getattr(self, name) for name in own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self.reference, self.level, self.waited = (dict(state_dict[name]) for name in ("reference", "level", "waited"))
        self.accepted, self.ended = dict(state_dict["accepted"]), list(state_dict["ended"])
