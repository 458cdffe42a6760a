"""Compare the wall time of tasks trained as separate jobs with one process that trains them one after another.

    python -m benchmarks.apart
    python -m benchmarks.apart --launcher hydra/launcher=joblib hydra.launcher.n_jobs=4 --launcher hydra/launcher=ray
    python -m benchmarks.apart --document -- tasks=mnist_fashion paths.data_dir=DIR

Makes a plan and trains all tasks in one process; then, with each launcher, trains each task as a multirun job, merges
the files, and compares the merged network byte for byte with the first one. Prints a table; --document also writes it
into docs/scale.md. Arguments after `--` are overrides for all runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import new_parser
from benchmarks.document import machine, replace_between, table
from benchmarks.timing import ROOT
from msh.files.plans import read_plan

MSH = [sys.executable, "-m", "msh.cli.app"]
COMMON = ["+experiment=sequential", "pruning=at_init", "logger=none", "callbacks=none", "threads=1"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--launcher", nargs="+", action="append", help="overrides that choose one (default: joblib)")
    parser.add_argument("--document", action="store_true", help="write the table into docs/scale.md")
    parser.add_argument("overrides", nargs="*", help="of all runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.launcher or [JOBLIB], [*COMMON, *given.overrides])
    text = table(rows, list(rows[0]))
    if given.document:
        overrides = f" `{' '.join(given.overrides)}`" if given.overrides else ""
        heading = f"{machine('cpu')}{overrides and ' Of all runs:' + overrides}"
        replace_between(ROOT / "docs" / "scale.md", "<!-- table: scale apart -->", f"{heading}\n\n{text}")
    print(text)


def measure(folder: Path, launchers: list[list[str]], common: list[str]) -> list[dict[str, object]]:
    """Make a row per launcher: wall seconds of each step, and whether both networks have the same bytes.

    Args:
        folder: for all files.
        launchers: overrides that choose a launcher.
        common: overrides for all runs.
    """
    plan = _timed(folder, *MSH, "plan", *common, "-o", "plan")
    tasks = list(read_plan(folder / "plan").state.tasks)
    together = _timed(folder, *MSH, "train", *common, "plan=plan", "hydra.run.dir=together")
    rows: list[dict[str, object]] = []
    for place, launcher in enumerate(launchers):
        sweep = f"jobs-{place}"
        chosen = [f"task={','.join(tasks)}", f"hydra.sweep.dir={sweep}", "hydra.sweep.subdir=${task}", *launcher]
        jobs = _timed(folder, *MSH, "train", "-m", *common, "plan=plan", *chosen)
        files = [f"{sweep}/{task}/subnetworks/{task}.safetensors" for task in tasks]
        merge = _timed(folder, *MSH, "merge", "plan", *files, "-o", f"merged-{place}")
        same = (folder / f"merged-{place}").read_bytes() == (folder / "together" / "network.safetensors").read_bytes()
        rows.append(
            {
                "launcher": " ".join(launcher),
                "tasks": len(tasks),
                "plan, s": plan,
                "jobs, s": jobs,
                "merge, s": merge,
                "one process for all, s": together,
                "plan, jobs and merge / one process": (plan + jobs + merge) / together,
                "same bytes": same,
            }
        )
    return rows


def _timed(folder: Path, *command: str) -> float:
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
