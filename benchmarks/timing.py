"""Time contestants in turn in one process, and compare medians."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Record

Action = Callable[[], object]
ROOT = Path(__file__).resolve().parents[1]
BURST = 4
"""Consecutive actions per turn, for those that would otherwise begin with the other network's data in the cache."""
FROM_THE_SYSTEM = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Environment in which glibc maps every large tensor from the system and returns it, without pieces on its heap:
resident memory is then live memory, and fresh pages cost the same at every size."""


@dataclass(frozen=True)
class Times:
    """Seconds per action of contestants that took turns.

    Attributes:
        rounds: name to the seconds of each round.
    """

    rounds: Mapping[str, Sequence[float]]

    def __getitem__(self, name: str) -> float:
        """Return a contestant's median."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, of: str) -> tuple[float, float, float]:
        """Divide a contestant's seconds by another's, round by round: median, and first and last quartile."""
        ratios = [mine / its for mine, its in zip(self.rounds[name], self.rounds[of], strict=True)]
        low, median, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
        return median, low, high


@dataclass(frozen=True)
class Settings:
    """Settings for all measurements.

    Attributes:
        threads: CPU threads of torch, in every process.
        device: "cpu" or "cuda"; rows about whole processes and files use the CPU.
        quick: fewer cases and repeats.
        repeats: rounds, instead of each row's number.
        data_dir: folder with the real data sets.
    """

    threads: int = 2
    device: str = "cpu"
    quick: bool = False
    repeats: int | None = None
    data_dir: Path = Path("data")

    def rounds(self, usual: int) -> int:
        """Return a row's rounds, given its usual number."""
        return self.repeats or (max(3, usual // 5) if self.quick else usual)

    def cases(self, usual: tuple, quick: tuple) -> tuple:
        """Return the row's cases, or fewer if quick."""
        return quick if self.quick else usual

    def record(self, id: str, what: str, value: float | None, unit: str, dense: float | None, repeats: int) -> Record:
        """Make a record with these settings' threads."""
        return Record(id=id, what=what, value=value, dense=dense, unit=unit, threads=self.threads, repeats=repeats)

    def against(
        self, id: str, what: str, reference: Action, other: Action, rounds: int, burst: int = 1, of: str = "dense"
    ) -> Record:
        """Time two actions in turn, and record the other one's seconds over the reference's, the dense network's."""
        times = take_turns({of: reference, "other": other}, rounds, burst, device=self.device)
        return self.ratio(id, what, times, "other", of, rounds)

    def ratio(self, id: str, what: str, times: Times, name: str, of: str, rounds: int) -> Record:
        """Record the ratio of two contestants' seconds, pair by pair."""
        value, *spread = times.ratio(name, of)
        record = self.record(id, what, value, f"ratio ({of} in ms)", 1e3 * times[of], rounds)
        return replace(record, spread=spread)


def fresh_process(module: str, *arguments: object, environment: Mapping[str, str]) -> str:
    """Run `python -m module` with additional environment; return its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment)
    )
    return done.stdout.splitlines()[-1]


def whole_process(command: Sequence[str], threads: int) -> tuple[float, str]:
    """Run a process that logs offline; return (wall seconds, standard output).

    Args:
        command: with its arguments.
        threads: CPU threads for its libraries.
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
    """Time every call of some functions inside the context.

    Args:
        spent: receives the seconds; nested calls count once.
        places: (class or module, function name).
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
    """Wait for the device to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(action: Action, device: str = "cpu") -> float:
    """Return an action's wall time."""
    finish(device)
    start = time.perf_counter()
    action()
    finish(device)
    return time.perf_counter() - start


def take_turns(
    contestants: Mapping[str, Action], rounds: int, burst: int = 1, warm_up: int = 2, device: str = "cpu"
) -> Times:
    """Time each contestant's action.

    In every round each contestant repeats its action `burst` times, as training does its steps; the order alternates
    between rounds, so that a drift in the machine's speed affects all equally.

    Args:
        contestants: name to action.
        rounds: number of timed rounds.
        burst: consecutive actions per round.
        warm_up: untimed rounds before.
        device: to wait for.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        order = list(contestants)[:: 1 if number % 2 else -1]
        for name in order:
            taken = seconds(lambda action=contestants[name]: [action() for _ in range(burst)], device) / burst
            if number >= warm_up:
                times[name].append(taken)
    return Times(times)
