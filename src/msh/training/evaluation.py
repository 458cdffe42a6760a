"""Evaluate a run again, from its folder alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msh.files.atomic import write_text
from msh.files.plans import input_shape_in
from msh.files.state_file import fill_network, read_state
from msh.files.yaml_files import read_config
from msh.inference.rebuilding import add_task_of
from msh.runs.results import Results, comparison
from msh.runs.words import counted
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.training.build import add_task, build_network, build_tasks, fit_tasks
from msh.training.callbacks.guarantee import RECORDS, Guarantee
from msh.training.config import RunConfig, plain_values, stored_config
from msh.training.ensembles import evaluate_ensembles
from msh.training.fitting import evaluate_tasks
from msh.training.machine import machine, set_up_torch
from msh.training.module import SubnetworkModule
from msh.training.same_data import check_same_data
from msh.training.state import RunState
from msh.training.targets import check_targets
from msh.training.trainers import device_of
from msh.training.typed import ConfigError

log = logging.getLogger(__name__)

FILE_NAME = "evaluation.json"


def read_settings(folder: Path, data_dir: str | None = None, unsafe: bool = False) -> RunConfig:
    """Read a run's config, to evaluate it again.

    Args:
        folder: the run folder.
        data_dir: the data's folder; the one in the run's config when None.
        unsafe: allow the config to call other code than msh's, torch's and Lightning's.
    Raises:
        FileNotFoundError: not a run folder.
        ValueError: a file in it is damaged, or the config calls other code.
    """
    Results.load(folder)
    path = folder / ".hydra" / "config.yaml"
    config = read_config(path)
    try:
        if data_dir is not None:
            OmegaConf.update(config, "paths.data_dir", data_dir)
        values = plain_values(config)
        if not unsafe:
            check_targets(values, str(path))
        return stored_config(values)
    except (OmegaConfBaseException, ConfigError) as error:
        raise ValueError(f"{path} is not the config of a run: {error}") from error


def load_run(
    folder: Path, data_dir: str | None = None, unsafe: bool = False
) -> tuple[RunConfig, dict[str, Task], MultiSubnetwork]:
    """Rebuild a run's network from its folder.

    Args:
        folder, data_dir, unsafe: as in `read_settings`.
    Returns:
        (the run's config, its tasks, its network).
    Raises:
        FileNotFoundError: not a run folder, or no stage has ended yet, or data is missing.
        ValueError: a file in it is damaged.
    """
    config = read_settings(folder, data_dir, unsafe)
    return config, *_rebuild(folder, config)


def _rebuild(folder: Path, config: RunConfig) -> tuple[dict[str, Task], MultiSubnetwork]:
    """Load a run's data and its network."""
    path = folder / "network.safetensors"
    file = read_state(path, "network")
    tasks = build_tasks(config, None if config.task is None else [config.task])
    if "input_shape" in file.notes:
        config = config.with_input_shape(input_shape_in(file.notes, path))
    tasks = fit_tasks(config, tasks)
    begun = RunState(folder / "checkpoints", writes=False).data(file)
    check_same_data(path, tasks, begun, "evaluate with the data of the run; msh predict answers others")
    network = build_network(config, tasks, list(file.state.owners))
    for task, entry in file.state.tasks.items():
        if task in tasks:
            add_task(network, tasks[task], config.with_granularity(entry.granularity))
        else:  # of the network that the run started from
            add_task_of(path, network, file.state, entry)
    fill_network(path, network, file)
    return tasks, network


@dataclass(frozen=True)
class Evaluation:
    """The outcome of evaluating a run again.

    Attributes:
        rows: a row per task and per ensemble: task, metric, score.
        violations: number of tasks that have changed since they were frozen.
    """

    rows: list[dict[str, Any]]
    violations: int


def evaluate(folder: Path, data_dir: str | None = None, unsafe: bool = False) -> list[dict[str, Any]]:
    """Evaluate a run as `evaluate_run` does, and return its rows."""
    return evaluate_run(folder, data_dir, unsafe).rows


def evaluate_run(folder: Path, data_dir: str | None = None, unsafe: bool = False) -> Evaluation:
    """Evaluate every task of a run on its test split, and write evaluation.json into the run folder.

    Logs whether the scores are those in results.json, and whether the tasks compute as when they were frozen.

    Args:
        folder, data_dir, unsafe: as in `read_settings`.
    """
    config = read_settings(folder, data_dir, unsafe)
    config = replace(config, trainer=replace(config.trainer, devices=1, strategy="auto"))
    set_up_torch(config)  # before tensors are made
    tasks, network = _rebuild(folder, config)
    module = SubnetworkModule(network, tasks, lambda parameters: None, config.seed)  # type: ignore[arg-type,return-value]
    known = [task for task in network.tasks if task in tasks]
    scores = evaluate_tasks(module, known, "test", config, folder)
    if others := [task for task in network.tasks if task not in tasks]:
        log.info("without data in this run, so not evaluated, and compared by their digests: %s", ", ".join(others))
    rows = [{"task": name, "metric": tasks[name].metric, "score": score} for name, score in scores.items()]
    learned = {name: members for name, members in config.ensembles.items() if set(members) <= set(network.tasks)}
    for name, row in evaluate_ensembles(learned, network, tasks, config, folder).items():
        rows.append({"task": name, "metric": row["metric"], "score": row["test"]})
    write_text(folder / FILE_NAME, json.dumps(rows, indent=1) + "\n")
    _compare_scores(Results.load(folder), rows, config)
    return Evaluation(rows, _compare_with_records(folder / RECORDS, module))


def _compare_scores(results: Results, rows: Sequence[Mapping[str, Any]], config: RunConfig) -> None:
    """Log how scores differ from those in results.json, and whether another machine explains it."""
    before = {name: task.test for name, task in results.tasks.items()}
    before |= {name: row["test"] for name, row in results.ensemble.items()}
    pairs = [(row["score"], before.get(row["task"])) for row in rows]
    pairs = [(now, score) for now, score in pairs if now is not None and score is not None]
    apart = [abs(now - score) for now, score in pairs if now != score]
    if not apart:
        log.info("scores: all %d as in results.json", len(pairs))
        return
    here, there = str(machine(device_of(config.trainer))), results.computed_on
    why = f"the run computed on {', then '.join(there)}" if there else "results.json does not name the run's machine"
    if there == [here]:
        why = "the run computed on this machine: data, code or files have changed"
    elif here not in there:
        why += f"; this machine is {here}"
    log.warning(
        "scores: %d of %d differ from results.json, by at most %.3g; %s", len(apart), len(pairs), max(apart), why
    )


def _compare_with_records(folder: Path, module: SubnetworkModule) -> int:
    """Compare tasks with the records of the time they were frozen, as far as the run folder has them; count changes."""
    guarantee = Guarantee(folder, on_violation="warn")
    guarantee.check(module, [task for task in module.network.tasks if guarantee.has(task)])
    counts = guarantee.counts
    if counts["checked"]:
        how = f"{counted(counts['checked'], 'time')}, {counts['violations']} changed"
        log.info("frozen tasks compared %s: %s", comparison(counts), how)
    return guarantee.violations
