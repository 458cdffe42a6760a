"""Measure planning, merging and loading of many tasks that are trained on separate machines.

    python -m benchmarks.fleet STEP FOLDER TASKS DEPTH [WIDTH]

Each step runs in a separate process and prints, as JSON, its seconds, its CPU seconds and its peak memory beyond the
start: `plan` makes the plan; `files` writes every task's file as a run does, with the plan's allocation and untrained
weights; `merge` merges them; `load` builds the network with all tasks from the merged file. `fleet` does the work of
`msh fleet` while these files appear one by one, as if jobs on other machines had finished; the same step again does
that of the command that continues a fleet.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from benchmarks.configs import compose, typed
from benchmarks.memory import peak
from benchmarks.timing import seconds
from msh.cli.arguments import by_key
from msh.cli.configs import config_folder
from msh.cli.fleet import run_fleet
from msh.cli.jobs import without_hydra
from msh.cli.memory import give_large_blocks_back
from msh.files.atomic import write_text
from msh.files.merging import merge_files
from msh.files.plans import MadeWith, allocation_in, notes_for_tasks, read_plan
from msh.files.state_file import save_subnetwork
from msh.runs.results import Results, TaskResult
from msh.training.apart import make_plan
from msh.training.build import add_task
from msh.training.config import register, run_config
from msh.training.prepare import prepare


def overrides(tasks: int, depth: int, width: int = 1000) -> list[str]:
    """List the run's overrides: digits many times, in the experiment's network.

    Args:
        tasks: number of tasks, each with an equal part of the network.
        depth: layers in the network.
        width: units in a layer.
    """
    found = ["tasks=[digits]", f"+tasks.digits.variants={tasks}", f"pruning.density={1 / tasks}", "pruning=at_init"]
    found += [f"backbone.depth={depth}", f"backbone.width={width}"]
    found += ["logger=none", "callbacks=none", "report=false", "trainer=cpu", "threads=1"]
    return found


def task_names(tasks: int) -> list[str]:
    return [f"digits_{i}" for i in range(tasks)]


def part(folder: Path, task: str) -> Path:
    """Return the path of a task's file."""
    return folder / "subnetworks" / f"{task}.safetensors"


def plan(folder: Path, tasks: int, *size: int) -> None:
    """Do the work of `msh plan`."""
    config = compose("experiment=sequential", *overrides(tasks, *size))
    made_with: MadeWith = {"config": cast(Any, OmegaConf.to_container(config, resolve=False)), "overrides": []}
    make_plan(run_config(config), folder / "plan", made_with)


def files(folder: Path, tasks: int, *size: int) -> None:
    """Write the file that each task's run would write."""
    prepared = prepare(typed("experiment=sequential", *overrides(tasks, *size)))
    planned = read_plan(folder / "plan")
    for task in planned.state.tasks:
        network = copy.deepcopy(prepared.network)
        add_task(network, prepared.tasks[task], prepared.config)
        network.begin(task, allocation_in(planned, task))
        network.freeze(task)
        save_subnetwork(part(folder, task), network, task, notes=notes_for_tasks(planned))


def merge(folder: Path, tasks: int, *size: int) -> None:
    """Do the work of `msh merge`."""
    merge_files(folder / "plan", [part(folder, task) for task in task_names(tasks)], folder / "network")


class Arrivals:
    """Stands in for a launcher: each job only puts its folder in place, with the file that `files` wrote."""

    def __init__(self, folder: Path, config: DictConfig) -> None:
        self.folder, self.config = folder, without_hydra(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Finish all jobs, one after another."""
        return [self.finish(by_key(overrides)["task"]) for overrides in job_overrides]

    def finish(self, task: str) -> JobReturn:
        """Write a job's folder."""
        time.sleep(PAUSE)
        run = self.folder / "fleet" / task
        self.config.task = task
        write_text(run / ".hydra" / "config.yaml", OmegaConf.to_yaml(self.config))
        file = part(run, task)
        file.parent.mkdir()
        file.hardlink_to(part(self.folder, task))
        row = {task: TaskResult("accuracy", "max", 0, test=0.5)}
        Results("sequential", 0, [[task]], row, "id", "finished", matrix=[[0.5]]).save(run)
        return JobReturn(status=JobStatus.COMPLETED)


def arrive(folder: Path, tasks: int, *size: int) -> None:
    """Do the work of `msh fleet`, without the jobs'."""
    register()
    arguments = ["experiment=sequential", *overrides(tasks, *size), f"plan={folder / 'plan'}", "skip_finished=true"]
    with initialize_config_dir(config_folder(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        with_folder = [*arguments, f"hydra.sweep.dir={folder / 'fleet'}", "hydra/sweeper=fleet"]
        config = loader.load_configuration("config", with_folder, run_mode=RunMode.MULTIRUN)
        context = cast(HydraContext, SimpleNamespace(config_loader=loader))
        with redirect_stdout(sys.stderr):
            run_fleet(None, "", arguments, config, context, cast(Launcher, Arrivals(folder, config)))


def load(folder: Path, tasks: int, *size: int) -> None:
    """Load the network as a run with `network=NETWORK` does before evaluation."""
    prepare(typed("experiment=sequential", *overrides(tasks, *size), f"network={folder / 'network'}"))


STEPS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "files": files,
    "merge": merge,
    "fleet": arrive,
    "load": load,
}
PAUSE = 0.05
"""Seconds between two files that `fleet` waits for."""


def main() -> None:
    step, folder, tasks, *size = sys.argv[1:]
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(1)
    give_large_blocks_back()  # as `msh plan` and `msh merge` do
    before, started = peak(), time.process_time()
    taken = seconds(lambda: STEPS[step](Path(folder), int(tasks), *map(int, size)))
    print(json.dumps({"seconds": taken, "cpu": time.process_time() - started, "bytes": peak() - before}))


if __name__ == "__main__":
    main()
