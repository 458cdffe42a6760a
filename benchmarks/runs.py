"""Run train.py in parallel processes: finished runs are skipped, stopped ones resumed."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from benchmarks.arguments import new_parser, positive
from benchmarks.configs import compose
from msh.training.settings import INCIDENTAL, OnDisk, on_disk

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "train.py")]
NOT_COMPARED = (*INCIDENTAL, "baseline", "threads")
"""Settings in which a run on disk may differ from its step."""


@dataclass(frozen=True)
class Step:
    """A run.

    Attributes:
        name: for people.
        folder: the run folder.
        overrides: for train.py, experiment and seed included.
        baselines: that the finished run must have.
    """

    name: str
    folder: Path
    overrides: tuple[str, ...]
    baselines: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """File for the process's output."""
        return self.folder.with_name(f"{self.folder.name}.log")


def state_of(step: Step) -> OnDisk:
    """Look up a step's state on disk.

    Raises:
        hydra.errors.HydraException: its overrides are not allowed.
    """
    return on_disk(step.folder, _composed(step.overrides), NOT_COMPARED, step.baselines)


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose(*overrides)


def arguments(step: Step, state: OnDisk, data_dir: Path, threads: int) -> list[str]:
    """List train.py's arguments for a step."""
    given = [f"paths.data_dir='{data_dir.resolve()}'", f"baseline=[{','.join(step.baselines)}]"]
    if state.what == "unfinished":
        return [f"resume='{step.folder}'", *given]
    return [*step.overrides, *given, f"threads={threads}", "logger=csv", f"hydra.run.dir='{step.folder}'"]


def move_aside(folder: Path) -> Path:
    """Rename a folder to the next free <name>.old-N; return the new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(target)


def train(steps: Sequence[Step], options: argparse.Namespace, after: Callable[[], None]) -> list[Step]:
    """Run unfinished steps in parallel, in order; return the failed ones. A failure does not stop the others.

    On an exception, such as KeyboardInterrupt, the processes are stopped; their runs can be resumed.

    Args:
        steps: in order, each with a folder of its own.
        options: see `command_line`.
        after: called after each successful step.
    """
    running: list[subprocess.Popen[bytes]] = []
    stopping = threading.Event()

    def run(step: Step) -> int:
        state, start = state_of(step), time.monotonic()
        if state.what == "other":
            _say(f"{step.name}: {step.folder} has other settings, moved to {move_aside(step.folder).name}")
            _say(f"  {state.why}")
        _say(f"{step.name}: {'resumes' if state.what == 'unfinished' else 'starts'}")
        step.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*TRAIN, *arguments(step, state, options.data_dir, options.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        with step.log.open("ab") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        running.append(process)
        if stopping.is_set():
            process.terminate()
        code = process.wait()
        running.remove(process)
        if stopping.is_set():
            _say(f"{step.name}: stopped; the same command resumes it")
        elif code == 0:
            _say(f"{step.name}: done in {time.monotonic() - start:.0f} s")
        else:
            _say(f"{step.name}: FAILED with exit code {code}; {step.log} ends with")
            _say("  " + "\n  ".join(step.log.read_text(errors="replace").splitlines()[-5:]))
        return code

    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            jobs = {pool.submit(run, step): step for step in steps if state_of(step).what != "finished"}
            for job in as_completed(jobs):
                if job.result() == 0:
                    after()
                else:
                    failed.append(jobs[job])
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


def _say(line: str) -> None:
    print(line, flush=True)


def command_line(description: str | None, folder: str) -> argparse.ArgumentParser:
    """Make a parser with the options of all commands that run steps.

    Args:
        description: the command's.
        folder: name of the runs' folder in outputs, and of their records' in benchmarks/run_records.
    """
    parser = new_parser(description)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="folder of the data sets")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="parallel runs; one per core")
    parser.add_argument("--threads", type=positive, default=1, help="threads per run")
    parser.add_argument("--missing", action="store_true", help="only runs without a record in benchmarks/run_records")
    parser.add_argument("--document-only", action="store_true", help="only write the documents")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / folder, help="folder of the runs")
    parser.add_argument("--document-dir", type=Path, default=ROOT / "docs", help="folder of the documents")
    records = ROOT / "benchmarks" / "run_records"
    parser.add_argument("--records-dir", type=Path, default=records, help="folder of the run records")
    return parser


def do(steps: Sequence[Step], options: argparse.Namespace, document: Callable[[], None]) -> None:
    """Run steps with the command line's options; write the documents after each. SIGTERM acts like Ctrl-C.

    Raises:
        SystemExit: a step failed.
        hydra.errors.HydraException: a step's overrides are not allowed; nothing is run.
    """
    for step in steps:
        _composed(step.overrides)
    failed: list[Step] = []
    if not options.document_only:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        failed = train(steps, options, document)
    document()
    if failed:
        sys.exit(f"failed: {'; '.join(step.name for step in failed)}")
