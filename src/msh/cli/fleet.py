"""`msh fleet`: train every task of a plan as a job, and merge the tasks as they finish."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from msh.cli import train
from msh.cli.app import show_help
from msh.cli.arguments import by_key, flag_value, is_unsafe, quoted, split_arguments
from msh.cli.errors import user_errors
from msh.cli.jobs import Jobs, Outcome, is_finished, without_hydra
from msh.cli.memory import give_large_blocks_back
from msh.cli.resume import CHANGEABLE, register_stored
from msh.cli.sweeper import read_overrides
from msh.errors import Problems, at_least, invalid, one_of
from msh.files.atomic import check_output
from msh.files.merging import Merge
from msh.files.plans import MadeWith, made_with, read_plan
from msh.files.state_file import StateFile
from msh.runs.results import ENDED, UNFINISHED, Results
from msh.runs.words import counted, duration, number, shortened
from msh.training.settings import INCIDENTAL, differences, identity, on_disk

log = logging.getLogger(__name__)

LAUNCHERS = {
    "local": ("joblib", "hydra_joblib_launcher", "joblib", "hydra.launcher.n_jobs"),
    "slurm": ("submitit_slurm", "hydra_submitit_launcher", "slurm", "hydra.launcher.array_parallelism"),
    "ray": ("ray", "hydra_ray_launcher", "ray", None),
}
"""Name to Hydra's launcher, its plugin, the extra that installs it, and its setting for the number of jobs at a time.
A local fleet with one job at a time needs no plugin: Hydra's basic launcher runs it."""
OWN = ("plan", "task", "network", "resume", "skip_finished", "hydra.sweep.subdir", "hydra/sweeper")
"""Settings that a fleet decides."""
LOG = "fleet.log"
"""Name of the file, in the fleet's folder, for all that launchers and jobs print."""
NETWORK = "network.safetensors"
SECONDS, SECONDS_PER_TASK = 1.0, 0.002
"""Pause between two looks at the jobs' folders, and more of it for each task that is not done."""
WRITING = 10
"""The network file is written at most for one of so many seconds, so that a thousand tasks cost no thousand files."""
WIDTH = 79


def main() -> None:
    """Run the command with the process's arguments: PLAN, its own flags, and overrides as for `msh train`."""
    if show_help("fleet", sys.argv):
        return
    with user_errors():
        given, arguments = _read_arguments(sys.argv[1:])
        command = shlex.join(["msh", "fleet", *sys.argv[1:]])
        flags, overrides = split_arguments(arguments)
        launcher = _launcher(given, by_key(overrides))
        plan = read_plan(given.plan)
        stored = _made_with(given.plan, plan)
        unsafe = is_unsafe(overrides)
        overrides = [override for override in overrides if by_key([override]).keys() != {"unsafe"}]
        config, own = OmegaConf.create(stored["config"]), flag_value(flags, "--config-dir", "-cd")
        changes = register_stored("planned", config, given.plan, stored["overrides"], own, overrides, unsafe)
        fleet = [
            f"plan={given.plan.resolve()}",
            "skip_finished=true",
            "hydra/sweeper=fleet",
            "hydra.sweep.subdir=${task}",
        ]
        fleet.append(f"hydra.sweeper.command={quoted(command)}")
        if given.out is not None:
            fleet.append(f"hydra.sweeper.network={quoted(str(given.out.resolve()))}")
        if "hydra.sweep.dir" not in by_key(overrides):
            fleet.append(f"hydra.sweep.dir=${{paths.output_dir}}/${{name}}/fleet-{_name_of(plan, stored)}")
        # The processes that a job starts for more devices run `sys.argv` again: it is a run of `msh train`.
        sys.argv = [str(train.__file__), "--multirun", "--config-name", "planned", *flags, *launcher, *changes, *fleet]
        give_large_blocks_back()
        train.main()


# ---- arguments


