"""Rows 11 and block: training and inference of subnetworks of whole units or blocks, against the dense network."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, begun, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.timing import BURST, Settings
from msh.backbones.transformer import Block
from msh.inference.export import sliced
from msh.subnetworks import (
    Blocks,
    Budget,
    MultiSubnetwork,
    OverlappingUnits,
    Units,
    plan_blocks,
    plan_counts,
    plan_units,
    prune,
    trace_units,
)

GRANULARITY = dict(zip(BACKBONES, ("neuron", "channel"), strict=True))
SHORT = dict(zip(BACKBONES, ("fc", "conv"), strict=True))
DENSITY, BATCH = 0.1, 32
TOKENS, WIDTH = 32, 512
ENCODER = f"transformer block of width {WIDTH} with {4 * WIDTH} hidden units, {TOKENS} tokens"


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
    yield from _until_full(settings)


def _steps(settings: Settings, name: str) -> Iterator[Record]:
    """Measure a training step, and the frozen task's forward pass as it is, with granularity "unit"."""
    rounds = settings.rounds(40 if name == FC else 10)
    for batch in settings.cases((32, 128, 512), (128,)):
        drawn_batch, network = drawn(SHAPES[name], batch, settings.device), of_units(name, settings.device)
        model = dense(BACKBONES[name](), settings.device)
        steps = training_step(model, drawn_batch), training_step(network, drawn_batch)
        who = f"training step of a subnetwork of {DENSITY:.0%} of the weights (granularity: unit)"
        to, burst = f" / of the dense network, {name}, batch {batch}", BURST if name == FC else 1
        yield settings.against(f"11-{SHORT[name]}-step{batch}", who + to, *steps, rounds, burst)
        if batch == 128:
            exported, what = training_step(sliced(network, "task").train(), drawn_batch), f"{who}, exported{to}"
            yield settings.against(f"11-{SHORT[name]}-exported-step{batch}", what, steps[0], exported, rounds, burst)
        if batch == 32 or settings.quick:
            network.freeze("task")
            module, inputs = network.eval().module("task"), drawn_batch[0]
            what = (
                f"forward of a frozen subnetwork of {DENSITY:.0%} of the weights (granularity: unit), not exported / "
                f"of the dense network, {name}, batch {batch}"
            )
            with torch.no_grad():
                compute = partial(model.eval(), inputs), partial(module, inputs)
                yield settings.against(f"11-{SHORT[name]}-frozen{batch}", what, *compute, rounds, BURST)


