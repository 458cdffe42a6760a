"""What a run tells its trackers beside the curves: data, matrix, capacity, owner maps, files, and what came of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.utils import instantiate
from PIL import Image
from pytorch_lightning.loggers import Logger

from msh.files.state_file import read_state
from msh.runs.objectives import mean_score
from msh.runs.results import Results
from msh.subnetworks import NetworkState
from msh.tasks import Task
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.pictures import Pictures, heat_map, owner_map, stacked_bars
from msh.tracking.trackers import RunTensorBoardLogger, numbers
from msh.tracking.wandb_run import RunWandbLogger

MATRIX, CAPACITY, SCORES = "matrix/table", "capacity/table", "scores/table"
HEAT_MAP, BARS, OWNER_MAPS = "matrix/heat_map", "capacity/bars", "owner_maps"
"""Keys of the tables and pictures."""
FINAL = "final"
"""Alias of a finished run's files."""
MOVED = {
    "msh.reports.loggers.RunCSVLogger": "msh.tracking.loggers.RunCSVLogger",
    "msh.reports.trackers.RunTensorBoardLogger": "msh.tracking.trackers.RunTensorBoardLogger",
    "msh.reports.trackers.RunMLFlowLogger": "msh.tracking.trackers.RunMLFlowLogger",
    "msh.reports.wandb_run.wandb_logger": "msh.tracking.wandb_run.wandb_logger",
}
"""Names that configs of earlier releases have for loggers, to today's."""


def make_logger(config: Mapping[str, Any]) -> Logger:
    """Instantiate a logger from its block of the config, one of an earlier release included."""
    target = config.get("_target_")
    logger: Logger = instantiate({**config, "_target_": MOVED.get(str(target), target)})
    return logger


