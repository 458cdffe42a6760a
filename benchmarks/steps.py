"""Rows 1 to 3: a training step against the dense network's, also under torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import nn

from benchmarks.networks import BACKBONES, CONV, FC, SHAPES, begun, compact, dense, drawn, frozen, training_step
from benchmarks.others import DENSITY, NETWORKS, compact_task, inputs_of
from benchmarks.records import Record
from benchmarks.timing import BURST, Settings
from msh.subnetworks import MultiSubnetwork

STEP = "training step (zero_grad, forward, loss, backward, fused Adam)"


def sparse(settings: Settings) -> Iterator[Record]:
    """Measure row 1."""
    for batch in (32, 128, 512):
        yield _compact(settings, f"1-batch{batch}", FC, batch, settings.rounds(40 if batch < 512 else 20))


def convolutional(settings: Settings) -> Iterator[Record]:
    """Measure row 2."""
    yield _compact(settings, "2-batch128", CONV, 128, settings.rounds(10))


def _compact(settings: Settings, id: str, name: str, batch: int, rounds: int) -> Record:
    data = drawn(SHAPES[name], batch, settings.device)
    network = compact(BACKBONES[name](), device=settings.device)
    what = f"{STEP} of a 90 % sparse subnetwork / of the dense network, {name}, batch {batch}"
    return _against_dense(settings, id, what, name, data, network, rounds)


def _against_dense(settings, id, what, name, data, network, rounds) -> Record:
    step_of_dense = training_step(dense(BACKBONES[name](), settings.device), data)
    return settings.against(id, what, step_of_dense, training_step(network, data), rounds, BURST if name == FC else 1)


def unpruned(settings: Settings) -> Iterator[Record]:
    """Measure row 3."""
    for batch in settings.cases((32, 128, 512), (128,)):
        network = MultiSubnetwork(BACKBONES[FC]()).to(settings.device)
        begun(network, "task")
        what = f"{STEP} of a task of which nothing is pruned yet / of the dense network, {FC}, batch {batch}"
        data, rounds = drawn(SHAPES[FC], batch, settings.device), settings.rounds(40 if batch < 512 else 20)
        yield _against_dense(settings, f"3-batch{batch}", what, FC, data, network, rounds)
    network = frozen(BACKBONES[FC](), device=settings.device).train()
    begun(network, "task")
    what = f"{STEP} of a second task, begun in all that the first has left free / of the dense network, {FC}, batch 128"
    data, rounds = drawn(SHAPES[FC], 128, settings.device), settings.rounds(40)
    yield _against_dense(settings, "3-second", what, FC, data, network, rounds)


def compiled(settings: Settings) -> Iterator[Record]:
    """Measure a step, and a frozen task's forward pass, under torch.compile against the same without."""
    if settings.quick:  # compiling alone takes longer than its two minutes
        return
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if settings.device == "cpu" and compiler is None:
        what = "not measured: torch.compile needs a C++ compiler, and there is none"
        yield settings.record("compile", what, None, "ratio", None, 0)
        return
    fc = ("fc", FC, BACKBONES[FC], (32, 128, 512), ("weight", "block", "unit", "dense"))
    others = [(short, name, build, (batch,), ("unit",)) for short, (name, batch, build) in NETWORKS.items()]
    for short, name, build, batches, kinds in (fc, *others):
        for kind, batch in product(kinds, batches):
            yield from _compiled(settings, f"compile-{short}-{kind}", kind, build, name, batch)


def _compiled(
    settings: Settings, id: str, kind: str, build: Callable[[], nn.Module], name: str, batch: int
) -> Iterator[Record]:
    data, rounds = inputs_of(build(), batch, settings.device), settings.rounds(20)
    who = "the dense network" if kind == "dense" else f"a subnetwork of {DENSITY:.0%} of the weights ({kind})"
    whole = dense(build(), settings.device) if kind == "dense" else compact_task(build(), kind, settings.device)
    module = whole if kind == "dense" else whole.module("task")
    torch.compiler.reset()
    steps = training_step(whole, data, module), training_step(whole, data, torch.compile(module))
    what = f"{STEP} of {who} under torch.compile / without it, {name}, batch {batch}"
    yield settings.against(f"{id}-step{batch}", what, *steps, rounds, 4, of="eager")
    if kind != "dense":
        whole.freeze("task")
        module = whole.eval().module("task")
    module.eval()
    torch.compiler.reset()
    passes = partial(module, data[0]), partial(torch.compile(module), data[0])
    what = f"forward of {who}, frozen, under torch.compile / without it, {name}, batch {batch}"
    with torch.no_grad():
        yield settings.against(f"{id}-frozen{batch}", what, *passes, rounds, 10, of="eager")
