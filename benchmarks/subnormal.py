"""Row 15: a training step with subnormal numbers, against one that computes 0 for them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.networks import BACKBONES, FC, SHAPES, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings, fresh_process

FIRST, LAST = 30, 90
"""Timed steps: by then, Adam's averages for dead units are subnormal."""


def subnormal(settings: Settings) -> Iterator[Record]:
    """Measure row 15 in separate processes: torch's threads inherit the setting from the thread that starts them."""
    rounds = settings.rounds(3)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for flushed, found in times.items():
            found.append(float(fresh_process("benchmarks.subnormal", int(flushed), settings.threads, environment={})))
    kept, flushed = (statistics.median(times[key]) for key in (False, True))
    what = (
        f"training step of the dense network that keeps subnormal numbers (flush_denormal=false) / that computes 0 for "
        f"them, {FC}, batch 128, median of steps {FIRST} to {LAST}"
    )
    yield settings.record("15-subnormal", what, kept / flushed, "ratio (flushed in ms)", 1e3 * flushed, rounds)


def step_seconds(flushed: bool) -> float:
    """Time a step in the dense network on one batch; median seconds."""
    torch.set_flush_denormal(flushed)
    torch.manual_seed(0)
    step, taken = training_step(dense(BACKBONES[FC]()), drawn(SHAPES[FC], 128)), []
    for _ in range(LAST):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[FIRST:])


if __name__ == "__main__":
    torch.set_flush_denormal(bool(int(sys.argv[1])))
    torch.set_num_threads(int(sys.argv[2]))
    print(step_seconds(bool(int(sys.argv[1]))))