@runtime_checkable
class Tracker(Protocol):
    """A logger that takes more than curves."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of a step of the run."""

    def log_pictures(self, pictures: Pictures, step: int) -> None:
        """Log pictures."""

    def log_rows(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table."""

    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log what the run has come to."""

    def close(self, status: str) -> None:
        """End the run in the tracker: "success", "failed" or "stopped"."""


class Tracking:
    """Tells a run's loggers of its stages and its end, from the run folder.

    Args:
        folder: the run folder.
        loggers: of the run, instantiated.
        owner_maps: layers of which a picture is made.
        writes: whether this process is the one that writes the run folder.
    """

    def __init__(self, folder: Path, loggers: Sequence[Logger], owner_maps: Sequence[str], writes: bool) -> None:
        self.folder, self.loggers, self.owner_maps = folder, list(loggers), owner_maps
        self.trackers = [logger for logger in loggers if isinstance(logger, Tracker)] if writes else []
        self.wandb = [logger for logger in loggers if writes and isinstance(logger, RunWandbLogger)]

    def begin(self, config: Mapping[str, Any], tasks: Mapping[str, Task]) -> None:
        """Log settings and data, before anything is learned.

        Args:
            config: composed and resolved.
            tasks: of the run.
        """
        for logger in self.loggers:
            logger.log_hyperparams(dict(config))
        for tracker in self.wandb:
            for name, task in tasks.items():
                tracker.use_data(name, describe(task, config["tasks"][name]))

    def stage_again(self, step: int) -> None:
        """Forget what was logged of the end of a stage: it did not count yet, and is logged again.

        Args:
            step: of the run, at the end of the stage.
        """
        for logger in self.loggers:
            if isinstance(logger, RunCSVLogger | RunTensorBoardLogger):
                logger.forget_from(step)

    def stage_ended(self, results: Results, step: int) -> None:
        """Log capacity, matrix and owner maps, and the stage's subnetwork files.

        Args:
            results: with the stage's row.
            step: of the run.
        """
        capacity = results.capacity
        shares = {f"capacity/{name}": capacity[name] / capacity["prunable"] for name in ("owned", "free")}
        for logger in self.loggers:
            logger.log_metrics(shares, step)
        if not self.trackers:
            return
        ownership = read_state(self.folder / "network.safetensors", "network").state
        total = ownership.total()
        layers = [total, *ownership.capacity()]
        owned = {f"owned/{task}": count / total.size for task, count in total.owned.items()}
        pictures = {HEAT_MAP: {"": matrix_picture(results)}, BARS: {"": stacked_bars(layers)}}
        if self.owner_maps:
            pictures[OWNER_MAPS] = {layer: owner_map(ownership, layer) for layer in self.owner_maps}
        matrix = matrix_rows(results)
        for tracker in self.trackers:
            tracker.log_metrics(owned, step)
            tracker.log_rows(MATRIX, ["after", *results.tasks], matrix, step)
            tracker.log_rows(CAPACITY, ["layer", "owner", "weights", "share"], capacity_rows(ownership), step)
            tracker.log_pictures(pictures, step)
        self._log_subnetworks(results)

    def ended(self, results: Results, step: int) -> None:
        """Log what the run has come to, and the network file."""
        columns, rows = score_rows(results)
        found = outcome(results)
        for logger in self.loggers:
            if isinstance(logger, Tracker):
                logger.log_rows(SCORES, columns, rows, step)
                logger.log_final(found, step)
            elif not isinstance(logger, RunCSVLogger):
                logger.log_metrics(numbers(found), step)
        self._log_subnetworks(results)
        about: dict[str, Any] = {
            key: found[key] for key in ("mean_score", "forgetting", "guarantee/verdict") if key in found
        }
        about |= {"experiment": results.experiment, "seed": results.seed, "tasks": list(results.tasks)}
        for tracker in self.wandb:
            path, aliases = self.folder / "network.safetensors", [f"stage-{len(results.matrix) - 1}", FINAL]
            tracker.log_file(path, f"network-{results.run_id}", "network", aliases, about)

    def _log_subnetworks(self, results: Results) -> None:
        """Those that are not logged yet: also those of a session that was killed before they were."""
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
        for logger in self.loggers:
            logger.finalize("success" if status == "success" else "failed")
            if isinstance(logger, Tracker):
                logger.close(status)


def describe(task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a task's data is: its settings, shapes, and a fingerprint of the targets of all its splits."""
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


def matrix_rows(results: Results) -> list[list[Any]]:
    """The accuracy matrix: a row after each stage, its tasks' names first."""
    names = [", ".join(stage) for stage in results.curriculum]
    return [[name, *row] for name, row in zip(names, results.matrix, strict=False)]


def matrix_picture(results: Results) -> Image.Image:
    """The accuracy matrix as a heat map; darkness is the share that a task keeps of its best score."""
    columns = list(zip(*results.matrix, strict=True))
    kept = [_kept(column, task.direction) for column, task in zip(columns, results.tasks.values(), strict=True)]
    names = [row[0] for row in matrix_rows(results)]
    return heat_map(names, list(results.tasks), results.matrix, list(zip(*kept, strict=True)))


def _kept(scores: Sequence[float | None], direction: str) -> list[float]:
    """Each score over the best of them (or the best error over each), in [0, 1]."""
    known = [score for score in scores if score is not None]
    best = (max(known) if direction == "max" else min(known)) if known else 0.0
    pairs = [(score, best) if direction == "max" else (best, score) for score in scores]
    return [1.0 if a == b else max(0.0, min(1.0, a / b)) if a is not None and b else 0.0 for a, b in pairs]


def capacity_rows(ownership: NetworkState) -> list[list[Any]]:
    """Layer, owner, its weights, its share of the layer; owners that own none of a layer are left out."""
    return [
        [layer.name, owner, count, count / layer.size]
        for layer in [ownership.total(), *ownership.capacity()]
        for owner, count in [*layer.owned.items(), ("free", layer.free)]
        if count
    ]


def score_rows(results: Results) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): a row for each task."""
    columns = ["metric", "direction", "stage", "test", "test_when_learned", "val", "density", "weights"]
    columns += ["dense", "finetune", "joint"]
    rows = [
        [name, *(getattr(task, column) for column in columns), results.forgetting_of(name)]
        for name, task in results.tasks.items()
    ]
    return ["task", *columns, "forgetting"], rows


def outcome(results: Results) -> dict[str, Any]:
    """What a run has come to, by key: scores, forgetting, and the guarantee's verdict."""
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    score = mean_score(results)
    found: dict[str, Any] = {
        "mean_score": None if math.isnan(score) else score,
        "forgetting": results.forgetting,
        "bwt": results.bwt,
        "guarantee/checked": checked,
        "guarantee/violations": violations,
        "guarantee/verdict": f"{'violated' if violations else 'held'}: {checked} compared, {violations} changed",
        "status": results.status,
        "wall_seconds": results.wall_seconds,
    }
    for name, task in results.tasks.items():
        scores = {"score": task.test, "val_score": task.val, "density": task.density}
        scores |= {"dense": task.dense, "finetune": task.finetune, "joint": task.joint}
        found |= {f"{kind}/{name}": value for kind, value in scores.items()}
    found |= {f"ensemble/{name}": row["test"] for name, row in results.ensemble.items()}
    return {key: value for key, value in found.items() if value is not None}
