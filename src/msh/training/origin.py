"""Read the file that a run starts from: a plan that assigns weights to tasks, a trained network, or its own record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msh.checked import parsed
from msh.errors import Problems, invalid, one_of, suggestion
from msh.files.atomic import write_bytes
from msh.files.header import damages, read_metadata
from msh.files.plans import input_shape_in, read_plan, settings_of
from msh.files.state_file import StateFile, read_state, save_network
from msh.inference.hub import source_file
from msh.subnetworks import MultiSubnetwork
from msh.training.config import RunConfig
from msh.training.precision import precision_of
from msh.training.settings import differences

PLANNED = (
    *("density", "weights", "share", "scope", "granularity", "block_size", "nm", "overlap", "start", "criterion"),
    *("sample", "rescale", "rewind"),
)
"""Settings of `pruning` that determine an allocation made before any training."""
ORIGIN = Path("checkpoints", "origin.safetensors")
"""Below a run folder: a copy of the file that the run starts from, so that it resumes without the file itself. A run
that starts from none records its initial network there, without tasks and without the values of its weights."""


@dataclass(frozen=True)
class Origin:
    """A file that a run starts from.

    Attributes:
        key: the setting that names it: "plan", "network", or "resume" for the record of a run without either.
        path: the file's.
        start: digest of the initial weights.
        input_shape: the backbone's.
        file: its content.
    """

    key: str
    path: Path
    start: str
    input_shape: tuple[int, ...]
    file: StateFile

    @property
    def learned(self) -> list[str]:
        """List the tasks that the file has trained."""
        return [] if self.key == "plan" else list(self.file.state.tasks)


def read_origin(config: RunConfig, names: Sequence[str]) -> Origin | None:
    """Read and check the file that a run starts from.

    Args:
        config: the run's.
        names: its tasks.
    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or does not fit the config.
    """
    if config.task is not None and config.plan is None:
        raise ValueError(f"task={config.task} needs plan=PLAN; without a plan, choose tasks=[{config.task}]")
    if config.task is not None:
        one_of("task", config.task, names)
    if config.plan is not None and config.network is not None:
        raise ValueError("plan and network exclude each other: train on the plan, then `msh merge` into the network")
    if config.plan is not None:
        path = _copy_of_run(config) or Path(config.plan)
        with named_file("plan", config.plan):
            plan = read_plan(path)
        _check_plan(config, plan, names if config.task is None else [config.task])
        return Origin("plan", path, plan.notes["start"], input_shape_in(plan.notes, path), plan)
    if config.network is not None:
        path = _copy_of_run(config) or source_file(config.network)
        with named_file("network", config.network):
            return _read_network(path, names, config.retrain or [])
    record = _copy_of_run(config)  # earlier releases wrote none
    return None if record is None else replace(_read_network(record, names, []), key="resume")


@contextmanager
def named_file(key: str, value: str) -> Iterator[None]:
    """Name the setting in the error where its file is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key} = {value}: {error}") from error


def record_origin(path: Path, origin: Origin | None, network: MultiSubnetwork, notes: dict[str, str]) -> None:
    """Copy the file that a run starts from; of a run without one, record the initial network.

    Args:
        path: where to write.
        origin: the file, or None.
        network: the run's, without tasks if there is no file.
        notes: those of the run's files.
    """
    if origin is None:
        save_network(path, network, notes, free_weights=False)
    else:
        write_bytes(path, origin.path.read_bytes())


def _copy_of_run(config: RunConfig) -> Path | None:
    """Return the file that the folder of a resumed run has as `ORIGIN`; None without one."""
    copy = None if config.resume is None else Path(config.resume) / ORIGIN
    return copy if copy is not None and copy.is_file() else None


