"""One fit: its trainer, callbacks and loaders; and measuring."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import CombinedLoader

from msh.compat import skip_batches
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.tasks.loaders import LENGTHS, Uneven, count_batches, even_out, measuring_loader, train_loader
from msh.tasks.seeds import derive_seed
from msh.tasks.task import SplitName
from msh.training.callbacks import EarlyStoppingPerTask, EpochCheckpoint, RestoreBest
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
    """Train tasks for a fit's epochs, from its last good checkpoint if it has one.

    Args:
        module: its network holds the tasks, masked or compact.
        fit: which one.
        tasks: that train.
        config: of the run.
        folder: the run folder.
        checkpoints: folder of this fit's checkpoints.
        extra: callbacks of this fit beside the usual ones.
        loggers: of the run.
        steps_to_come: batches of the fits after this one, as far as they are known.
    Returns:
        Wall seconds.
    """
    started = time.monotonic()
    scheduler = config.prune_scheduler if fit.prunes else config.scheduler
    made = instantiate(scheduler) if scheduler else None
    module.begin_fit(FitContext(fit.name, fit.key, tuple(tasks), made, steps_to_come))
    callbacks = _usual_callbacks(fit, config, checkpoints)
    trainer = build_trainer(config.trainer, folder, fit.epochs, [*callbacks, *extra], loggers)
    loaders = _train_loaders(module, fit, tasks, config, trainer)
    saved = newest_readable(checkpoints)
    if saved is not None:
        log.info("going on from %s", saved)
        _go_on(loaders, saved)
    trainer.fit(
        module,
        train_dataloaders=loaders,
        val_dataloaders=_measuring_loaders(module.tasks, tasks, "val", config, trainer),
        ckpt_path=None if saved is None else str(saved),
        weights_only=True,
    )
    return time.monotonic() - started


def batches_per_epoch(tasks: Sequence[Task], uneven: Uneven) -> int:
    """Batches that the data of tasks that train together give in an epoch.

    Args:
        tasks: which ones.
        uneven: as in `Fit`.
    """
    return LENGTHS[uneven](count_batches(len(task.splits["train"]), task.batch_size, task.repeat) for task in tasks)


def steps_per_epoch(tasks: Sequence[Task], uneven: Uneven, config: TrainerConfig) -> int:
    """Optimizer steps in an epoch of tasks that train together: `batches_per_epoch`, within the trainer's limit.

    Args:
        tasks: which ones.
        uneven: as in `Fit`.
        config: of the trainer.
    """
    batches, limit = batches_per_epoch(tasks, uneven), config.limit_train_batches
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _usual_callbacks(fit: Fit, config: RunConfig, checkpoints: Path) -> list[pl.Callback]:
    """The user's own, the best weights and checkpoints; early stopping and best weights only after pruning.

    The best epoch is that of what early stopping monitors, if it does: without it, of the metric.
    """
    own: dict[str, Any] = {name: instantiate(callback) for name, callback in config.callbacks.items() if callback}
    if not config.trainer.enable_progress_bar:
        own = {name: c for name, c in own.items() if not isinstance(c, pl.callbacks.ProgressBar)}
    if fit.prunes:
        stopping = (EarlyStoppingPerTask, pl.callbacks.EarlyStopping)
        own = {name: c for name, c in own.items() if not isinstance(c, stopping)}
    by = next((callback.monitor for callback in own.values() if isinstance(callback, EarlyStoppingPerTask)), "metric")
    best = [RestoreBest(by)] if config.checkpoint.restore_best and not fit.prunes else []
    return [*own.values(), *best, EpochCheckpoint(checkpoints, config.checkpoint.min_seconds)]


def _train_loaders(
    module: TaskModule, fit: Fit, names: Sequence[str], config: RunConfig, trainer: pl.Trainer
) -> CombinedLoader:
    ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    for name, task in module.tasks.items():  # also of those that come later: before work starts
        if task.batch_size % trainer.world_size:
            raise ValueError(
                f"tasks.{name}.batch_size = {task.batch_size} cannot be shared out over {trainer.world_size} processes "
                "evenly: a multiple can"
            )
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


def _go_on(loaders: CombinedLoader, checkpoint: Path) -> None:
    """Leave out the batches that were done."""
    skip_batches(loaders, batches_done(checkpoint))


def batches_done(checkpoint: Path) -> list[dict[str, Any]]:
    """The places of a fit's loaders in a checkpoint.

    Raises:
        ValueError: the checkpoint says nothing of loops.
    """
    saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    try:
        return list(saved["loops"]["fit_loop"]["state_dict"].get("combined_loader", []))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint of a fit: {error}") from error


def _measuring_loaders(
    tasks: Mapping[str, Task], names: Sequence[str], split: SplitName, config: RunConfig, trainer: pl.Trainer
) -> list[Any]:
    ranks = trainer.global_rank, trainer.world_size
    most = config.evaluation.batch_size
    return [measuring_loader(tasks[n].splits[split], *ranks, most or tasks[n].batch_size) for n in names]


def measure(
    module: TaskModule,
    tasks: Sequence[str],
    split: SplitName,
    config: RunConfig,
    folder: Path,
    loggers: Sequence[Logger] = (),
) -> dict[str, float]:
    """Measure tasks' metrics on a split; nothing of the network changes.

    Args:
        module: its network holds the tasks, frozen.
        tasks: which ones.
        split: "val" or "test".
        config: of the run.
        folder: the run folder.
        loggers: that scores are logged to.
    Returns:
        Task to score, in the metric's unit.
    """
    module.evaluated = list(tasks)
    trainer = build_trainer(config.trainer, folder, 1, (), loggers)
    run = trainer.test if split == "test" else trainer.validate
    run(module, dataloaders=_measuring_loaders(module.tasks, tasks, split, config, trainer), verbose=False)
    if isinstance(module.network, MultiSubnetwork):
        module.network.forget_modules()  # memory does not grow with the tasks that are measured
    return {name: float(trainer.callback_metrics[f"{name}/{split}/{module.tasks[name].metric}"]) for name in tasks}
