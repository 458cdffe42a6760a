"""Row 11: training and inference of a subnetwork of whole units, against the dense network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, begun, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings
from msh.inference.export import sliced
from msh.subnetworks import Budget, MultiSubnetwork, Units, plan_units, prune, trace_units

GRANULARITY = dict(zip(BACKBONES, ("neuron", "channel"), strict=True))
SHORT = dict(zip(BACKBONES, ("fc", "conv"), strict=True))
DENSITY, BATCH = 0.1, 32


def structured(settings: Settings) -> Iterator[Record]:
    """Measure row 11."""
    for name, granularity in GRANULARITY.items():
        network = MultiSubnetwork(BACKBONES[name]()).to(settings.device)
        begun(network, "task")
        units = trace_units(network, granularity)
        prune(network, "task", plan_units(units, {"task": Budget(density=DENSITY)})["task"], granularity=Units(units))
        network.freeze("task")
        model, exported = dense(BACKBONES[name](), settings.device).eval(), sliced(network, "task")
        yield _against(settings, name, f"the dense network, {name}", f"11-{SHORT[name]}", model, exported)
        if SHORT[name] == "conv":
            model = model.to(memory_format=torch.channels_last)
            what = f"the dense network with its channels last in memory too, {name}"
            yield _against(settings, name, what, "11-conv-channels-last", model, exported)
    for name in GRANULARITY:
        yield from _steps(settings, name)


def _steps(settings: Settings, name: str) -> Iterator[Record]:
    """Measure a training step, and the frozen task's forward pass as it is, with granularity "unit"."""
    rounds = settings.rounds(40 if name == FC else 10)
    for batch in settings.cases((32, 128, 512), (128,)):
        drawn_batch, network = drawn(SHAPES[name], batch, settings.device), _of_units(settings, name)
        model = dense(BACKBONES[name](), settings.device)
        steps = training_step(model, drawn_batch), training_step(network, drawn_batch)
        what = (
            f"training step of a subnetwork of {DENSITY:.0%} of the weights (granularity: unit) / of the dense "
            f"network, {name}, batch {batch}"
        )
        yield settings.against(f"11-{SHORT[name]}-step{batch}", what, *steps, rounds)
        if batch == 32 or settings.quick:
            network.freeze("task")
            module, inputs = network.eval().module("task"), drawn_batch[0]
            what = (
                f"forward of a frozen subnetwork of {DENSITY:.0%} of the weights (granularity: unit), not exported / "
                f"of the dense network, {name}, batch {batch}"
            )
            with torch.no_grad():
                compute = partial(model.eval(), inputs), partial(module, inputs)
                yield settings.against(f"11-{SHORT[name]}-frozen{batch}", what, *compute, rounds, 4)


def _of_units(settings: Settings, name: str) -> MultiSubnetwork:
    """Build a network with a compact task of whole units."""
    network = MultiSubnetwork(BACKBONES[name]()).to(settings.device)
    network.add_task("task", nn.Linear(network.backbone.features, CLASSES), granularity="unit")
    network.begin("task")
    units = Units(trace_units(network))
    prune(network, "task", plan_units(units.graph, {"task": Budget(density=DENSITY)})["task"], granularity=units)
    network.compact("task")
    return network


def _against(settings: Settings, name: str, whom: str, id: str, model: nn.Module, exported: nn.Module) -> Record:
    inputs, _ = drawn(SHAPES[name], BATCH, settings.device)
    rounds, burst = (settings.rounds(60), 20) if SHORT[name] == "fc" else (settings.rounds(20), 4)
    what = (
        f"forward of an exported subnetwork of {DENSITY:.0%} of the weights (granularity: {GRANULARITY[name]}) / of "
        f"{whom}, batch {BATCH}"
    )
    with torch.no_grad():
        return settings.against(id, what, partial(model, inputs), partial(exported, inputs), rounds, burst)
