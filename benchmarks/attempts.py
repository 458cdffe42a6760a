"""Sweeps behind the settings of docs/results.md, scored on validation data; write docs/attempts.md and attempts.json.

    python -m benchmarks.attempts --data-dir DIR [--sweeps permuted_mnist] [--jobs 2] [--missing]

The sweeps are listed in benchmarks/attempts.yaml, their runs go to outputs/attempts. As with benchmarks.reproduce, a
finished run is skipped, a stopped one is resumed, one with other settings is moved aside; benchmarks/run_records has a
record of each run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.arguments import names_of
from benchmarks.document import put_section, table
from benchmarks.recording import steps_to_do, write_records
from benchmarks.records import update
from benchmarks.rows import Entry, read_entries
from benchmarks.runs import Step, command_line, do, state_of
from benchmarks.scores import Measured, read_run
from msh.errors import one_of

FILE = Path(__file__).with_name("attempts.yaml")
HEAD = """# Attempts

These sweeps chose the settings behind [results.md](results.md). You can repeat them with
`python -m benchmarks.attempts`; finished runs are skipped. All scores are on validation data: the test split is never
read here. `attempts.json` in this folder holds the same numbers. The command rewrites the text between the markers.
"""


@dataclass
class Sweep(Entry):
    """Settings tried on one experiment, each with every seed; the table has means over the seeds."""

    tasks: list[str] = field(default_factory=list)
    """Tasks or ensembles in the table; the mean over all tasks when empty."""
    attempts: dict[str, list[str]] = field(default_factory=dict)
    """Attempt (also the name of its run folder) to additional overrides."""

    def steps(self, attempt: str, root: Path) -> list[Step]:
        """List an attempt's runs, one per seed."""
        overrides = (f"experiment={self.experiment}", *self.overrides, *self.attempts[attempt])
        folder = root / self.id / attempt
        return [
            Step(f"{self.id}, {attempt}, seed {seed}", folder / f"seed-{seed}", (*overrides, f"seed={seed}"))
            for seed in self.seeds
        ]

    def all_steps(self, root: Path) -> list[Step]:
        """List the runs of all attempts, in order."""
        return [step for attempt in self.attempts for step in self.steps(attempt, root)]


def records_of(sweep: Sweep, root: Path) -> list[dict[str, Any]]:
    """Make a record per task for each attempt that is finished with every seed; `best` marks a task's best.

    Raises:
        ValueError: the sweep names a task that its experiment does not have.
    """
    records = []
    for attempt in sweep.attempts:
        steps = sweep.steps(attempt, root)
        runs = [read_run(step.folder) if state_of(step).what == "finished" else None for step in steps]
        finished = [run for run in runs if run is not None]
        if len(finished) == len(runs):
            first = {"sweep": sweep.id, "attempt": attempt, "overrides": sweep.attempts[attempt]}
            last = {"experiment": sweep.experiment, "seeds": sweep.seeds, "threads": finished[0].threads, "best": False}
            scores = zip(*(_scores(sweep, run) for run in finished), strict=True)
            records += [first | _over_seeds(of_task) | last for of_task in scores]
    for task in {record["task"] for record in records}:
        entries = [record for record in records if record["task"] == task]
        choose = max if entries[0]["direction"] == "max" else min
        choose(entries, key=lambda record: cast(float, record["val"]))["best"] = True
    return records


def _over_seeds(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge a task's scores over the seeds: means, and a standard deviation if there are several."""
    values = [cast(float, score["val"]) for score in scores]
    return {
        **scores[0],
        "val": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "epochs": max(score["epochs"] for score in scores),
        "seconds": statistics.mean(score["seconds"] for score in scores),
    }


def _scores(sweep: Sweep, run: Measured) -> list[dict[str, Any]]:
    tasks = run.results.tasks
    scored: dict[str, Mapping[str, Any]] = {name: vars(task) for name, task in tasks.items()}
    scored |= run.results.ensemble
    for name in sweep.tasks:
        one_of(f"{FILE}, {sweep.id}: tasks", name, scored)
    groups = {name: [name] for name in sweep.tasks} or {f"mean of {len(tasks)} tasks": list(tasks)}
    return [
        {
            "task": shown,
            "metric": scored[names[0]]["metric"],
            "direction": scored[names[0]]["direction"],
            "val": statistics.mean(scored[name]["val"] for name in names),
            "epochs": max(run.epochs[task] for name in names for task in scored[name].get("tasks", [name])),
            "seconds": run.results.wall_seconds,
        }
        for shown, names in groups.items()
    ]


def document(sweeps: Mapping[str, Sweep], root: Path, folder: Path, run_records: Path) -> None:
    """Record finished runs; write attempts.md and attempts.json. Sweeps without runs stay unchanged.

    Args:
        sweeps: all sweeps.
        root: folder of the runs.
        folder: folder of the documents.
        run_records: folder of the run records.
    """
    write_records((step for sweep in sweeps.values() for step in sweep.all_steps(root)), root, run_records)
    records = {id: records_of(sweep, run_records) for id, sweep in sweeps.items()}
    for id, of_sweep in records.items():
        if of_sweep:
            text = _text(sweeps[id], of_sweep)
            put_section(folder / "attempts.md", HEAD, f"attempts {id}", sweeps[id].title, text)
    update(folder / "attempts.json", "sweep", records)


def _text(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> str:
    command = " ".join([f"+experiment={sweep.experiment}", *sweep.overrides])
    columns = ["attempt", "settings", "task", "metric", "validation", "best", "epochs", "seconds"]
    lines = [
        {
            **record,
            "settings": f"`{' '.join(record['overrides'])}`" if record["overrides"] else "–",
            "validation": f"{record['val']:.4f}" + (f" ± {record['std']:.4f}" if record["std"] is not None else ""),
            "best": "**best**" if record["best"] else "",
            "seconds": f"{record['seconds']:.0f}",
        }
        for record in records
    ]
    seeds = f"seed{'s' * (len(sweep.seeds) > 1)} {', '.join(map(str, sweep.seeds))}"
    return f"`{command}`, {seeds}.\n\n{table(lines, columns)}"


def parse(arguments: Sequence[str], sweeps: Mapping[str, Sweep]) -> argparse.Namespace:
    parser = command_line(__doc__, "attempts")
    parser.add_argument("--sweeps", type=names_of(sweeps), default=list(sweeps), help=f"of {','.join(sweeps)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    sweeps = read_entries(FILE, Sweep)
    options = parse(sys.argv[1:] if arguments is None else arguments, sweeps)
    root = options.output_dir.resolve()
    steps = [step for id in options.sweeps for step in sweeps[id].all_steps(root)]
    records = options.records_dir / "attempts"
    todo = steps_to_do(steps, options, records)
    do(todo, options, lambda: document(sweeps, root, options.document_dir, records))


if __name__ == "__main__":
    main()
