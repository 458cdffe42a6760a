"""Log to trackers, besides curves: data sets, matrix, capacity, owner maps, files and outcome."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from pytorch_lightning.loggers import Logger

from msh.errors import without_secrets
from msh.files.state_file import read_state
from msh.runs.colours import colours_of
from msh.runs.objectives import mean_score
from msh.runs.results import Results, comparison
from msh.runs.score_tables import matrix_table, owners_table, tracked_table
from msh.tasks import Task
from msh.tracking.bitmaps import draw, owner_map
from msh.tracking.figures import capacity_chart, matrix_chart
from msh.tracking.guard import Guard
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.protocols import RunLogger, Tracker
from msh.tracking.trackers import numbers
from msh.tracking.wandb_run import RunWandbLogger

MATRIX, CAPACITY, SCORES = "matrix/table", "capacity/table", "scores/table"
HEAT_MAP, BARS, OWNER_MAPS = "matrix/heat_map", "capacity/bars", "owner_maps"
"""Keys of the tables and bitmaps."""
FINAL = "final"
"""Alias of a finished run's files."""
MOVED = {
    "msh.reports.loggers.RunCSVLogger": "msh.tracking.loggers.RunCSVLogger",
    "msh.reports.trackers.RunTensorBoardLogger": "msh.tracking.trackers.RunTensorBoardLogger",
    "msh.reports.trackers.RunMLFlowLogger": "msh.tracking.trackers.RunMLFlowLogger",
    "msh.reports.wandb_run.wandb_logger": "msh.tracking.wandb_run.wandb_logger",
}
"""Loggers' names in configs of earlier releases, to their names today."""


def make_logger(config: Mapping[str, Any]) -> Logger:
    """Instantiate a logger from its config; configs from earlier releases work too."""
    target = config.get("_target_")
    logger: Logger = instantiate({**config, "_target_": MOVED.get(str(target), target)})
    return logger


