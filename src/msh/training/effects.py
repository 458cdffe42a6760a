"""Refuse settings that the amount of data or the number of epochs leaves without effect, or report them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from pytorch_lightning.callbacks import Callback, EarlyStopping

from msh.errors import Problems, requirement
from msh.tasks import Task
from msh.tasks.loaders import LENGTHS, count_batches
from msh.training.callbacks import EarlyStoppingPerTask
from msh.training.config import RunConfig
from msh.training.fitting import steps_per_epoch
from msh.training.plan import Fit, Stage

log = logging.getLogger(__name__)


def check_effects(
    config: RunConfig, fits: Mapping[Stage, Sequence[Fit]], tasks: Mapping[str, Task], callbacks: Sequence[Callback]
) -> None:
    """Raise for settings that would spoil a run; warn of those that would only do nothing.

    Args:
        config: the run's.
        fits: stage to its fits; stages without one are trained already.
        tasks: by name.
        callbacks: the user's.
    Raises:
        ValueError: naming every problem.
    """
    coming = {stage: parts for stage, parts in fits.items() if parts}
    with Problems() as problems:
        for problem in (*_empty_limits(config, coming, tasks), *_long_accumulation(config, coming, tasks)):
            problems.add(problem)
        for problem in _no_validation(config, coming):
            problems.add(problem)
    for note in (*_idle_rounds(config, coming, tasks), *_idle_stopping(config, coming, callbacks)):
        log.warning(note)


def _empty_limits(config: RunConfig, fits: Mapping[Stage, Sequence[Fit]], tasks: Mapping[str, Task]) -> Iterator[str]:
    """Say which shares of batches are less than one batch."""
    trainer, size = config.trainer, config.evaluation.batch_size
    every: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for stage in fits:
        together = [tasks[name] for name in stage.tasks]
        unlimited = steps_per_epoch(together, stage.uneven, trainer, limited=False)
        every["train"].append((stage_name(stage), unlimited))
    for name, task in tasks.items():
        for split in ("val", "test"):
            examples = len(task.splits[split])
            every[split].append((f"the {split} split of task {name!r}", -(-examples // (size or task.batch_size))))
    for split, numbers in every.items():
        if not numbers:  # a network that has all tasks already
            continue
        key = "overfit_batches" if trainer.overfit_batches and split != "test" else f"limit_{split}_batches"
        limit, (where, batches) = getattr(trainer, key), min(numbers, key=lambda pair: pair[1])
        if isinstance(limit, float) and limit and batches and int(limit * batches) < 1:
            bound = f">= {1 / batches:.3g}, so that at least one of the {batches} batches of {where} is used"
            yield requirement(f"trainer.{key}", bound, limit)


def _long_accumulation(
    config: RunConfig, fits: Mapping[Stage, Sequence[Fit]], tasks: Mapping[str, Task]
) -> Iterator[str]:
    """Say where an optimizer step would take more batches than there are."""
    for stage in fits:
        together = [tasks[name] for name in stage.tasks]
        once = LENGTHS[stage.uneven](count_batches(len(task.splits["train"]), task.batch_size) for task in together)
        most = min(once, steps_per_epoch(together, stage.uneven, config.trainer))
        if config.trainer.accumulate_grad_batches > max(most, 1):
            bound = f"<= {most}, the batches in one pass through the training examples of {stage_name(stage)}"
            yield requirement("trainer.accumulate_grad_batches", bound, config.trainer.accumulate_grad_batches)


def _no_validation(config: RunConfig, fits: Mapping[Stage, Sequence[Fit]]) -> Iterator[str]:
    """Say which stages would have no best epoch, as none is validated."""
    every = config.trainer.check_val_every_n_epoch
    for stage, parts in fits.items():
        for fit in parts:
            if not fit.searches and config.checkpoint.restore_best and every > fit.epochs:
                bound = (
                    f"<= {fit.epochs}, the epochs of {stage_name(stage)} after pruning, or no epoch is validated and "
                    "none is the best (checkpoint.restore_best=false keeps the last)"
                )
                yield requirement("trainer.check_val_every_n_epoch", bound, every)


def _idle_rounds(config: RunConfig, fits: Mapping[Stage, Sequence[Fit]], tasks: Mapping[str, Task]) -> Iterator[str]:
    """Say in how many cuts a stage prunes, where rounds fall on the same batch."""
    pruning = config.pruning
    if config.plan is not None or config.trainer.fast_dev_run:
        return
    fewest: tuple[int, float, Stage] | None = None
    for stage in fits:
        steps = steps_per_epoch([tasks[name] for name in stage.tasks], stage.uneven, config.trainer) * stage.max_epochs
        first, last = pruning.begin * steps, pruning.end * steps
        rounds = range(1, pruning.rounds + 1)
        cuts = len({max(1, round(first + (last - first) * n / pruning.rounds)) for n in rounds})
        if fewest is None or cuts < fewest[0]:
            fewest = cuts, last - first, stage
    if fewest is not None and fewest[0] < pruning.rounds:
        cuts, batches, stage = fewest
        yield (
            f"pruning.rounds = {pruning.rounds} become {cuts} in {stage_name(stage)}: it has {batches:g} batches "
            "between pruning.begin and pruning.end"
        )


def _idle_stopping(
    config: RunConfig, fits: Mapping[Stage, Sequence[Fit]], callbacks: Sequence[Callback]
) -> Iterator[str]:
    """Say which early stopping waits longer than any fit trains."""
    lengths = [fit.epochs for parts in fits.values() for fit in parts if not fit.searches]
    if {"dense", "finetune"} & set(config.baselines):
        lengths += [stage.max_epochs for stage in fits]
    longest = max(lengths, default=0)
    for callback in callbacks:
        if not isinstance(callback, EarlyStoppingPerTask | EarlyStopping):
            continue
        needed = (callback.patience + 1) * config.trainer.check_val_every_n_epoch
        if needed >= longest:
            yield (
                f"early stopping with patience = {callback.patience} cannot stop anything: it needs more than {needed} "
                f"epochs after pruning, and no stage has more than {longest}"
            )


def stage_name(stage: Stage) -> str:
    """Name a stage in a message."""
    return f"stage {stage.index + 1} ({', '.join(stage.tasks)})"
