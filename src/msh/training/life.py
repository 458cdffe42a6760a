"""The life of a task in a network: begin, prune, compact, freeze; fits train it in between.

Source: Renn et al. 2022, arXiv 2207.08821: prune a network to a task-specific subnetwork, and let the remaining
weights learn other tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from msh.files.plans import allocation_in
from msh.files.state_file import StateFile
from msh.subnetworks import CRITERIA, SCHEDULES, WEIGHTS, Blocks, MultiSubnetwork, NofM, start_scores
from msh.tasks import Task
from msh.tasks.seeds import derive_seed
from msh.training.build import add_task
from msh.training.callbacks import GatedPruning, IterativePruning, Regrowth
from msh.training.config import RunConfig
from msh.training.module import SubnetworkModule
from msh.training.plan import Stage
from msh.training.prepare import Prepared, plan_weights


def begin(
    network: MultiSubnetwork, task: Task, config: RunConfig, plan: StateFile | None = None, fresh: bool = True
) -> None:
    """Add a task, with every free weight as a candidate.

    Args:
        network: the run's, or a dense one.
        task: the new one.
        config: the run's.
        plan: restricts the task to the weights allocated to it.
        fresh: draw initial values from the run's seed, unless `pruning.start=backbone`; false: start from the
            backbone's values.
    """
    add_task(network, task, config)
    allocation = None if plan is None else allocation_in(plan, task.name)
    draws = fresh and config.pruning.start == "fresh"
    network.begin(task.name, allocation, _generator(config, task.name, "weights") if draws else None)
    if fresh and CRITERIA[config.pruning.criterion].learned:
        start_scores(network, task.name, config.pruning.scores, _generator(config, task.name, "scores"))


def _generator(config: RunConfig, task: str, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(config.seed, task, purpose))


def pruner(prepared: Prepared, stage: Stage, wanted: Mapping[str, Mapping[str, int]] | None = None) -> IterativePruning:
    """Build the callback that narrows a stage's tasks to their budgets, within a fit or at once.

    Args:
        prepared: the run.
        stage: the run's.
        wanted: budgets of tasks, as in `Prepared`; those of the stage's tasks when None.
    """
    pruning = prepared.config.pruning
    kind = partial(GatedPruning, gate=pruning.gate) if pruning.is_gated else IterativePruning
    return kind(
        wanted=_budgets(prepared, stage) if wanted is None else wanted,
        criterion=CRITERIA[pruning.criterion],
        schedule=SCHEDULES[pruning.schedule],
        begin=pruning.begin * stage.max_epochs,
        end=pruning.end * stage.max_epochs,
        rounds=pruning.rounds,
        rescale=pruning.rescale,
        rewind_epoch=pruning.rewind,
        sample=pruning.sample,
        granularity=prepared.granularity,
        allow_empty=pruning.allow_empty_layers,
        batch_size=prepared.config.evaluation.batch_size,
    )


def regrower(prepared: Prepared, stage: Stage) -> Regrowth:
    """Build the callback that replaces weights of a stage's compact tasks within a fit."""
    pruning = prepared.config.pruning
    assert pruning.regrow.share is not None
    return Regrowth(
        tasks=stage.tasks,
        share=pruning.regrow.share,
        rounds=pruning.regrow.rounds,
        end=pruning.regrow.until * stage.max_epochs,
        by=pruning.regrow.by,
        sample=pruning.regrow.sample,
        granularity=prepared.granularity,
        batch_size=prepared.config.evaluation.batch_size,
    )


def _budgets(prepared: Prepared, stage: Stage) -> dict[str, dict[str, int]]:
    """Plan the budgets of a stage's tasks again: earlier tasks may have used fewer weights than planned."""
    wanted = prepared.wanted
    if isinstance(prepared.granularity, Blocks | NofM) or prepared.granularity is WEIGHTS:
        coming = [other for other in prepared.fits if other.index >= stage.index]
        wanted = plan_weights(prepared.config, prepared.network, coming, prepared.granularity)
    return {task: wanted[task] for task in stage.tasks}


def prune_before_training(prepared: Prepared, module: SubnetworkModule, stage: Stage) -> None:
    """Prune a stage's tasks at initialisation, unless a plan has."""
    if prepared.plan is None:
        pruner(prepared, stage).prune_now(module)


def compact(network: MultiSubnetwork, tasks: Iterable[str]) -> None:
    """Replace the tasks' masked weights by compact tensors, which hold only the values that train from here on."""
    for task in tasks:
        network.compact(task)


def freeze(network: MultiSubnetwork, tasks: Iterable[str]) -> None:
    """Turn the tasks' weights into constants: no optimizer finds them, and other tasks can only read them."""
    for task in tasks:
        network.freeze(task)
