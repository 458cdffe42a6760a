"""Run train.py in separate processes: skip finished runs, resume stopped ones."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from benchmarks.configs import compose
from msh.training.settings import INCIDENTAL, OnDisk, on_disk

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "train.py")]
NOT_COMPARED = (*INCIDENTAL, "baseline", "threads")
"""Settings in which a run on disk may differ from its step."""
GRACE = 30.0
"""Seconds a process gets to exit after SIGTERM."""


@dataclass(frozen=True)
class Step:
    """A run, or additional baselines for one; two steps may share a folder.

    Attributes:
        name: for people.
        folder: the run folder.
        overrides: for train.py, experiment and seed included.
        baselines: that the finished step must have.
    """

    name: str
    folder: Path
    overrides: tuple[str, ...]
    baselines: tuple[str, ...] = ()


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
    given = [f"paths.data_dir='{data_dir}'", f"baseline=[{','.join(step.baselines)}]"]
    if state.what == "unfinished":
        return [f"resume='{step.folder}'", *given]
    return [*step.overrides, *given, f"threads={threads}", "logger=csv", f"hydra.run.dir='{step.folder}'"]


def move_aside(folder: Path) -> Path:
    """Rename a folder to the next free <name>.old-N; return the new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(target)


class Runner:
    """Runs steps in parallel; steps with the same folder run one after another.

    Args:
        data_dir: folder of the data sets.
        jobs: parallel processes, at least 1.
        threads: per process.
        say: called with a line per event.
        after: called after each successful step.
    """

    def __init__(
        self, data_dir: Path, jobs: int, threads: int, say: Callable[[str], None], after: Callable[[], None]
    ) -> None:
        self.data_dir, self.jobs, self.threads, self.say, self.after = data_dir.resolve(), jobs, threads, say, after
        self.running: dict[Step, tuple[subprocess.Popen[bytes], float]] = {}
        self.failed: list[Step] = []

    def do(self, steps: Sequence[Step]) -> list[Step]:
        """Run unfinished steps in order; return the failed ones. A failure does not stop the others.

        On an exception, such as KeyboardInterrupt, the processes are stopped; their runs can be resumed.
        """
        pending = list(steps)
        try:
            while pending or self.running:
                while len(self.running) < self.jobs and (step := self._next(pending)):
                    pending.remove(step)
                    self._start(step)
                self._collect()
                time.sleep(0.1 if self.running else 0)
        finally:
            self._stop()
        return self.failed

    def _next(self, pending: Sequence[Step]) -> Step | None:
        """Return the first step whose folder is not in use."""
        busy = {step.folder for step in self.running}
        return next((step for step in pending if step.folder not in busy), None)

    def _start(self, step: Step) -> None:
        if any(step.folder == other.folder for other in self.failed):
            self.say(f"{step.name}: skipped, its run has failed")
            return
        state = state_of(step)
        if state.what == "finished":
            return
        if state.what == "other":
            self.say(f"{step.name}: {step.folder} has other settings, moved to {move_aside(step.folder).name}")
            self.say(f"  {state.why}")
        log = log_of(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*TRAIN, *arguments(step, state, self.data_dir, self.threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("ab") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        self.running[step] = process, time.monotonic()
        self.say(f"{step.name}: {'resumes' if state.what == 'unfinished' else 'starts'}")

    def _collect(self) -> None:
        for step, (process, start) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[step]
            if process.returncode == 0:
                self.say(f"{step.name}: done in {time.monotonic() - start:.0f} s")
                self.after()
            else:
                self.failed.append(step)
                self.say(f"{step.name}: FAILED with exit code {process.returncode}; {log_of(step)} ends with")
                self.say("  " + "\n  ".join(log_of(step).read_text(errors="replace").splitlines()[-5:]))

    def _stop(self) -> None:
        for process, _ in self.running.values():
            process.terminate()
        deadline = time.monotonic() + GRACE
        for step, (process, _) in self.running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.say(f"{step.name}: stopped; the same command resumes it")
        self.running.clear()


def command_line(description: str, folder: str) -> argparse.ArgumentParser:
    """Make a parser with the options of all commands that run steps.

    Args:
        description: the command's.
        folder: name of the runs' folder in outputs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="folder of the data sets")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="parallel runs; one per core")
    parser.add_argument("--threads", type=_positive, default=1, help="threads per run")
    parser.add_argument("--missing", action="store_true", help="only runs without a record in benchmarks/run_records")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, do nothing")
    parser.add_argument("--document-only", action="store_true", help="only write the documents")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / folder, help="folder of the runs")
    parser.add_argument("--document-dir", type=Path, default=ROOT / "docs", help="folder of the documents")
    parser.add_argument(
        "--records-dir", type=Path, default=ROOT / "benchmarks" / "run_records", help="folder of the run records"
    )
    return parser


def do(steps: Sequence[Step], options: argparse.Namespace, document: Callable[[], None]) -> None:
    """Run steps with the command line's options; write the documents after each. SIGTERM acts like Ctrl-C.

    Raises:
        SystemExit: a step failed.
        hydra.errors.HydraException: a step's overrides are not allowed; nothing is run.
    """
    for step in steps:
        _composed(step.overrides)
    if options.dry_run:
        for step in steps:
            state = state_of(step)
            print(f"{step.name}: {state.what} {state.why}".rstrip())
            print(f"  train.py {' '.join(arguments(step, state, options.data_dir.resolve(), options.threads))}")
        return
    failed: list[Step] = []
    if not options.document_only:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        runner = Runner(options.data_dir, options.jobs, options.threads, lambda line: print(line, flush=True), document)
        failed = runner.do(steps)
    document()
    if failed:
        sys.exit(f"failed: {'; '.join(step.name for step in failed)}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


def log_of(step: Step) -> Path:
    """Return the log file for a step's output."""
    return step.folder.with_name(f"{step.folder.name}.log")
