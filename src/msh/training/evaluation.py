"""Measuring a run again from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from msh.files.atomic import write_text
from msh.files.plans import input_shape_in
from msh.files.state_file import fill_network, read_state
from msh.files.yaml_files import read_config
from msh.runs.results import Results
from msh.subnetworks import MultiSubnetwork
from msh.tasks import Task
from msh.training.batches import check_evaluation
from msh.training.build import add_task, build_network, build_tasks
from msh.training.ensembles import measure_ensembles, read_ensembles
from msh.training.fitting import measure
from msh.training.machine import set_up_torch
from msh.training.module import SubnetworkModule
from msh.training.prepare import set_input_shape
from msh.training.targets import check_targets
from msh.training.variants import expand_variants

FILE_NAME = "evaluation.json"


def read_settings(folder: Path, unsafe: bool = False) -> DictConfig:
    """The config of a run that is to be measured again.

    Args:
        folder: the run folder.
        unsafe: let it name code that is neither msh's, torch's nor Lightning's.
    Raises:
        FileNotFoundError: it is not a run folder.
        ValueError: a file in it is damaged, or names such code.
    """
    Results.load(folder)
    path = folder / ".hydra" / "config.yaml"
    try:
        config = read_config(path)
        for key in ("tasks", "backbone", "trainer", "paths"):
            if not isinstance(config.get(key), DictConfig):
                raise ValueError(f"{path} is not the config of a run: it has no {key}")
        for name, task in config.tasks.items():
            if not isinstance(task, DictConfig):
                raise ValueError(f"{path} is not the config of a run: tasks.{name} is {task!r}")
        check_evaluation(config)
        config = expand_variants(config)
        if not unsafe:
            check_targets(config, str(path))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return config


def load_run(
    folder: Path, data_dir: str | None = None, unsafe: bool = False
) -> tuple[DictConfig, dict[str, Task], MultiSubnetwork]:
    """Rebuild a run's network from its folder.

    Args:
        folder: the run folder.
        data_dir: where the data is now; where the run had it when None.
        unsafe: as in `read_settings`.
    Returns:
        (the run's config, its tasks, its network).
    Raises:
        FileNotFoundError: it is not a run folder, or no stage has ended yet, or data is missing.
        ValueError: a file in it is damaged.
    """
    config = read_settings(folder, unsafe)
    if data_dir is not None:
        config.paths.data_dir = data_dir
    path = folder / "network.safetensors"
    file = read_state(path, "network")
    tasks = build_tasks(config, [config.task] if config.get("task") else None)
    if "input_shape" in file.notes:
        set_input_shape(config, list(input_shape_in(file.notes, path)))
    network = build_network(config, tasks, list(file.state.owners))
    for task in file.state.tasks:
        add_task(network, tasks[task], config)
    fill_network(path, network, file)
    return config, tasks, network


def evaluate(folder: Path, data_dir: str | None = None, unsafe: bool = False) -> list[dict[str, Any]]:
    """Measure every task of a run on its test split, and write evaluation.json into the run folder.

    Args:
        folder: the run folder.
        data_dir: where the data is now; where the run had it when None.
        unsafe: as in `read_settings`.
    Returns:
        A row per task, and one per ensemble: task, metric, score.
    """
    set_up_torch(read_settings(folder, unsafe))
    config, tasks, network = load_run(folder, data_dir, unsafe)
    module = SubnetworkModule(network, tasks, lambda parameters: None, config.seed)  # type: ignore[arg-type,return-value]
    config.trainer.devices, config.trainer.strategy = 1, "auto"
    scores = measure(module, network.tasks, "test", config, folder)
    rows = [{"task": name, "metric": tasks[name].metric, "score": score} for name, score in scores.items()]
    found = _learned_ensembles(config, tasks, network)
    for name, row in measure_ensembles(found, network, tasks, config, folder).items():
        rows.append({"task": name, "metric": row["metric"], "score": row["test"]})
    write_text(folder / FILE_NAME, json.dumps(rows, indent=1) + "\n")
    return rows


def _learned_ensembles(config: DictConfig, tasks: dict[str, Task], network: MultiSubnetwork) -> dict[str, list[str]]:
    """Those of the run's ensembles all of whose tasks are learned; runs of earlier releases have none."""
    ensembles = read_ensembles(config.get("ensembles") or OmegaConf.create({}), list(tasks))
    return {name: members for name, members in ensembles.items() if set(members) <= set(network.tasks)}
