"""Many tasks of one plan, trained on machines of their own: what planning, merging and loading them cost.

    python -m benchmarks.fleet STEP FOLDER TASKS DEPTH

Each step is a process of its own, which prints its seconds and how much more memory it had at its peak than before, as
JSON: `plan` makes the plan; `files` writes every task's file as a run does, with the plan's allocation and untrained
weights; `merge` merges them; `load` builds the network of all tasks from the merged file.
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
    """The run whose tasks they are: the digits again and again, in the experiment's network, 1000 wide.

    Args:
        tasks: how many, each with an equal part of the network.
        depth: layers of the network.
    """
    found = ["tasks=[digits]", f"+tasks.digits.variants={tasks}", f"pruning.density={1 / tasks}", "pruning=at_init"]
    found += [f"backbone.depth={depth}", "logger=none", "callbacks=none", "report=false", "trainer=cpu", "threads=1"]
    return found


def task_names(tasks: int) -> list[str]:
    return [f"digits_{i}" for i in range(tasks)]


def part(folder: Path, task: str) -> Path:
    """A task's file."""
    return folder / "subnetworks" / f"{task}.safetensors"


def plan(folder: Path, tasks: int, depth: int) -> None:
    """`msh plan`."""
    make_plan(typed("experiment=sequential", *overrides(tasks, depth)), folder / "plan")


def files(folder: Path, tasks: int, depth: int) -> None:
    """What every task's own run writes."""
    prepared = prepare(typed("experiment=sequential", *overrides(tasks, depth)))
    planned = read_plan(folder / "plan")
    for task in planned.state.tasks:
        network = copy.deepcopy(prepared.network)
        add_task(network, prepared.tasks[task], prepared.config)
        network.begin(task, allocation_in(planned, task))
        network.freeze(task)
        save_subnetwork(part(folder, task), network, task, notes=notes_for_tasks(planned))


def merge(folder: Path, tasks: int, depth: int) -> None:
    """`msh merge`."""
    merge_files(folder / "plan", [part(folder, task) for task in task_names(tasks)], folder / "network")


def load(folder: Path, tasks: int, depth: int) -> None:
    """What a run with `network=NETWORK` does before it measures the tasks."""
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
