"""Row 4: steps in a fit with gradual pruning, cuts included, against the dense network's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Literal

from benchmarks.configs import typed
from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, begun, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings, seconds
from msh.subnetworks import (
    CRITERIA,
    SCHEDULES,
    WEIGHTS,
    MultiSubnetwork,
    OverlappingUnits,
    plan_counts,
    trace_units,
)
from msh.tasks import RawData, Split, build_task
from msh.training.callbacks import IterativePruning
from msh.training.module import SubnetworkModule
from msh.training.plan import fits_of, stages_of

BATCH = 128


def gradual(settings: Settings) -> Iterator[Record]:
    """Measure row 4."""
    yield _row(settings, "weight")
    yield _row(settings, "unit")


def _row(settings: Settings, granularity: Literal["weight", "unit"]) -> Record:
    config = typed("tasks=digits")
    pruning, stage = config.pruning, stages_of(config)[0]
    epochs = fits_of(stage, 1, pruning)[0].epochs
    steps = 20 if settings.quick else 54_000 // BATCH
    network = MultiSubnetwork(BACKBONES[FC](), small_while_masked=True).to(settings.device)
    begun(network, "task", granularity)
    pruner = IterativePruning(
        wanted=plan_counts(network.sizes(), {"task": config.budget("digits")}),
        criterion=CRITERIA[pruning.criterion],
        schedule=SCHEDULES[pruning.schedule],
        begin=pruning.begin * stage.max_epochs,
        end=pruning.end * stage.max_epochs,
        rounds=pruning.rounds,
        rescale=pruning.rescale,
        granularity=OverlappingUnits(trace_units(network)) if granularity == "unit" else WEIGHTS,
    )
    times = _alternate(settings, network, pruner, steps, epochs)
    mean, of_dense = statistics.fmean(times["subnetwork"]), statistics.fmean(times["dense"])
    what = (
        f"mean step of the fit that conf/pruning/gradual.yaml prunes in ({epochs} of {stage.max_epochs} epochs of "
        f"{steps} steps, {pruning.rounds} cuts, which count; granularity: {granularity}) / mean step of the dense "
        f"network, {FC}, batch {BATCH}"
    )
    id = "4-short" if settings.quick else "4-gradual"  # so few steps have no target: the cuts weigh too much in them
    id += "-unit" if granularity == "unit" else ""
    return settings.record(id, what, mean / of_dense, "ratio (dense in ms)", 1e3 * of_dense, steps * epochs)


def _alternate(
    settings: Settings, network: MultiSubnetwork, pruner: IterativePruning, steps: int, epochs: int
) -> dict[str, list[float]]:
    """Time every step in the fit, in turn with steps of the dense network; seconds."""
    data = drawn(SHAPES[FC], BATCH, settings.device)
    split = Split(*(tensor.cpu() for tensor in data))
    task = build_task("task", RawData("classification", split, split, CLASSES))
    module = SubnetworkModule(network, {"task": task}, optimizer=None)
    pruner._count_start(module)
    actions = {
        "dense": training_step(dense(BACKBONES[FC](), settings.device), data),
        "subnetwork": training_step(network, data),
    }
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(1, steps * epochs + 1):
        for name, action in actions.items():
            times[name].append(seconds(action, settings.device))
        due = pruner.rounds_due(number, steps)
        if due > pruner.rounds_done:
            times["subnetwork"][-1] += seconds(lambda due=due: pruner._cut_down_to(module, due), settings.device)
    assert pruner.rounds_done == pruner.rounds
    return times
