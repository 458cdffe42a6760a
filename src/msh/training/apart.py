"""Plan tasks that train apart: each task can then train alone, with the plan file and no other."""

from __future__ import annotations

import json
from pathlib import Path

from msh.errors import invalid
from msh.files.plans import MadeWith, make_plan_file
from msh.files.state_file import StateFile
from msh.subnetworks.modules import flops_share
from msh.subnetworks.small import computes_small
from msh.training import life
from msh.training.config import RunConfig
from msh.training.origin import check_plannable, planned_settings
from msh.training.prepare import build_module, prepare


def make_plan(config: RunConfig, path: Path, made_with: MadeWith | None = None) -> tuple[StateFile, dict[str, float]]:
    """Allocate weights to all tasks before any training, and write the plan file.

    Each task gets the weights that a sequential curriculum with pruning at initialisation would give it.

    Args:
        config: names all tasks.
        path: the file's.
        made_with: the same config as composed, which the plan stores for the runs of its tasks.
    Returns:
        The file's content; and for tasks of whole units their FLOPs as a share of the dense backbone's.
    Raises:
        ValueError: a setting or the data is invalid, or the tasks need more weights than there are.
        FileNotFoundError: data is missing.
    """
    for key in ("plan", "task", "network"):
        if getattr(config, key) is not None:
            raise invalid(key, "null: a plan is for all tasks of a new network", getattr(config, key))
    prepared = prepare(config)
    check_plannable(prepared.config)
    network, module, flops = prepared.network, build_module(prepared), dict[str, float]()
    for stage in prepared.fits:
        for task in stage.tasks:
            life.begin(network, prepared.tasks[task], prepared.config)
            life.pruner(prepared, stage, {task: prepared.wanted[task]}).prune_now(module)
            life.freeze(network, [task])  # frees its training state: there may be a thousand tasks
            if computes_small(network.subnetwork(task)):
                flops[task] = flops_share(network, task)
    start, shape = prepared.notes["start"], json.loads(prepared.notes["input_shape"])
    plan = make_plan_file(network.state.planned(), planned_settings(config), shape, start, made_with)
    plan.write(path)
    return plan, flops
