"""Measure planning, merging and loading of many tasks that are trained on separate machines.

    python -m benchmarks.fleet STEP FOLDER TASKS DEPTH

Each step runs in a separate process and prints, as JSON, its seconds and its peak memory beyond the start: `plan`
makes the plan; `files` writes every task's file as a run does, with the plan's allocation and untrained weights;
`merge` merges them; `load` builds the network with all tasks from the merged file.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.configs import typed
from benchmarks.memory import peak
from benchmarks.timing import seconds
from msh.cli.memory import give_large_blocks_back
from msh.files.merging import merge_files
from msh.files.plans import allocation_in, notes_for_tasks, read_plan
from msh.files.state_file import save_subnetwork
from msh.training.apart import make_plan
from msh.training.build import add_task
from msh.training.prepare import prepare


def overrides(tasks: int, depth: int) -> list[str]:
    """List the run's overrides: digits many times, in the experiment's network, 1000 wide.

    Args:
        tasks: number of tasks, each with an equal part of the network.
        depth: layers in the network.
    """
    found = ["tasks=[digits]", f"+tasks.digits.variants={tasks}", f"pruning.density={1 / tasks}", "pruning=at_init"]
    found += [f"backbone.depth={depth}", "logger=none", "callbacks=none", "report=false", "trainer=cpu", "threads=1"]
    return found


def task_names(tasks: int) -> list[str]:
    return [f"digits_{i}" for i in range(tasks)]


def part(folder: Path, task: str) -> Path:
    """Return the path of a task's file."""
    return folder / "subnetworks" / f"{task}.safetensors"


def plan(folder: Path, tasks: int, depth: int) -> None:
    """Do the work of `msh plan`."""
    make_plan(typed("experiment=sequential", *overrides(tasks, depth)), folder / "plan")


def files(folder: Path, tasks: int, depth: int) -> None:
    """Write the file that each task's run would write."""
    prepared = prepare(typed("experiment=sequential", *overrides(tasks, depth)))
    planned = read_plan(folder / "plan")
    for task in planned.state.tasks:
        network = copy.deepcopy(prepared.network)
        add_task(network, prepared.tasks[task], prepared.config)
        network.begin(task, allocation_in(planned, task))
        network.freeze(task)
        save_subnetwork(part(folder, task), network, task, notes=notes_for_tasks(planned))


def merge(folder: Path, tasks: int, depth: int) -> None:
    """Do the work of `msh merge`."""
    merge_files(folder / "plan", [part(folder, task) for task in task_names(tasks)], folder / "network")


def load(folder: Path, tasks: int, depth: int) -> None:
    """Load the network as a run with `network=NETWORK` does before evaluation."""
    prepare(typed("experiment=sequential", *overrides(tasks, depth), f"network={folder / 'network'}"))


STEPS: dict[str, Callable[[Path, int, int], None]] = {"plan": plan, "files": files, "merge": merge, "load": load}


def main() -> None:
    step, folder, tasks, depth = sys.argv[1:]
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(1)
    give_large_blocks_back()  # as `msh plan` and `msh merge` do
    before = peak()
    taken = seconds(lambda: STEPS[step](Path(folder), int(tasks), int(depth)))
    print(json.dumps({"seconds": taken, "bytes": peak() - before}))


if __name__ == "__main__":
    main()
