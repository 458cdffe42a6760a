"""Row 11: inference with an exported subnetwork of whole units, against the dense network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.networks import BACKBONES, SHAPES, begun, dense, drawn
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


def _against(settings: Settings, name: str, whom: str, id: str, model: nn.Module, exported: nn.Module) -> Record:
    inputs, _ = drawn(SHAPES[name], BATCH, settings.device)
    rounds, burst = (settings.rounds(60), 20) if SHORT[name] == "fc" else (settings.rounds(20), 4)
    what = (
        f"forward of an exported subnetwork of {DENSITY:.0%} of the weights (granularity: {GRANULARITY[name]}) / of "
        f"{whom}, batch {BATCH}"
    )
    with torch.no_grad():
        return settings.against(id, what, partial(model, inputs), partial(exported, inputs), rounds, burst)