def _read_arguments(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Separate the command's own arguments from Hydra's.

    Raises:
        ValueError: one is missing, or not allowed.
    """
    parser = ArgumentParser("msh fleet", add_help=False, allow_abbrev=False)
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--launcher")
    parser.add_argument("--jobs")
    parser.add_argument("-o", dest="out", type=Path, metavar="NETWORK")
    given, rest = parser.parse_known_args(list(arguments))
    with Problems() as problems:
        if given.plan is None:
            problems.add("which plan? name its file: msh fleet PLAN")
        if given.launcher is not None:
            problems.check(one_of, "--launcher", given.launcher, LAUNCHERS)
        if given.jobs is not None:
            number = int(given.jobs) if given.jobs.isdecimal() else given.jobs
            problems.check(at_least, "--jobs", 1, number)
            given.jobs = number
        if given.out is not None:
            problems.check(check_output, "-o", given.out, needs_file=True)
        for key in by_key(rest):
            if key in OWN:
                problems.add(f"{key} is set by the fleet, from its plan: leave it out")
    return given, rest


def _launcher(given: Namespace, overrides: Mapping[str, str]) -> list[str]:
    """Write the overrides that choose the launcher.

    Raises:
        ValueError: a flag has no meaning for it.
        RuntimeError: it is not installed.
    """
    if "hydra/launcher" in overrides:
        for flag in ("launcher", "jobs"):
            if getattr(given, flag) is not None:
                raise ValueError(f"--{flag} and hydra/launcher exclude each other: use hydra.launcher settings")
        return []
    name = given.launcher or "local"
    launcher, plugin, extra, key = LAUNCHERS[name]
    if name == "local" and given.jobs in (None, 1):
        return []
    if given.jobs is not None and key is None:
        resources = "absent with --launcher ray, which starts as many jobs as fit: hydra.launcher.ray.remote.num_cpus=1"
        raise invalid("--jobs", resources, given.jobs)
    if find_spec(f"hydra_plugins.{plugin}") is None:
        several = f" --jobs {given.jobs}" if name == "local" else ""
        raise RuntimeError(f"--launcher {name}{several} needs Hydra's launcher {launcher}: pip install 'msh[{extra}]'")
    return [f"hydra/launcher={launcher}", *([] if given.jobs is None else [f"{key}={given.jobs}"])]


def _made_with(path: Path, plan: StateFile) -> MadeWith:
    """Read the config that a plan was made with.

    Raises:
        ValueError: it has none.
    """
    stored = made_with(plan)
    if stored is None:
        raise ValueError(
            f"{path} was made by an earlier release, and does not hold the config of its tasks: make it again with "
            "`msh plan`, with the same overrides; files of tasks that were trained on it still fit"
        )
    return stored


def _name_of(plan: StateFile, stored: MadeWith) -> str:
    """Name a fleet by its plan's content and its config, so that the same command finds its folder again."""
    config = identity(OmegaConf.create(stored["config"]), INCIDENTAL)
    return hashlib.sha256(f"{plan.notes['plan']}{config}".encode()).hexdigest()[:8]


# ---- the fleet


def run_fleet(
    out: str | None,
    command: str,
    arguments: Sequence[str],
    config: DictConfig,
    context: HydraContext,
    launcher: Launcher,
) -> list[Outcome]:
    """Train all tasks of a plan, those of an earlier call among them, and merge each when it is finished.

    Args:
        out: the network file; `NETWORK` in the fleet's folder when None.
        command: continues the fleet.
        arguments: overrides of the command line, without Hydra's own.
        config: composed without a task.
        context: of Hydra.
        launcher: that the user chose.
    Returns:
        The outcomes of the jobs.
    Raises:
        ValueError: a setting differs from the plan's or from an earlier call's; no job has begun then.
        HydraException: the config cannot be composed; no job has begun then.
        RuntimeError: tasks failed, and all others are done; or another command works in the folder.
    """
    from msh.training.run import locked

    merge = Merge(Path(config.plan))
    _check_settings(merge, config, read_overrides({}, arguments, context))
    jobs = FleetJobs(config, context, launcher)
    batch = [[*arguments, f"task={task}"] for task in merge.planned]
    Jobs.compose(jobs, batch[0])  # as the jobs will: checks the config once
    jobs.folder.mkdir(parents=True, exist_ok=True)
    again = f"the same command continues: {command}"
    try:
        with locked(jobs.folder), printing_to(jobs.folder / LOG) as console:
            fleet = Fleet(jobs.folder, merge, jobs.folder / NETWORK if out is None else Path(out), console)
            fleet.say(f"training {counted(len(batch), 'task')} of {_relative(Path(config.plan))}; into")
            fleet.say(f"  {_relative(jobs.folder)}")
            for task in merge.planned:  # an earlier call's error, or the note of a job killed once it had finished
                (jobs.folder / task / UNFINISHED).unlink(missing_ok=True)
            try:
                with fleet.watched():
                    outcomes = jobs.run(batch)
            finally:
                fleet.update(write=True)
                fleet.say_total()
    except (KeyboardInterrupt, SystemExit):
        print(f"the fleet was stopped; {again}", file=sys.stderr)
        raise
    if missing := fleet.missing():
        reasons = [f"  {task}: {reason}" for task, reason in missing.items()]
        raise RuntimeError("\n".join([f"not finished: {counted(len(missing), 'task')}", *reasons, again]))
    return outcomes


def _check_settings(merge: Merge, config: DictConfig, overrides: Mapping[str, Override]) -> None:
    """Raise unless the tasks train as the plan says, each once."""
    stored = _made_with(merge.base, merge.network)["config"]
    changed = differences(stored, without_hydra(config), (*CHANGEABLE, "plan", "task"))
    with Problems() as problems:
        for override in overrides.values():
            if override.is_sweep_override():
                problems.add(f"{override.input_line} has several values: a fleet trains each task once")
        for key, (before, now) in changed.items():
            problems.add(
                f"{_relative(merge.base)} was made with {key} = {json.dumps(before)}, not {json.dumps(now)}: leave it "
                "out, or make another plan"
            )
        if (dtype := config.files.dtype) != "float32":
            problems.add(invalid("files.dtype", "float32 in a fleet, whose files are merged exactly", dtype))


class FleetJobs(Jobs):
    """The jobs of a fleet: they differ in their task alone, which names the folder."""

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a task's config from the fleet's: in a hundredth of the time that Hydra takes for each."""
        config = self.config.copy()
        with open_dict(config):
            config.task = overrides[-1].removeprefix("task=")
        return config

    def _new_folder(self, config: DictConfig) -> Path:
        """Return the folder of a task; it may be left from a job that was killed before it began.

        Raises:
            ValueError: it holds a run with other settings, or a damaged one.
        """
        folder = self.folder / str(config.task)
        if (folder / ".hydra" / "config.yaml").exists():
            found = on_disk(folder, without_hydra(config), INCIDENTAL)
            if found.what == "other":
                raise ValueError(
                    f"{_relative(folder)} holds another run ({found.why}): choose another hydra.sweep.dir, or delete "
                    "this folder to train the task anew"
                )
        return folder


class Fleet:
    """Merges tasks when their jobs have finished, and reports them.

    Attributes:
        waiting: tasks that are not merged.
        failed: those of them that failed, to the first line of the error.

    Args:
        folder: the fleet's.
        merge: of its plan.
        out: the network file.
        console: for a line per task.
    """

    def __init__(self, folder: Path, merge: Merge, out: Path, console: TextIO) -> None:
        self.folder, self.merge, self.out, self.console = folder, merge, out, console
        self.waiting = list(merge.planned)
        self.failed: dict[str, str] = {}
        self.total, self.started = len(self.waiting), time.monotonic()
        self.unwritten, self.next_write = 0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look after the jobs in a thread, as launchers return when all of them have ended."""
        done = Event()

        def watch() -> None:
            while not done.wait(SECONDS + SECONDS_PER_TASK * len(self.waiting)):
                try:
                    self.update()
                except Exception as error:  # such as a full disk: the last update, below, raises it if it lasts
                    log.warning("not merged yet: %s: %s", type(error).__name__, error)

        thread = Thread(target=watch, name="merging", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def update(self, write: bool = False) -> None:
        """Merge the tasks that have finished since the last time, and report those that failed.

        Args:
            write: write the network file now if it lacks a task; else only if that is no large part of the time.
        Raises:
            OSError: the file cannot be written.
        """
        for task in list(self.waiting):
            if (reason := self._error_of(task)) is not None:
                self._fail(task, reason)
            elif self._file(task).exists() and is_finished(self.folder / task):
                self._merge(task)
        if self.unwritten and (write or time.monotonic() >= self.next_write):
            began = time.monotonic()
            self.merge.write(self.out)
            self.unwritten, now = 0, time.monotonic()
            self.next_write = now + WRITING * (now - began)

    def _file(self, task: str) -> Path:
        return self.folder / task / "subnetworks" / f"{task}.safetensors"

    def _error_of(self, task: str) -> str | None:
        """Return the first line of a task's error; None if it has not failed."""
        try:
            text = (self.folder / task / UNFINISHED).read_text().strip()
        except FileNotFoundError:
            return None
        lines = text.splitlines()
        if not lines or text == ENDED:
            return None
        return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # "2 problems:" alone says nothing

    def _merge(self, task: str) -> None:
        """Merge a task that is finished, or say why not."""
        file, results = self._file(task), Results.load(self.folder / task)
        try:
            self.merge.take([(file, task)])
        except (ValueError, FileNotFoundError) as error:
            self._fail(task, f"{error}; delete {_relative(self.folder / task)} to train it anew")
            return
        self.waiting.remove(task)
        self.failed.pop(task, None)
        self.unwritten += 1
        row = results.tasks[task]
        score = "" if row.test is None else f"{row.metric} {number(row.test)}, "
        self._report(task, f"{score}{duration(results.wall_seconds)}")

    def _fail(self, task: str, reason: str) -> None:
        if self.failed.get(task) != reason:
            self.failed[task] = reason
            self._report(task, f"failed: {reason}")

    def _report(self, task: str, words: str) -> None:
        merged = self.total - len(self.waiting)
        self.say(f"{merged:>{len(str(self.total))}}/{self.total} {shortened(task)}: {words}")

    def say(self, line: str) -> None:
        """Print a line, cut to the width of a page."""
        with suppress(BrokenPipeError):
            print(line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}...", file=self.console, flush=True)

    def say_total(self) -> None:
        """Print how many tasks are finished, and where the network is."""
        taken = duration(time.monotonic() - self.started)
        self.say(f"{self.total - len(self.waiting)} of {self.total} tasks finished; {taken}")
        if self.out.exists():
            self.say(f"network: {_relative(self.out)}")

    def missing(self) -> dict[str, str]:
        """Say why each task is missing that is not merged."""
        return {task: self.failed.get(task, ENDED) for task in self.waiting}


def _relative(path: Path) -> str:
    """Name a path from the current folder, if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def printing_to(path: Path) -> Iterator[TextIO]:
    """Send all that this process and its children print to a file; yield what was stdout before."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before = os.dup(1), os.dup(2)
    console = open(os.dup(1), "w") if _is_first(sys.stdout) else sys.stdout  # noqa: SIM115
    try:
        with path.open("ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield console
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, former in enumerate(before, start=1):
            os.dup2(former, number)
            os.close(former)
        if console is not sys.stdout:
            with suppress(BrokenPipeError):
                console.close()


def _is_first(stream: TextIO) -> bool:
    """Return whether a stream is the process's stdout, not one that replaces it."""
    try:
        return stream.fileno() == 1
    except OSError:
        return False


if __name__ == "__main__":
    main()