def _until_full(settings: Settings) -> Iterator[Record]:
    """Measure the training steps of tasks that share units, one after another until they own every weight."""
    batch, tasks = 128, round(1 / DENSITY)
    data, rounds = drawn(SHAPES[FC], batch, settings.device), settings.rounds(20)
    model = dense(BACKBONES[FC](), settings.device)
    network = MultiSubnetwork(BACKBONES[FC]()).to(settings.device)
    units = OverlappingUnits(trace_units(network))
    plan = plan_counts(network.sizes(), {f"task{n}": Budget(density=DENSITY) for n in range(1, tasks + 1)})
    records = []
    for number, (task, counts) in enumerate(plan.items(), 1):
        begun(network, task, "unit", torch.Generator().manual_seed(number))
        prune(network, task, counts, granularity=units)
        network.compact(task)
        steps = training_step(model, data), training_step(network, data)
        what = (
            f"training step of task {number} of {tasks} that own {DENSITY:.0%} of the weights each and share units / "
            f"of the dense network, {FC}, batch {batch}"
        )
        records.append(settings.against(f"11-fc-task{number}", what, *steps, rounds, BURST))
        network.freeze(task)
    yield from (records[number - 1] for number in (1, tasks // 2, tasks - 1, tasks))
    what = f"mean of the ratios of all {tasks} tasks, which own every weight at the end"
    mean = statistics.fmean(record.value for record in records if record.value is not None)
    yield settings.record("11-fc-tasks", what, mean, "ratio (dense in ms)", records[0].dense, rounds)


def of_units(name: str, device: str) -> MultiSubnetwork:
    """Build a network with a compact task of whole units."""
    network = MultiSubnetwork(BACKBONES[name]()).to(device)
    begun(network, "task", "unit")
    units = Units(trace_units(network))
    prune(network, "task", plan_units(units.graph, {"task": Budget(density=DENSITY)})["task"], granularity=units)
    network.compact("task")
    return network


def blocks(settings: Settings) -> Iterator[Record]:
    """Measure the rows of blocks: training steps, and the frozen task's forward pass."""
    rounds, what = settings.rounds(40), f"of a subnetwork of {DENSITY:.0%} of the weights (granularity: block)"
    for batch in settings.cases((32, 128, 512), (128,)):
        data, network = drawn(SHAPES[FC], batch, settings.device), _of_blocks(settings, BACKBONES[FC]())
        steps = training_step(dense(BACKBONES[FC](), settings.device), data), training_step(network, data)
        named = f"training step {what} / of the dense network, {FC}, batch {batch}"
        yield settings.against(f"block-fc-step{batch}", named, *steps, rounds if batch < 512 else rounds // 2, BURST)
    network, model = _of_blocks(settings, BACKBONES[FC]()), dense(BACKBONES[FC](), settings.device).eval()
    network.freeze("task")
    module = network.eval().module("task")
    for batch in settings.cases((1, 32, 512), (32,)):
        inputs, _ = drawn(SHAPES[FC], batch, settings.device)
        named = f"forward {what}, frozen / of the dense network, {FC}, batch {batch}"
        with torch.no_grad():
            compute = partial(model, inputs), partial(module, inputs)
            yield settings.against(f"block-fc-frozen{batch}", named, *compute, rounds, BURST)
    batch, data = 128, drawn((TOKENS, WIDTH), 128, settings.device)
    steps = training_step(dense(Encoder(), settings.device), data), training_step(_of_blocks(settings, Encoder()), data)
    named = f"training step {what} / of the dense network, {ENCODER}, batch {batch}"
    yield settings.against(f"block-transformer-step{batch}", named, *steps, settings.rounds(10))


class Encoder(nn.Module):
    """A block of a transformer, and the mean over the tokens."""

    input_shape, features = (TOKENS, WIDTH), WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(WIDTH, heads=8, hidden=4 * WIDTH, dropout=0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, width)."""
        seen = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        features: Tensor = self.block(inputs, seen).mean(1)
        return features


def _of_blocks(settings: Settings, backbone: nn.Module) -> MultiSubnetwork:
    """Build a network with a compact task of blocks."""
    network = MultiSubnetwork(backbone).to(settings.device)
    blocks = Blocks.of(network)
    head = nn.Linear(network.backbone.features, CLASSES)
    network.add_task("task", head, granularity="block", blocks=blocks.sizes)
    network.begin("task")
    sizes = network.sizes()
    wanted = plan_blocks(blocks.counts(sizes), sum(sizes.values()), {"task": Budget(density=DENSITY)})
    prune(network, "task", wanted["task"], granularity=blocks)
    network.compact("task")
    return network


def _against(settings: Settings, name: str, whom: str, id: str, model: nn.Module, exported: nn.Module) -> Record:
    inputs, _ = drawn(SHAPES[name], BATCH, settings.device)
    rounds, burst = (settings.rounds(60), 20) if SHORT[name] == "fc" else (settings.rounds(20), BURST)
    what = (
        f"forward of an exported subnetwork of {DENSITY:.0%} of the weights (granularity: {GRANULARITY[name]}) / of "
        f"{whom}, batch {BATCH}"
    )
    with torch.no_grad():
        return settings.against(id, what, partial(model, inputs), partial(exported, inputs), rounds, burst)
