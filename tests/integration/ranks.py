"""Runs in processes that train together, one after another: starting two processes costs more than a run.

As a script: python launching.py 2 ranks.py FOLDER, with FOLDER/cases.json, a mapping from
a run's name to its overrides. Each rank writes into FOLDER what its runs have come to.
"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from running import here

from msh.cli import train as command
from msh.subnetworks.tensors import raw_bytes
from msh.training import run as training
from msh.training.callbacks import EarlyStoppingPerTask, RestoreBest


def end_of(folder, *overrides):
    """Do a run in this process; what this process knows at its end.

    Returns:
        (owner ids, each task's digest, the epochs in which tasks stopped, optimizer steps, sizes of the splits: as JSON
        has them; the network's tensors).
    """
    runs, stopped = [], []
    go, decide = training.Run.go, EarlyStoppingPerTask.on_validation_end

    def keep(run):
        runs.append(run)
        return go(run)

    def note(callback, trainer, module):
        before = set(module.context.stopped)
        decide(callback, trainer, module)
        stopped.extend([task, trainer.current_epoch + 1] for task in sorted(module.context.stopped - before))

    training.Run.go, EarlyStoppingPerTask.on_validation_end = keep, note
    try:
        here(command.main, *overrides, cwd=folder.parent)
    finally:
        training.Run.go, EarlyStoppingPerTask.on_validation_end = go, decide
    network, tasks = runs[0].network, runs[0].tasks
    owners = {
        name: torch.frombuffer(raw_bytes(ids), dtype=torch.uint8).tolist() for name, ids in network.owners.items()
    }
    told = {
        "owners": owners,
        "digests": {task: network.digest(task) for task in network.tasks},
        "stopped": stopped,
        "step": runs[0].module.run_step,
        "examples": [len(task.splits[split]) for task in tasks.values() for split in ("val", "test")],
    }
    return told, {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}


def stop(folder, overrides):
    """Do a run until, in training after pruning, the last rank is told to end after the second epoch."""
    keep = RestoreBest.on_validation_end

    def tell(callback, trainer, module):
        keep(callback, trainer, module)
        if trainer.current_epoch == 1 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    RestoreBest.on_validation_end = tell
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            end_of(folder, *overrides)
    finally:
        RestoreBest.on_validation_end = keep


def watch_writing(folder):
    """A list that gets the paths below a folder that this process opens for writing, renames or removes."""
    written = []

    def note(event, arguments):
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opened or event in ("os.rename", "os.remove", "shutil.rmtree"):
            paths = [path for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            written.extend(str(path) for path in paths if Path(path).is_relative_to(folder))

    sys.addaudithook(note)
    return written


def main():
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for name, overrides in json.loads((folder / "cases.json").read_text()).items():
        run_dir = folder / name
        written = watch_writing(run_dir)
        arguments = [*overrides, f"hydra.run.dir={run_dir}"]
        if name.endswith("stopped"):
            stop(run_dir, arguments)
            arguments = [f"resume={run_dir}"]
        told, weights = end_of(run_dir, *arguments)
        (folder / f"{name}.{rank}.json").write_text(json.dumps(told))
        (folder / f"{name}.{rank}.written.json").write_text(json.dumps(written))
        torch.save(weights, folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main()
