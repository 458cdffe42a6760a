"""Row 13: growth with network size of the work around training, and its share of a real stage."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.configs import mnist, typed
from benchmarks.records import Record
from benchmarks.timing import FROM_THE_SYSTEM, Settings, fresh_process, seconds, timed
from msh.files.state_file import save_network, save_subnetwork
from msh.subnetworks import Budget, MultiSubnetwork, NetworkState, plan_counts, prune
from msh.training import prepare as prepare_module
from msh.training import run as run_module
from msh.training.callbacks import IterativePruning
from msh.training.callbacks.guarantee import Guarantee, frozen_outputs
from msh.training.run import Run, train

SIZES = {"1M": 707, "10M": 2236, "100M": 7071}
"""Number of weights in two square layers to their width."""
ROUNDS = {"1M": 5, "10M": 3, "100M": 2}
PARTS = ("allocation", "pruning", "freezing", "saving", "guarantee")
DENSITY = 0.1
BESIDE_TRAINING = (
    *((MultiSubnetwork, name) for name in ("begin", "compact", "freeze")),
    (NetworkState, "capacity"),
    (IterativePruning, "_cut_down_to"),
    *((Guarantee, name) for name in ("record", "check")),
    (prepare_module, "_plan_budgets"),
    *((run_module, name) for name in ("save_subnetwork", "save_network")),
    (run_module.RunState, "fit_ended"),
    (Run, "_describe"),
)
"""Functions that a run calls for these parts."""


def growth(settings: Settings) -> Iterator[Record]:
    """Measure row 13."""
    sizes = settings.cases(tuple(SIZES), ("1M", "10M"))
    yield from _slopes(settings, {size: _parts_of_process(size, settings, FROM_THE_SYSTEM) for size in sizes})
    if not settings.quick:  # a stage cut short says nothing of the share
        yield from _on_heap(settings, {size: _parts_of_process(size, settings, {}) for size in sizes})
        yield _share_of_stage(settings)


def _rounds(settings: Settings, size: str) -> int:
    return settings.repeats or (1 if settings.quick else ROUNDS[size])


def _parts_of_process(size: str, settings: Settings, environment: dict[str, str]) -> dict[str, float]:
    return json.loads(
        fresh_process("benchmarks.growth", size, settings.threads, _rounds(settings, size), environment=environment)
    )


def _slopes(settings: Settings, measured: dict[str, dict[str, float]]) -> Iterator[Record]:
    sizes = list(measured)
    together = {size: sum(parts.values()) for size, parts in measured.items()}
    what = f"seconds of {', '.join(PARTS)} together, a task of 10 % of {sizes[0]} weights"
    yield settings.record(f"13-{sizes[0]}", what, together[sizes[0]], "s", None, _rounds(settings, sizes[0]))
    for smaller, larger in itertools.pairwise(sizes):
        slope = _slope(together, smaller, larger)
        what = f"log-log slope of the same from {smaller} to {larger} weights (1 is linear): {together[larger]:.3g} s"
        yield settings.record(f"13-{larger}", what, slope, "slope", None, _rounds(settings, larger))
    for part in PARTS:
        taken = {size: parts[part] for size, parts in measured.items()}
        shown = ", ".join(f"{value:.3g} s at {size}" for size, value in taken.items())
        what = f"log-log slope of {part} from {sizes[0]} to {sizes[-1]} weights: {shown}"
        yield settings.record(
            f"13-{part}", what, _slope(taken, sizes[0], sizes[-1]), "slope", None, _rounds(settings, sizes[-1])
        )


def _on_heap(settings: Settings, measured: dict[str, dict[str, float]]) -> Iterator[Record]:
    sizes = list(measured)
    together = {size: sum(parts.values()) for size, parts in measured.items()}
    shown = ", ".join(f"{value:.3g} s at {size}" for size, value in together.items())
    what = f"log-log slope of all together with malloc as it is by default, which is quicker for small tensors: {shown}"
    slope = _slope(together, sizes[0], sizes[-1])
    yield settings.record("13-heap", what, slope, "slope", None, _rounds(settings, sizes[-1]))


def _slope(taken: dict[str, float], smaller: str, larger: str) -> float:
    weights = SIZES[larger] ** 2 / SIZES[smaller] ** 2
    return math.log(taken[larger] / taken[smaller]) / math.log(weights)


def _seconds_of_parts(width: int) -> dict[str, float]:
    """Time each part for the second task in a network with two layers; seconds."""
    network, inputs, backbone = MultiSubnetwork(square(width)), torch.randn(256, width), square(width)
    counts = Budget(density=DENSITY).counts(network.sizes(), {})
    for task in ("first", "second"):
        network.add_task(task)
        network.begin(task)
        if task == "first":
            prune(network, task, counts)
            network.freeze(task)

    def allocate() -> None:
        again = MultiSubnetwork(backbone)
        plan_counts(again.sizes(), {"task": Budget(density=DENSITY)})
        again.add_task("task")
        again.begin("task")
        again.state.capacity()

    def save(folder: Path) -> None:
        save_subnetwork(folder / "subnetwork", network, "second")
        save_network(folder / "network", network, free_weights=False)

    def guard() -> None:
        for task in network.tasks:
            network.digest(task)
            frozen_outputs(network, task, inputs)

    with tempfile.TemporaryDirectory() as folder:
        actions: dict[str, Callable[[], None]] = {
            "allocation": allocate,
            "pruning": lambda: prune(network, "second", counts),
            "freezing": lambda: network.freeze("second"),
            "saving": lambda: save(Path(folder)),
            "guarantee": guard,
        }
        return {part: seconds(action) for part, action in actions.items()}


def square(width: int) -> nn.Module:
    """Build two square layers without biases."""
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))


def _share_of_stage(settings: Settings) -> Record:
    """Measure the share of all five in a stage of the sequential run with MNIST."""
    epochs = 12
    task, name = mnist(settings.data_dir)
    overrides = [*task, "experiment=sequential", "logger=csv", f"trainer.max_epochs={epochs}", "trainer=cpu"]
    overrides += ["trainer.enable_progress_bar=false"]
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder, timed(spent, BESIDE_TRAINING):
        config = typed(*overrides, output_dir=Path(folder))
        results = train(config, Path(folder))
    training = results.tasks["mnist"].train_seconds
    what = (
        f"seconds of {', '.join(PARTS)}, all that the run does of them / the training time of the stage, "
        f"python train.py +experiment=sequential with {name}, {epochs} epochs"
    )
    unit = "share (training in s)"
    return settings.record("13-share", what, sum(spent) / training, unit, training, 1)


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(int(sys.argv[2]))
    rounds = [_seconds_of_parts(SIZES[sys.argv[1]]) for _ in range(int(sys.argv[3]))]
    print(json.dumps({part: min(row[part] for row in rounds) for part in PARTS}))
