"""Wall seconds of tasks trained as jobs of their own, against one process that trains them one after another.

    python -m benchmarks.apart
    python -m benchmarks.apart --launcher hydra/launcher=ray -- tasks=mnist_fashion paths.data_dir=DIR

Makes a plan, trains all its tasks in one process, then each as a job of a multirun, merges the jobs' files, and sees
that the merged network is, byte for byte, the file of the one process. Prints a line of JSON. What follows `--` are
overrides of all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from msh.deploy.plans import read_plan

MSH = [sys.executable, "-m", "msh.cli.main"]
COMMON = ["+experiment=sequential", "pruning=at_init", "logger=none", "callbacks=none", "threads=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    parser.add_argument("--launcher", nargs="+", default=jobs, help=f"overrides that choose it (default: {jobs})")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), given.launcher, [*COMMON, *given.overrides])))


def measure(folder: Path, launcher: list[str], common: list[str]) -> dict[str, object]:
    """Wall seconds of each step, and whether both ways end in the same bytes.

    Args:
        folder: that everything is written into.
        launcher: overrides of the multirun.
        common: overrides of all runs.
    """
    seconds = {"plan": _timed(folder, *MSH, "plan", *common, "-o", "plan")}
    tasks = read_plan(folder / "plan").tasks
    parts = [f"task={','.join(tasks)}", "hydra.sweep.dir=jobs", "hydra.sweep.subdir=${task}", *launcher]
    files = [f"jobs/{task}/subnetworks/{task}.safetensors" for task in tasks]
    seconds["one process"] = _timed(folder, *MSH, "train", *common, "plan=plan", "hydra.run.dir=together")
    seconds["jobs"] = _timed(folder, *MSH, "train", "-m", *common, "plan=plan", *parts)
    seconds["merge"] = _timed(folder, *MSH, "merge", "plan", *files, "-o", "merged")
    same = (folder / "merged").read_bytes() == (folder / "together" / "network.safetensors").read_bytes()
    sizes = {name: (folder / name).stat().st_size for name in ("plan", "merged", *files)}
    return {"tasks": tasks, "launcher": launcher, "seconds": seconds, "bytes": sizes, "same bytes": same}


def _timed(folder: Path, *command: str) -> float:
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