class Tracking:
    """Log a run's stages and its end, from the run folder.

    Args:
        folder: the run folder.
        loggers: the run's, by name. All but metrics.csv, which is part of the run folder, are guarded: one that fails
            is switched off.
        owner_maps: layers to draw.
        writes: this process writes the run folder.
    """

    def __init__(self, folder: Path, loggers: Mapping[str, Logger], owner_maps: Sequence[str], writes: bool) -> None:
        self.folder, self.owner_maps, self.writes = folder, owner_maps, writes
        self.own = [logger for logger in loggers.values() if isinstance(logger, RunCSVLogger)]
        self.guards = [Guard(name, logger) for name, logger in loggers.items() if logger not in self.own]

    @property
    def loggers(self) -> list[Logger]:
        """The loggers that are on."""
        return [*self.own, *(guard.logger for guard in self.guards if guard.on)]

    @property
    def names(self) -> list[str]:
        """Names of the guarded loggers."""
        return [guard.name for guard in self.guards]

    @property
    def off(self) -> list[str]:
        """Names of those that were switched off."""
        return [guard.name for guard in self.guards if not guard.on]

    @property
    def trackers(self) -> list[Tracker]:
        """The trackers that are on; none in a process that does not write the run folder."""
        return [logger for logger in self.loggers if isinstance(logger, Tracker)] if self.writes else []

    @property
    def wandb(self) -> list[RunWandbLogger]:
        """The W&B loggers among the trackers."""
        return [logger for logger in self.trackers if isinstance(logger, RunWandbLogger)]

    def begin(self, config: Mapping[str, Any], tasks: Mapping[str, Task], strict: bool) -> None:
        """Log settings, without those of loggers, and data sets, before training.

        Args:
            config: composed and resolved.
            tasks: by name.
            strict: raise a tracker's error instead of switching it off.
        Raises:
            ConnectionError: a tracker cannot be reached.
            ValueError: a tracker refuses.
        """
        settings = {key: _harmless(value) for key, value in config.items() if key != "logger"}
        for guard in self.guards:
            guard.strict = strict
        try:
            for logger in self.loggers:
                logger.log_hyperparams(settings)
            for tracker in self.wandb:
                for name, task in tasks.items():
                    tracker.use_data(name, describe(task, settings["tasks"][name]))
        except BaseException:
            for guard in self.guards:
                guard.strict = False
            self.close("failed")
            raise
        for guard in self.guards:
            guard.strict = False

    def rewind_stage(self, step: int) -> None:
        """Forget the evaluations at a stage's end: a resumed run repeats them.

        Args:
            step: the run's, at the stage's end.
        """
        for logger in self.loggers:
            if isinstance(logger, RunLogger):
                logger.rewind_to(step, evaluations=False)

    def stage_ended(self, results: Results, step: int) -> None:
        """Log capacity, matrix and owner maps, and the stage's subnetwork files.

        Args:
            results: with the stage's row.
            step: the run's.
        """
        capacity = results.capacity
        shares = {f"capacity/{name}": capacity[name] / capacity["prunable"] for name in ("owned", "free")}
        for logger in self.loggers:
            logger.log_metrics(shares, step)
        if not self.trackers:
            return
        state = read_state(self.folder / "network.safetensors", "network").state
        total, tasks = state.total(), list(results.tasks)
        owned = {f"owned/{task}": count / total.size for task, count in total.owned.items()}
        matrix = matrix_chart("matrix", "", results.matrix, results, results.stages)
        bars = capacity_chart("capacity", state.capacity(), colours_of([*state.tasks]), total=total)
        bitmaps = {HEAT_MAP: {"": draw(matrix)}, BARS: {"": draw(bars)}}
        if self.owner_maps:
            bitmaps[OWNER_MAPS] = {layer: owner_map(state, layer) for layer in self.owner_maps}
        for tracker in self.trackers:
            tracker.log_metrics(owned, step)
            tracker.log_rows(MATRIX, matrix_table("matrix", results.stages, tasks, results.matrix), step)
            tracker.log_rows(CAPACITY, owners_table(state), step)
            tracker.log_bitmaps(bitmaps, step)
        self._log_subnetworks(results)

    def ended(self, results: Results, step: int) -> None:
        """Log the run's outcome, and the network file."""
        values = outcome(results)
        for logger in self.loggers:
            if isinstance(logger, Tracker):
                logger.log_rows(SCORES, tracked_table(results), step)
                logger.log_final(values, step)
            elif not isinstance(logger, RunCSVLogger):
                logger.log_metrics(numbers(values), step)
        self._log_subnetworks(results)
        about: dict[str, Any] = {
            key: values[key] for key in ("mean_score", "forgetting", "guarantee/verdict") if key in values
        }
        about |= {"experiment": results.experiment, "seed": results.seed, "tasks": list(results.tasks)}
        for tracker in self.wandb:
            path, aliases = self.folder / "network.safetensors", [f"stage-{len(results.matrix) - 1}", FINAL]
            tracker.log_file(path, f"network-{results.run_id}", "network", aliases, about)

    def _log_subnetworks(self, results: Results) -> None:
        """Log subnetwork files that are not logged yet, also those that a killed session did not reach."""
        for tracker in self.wandb:
            for name, task in results.tasks.items():
                path = self.folder / "subnetworks" / f"{name}.safetensors"
                if task.test is not None and path.is_file():
                    aliases = [f"stage-{task.stage}", *([FINAL] if results.status == "finished" else [])]
                    about = {"task": name, "metric": task.metric, "test": task.test, "val": task.val}
                    about |= {"density": task.density, "weights": task.weights, "seed": results.seed}
                    tracker.log_file(path, f"subnetwork-{results.run_id}-{name}", "subnetwork", aliases, about)

    def close(self, status: str) -> None:
        """End the run in all loggers: "success", "failed" or "stopped"."""
        for logger in self.own:
            logger.finalize(status)
        for guard in self.guards:
            guard.close(status)


def _harmless(value: Any) -> Any:
    """Copy a setting without passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: _harmless(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(child) for child in value]
    return without_secrets(value) if isinstance(value, str) else value


def describe(task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a task's data set: settings, shapes, and a fingerprint of all splits' targets."""
    digest = hashlib.sha256()
    for split in task.splits.values():
        digest.update(split.targets.contiguous().numpy().tobytes())
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "settings": dict(settings),
        "examples": {name: len(split) for name, split in task.splits.items()},
        "input_shape": list(task.input_shape),
        "outputs": task.outputs,
        "targets_sha256": digest.hexdigest(),
    }


def outcome(results: Results) -> dict[str, Any]:
    """Return a run's outcome by key: scores, forgetting, and the guarantee's verdict."""
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    how = f" ({comparison(results.guarantee)})" if results.guarantee.get("rounded") else ""
    score = mean_score(results)
    values: dict[str, Any] = {
        "mean_score": None if math.isnan(score) else score,
        "forgetting": results.forgetting,
        "bwt": results.bwt,
        "guarantee/checked": checked,
        "guarantee/violations": violations,
        "guarantee/verdict": f"{'violated' if violations else 'held'}: {checked} compared{how}, {violations} changed",
        "status": results.status,
        "wall_seconds": results.wall_seconds,
    }
    for name, task in results.tasks.items():
        scores = {"score": task.test, "val_score": task.val, "density": task.density}
        scores |= {"dense": task.dense, "finetune": task.finetune, "joint": task.joint}
        values |= {f"{kind}/{name}": value for kind, value in scores.items()}
    values |= {f"ensemble/{name}": row["test"] for name, row in results.ensemble.items()}
    if results.router is not None:
        values |= {f"router/{key}": results.router[key] for key in ("accuracy", "class_incremental")}
    return {key: value for key, value in values.items() if value is not None}
