"""Rows 10 and 16: inference with one subnetwork or all, against a dense network with the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, dense, drawn, frozen
from benchmarks.records import Record
from benchmarks.timing import Settings
from msh.inference.computing import Computing
from msh.inference.predictor import Predictor, TaskInfo
from msh.subnetworks import MultiSubnetwork, Units, prune, trace_units
from msh.tasks.outputs import Outputs
from msh.tasks.steps import ReadArrays, Scale

TASKS = 10


def unstructured(settings: Settings) -> Iterator[Record]:
    """Measure row 10."""
    for density in settings.cases((0.1, 0.05, 0.02), (0.1, 0.05)):
        network = frozen(BACKBONES[FC](), density, device=settings.device)
        model = dense(BACKBONES[FC](), settings.device).eval()
        for batch in settings.cases((1, 32, 256), (1, 32)):
            inputs, _ = drawn(SHAPES[FC], batch, settings.device)
            rounds, burst = settings.rounds(60), 20 if batch < 256 else 5
            what = (
                f"forward of the active frozen task at {1 - density:.0%} sparsity / of a dense network of the same "
                f"shape, {FC}, batch {batch}"
            )
            id = f"10-density{density}-batch{batch}"
            with torch.no_grad():
                record = settings.against(id, what, partial(model, inputs), partial(network, inputs), rounds, burst)
            yield record


def all_tasks(settings: Settings) -> Iterator[Record]:
    """Measure row 17: `predict_all`, from raw inputs to predictions, of tasks that own a tenth of all units each."""
    network = MultiSubnetwork(BACKBONES[FC]()).to(settings.device)
    units = Units(trace_units(network, "neuron"))
    share = {name: len(weight) // TASKS for name, weight in network.weights()}
    names = [str(number) for number in range(TASKS)]
    for name in names:
        network.add_task(name, nn.Linear(network.backbone.features, CLASSES), granularity="neuron")
        network.begin(name)
        prune(network, name, share, granularity=units)
        network.freeze(name)
    outputs, shape = Outputs("classification", CLASSES), SHAPES[FC]
    steps = ReadArrays(shape), Scale(torch.zeros(shape), torch.ones(shape))
    facts = (outputs.kind, outputs.names, outputs.unit, steps, outputs, Computing(512))
    predictor = Predictor(network.eval(), {name: TaskInfo(name, *facts) for name in names})
    model = dense(BACKBONES[FC](), settings.device).eval()
    for batch in settings.cases((1, 32, 512), (1, 32)):
        inputs, _ = drawn(shape, batch, settings.device)
        rounds, burst = settings.rounds(60), 20 if batch < 512 else 4
        what = (
            f"predict_all, from inputs to predictions of {TASKS} tasks with {1 / TASKS:.0%} of the units each / a "
            f"forward of one dense network, {FC}, batch {batch}"
        )
        with torch.no_grad():
            all_at_once = partial(predictor.predict_all, inputs)
            yield settings.against(f"17-all-batch{batch}", what, partial(model, inputs), all_at_once, rounds, burst)
