"""Row 14: time that loggers and the report add to a run.

`python -m benchmarks.overhead OVERRIDES` runs `python train.py OVERRIDES` and prints the seconds spent in both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.configs import mnist
from benchmarks.records import Record
from benchmarks.timing import Settings, timed, whole_process
from msh.cli import train
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.tracking import Tracking
from msh.tracking.wandb_run import RunWandbLogger
from msh.training.run import Run

RUNS = {"with": [], "without": ["logger=none", "report=false"]}
"""Overrides for all runs."""
CALLS = (
    *((Run, name) for name in ("_make_loggers", "_write_report")),
    *((Tracking, name) for name in ("stage_ended", "ended", "close")),
    *((RunCSVLogger, name) for name in ("log_metrics", "save", "finalize")),
    *((RunWandbLogger, name) for name in ("log_metrics", "save", "finalize")),
)
"""Functions that a run calls for loggers and report."""
SPENT = "loggers and report: "


def overhead(settings: Settings) -> Iterator[Record]:
    """Measure row 14."""
    if not settings.quick:  # of a run cut short, what is paid once takes a larger share
        yield from compare(settings)


def compare(settings: Settings, *further: str) -> Iterator[Record]:
    """Alternate runs with and without loggers and report.

    Args:
        settings: of the measurement.
        further: overrides for all runs.
    """
    task, name = mnist(settings.data_dir)
    common = ["+experiment=sequential", *task, "trainer=cpu", f"threads={settings.threads}", *further]
    rounds = settings.repeats or 3
    seconds: dict[str, list[float]] = {way: [] for way in RUNS}
    shares = []
    for number in range(rounds):
        for way in list(RUNS)[:: 1 if number % 2 else -1]:
            taken, spent = _run([*common, *RUNS[way]], settings.threads)
            seconds[way].append(taken)
            if way == "with":
                shares.append(spent / taken)
    pairs = [one / other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
    without = statistics.median(seconds["without"])
    command = f"python train.py +experiment=sequential with {name} ({', '.join(further) or 'as it is'})"
    what = (
        f"wall time of {command}, with the default loggers (CSV, W&B offline) and report.html / with neither; "
        f"pair by pair {min(pairs):.3f} to {max(pairs):.3f}"
    )
    ratio, unit = statistics.median(seconds["with"]) / without, "ratio (with neither in s)"
    yield settings.record("14-overhead", what, ratio, unit, without, rounds)
    what = "share of that run's wall time within calls of its loggers and report"
    yield settings.record("14-calls", what, statistics.median(shares), "share (with neither in s)", without, rounds)


def _run(overrides: list[str], threads: int) -> tuple[float, float]:
    """Run a process; return (wall seconds, seconds in loggers and report)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.overhead", *overrides, f"hydra.run.dir={folder}"]
        taken, printed = whole_process(command, threads)
    return taken, float(printed.rpartition(SPENT)[2])


def main() -> None:
    spent: list[float] = []
    with timed(spent, CALLS):
        train.main()
    print(f"{SPENT}{sum(spent)}")


if __name__ == "__main__":
    main()
