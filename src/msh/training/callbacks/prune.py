"""Prune tasks iteratively within a fit."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from msh.errors import invalid
from msh.subnetworks import (
    WEIGHTS,
    Criterion,
    Granularity,
    Schedule,
    candidate_counts,
    check_layers,
    cut,
    cut_state,
    let_scores_choose,
    rewind,
    select_apart,
    snapshot,
)
from msh.subnetworks.tensors import count_true
from msh.training.callbacks.scoring import score_task
from msh.training.module import SubnetworkModule, has_stepped
from msh.training.ranks import from_rank_zero, is_trial

log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class IterativePruning(pl.Callback):
    """Narrow the candidates of the tasks in training, cut by cut, to their budgets.

    The `rounds` cuts follow training batches, evenly spaced from `begin` to `end`, the last at `end`. A cut changes
    masks only: parameters stay the same objects, with the same shape. With accumulated gradients a cut waits for the
    optimizer's step, or they would move weights that it rewinds. Tasks in one stage start with the same
    candidates, each with separate values, and divide them in order: see `select_apart`. With learned scores, a task
    computes from `begin` on with the highest-scoring weights within its budget; cuts narrow the candidates.

    Args:
        wanted: task to {tensor name, or "" for all: number of elements (weights or units) to keep at the end}.
        criterion: scores the weights.
        schedule: (candidates at the start, budget, time in [0, 1]) to number of weights to keep.
        begin: epochs, or a fraction, before the first round starts.
        end: epochs, or a fraction, until the last cut.
        rounds: number of cuts.
        rescale: keep each tensor's norm over a cut.
        rewind_epoch: after each cut, reset survivors to their values after this many epochs; None: no reset.
        sample: number of training examples for gradients.
        granularity: elements that are kept as one.
        allow_empty: let scores leave a task no weight in some layers; else such a cut is an `EmptyLayerError`.
        batch_size: most examples whose gradients are computed at once; see `sample_gradients`.
    Raises:
        ValueError: a setting is out of range.
    Source: Zhu and Gupta 2017; Frankle and Carbin 2019; Renda et al. 2020.
    """

    wanted: Mapping[str, Mapping[str, int]]
    criterion: Criterion
    schedule: Schedule
    begin: float
    end: float
    rounds: int
    rescale: bool = True
    rewind_epoch: int | None = None
    sample: int = 1000
    granularity: Granularity = WEIGHTS
    allow_empty: bool = False
    batch_size: int | None = None
    rounds_done: int = field(default=0, init=False)
    start: dict[str, dict[str, int]] = field(default_factory=dict, init=False)
    """Task to its number of candidates at the start, by tensor."""
    earlier: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)
    """Task to the values that survivors are rewound to."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.begin <= self.end:
            raise invalid("begin", f"in [0, end], [0, {self.end:g}]", self.begin)
        if self.rounds < 1:
            raise invalid("rounds", ">= 1", self.rounds)
        if self.rewind_epoch is not None and not 0 <= self.rewind_epoch <= self.begin:
            raise invalid("rewind_epoch", f"in [0, begin], [0, {self.begin:g}]", self.rewind_epoch)

    def rounds_due(self, step: int, steps_per_epoch: int) -> int:
        """Count the cuts that are due after this many batches."""
        begin, end = self.begin * steps_per_epoch, self.end * steps_per_epoch
        return sum(step >= round(begin + (end - begin) * n / self.rounds) for n in range(1, self.rounds + 1))

    def prune_now(self, module: SubnetworkModule) -> None:
        """Make all cuts at once, outside a fit, to prune at initialisation."""
        self._count_start(module)
        self._keep_earlier(module, 0)
        self._cut_down_to(module, self.rounds)

    def _count_start(self, module: SubnetworkModule) -> None:
        if not self.start:
            self.start = {t: candidate_counts(module.network, t, c, self.granularity) for t, c in self.wanted.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the candidates at the start, unless a resumed fit has the counts already."""
        assert isinstance(pl_module, SubnetworkModule)
        self._count_start(pl_module)
        self._choose_if_due(pl_module, 0, int(trainer.num_training_batches))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the values that survivors will be rewound to."""
        assert isinstance(pl_module, SubnetworkModule)
        self._keep_earlier(pl_module, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the cuts that are due."""
        assert isinstance(pl_module, SubnetworkModule)
        if not has_stepped(trainer, batch_idx):
            return
        per_epoch = int(trainer.num_training_batches)
        step = trainer.current_epoch * per_epoch + batch_idx + 1
        self._choose_if_due(pl_module, step, per_epoch)
        due = self.rounds_due(step, per_epoch)
        if is_trial(trainer):
            due = self.rounds
            self._keep_earlier(pl_module, self.rewind_epoch)  # a trial ends before that epoch
        if due > self.rounds_done:
            with pl_module.whole():
                pl_module.stop_if_unusable(self.wanted)
                self._cut_down_to(pl_module, due)
            for task in self.wanted:
                cut_states(pl_module, task)
            if self.rewind_epoch is not None:
                pl_module.context.rewinds += 1
                for optimizer in trainer.optimizers:
                    optimizer.state = defaultdict(dict)
            log_sparsity(pl_module, self.wanted)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the remaining cuts, if another callback or `trainer.max_time` has ended the fit before the last one."""
        assert isinstance(pl_module, SubnetworkModule)
        if trainer.should_stop and self.rounds_done < self.rounds:
            log.warning(
                "%s ended before the last of its cuts: the remaining %d are made at once",
                *(pl_module.context.name, self.rounds - self.rounds_done),
            )
            self._keep_earlier(pl_module, self.rewind_epoch)
            with pl_module.whole():
                self._cut_down_to(pl_module, self.rounds)

    def _keep_earlier(self, module: SubnetworkModule, epoch: int | None) -> None:
        if epoch is not None and epoch == self.rewind_epoch and not self.earlier:
            with module.whole():
                self.earlier = {task: snapshot(module.network, task) for task in self.wanted}

    def _choose_if_due(self, module: SubnetworkModule, step: int, steps_per_epoch: int) -> None:
        """From `begin` on let learned scores choose each task's weights, apart from the other tasks' best."""
        if not self.criterion.learned or step < round(self.begin * steps_per_epoch):
            return
        if any(module.network.subnetwork(task).kept for task in self.wanted):
            return
        with module.whole():
            if step:
                module.stop_if_unusable(self.wanted)
            self._cut_down_to(module, 0)
            for task, budget in self.wanted.items():
                let_scores_choose(module.network, task, budget, self.rescale)

    def _cut_down_to(self, module: SubnetworkModule, number: int) -> None:
        # Per task and tensor: counts are numbers; scores and masks are (*shape), with units (units,).
        network, counts, scores = module.network, {}, {}
        for task, budget in self.wanted.items():
            now, start = candidate_counts(network, task, budget, self.granularity), self.start[task]
            time = number / self.rounds  # in [0, 1]
            counts[task] = {name: min(now[name], self.schedule(start[name], n, time)) for name, n in budget.items()}
            scores[task] = self._score(module, task, number)
        open_to = {task: self.granularity.candidates(network, task) for task in self.wanted}
        masks = select_apart(scores, counts, self.wanted, open_to, self.granularity.shared(network), self.granularity)
        masks = from_rank_zero(module, masks)
        for task, mask in masks.items() if not self.allow_empty else ():
            alone = len(masks) == 1  # else the density that suffices depends on the other tasks too
            known = (scores[task], open_to[task]) if alone else (None, None)
            check_layers(network, task, mask, counts[task], *known)
        rescale = self.rescale and not self.criterion.learned  # chosen weights have the norm already
        for task, mask in masks.items():
            cut(network, task, self.granularity.weights(mask), rescale, self.granularity)
            if self.rewind_epoch is not None:
                rewind(network, task, self.earlier[task], self.rescale, self.granularity)
        self.rounds_done = number

    def _score(self, module: SubnetworkModule, task: str, number: int) -> dict[str, Tensor]:
        return score_task(module, task, self.criterion, self.sample, number, self.granularity, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of cuts made, the counts at the start, and the values to rewind to."""
        return {"rounds_done": self.rounds_done, "start": self.start, "earlier": self.earlier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.rounds_done = state_dict["rounds_done"]
        self.start, self.earlier = state_dict["start"], state_dict["earlier"]


def cut_states(module: SubnetworkModule, task: str) -> None:
    """Clear the optimizers' state of the weights that a cut has removed, so that checkpoints need not hold it.

    Shards stay as they are: their checkpoints are as correct, and larger.
    """
    for optimizer in module.trainer.optimizers if not module.context.sharded else ():
        cut_state(module.network, task, optimizer)


def log_sparsity(module: SubnetworkModule, tasks: Iterable[str]) -> None:
    """Log the tasks' sparsities, independent of the logging interval."""
    for task, sparsity in sparsities(module, tasks).items():
        module.log(f"{task}/sparsity", sparsity, logger=False, sync_dist=True)
        for logger in module.loggers:
            logger.log_metrics({f"{task}/sparsity": sparsity}, step=module.run_step)


def sparsities(module: SubnetworkModule, tasks: Iterable[str]) -> dict[str, float]:
    """Map tasks to their sparsity: the share of the network's weights that are not the task's, or its candidates."""
    total = sum(module.network.sizes().values())
    return {task: 1.0 - sum(count_true(mask) for mask in module.network.held(task).values()) / total for task in tasks}