def determined(path: Path) -> dict[str, Any]:
    """Read the settings that a network file determines: "backbone", "trainer.precision" and "seed", as far as known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a network file.
    """
    metadata = read_metadata(path, "network")
    settings: dict[str, Any] = {}
    with damages(path):
        recipe = parsed(metadata, "recipe", dict[str, Any]) if "recipe" in metadata else {}
        if recipe:
            settings["trainer.precision"] = precision_of(recipe.pop("_dtype_", None))
            if recipe.pop("_base_", None) is not None:
                settings["reuse"] = "backbone"
            settings["backbone"] = recipe
        if "seed" in metadata:
            settings["seed"] = parsed(metadata, "seed", int)
    return settings


def _check_plan(config: RunConfig, plan: StateFile, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in plan.state.tasks:
            raise ValueError(
                f"plan {config.plan} has no task {task!r}, but {', '.join(plan.state.tasks)}"
                f"{suggestion(task, plan.state.tasks)}"
            )
    check_plannable(config)
    for key, (before, now) in differences(_settings_of(plan), planned_settings(config), ()).items():
        raise ValueError(
            f"plan {config.plan} was made with {key}={json.dumps(before)}, and this run has {json.dumps(now)}: "
            "use the plan's settings, or make another plan"
        )


def _settings_of(plan: StateFile) -> dict[str, Any]:
    """Read the settings behind a plan's allocation; earlier releases wrote a criterion as {name: ...}, no overlap."""
    settings = settings_of(plan)
    pruning = settings.get("pruning", {})
    if isinstance(pruning, dict):
        pruning.setdefault("overlap", None)
        if isinstance(pruning.get("criterion"), dict):
            pruning["criterion"] = pruning["criterion"].get("name")
    return settings


def check_plannable(config: RunConfig) -> None:
    """Check that weights can be allocated before any training.

    Raises:
        ValueError: naming the setting.
    """
    if config.pruning.end > 0 or config.pruning.is_gated:
        before = "0 with a plan, which is made before any training (pruning=at_init)"
        raise invalid("pruning.end", before, config.pruning.end)
    if config.pruning.regrow.share is not None:
        raise invalid(
            "pruning.regrow.share", "null with a plan, which keeps its allocation", config.pruning.regrow.share
        )
    if config.reuse != "none":
        raise invalid("reuse", "'none' with a plan, whose tasks train apart", config.reuse)


def planned_settings(config: RunConfig) -> dict[str, Any]:
    """Collect the settings that a plan shares with the runs of its tasks, as JSON values."""
    chosen = {
        "seed": config.seed,
        "backbone": config.backbone,
        "pruning": {key: getattr(config.pruning, key) for key in PLANNED},
    }
    settings: dict[str, Any] = json.loads(json.dumps(chosen))
    return settings


def _read_network(path: Path, names: Sequence[str], retrain: Sequence[str]) -> Origin:
    """Read a trained network, and release the tasks that are trained again."""
    file = read_state(path, "network")
    state, last_first = file.state, [*reversed(file.state.tasks)]
    with Problems(f"network {path}: ") as problems:
        for task, entry in state.tasks.items():
            if entry.phase != "frozen":
                problems.add(f"task {task!r} is still in training ({entry.phase}): resume its run first")
            elif task not in names and not {"head", "outputs"} <= entry.recipe.keys():
                problems.add(f"an earlier release wrote task {task!r} without a recipe: add it to tasks, with its data")
        if "start" not in file.notes:
            problems.add("it does not name its initial weights: use a network file from a run folder")
        for task in retrain:
            problems.check(one_of, "retrain", task, state.tasks)
            if task in state.tasks and task not in names:
                problems.add(f"retrain = {task!r} needs its data: name it in tasks too")
            for reader in state.readers(task) if task in state.tasks else ():
                if reader not in retrain:
                    problems.add(f"retrain = {task!r}: task {reader!r} reads its weights, so retrain {reader!r} too")
    for task in sorted(set(retrain), key=last_first.index):  # readers before the tasks that they read
        state.release(task)
    return Origin("network", path, file.notes["start"], input_shape_in(file.notes, path), file)
