"""Check before a run that the callbacks in its config work with several fits and with subnetworks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from pytorch_lightning import callbacks as lightning

from msh.errors import Problems, invalid
from msh.tasks import Task
from msh.training.callbacks.early_stopping import EarlyStoppingPerTask
from msh.training.config import RunConfig
from msh.training.own_code import reporting

REFUSED: dict[type[pl.Callback], str] = {
    lightning.StochasticWeightAveraging: (
        "pytorch_lightning.callbacks.WeightAveraging or EMAWeightAveraging, as this one averages the whole module and "
        "resets normalization layers that tasks do not use"
    ),
    lightning.BatchSizeFinder: (
        "null; set tasks.TASK.batch_size, as the order of examples, and so a resumed run, follows from it"
    ),
    lightning.LearningRateFinder: "null; search for optimizer.lr with a sweep, as this one trains in between",
    lightning.GradientAccumulationScheduler: (
        "null; set trainer.accumulate_grad_batches, as learning-rate schedules and resumed runs count on the same "
        "number of batches for each step, and this one changes it"
    ),
    lightning.BaseFinetuning: (
        "null; use pruning.start=backbone, as this one freezes and adds whole layers, and tasks own single weights"
    ),
    lightning.OnExceptionCheckpoint: (
        "null; resume=RUN_DIR reads the run's own checkpoints, and a fit would load this one's, even of another fit"
    ),
    lightning.ModelPruning: "null; use the settings under pruning, as this one replaces parameters of the backbone",
}
"""Lightning's callbacks that cannot work here, to what a config may have instead, and why."""
UNIFIED = "lightning.pytorch."
"""Package that has Lightning's classes, too; they are others than those of pytorch_lightning."""
MONITORING = (lightning.EarlyStopping, lightning.ModelCheckpoint)
NEARLY = 0.85
"""Similarity from which a name counts as misspelt, of at most 1."""
NEED_LOGGER = (lightning.LearningRateMonitor, lightning.DeviceStatsMonitor)


def build_callbacks(config: RunConfig) -> dict[str, pl.Callback]:
    """Build the callbacks that a config names; their arguments are plain dicts and lists.

    Args:
        config: the run's.
    """
    return {name: _build(f"callbacks.{name}", callback) for name, callback in config.callbacks.items() if callback}


def _build(key: str, block: Mapping[str, Any]) -> pl.Callback:
    """Build a callback; Lightning's own from the package `lightning` are replaced by those that the trainer knows.

    Raises:
        ValueError: it imports `lightning`, which is not installed, or extends a callback of it.
    """
    target = str(block.get("_target_"))
    if target.startswith(UNIFIED):
        block = {**block, "_target_": "pytorch_lightning." + target.removeprefix(UNIFIED)}
    try:
        with reporting(f"{key}._target_", target):
            callback: pl.Callback = instantiate(block, _convert_="all")
    except Exception as error:
        if _lacks_lightning(error):
            bound = "a callback that imports from pytorch_lightning.callbacks, as lightning is not installed here"
            raise invalid(f"{key}._target_", bound, target) from error
        raise
    for kind in type(callback).__mro__:
        if kind.__module__.startswith(f"{UNIFIED}callbacks") and kind.__name__ not in ("Callback", "Checkpoint"):
            bound = f"a callback that extends pytorch_lightning.callbacks.{kind.__name__}, the trainer's own"
            raise invalid(f"{key}._target_", bound, target)
    return callback


def _lacks_lightning(error: BaseException | None) -> bool:
    """Tell whether an error comes from an import of the package `lightning`, which is missing."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "lightning":
            return True
        error = error.__cause__ or error.__context__
    return False


def check_callbacks(callbacks: Mapping[str, pl.Callback], config: RunConfig) -> None:
    """Check the kinds of callbacks.

    Args:
        callbacks: key in the config's `callbacks` to the instance.
        config: the run's.
    Raises:
        ValueError: naming the keys, and what is possible instead.
    """
    logs = any(config.logger.values()) or bool(config.trainer.fast_dev_run)
    with Problems() as problems:
        for name, callback in callbacks.items():
            key, kind = f"callbacks.{name}", type(callback).__name__
            for refused, instead in REFUSED.items():
                if isinstance(callback, refused):
                    problems.add(invalid(key, instead, kind))
            if isinstance(callback, NEED_LOGGER) and not logs:
                problems.add(invalid(key, "null without a logger (logger=csv is one)", kind))
            if isinstance(callback, lightning.DeviceStatsMonitor) and find_spec("psutil") is None:
                problems.add(invalid(key, "null without psutil (pip install psutil)", kind))
            if isinstance(callback, lightning.WeightAveraging):
                if config.pruning.is_gated:
                    problems.add(invalid(key, "null with pruning.gate, which returns to earlier weights", kind))
                if config.trainer.strategy == "fsdp":
                    problems.add(invalid(key, "null with trainer.strategy=fsdp, whose weights are in shards", kind))
        for kinds in (lightning.ProgressBar, lightning.WeightAveraging):
            several = [name for name, callback in callbacks.items() if isinstance(callback, kinds)]
            if len(several) > 1:
                bound = f"null beside callbacks.{several[0]}, as a run has one {kinds.__name__}"
                problems.add(invalid(f"callbacks.{several[1]}", bound, type(callbacks[several[1]]).__name__))


def check_monitors(
    callbacks: Mapping[str, pl.Callback], tasks: Mapping[str, Task], fits: Iterable[Sequence[str]]
) -> None:
    """Check that every fit logs the values that callbacks monitor.

    Own callbacks may log values of other names: with one, only names that nearly are a logged value's are refused.

    Args:
        callbacks: key in the config's `callbacks` to the instance.
        tasks: by name.
        fits: names of the tasks in each.
    Raises:
        ValueError: naming the keys, and the value that every fit logs.
    """
    logged = [
        {"val/loss"} | {f"{t}/{of}" for t in fit for of in ("train/loss", "val/loss", f"val/{tasks[t].metric}")}
        for fit in fits
    ]
    some, every = set.union(*logged), set.intersection(*logged)
    others = {"epoch", "step"} | {f"{task}/sparsity" for task in tasks}  # Lightning's, and those of pruning
    similar = NEARLY if any(_may_log(callback) for callback in callbacks.values()) else 0.0
    with Problems() as problems:
        for name, callback in callbacks.items():
            monitor = getattr(callback, "monitor", None)
            if isinstance(callback, EarlyStoppingPerTask) or monitor in every:
                continue
            unknown = isinstance(callback, MONITORING) and monitor is not None and monitor not in others
            if monitor in some or (unknown and difflib.get_close_matches(str(monitor), some, 1, similar)):
                bound = f"a value that every fit logs ({', '.join(sorted(every))})"
                problems.add(invalid(f"callbacks.{name}.monitor", bound, monitor, () if monitor in some else every))


def _may_log(callback: pl.Callback) -> bool:
    """Tell whether a callback is of other code, or calls it."""
    own = not type(callback).__module__.startswith(("pytorch_lightning.", "lightning_fabric.", "msh."))
    return own or isinstance(callback, lightning.LambdaCallback)
