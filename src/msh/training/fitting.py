"""Run one fit with its trainer, callbacks and loaders; evaluate tasks on a split."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import CombinedLoader

from msh.compat import end_when_done, skip_batches
from msh.errors import invalid
from msh.runs.results import finite
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.tasks.loaders import LENGTHS, count_batches, even_out, measuring_loader, train_loader
from msh.tasks.options import Uneven
from msh.tasks.seeds import derive_seed
from msh.tasks.task import SplitName
from msh.training.callbacks import AverageWeights, EarlyStoppingPerTask, EpochCheckpoint, RestoreBest
from msh.training.callbacks.allowed import build_callbacks
from msh.training.callbacks.checkpoint import newest_readable
from msh.training.config import RunConfig, TrainerConfig
from msh.training.module import FitContext, TaskModule
from msh.training.plan import Fit
from msh.training.trainers import build_trainer

log = logging.getLogger(__name__)


def run_fit(
    module: TaskModule,
    fit: Fit,
    tasks: Sequence[str],
    config: RunConfig,
    folder: Path,
    checkpoints: Path,
    extra: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    steps_to_come: int = 0,
) -> float:
    """Train tasks for a fit's epochs; resume from its newest readable checkpoint, if there is one.

    Args:
        module: its network holds the tasks, masked or compact.
        fit: the one to run.
        tasks: names of the tasks that train.
        config: the run's.
        folder: the run folder.
        checkpoints: this fit's checkpoint folder.
        extra: additional callbacks.
        loggers: the run's.
        steps_to_come: batches in the fits after this one, as far as they are known.
    Returns:
        Wall seconds.
    """
    started = time.monotonic()
    scheduler = config.prune_scheduler if fit.searches else config.scheduler
    factory = instantiate(scheduler) if scheduler else None
    module.begin_fit(FitContext(fit.name, fit.key, tuple(tasks), factory, steps_to_come))
    callbacks = _usual_callbacks(fit, config, checkpoints)
    trainer = build_trainer(config.trainer, folder, fit.epochs, [*callbacks, *extra], loggers)
    loaders = _train_loaders(module, fit, tasks, config, trainer)
    saved = newest_readable(checkpoints)
    if saved is not None:
        log.info("resuming from %s", saved)
        skip_batches(loaders, batches_done(saved))
        end_when_done(trainer)
    trainer.fit(
        module,
        train_dataloaders=loaders,
        val_dataloaders=_evaluation_loaders(module.tasks, tasks, "val", config, trainer),
        ckpt_path=None if saved is None else str(saved),
        weights_only=True,
    )
    return time.monotonic() - started


def batches_per_epoch(tasks: Sequence[Task], uneven: Uneven) -> int:
    """Count the batches in an epoch of tasks that train together.

    Args:
        tasks: those that train.
        uneven: as in `Fit`.
    """
    return LENGTHS[uneven](count_batches(len(task.splits["train"]), task.batch_size, task.repeat) for task in tasks)


def steps_per_epoch(tasks: Sequence[Task], uneven: Uneven, config: TrainerConfig, limited: bool = True) -> int:
    """Count the batches in an epoch of tasks that train together, as the trainer's settings limit it.

    Args:
        tasks: those that train.
        uneven: as in `Fit`.
        config: the config's `trainer`.
        limited: by `limit_train_batches` or `overfit_batches`.
    """
    batches, limit = batches_per_epoch(tasks, uneven), config.limit_train_batches
    if config.overfit_batches:  # batches in order, the last one smaller
        limit = config.overfit_batches
        batches = LENGTHS[uneven](math.ceil(len(task.splits["train"]) / task.batch_size) for task in tasks)
    if limit is None or not limited:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _usual_callbacks(fit: Fit, config: RunConfig, checkpoints: Path) -> list[pl.Callback]:
    """Build the user's callbacks, `RestoreBest` and `EpochCheckpoint`.

    While a fit prunes or regrows, nothing stops early and no epoch is the best. The best epoch is judged by the
    quantity that early stopping monitors, or else by the metric.
    """
    left_out: tuple[type[pl.Callback], ...] = ()
    if not config.trainer.enable_progress_bar:
        left_out += (pl.callbacks.ProgressBar,)
    if fit.searches:
        left_out += (EarlyStoppingPerTask, pl.callbacks.EarlyStopping)
    callbacks = [callback for callback in build_callbacks(config).values() if not isinstance(callback, left_out)]
    by = next((callback.monitor for callback in callbacks if isinstance(callback, EarlyStoppingPerTask)), "metric")
    best = [RestoreBest(by)] if config.checkpoint.restore_best and not fit.searches else []
    averaging = [callback for callback in callbacks if isinstance(callback, pl.callbacks.WeightAveraging)]
    averages = [AverageWeights(callback, best[0] if best else None) for callback in averaging]
    callbacks = [callback for callback in callbacks if callback not in averaging]
    return [*callbacks, *best, *averages, EpochCheckpoint(checkpoints, config.checkpoint.min_seconds)]


def _train_loaders(
    module: TaskModule, fit: Fit, names: Sequence[str], config: RunConfig, trainer: pl.Trainer
) -> CombinedLoader:
    ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    for name, task in module.tasks.items():  # those of later fits too: fail before any training
        if task.batch_size % trainer.world_size:
            bound = f"a multiple of {trainer.world_size}, the number of processes"
            raise invalid(f"tasks.{name}.batch_size", bound, task.batch_size)
    loaders = {}
    for name in names:
        task = module.tasks[name]
        split = task.splits["train"]
        if config.trainer.overfit_batches:
            loaders[name] = measuring_loader(split, batch_size=task.batch_size, **ranks)
        else:
            seed = derive_seed(module.seed, module.context.key, name)
            loaders[name] = train_loader(
                split, task.batch_size, seed, **ranks, repeat=task.repeat, augmentation=task.augmentation
            )
    even_out(loaders.values(), fit.uneven, fit.batches)
    return CombinedLoader(loaders, "max_size_cycle" if fit.uneven == "cycle" else "min_size")


def batches_done(checkpoint: Path) -> list[dict[str, Any]]:
    """Read from a checkpoint how far each loader of the fit was.

    Raises:
        ValueError: the file has no state of Lightning's loops.
    """
    saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    try:
        return list(saved["loops"]["fit_loop"]["state_dict"].get("combined_loader", []))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint of a fit: {error}") from error


def _evaluation_loaders(
    tasks: Mapping[str, Task], names: Sequence[str], split: SplitName, config: RunConfig, trainer: pl.Trainer
) -> list[Any]:
    ranks = trainer.global_rank, trainer.world_size
    size = config.evaluation.batch_size
    return [measuring_loader(tasks[n].splits[split], *ranks, size or tasks[n].batch_size) for n in names]


def evaluate_tasks(
    module: TaskModule,
    tasks: Sequence[str],
    split: SplitName,
    config: RunConfig,
    folder: Path,
    loggers: Sequence[Logger] = (),
) -> dict[str, float | None]:
    """Evaluate tasks on a split; the network does not change.

    Args:
        module: its network holds the tasks, frozen.
        tasks: names of the tasks to evaluate.
        split: "val" or "test".
        config: the run's.
        folder: the run folder.
        loggers: get the scores.
    Returns:
        Task to score, in the metric's unit; None, with a warning, where the metric is not a finite number.
    """
    if not tasks:
        return {}
    module.begin_evaluation(tasks)
    trainer = build_trainer(config.trainer, folder, 1, (), loggers)
    run = trainer.test if split == "test" else trainer.validate
    run(module, dataloaders=_evaluation_loaders(module.tasks, tasks, split, config, trainer), verbose=False)
    if isinstance(module.network, MultiSubnetwork):
        module.network.forget_modules()  # memory does not grow with the number of tasks
    keys = {name: f"{name}/{split}/{module.tasks[name].metric}" for name in tasks}
    scores = {name: float(trainer.callback_metrics[key]) for name, key in keys.items()}
    for name, score in scores.items():
        if not math.isfinite(score):
            log.warning("%s is %s, so that the task has no score on this split", keys[name], score)
    return {name: finite(score) for name, score in scores.items()}
