"""Prune below the budget for as long as the validation metric allows."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from msh.subnetworks import (
    candidate_counts,
    cut,
    empty_layers,
    go_back,
    keep_state,
)
from msh.training.callbacks.prune import IterativePruning, cut_states, log_sparsity
from msh.training.config import GateConfig
from msh.training.module import SubnetworkModule
from msh.training.ranks import from_rank_zero

log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class GatedPruning(IterativePruning):
    """Narrow the candidates of the tasks to their budgets, then continue with each task while it stays good enough.

    The dense reference of a task is its best validation metric before the first cut. After the last cut to the budget,
    each epoch ends with a decision on the metric. Within the tolerance, the task's weights and mask are saved as
    acceptable and its sparsity grows by a step. Outside it for `patience` epochs, the task returns to the last
    acceptable state and stops. A task also stops before a step that would leave it no weight in a layer. A task that
    never comes near its reference keeps its budget. The fit ends when all tasks have stopped.

    Args:
        gate: step, maximum, patience and tolerance; its `until` is the end of the fit.
        others: as in `IterativePruning`; `wanted` is the most that tasks may keep.
    Source: Renn et al. 2022, arXiv 2207.08821, and their library beyondml, RSN2.
    """

    gate: GateConfig = field(kw_only=True)
    reference: dict[str, float] = field(default_factory=dict, init=False)
    level: dict[str, int] = field(default_factory=dict, init=False)
    """Task to the number of steps that it is below its budget."""
    waited: dict[str, int] = field(default_factory=dict, init=False)
    """Task to the number of epochs since its last step."""
    accepted: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    ended: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        assert self.gate.step is not None
        self.step = self.gate.step
        self.level, self.waited = dict.fromkeys(self.wanted, 0), dict.fromkeys(self.wanted, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the tasks that had ended before a fit was resumed."""
        assert isinstance(pl_module, SubnetworkModule)
        super().on_train_start(trainer, pl_module)
        pl_module.stop(self.ended)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the sparsity beside the metrics."""
        assert isinstance(pl_module, SubnetworkModule)
        log_sparsity(pl_module, self.wanted)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the dense network's scores; once the budgets are reached, decide for each task."""
        assert isinstance(pl_module, SubnetworkModule)
        known = {task: pl_module.val_score(trainer.callback_metrics, (task,)) for task in self.wanted}
        scores = {task: score for task, score in from_rank_zero(pl_module, known).items() if score is not None}
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
        """Take the next step, wait, or return to the last acceptable state and end."""
        self.waited[task] += 1
        reference = self.reference[task]
        at_maximum = self._sparsity(module, task, self.level[task]) >= self.gate.maximum - 1e-9
        if score >= reference - self.gate.tolerance * abs(reference):
            if last or at_maximum:
                self._end(task, "is acceptable")
                return
            accepted = keep_state(module.network, task)
            masks = self._choose(module, task, self.level[task] + 1)
            empty = [] if self.allow_empty else empty_layers(module.network, task, masks)
            if empty:
                self._end(task, f"is acceptable; the next step would leave it no weight in layer {empty[0]!r}")
                return
            self.accepted[task] = accepted
            self.level[task] += 1
            self.waited[task] = 0
            cut(module.network, task, self.granularity.weights(masks), self.rescale, self.granularity)
            cut_states(module, task)
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
        """Compute a task's sparsity at a number of steps below its budget."""
        budget = sum(self.wanted[task].values()) / self._elements(module)
        return min(1.0 - budget + level * self.step, self.gate.maximum)

    def _elements(self, module: SubnetworkModule) -> int:
        """Count the network's weights, or blocks."""
        return sum(self.granularity.counts(module.network.sizes()).values())

    def _choose(self, module: SubnetworkModule, task: str, level: int) -> dict[str, Tensor]:
        """Choose weights at a level's sparsity: the same share of the budget in every tensor, at least one.

        Returns:
            Tensor name to bool, (*shape), or (units,) with units.
        """
        network, budget = module.network, self.wanted[task]
        share = (1.0 - self._sparsity(module, task, level)) * self._elements(module) / sum(budget.values())
        now = candidate_counts(network, task, budget, self.granularity)
        counts = {name: min(now[name], max(1, round(share * count))) for name, count in budget.items()}
        scores = self._score(module, task, self.rounds + level)  # tensor name to (*shape), or (units,)
        masks = self.granularity.choose(scores, counts, self.granularity.candidates(network, task))
        return from_rank_zero(module, masks)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of pruning to the budgets, and of the gate."""
        names = ("reference", "level", "waited", "accepted", "ended")
        return super().state_dict() | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.reference, self.level, self.waited = (dict(state_dict[name]) for name in ("reference", "level", "waited"))
        self.accepted, self.ended = dict(state_dict["accepted"]), list(state_dict["ended"])
