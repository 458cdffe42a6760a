"""MNIST, then Fashion-MNIST, in one FC 6 x 1000, 90 % sparse each, against dense dedicated networks.

    python benchmarks/mnist_fashion.py DATA_DIR [--seeds 0 1 2] [--threads N]

Runs `train.py +experiment=sequential tasks=mnist_fashion baseline=dense` once a seed (a finished run is not done again,
a stopped one goes on), and prints means over the seeds beside their targets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"mnist": 0.981, "fashion_mnist": 0.885}
MOST_BELOW_DENSE = 0.010


def run(seed: int, data_dir: str, threads: int, folder: Path) -> dict:
    """Do one seed's run, or what is missing of it, and return its results.json."""
    results = folder / "results.json"
    status = json.loads(results.read_text())["status"] if results.exists() else "new"
    command = [sys.executable, str(ROOT / "train.py"), "+experiment=sequential", f"paths.data_dir={data_dir}"]
    if status == "new":
        settings = ["tasks=mnist_fashion", "baseline=dense", "logger=csv", f"seed={seed}", f"threads={threads}"]
        command += [*settings, f"hydra.run.dir={folder}"]
    else:
        command += [f"resume={folder}"]
    if status != "finished":
        subprocess.run(command, check=True, cwd=ROOT)
    return json.loads(results.read_text())


def summarise(runs: list[dict]) -> list[dict]:
    """A row per task: mean and standard deviation over seeds, and whether the targets are met."""
    rows = []
    for task, target in TARGETS.items():
        scores = [r["tasks"][task]["test"] for r in runs]
        dense = statistics.mean(r["tasks"][task]["dense"] for r in runs)
        mean = statistics.mean(scores)
        rows.append(
            {
                "task": task,
                "mean": mean,
                "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "target": target,
                "dense": dense,
                "below_dense": dense - mean,
                "met": mean >= target and dense - mean <= MOST_BELOW_DENSE,
                "forgetting": max(abs(r["forgetting"]) for r in runs),
                "violations": sum(r["guarantee"]["violations"] for r in runs),
                "seeds": len(runs),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "benchmarks" / "mnist_fashion")
    options = parser.parse_args()
    data_dir = str(Path(options.data_dir).resolve())
    runs = [run(seed, data_dir, options.threads, options.folder / f"seed-{seed}") for seed in options.seeds]
    rows = summarise(runs)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=140).print(table)
    (options.folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
