"""How things are timed: contestants take turns in one process, and medians are compared."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record

Action = Callable[[], object]
ROOT = Path(__file__).resolve().parents[1]
FROM_THE_SYSTEM = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Environment in which glibc gets tensors from the system and gives them back, and keeps none in pieces on its heap:
then what is resident is what lives, and fresh pages cost the same at every size."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: CPU threads of torch, in every process.
        device: "cpu" or "cuda": where networks compute. Rows of whole processes and of files stay on the CPU.
        quick: fewer cases and repeats.
        repeats: rounds, instead of each row's own number.
        data_dir: folder of the real data sets.
    """

    threads: int = 2
    device: str = "cpu"
    quick: bool = False
    repeats: int | None = None
    data_dir: Path = Path("data")

    def rounds(self, usual: int) -> int:
        """Rounds of a row, given how many it usually has."""
        return self.repeats or (max(3, usual // 5) if self.quick else usual)

    def cases(self, usual: tuple, quick: tuple) -> tuple:
        """The row's cases, or fewer."""
        return quick if self.quick else usual

    def record(self, id: str, what: str, value: float | None, unit: str, dense: float | None, repeats: int) -> Record:
        """A record with these settings' threads."""
        return Record(id=id, what=what, value=value, dense=dense, unit=unit, threads=self.threads, repeats=repeats)


def fresh_process(module: str, *arguments: object, environment: Mapping[str, str]) -> str:
    """The last line that `python -m module` prints, with more in its environment."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment)
    )
    return done.stdout.splitlines()[-1]


def whole_process(command: Sequence[str], threads: int) -> tuple[float, str]:
    """(wall seconds, standard output) of a process that logs offline.

    Args:
        command: with its arguments.
        threads: CPU threads of its libraries.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout


@contextlib.contextmanager
def timed(spent: list[float], places: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Time every call of some functions while inside.

    Args:
        spent: seconds of each call are added to it; calls within calls count once.
        places: (class or module, name of its function).
    """
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    depth = [0]
    for owner, name, function in before:
        setattr(owner, name, _timing(function, spent, depth))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timing(function: Callable, spent: list[float], depth: list[int]) -> Callable:
    def call(*arguments: Any, **settings: Any) -> Any:
        depth[0] += 1
        start = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            depth[0] -= 1
            if depth[0] == 0:
                spent.append(time.perf_counter() - start)

    return call


def finish(device: str) -> None:
    """Wait for what the device is still doing."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(action: Action, device: str = "cpu") -> float:
    """Wall time of an action."""
    finish(device)
    start = time.perf_counter()
    action()
    finish(device)
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Action], rounds: int, burst: int = 1, warm_up: int = 2, device: str = "cpu"
) -> dict[str, float]:
    """Median wall time of each contestant's action.

    In every round each contestant does its action `burst` times in a row, as training does its steps; the order of the
    contestants is turned around from round to round. So a machine whose speed drifts slows all of them alike.

    Args:
        contestants: name to action.
        rounds: that count.
        burst: actions in a row per round.
        warm_up: rounds before those that count.
        device: to wait for.
    Returns:
        Name to seconds per action.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        order = list(contestants)[:: 1 if number % 2 else -1]
        for name in order:
            taken = seconds(lambda action=contestants[name]: [action() for _ in range(burst)], device) / burst
            if number >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}
