"""Run folders as train.py leaves them, without training."""

import json

from omegaconf import OmegaConf

from msh.report.sweeps import read_sweep
from msh.runs.results import Results, TaskResult


def write_run(folder, tasks, *, config=None, overrides=(), status="finished", matrix=None, **more):
    """A run folder.

    Args:
        folder: of the run.
        tasks: name to keyword arguments of TaskResult; "test" goes into the matrix too.
        config: what .hydra/config.yaml has beside the tasks.
        overrides: what .hydra/overrides.yaml has.
        status: of the run.
        matrix: rows of test scores, one stage after another; one stage of all tasks when None.
        more: further keys of results.json.
    """
    usual = {"metric": "accuracy", "direction": "max", "stage": 0, "density": 0.1, "train_seconds": 10.0}
    rows = {name: TaskResult(**usual | given) for name, given in tasks.items()}
    matrix = [[row.test for row in rows.values()]] if matrix is None else matrix
    results = Results("fake", 0, [list(tasks)], rows, run_id="x", status=status, matrix=matrix)
    results.capacity = {"prunable": 1000, "owned": 200, "free": 800}
    results.save(folder)
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(content | more))
    settings = {"curriculum": [list(tasks)], "trainer": {"max_epochs": 3}, "threads": 1}
    (folder / ".hydra").mkdir(exist_ok=True)
    settings |= {"tasks": {name: {} for name in tasks}} | (config or {})
    OmegaConf.save(OmegaConf.create(settings), folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    return folder


def write_sweep(folder, densities=(0.01, 0.05, 0.3), rates=("0.001", "0.01"), seeds=(1, 2)):
    """A grid of finished jobs, whose scores depend on the rate, and by a tenth as much on the density."""
    jobs = [(density, rate, seed) for density in densities for rate in rates for seed in seeds]
    for number, (density, rate, seed) in enumerate(jobs):
        score = 0.9 - (rate == "0.01") * 0.2 + 0.02 * densities.index(density)
        overrides = [f"pruning.density={density}", f"optimizer.lr={rate}", f"seed={seed}"]
        write_run(folder / str(number), {"a": {"val": score, "test": 0.5, "density": density}}, overrides=overrides)
    return read_sweep(folder)
