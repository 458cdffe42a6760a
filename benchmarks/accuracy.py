"""Compare test scores of subnetworks at 10 % density, learned in one network, with dense dedicated networks.

    python -m benchmarks.accuracy bundled
    python -m benchmarks.accuracy mnist_fashion --data-dir DIR
    python -m benchmarks.accuracy mnist_fashion --data-dir DIR --granularity weight neuron

Runs `train.py +experiment=sequential tasks=CASE baseline=dense` once per seed (a finished run is skipped, a stopped one
is resumed), and prints means over the seeds beside their targets; --document also writes them into docs/performance.md.
Several granularities are compared with the dense networks from the first one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.document import DOCUMENT, replace_between, table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """A task's goal: the lowest score, and the largest difference to dense (relative for errors)."""

    worse_than_dense: float
    score: float | None = None
    relative: bool = False


CASES = {
    "bundled": {
        "digits": Target(0.02),
        "breast_cancer": Target(0.02),
        "wine": Target(0.02),
        "diabetes": Target(0.05, relative=True),
    },
    "mnist_fashion": {"mnist": Target(0.010, score=0.981), "fashion_mnist": Target(0.010, score=0.885)},
}


def run(case: str, seed: int, data_dir: str, threads: int, folder: Path, overrides: list[str]) -> dict:
    """Start, resume or skip one seed's run, and return its results.json."""
    results = folder / "results.json"
    status = json.loads(results.read_text())["status"] if results.exists() else "new"
    command = [sys.executable, str(ROOT / "train.py"), "+experiment=sequential", f"paths.data_dir={data_dir}"]
    if status == "new":
        settings = [f"tasks={case}", "logger=csv", f"seed={seed}", f"threads={threads}", *overrides]
        command += [*settings, f"hydra.run.dir={folder}"]
    else:
        command += [f"resume={folder}"]
    if status != "finished":
        subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(results.read_text())


def summarise(case: str, granularity: str, runs: list[dict], beside: list[dict]) -> list[dict]:
    """Make a row per task: mean and standard deviation over seeds, dense score, target met or not."""
    rows = []
    for task, target in CASES[case].items():
        scores = [r["tasks"][task]["test"] for r in runs]
        mean, dense = statistics.mean(scores), statistics.mean(r["tasks"][task]["dense"] for r in beside)
        worse = mean - dense if runs[0]["tasks"][task]["direction"] == "min" else dense - mean
        worse = worse / dense if target.relative else worse
        rows.append(
            {
                "task": task,
                "granularity": granularity,
                "weights": round(statistics.mean(r["tasks"][task]["weights"] for r in runs)),
                "metric": runs[0]["tasks"][task]["metric"],
                "mean": mean,
                "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "at least": target.score or "",
                "dense": dense,
                "worse": worse,
                "at most": target.worse_than_dense,
                "met": worse <= target.worse_than_dense and (target.score is None or mean >= target.score),
                "forgetting": max(abs(r["forgetting"]) for r in runs),
                "violations": sum(r["guarantee"]["violations"] for r in runs),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "benchmarks")
    parser.add_argument("--granularity", nargs="+", default=["weight"], choices=["weight", "neuron", "channel"])
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--document", action="store_true")
    options = parser.parse_args()
    folder, data_dir = options.folder / options.case, str(Path(options.data_dir).resolve())
    runs: dict[str, list[dict]] = {}
    for granularity in options.granularity:
        overrides = [f"pruning.granularity={granularity}", f"trainer.max_epochs={options.max_epochs}"]
        overrides += [] if runs else ["baseline=dense"]
        runs[granularity] = [
            run(options.case, seed, data_dir, options.threads, folder / granularity / f"seed-{seed}", overrides)
            for seed in options.seeds
        ]
    beside = runs[options.granularity[0]]
    rows = [row for name, each in runs.items() for row in summarise(options.case, name, each, beside)]
    title = f"{options.case}, density 0.1, {len(options.seeds)} seeds, {options.max_epochs} epochs"
    console_table = Table(*rows[0], title=f"{title}; worse than dense, at most")
    for row in rows:
        console_table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(console_table)
    if options.document:
        command = f"python -m benchmarks.accuracy {options.case} --data-dir DIR --granularity {' '.join(runs)}"
        command += f" --seeds {' '.join(map(str, options.seeds))} --max-epochs {options.max_epochs}"
        text = f"`{command}`: {title}.\n\n{table(rows, list(rows[0]))}"
        replace_between(DOCUMENT, f"<!-- table: accuracy {options.case} -->", text)
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
