"""Rows 1 to 3: a training step against the dense network's, also under torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import torch

from benchmarks.networks import BACKBONES, CONV, FC, SHAPES, begun, compact, dense, drawn, frozen, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings, take_turns
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
    return settings.against(id, what, step_of_dense, training_step(network, data), rounds, 4 if name == FC else 1)


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
    """Measure the step in row 1 with torch.compile against the step without."""
    if settings.quick:  # compiling alone takes a quarter of its two minutes
        return
    batch, rounds = 128, settings.rounds(20)
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    for kind, make in {"subnetwork": compact, "dense": dense}.items():
        what = f"{STEP} of the {kind} under torch.compile / without it, {FC}, batch {batch}"
        if settings.device == "cpu" and compiler is None:
            what = f"not measured: torch.compile needs a C++ compiler, and there is none ({what})"
            yield settings.record(f"compile-{kind}", what, None, "ratio", None, 0)
            continue
        model, data = make(BACKBONES[FC](), device=settings.device), drawn(SHAPES[FC], batch, settings.device)
        contestants = {
            "eager": training_step(model, data),
            "compiled": training_step(model, data, torch.compile(model)),
        }
        times = take_turns(contestants, rounds, burst=4, device=settings.device)
        yield settings.ratio(f"compile-{kind}", what, times, "compiled", "eager", rounds)
