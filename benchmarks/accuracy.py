"""Compare test scores and training time of subnetworks, learned in one network, with dense dedicated networks.

    python -m benchmarks.accuracy bundled
    python -m benchmarks.accuracy mnist_fashion --data-dir DIR
    python -m benchmarks.accuracy mnist_fashion --data-dir DIR --granularity weight unit --pruning gradual regrow
    python -m benchmarks.accuracy mnist_fashion --data-dir DIR --granularity weight unit --backbone paper_conv
    python -m benchmarks.accuracy permuted_mnist --data-dir DIR --granularity block --pruning regrow --density 0.07

Runs `train.py -m +experiment=sequential tasks=CASE baseline=dense seed=0,1,2` (finished runs are skipped, stopped ones
resumed), and prints means over the seeds beside their targets; --document also writes them into docs/performance.md.
All granularities, ways of pruning and densities are combined, and compared with the dense networks that the first
combination trains, for as many epochs. Granularity "null" is what msh chooses: here, units that tasks may share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from benchmarks.arguments import new_parser
from benchmarks.document import DOCUMENT, replace_between, table
from benchmarks.runs import ROOT, TRAIN
from msh.runs.results import Results, TaskResult
from msh.subnetworks import GRANULARITIES


@dataclass(frozen=True)
class Target:
    """A task's goal: the lowest score, and the largest difference to dense (relative for errors)."""

    worse_than_dense: float
    score: float | None = None
    relative: bool = False


MEAN = "mean of the tasks"
CASES = {
    "bundled": {
        "digits": Target(0.02),
        "breast_cancer": Target(0.02),
        "wine": Target(0.02),
        "diabetes": Target(0.05, relative=True),
    },
    "mnist_fashion": {"mnist": Target(0.010, score=0.981), "fashion_mnist": Target(0.010, score=0.885)},
    "permuted_mnist": {MEAN: Target(0.010)},
}


@dataclass(frozen=True)
class Way:
    """A way of making subnetworks."""

    granularity: str
    pruning: str
    density: float

    @property
    def overrides(self) -> list[str]:
        """The settings of a run."""
        settings = [f"pruning={self.pruning}", f"pruning.granularity={self.granularity}"]
        if self.pruning == "regrow" and self.granularity == "unit":
            settings.append("pruning.regrow.by=random")
        return [*settings, f"pruning.density={self.density}"]

    def __str__(self) -> str:
        return f"{self.granularity}-{self.pruning}-{self.density}"


def learn(way: Way, overrides: Sequence[str], folder: Path, options: argparse.Namespace) -> list[Results]:
    """Run all seeds as a sweep in a folder; return their results."""
    command = [*TRAIN, "-m", "+experiment=sequential", f"tasks={options.case}", "logger=csv", *overrides]
    command += [f"backbone={options.backbone}"]
    command += [f"paths.data_dir='{options.data_dir.resolve()}'", f"threads={options.threads}"]
    command += [f"trainer.max_epochs={options.max_epochs}", *way.overrides]
    command += [f"seed={','.join(map(str, options.seeds))}", f"hydra.sweep.dir='{folder}'", "skip_finished=true"]
    subprocess.run([*command, "hydra.sweep.subdir=seed-${seed}"], check=True, cwd=ROOT)
    return [Results.load(folder / f"seed-{seed}") for seed in options.seeds]


def summarise(case: str, way: Way, runs: Sequence[Results], beside: Sequence[Results]) -> list[dict]:
    """Make a row per task: mean and standard deviation over seeds, dense score, target met or not, time of dense."""
    rows = []
    for task, target in CASES[case].items():
        mine, its = [_chosen(run, task) for run in runs], [_chosen(run, task) for run in beside]
        results = list(itertools.chain(*mine))
        scores = [statistics.mean(cast(float, result.test) for result in each) for each in mine]
        dense_results = list(itertools.chain(*its))
        mean, dense = statistics.mean(scores), statistics.mean(cast(float, r.dense) for r in dense_results)
        worse = mean - dense if results[0].direction == "min" else dense - mean
        worse = worse / dense if target.relative else worse
        seconds = [sum(r.train_seconds for r in results), sum(r.dense_seconds for r in dense_results)]
        rows.append(
            {
                "task": task,
                "granularity": way.granularity,
                "pruning": way.pruning,
                "density": way.density,
                "metric": results[0].metric,
                "validation": statistics.mean(cast(float, result.val) for result in results),
                "mean": mean,
                "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
                "at least": target.score or "",
                "dense": dense,
                "worse": worse,
                "at most": target.worse_than_dense,
                "met": worse <= target.worse_than_dense and (target.score is None or mean >= target.score),
                "time / dense": seconds[0] / seconds[1] if seconds[1] else "",
                "forgetting": max(abs(run.forgetting or 0.0) for run in runs),
                "violations": sum(run.guarantee["violations"] for run in runs),
            }
        )
    return rows


def _chosen(run: Results, task: str) -> list[TaskResult]:
    return list(run.tasks.values()) if task == MEAN else [run.tasks[task]]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "benchmarks")
    parser.add_argument("--backbone", default="mlp", choices=["mlp", "paper_conv"])
    parser.add_argument("--granularity", nargs="+", default=["weight"], choices=[*GRANULARITIES, "null"])
    parser.add_argument("--pruning", nargs="+", default=["gradual"], choices=["gradual", "at_init", "regrow"])
    parser.add_argument("--density", nargs="+", default=[0.1], type=float)
    parser.add_argument("--max-epochs", type=int, default=12)
    parser.add_argument("--without-times", action="store_true", help="the machine did other work at the same time")
    parser.add_argument("--document", metavar="TABLE", help="write the table of this name in docs/performance.md")
    options = parser.parse_args()
    folder = options.folder.resolve() / f"{options.case}-{options.backbone}"
    runs: dict[Way, list[Results]] = {}
    for way in itertools.starmap(Way, itertools.product(options.granularity, options.pruning, options.density)):
        runs[way] = learn(way, [] if runs else ["baseline=dense"], folder / str(way), options)
    beside, hidden = next(iter(runs.values())), {"time / dense"} if options.without_times else set()
    rows = [row for way, each in runs.items() for row in summarise(options.case, way, each, beside)]
    rows = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    title = f"{options.case}, {options.backbone}, {len(options.seeds)} seeds, {options.max_epochs} epochs"
    console_table = Table(*rows[0], title=f"{title}; worse than dense, at most")
    for row in rows:
        console_table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(console_table)
    if options.document:
        command = f"python -m benchmarks.accuracy {options.case} --data-dir DIR --max-epochs {options.max_epochs}"
        command += "" if options.backbone == "mlp" else f" --backbone {options.backbone}"
        command += "" if options.threads == 1 else f" --threads {options.threads}"
        for name in ("granularity", "pruning", "density", "seeds"):
            command += f" --{name} {' '.join(map(str, getattr(options, name)))}"
        command += " --without-times" if options.without_times else ""
        text = f"`{command} --document {options.document}`: {title}.\n\n{table(rows, list(rows[0]))}"
        replace_between(DOCUMENT, f"<!-- table: accuracy {options.document} -->", text)
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
