"""Row 5: an epoch in `train.py`, against a bare loop over the dense network with tensors in memory."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.configs import mnist, typed
from benchmarks.networks import BACKBONES, FC, compact, dense, training_step
from benchmarks.records import Record
from benchmarks.timing import Action, Settings, seconds
from msh.training.run import train

BATCH = 512


class Turns(pl.Callback):
    """Time the run's epochs, and between them an epoch of each other contestant.

    An epoch lasts from its start to the next one's: training, validation, logging, callbacks.

    Attributes:
        times: name to seconds per epoch.
    """

    def __init__(self) -> None:
        self.others: dict[str, Action] = {}
        self.times: dict[str, list[float]] = {}
        self.settings = Settings()
        self.started: float | None = None

    def _turn(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.started is not None:
            self.times.setdefault("run", []).append(perf_counter() - self.started)
        if not self.others:
            self.others = bare_loops(self.settings, trainer, pl_module)
        for name, action in self.others.items():
            self.times.setdefault(name, []).append(seconds(action, self.settings.device))
        self.started = perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time the other contestants between two epochs."""
        self._turn(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last epoch's time."""
        self._turn(trainer, pl_module)


turns = Turns()


def taking_turns() -> Turns:
    """Return the object that the config instantiates, which the benchmark reads."""
    return turns


def bare_loops(settings: Settings, trainer: pl.Trainer, module: Any) -> dict[str, Action]:
    """Train dense network and subnetwork for an epoch in a plain loop, on the same examples."""
    train, val = (module.tasks["mnist"].splits[name] for name in ("train", "val"))
    inputs, targets, unseen = (t.to(settings.device) for t in (train.inputs, train.targets, val.inputs))
    batches = int(trainer.num_training_batches)
    unseen = unseen[: 500 * int(trainer.num_val_batches[0])]
    model = dense(BACKBONES[FC](), settings.device)
    network = compact(BACKBONES[FC](), device=settings.device)
    return {
        "dense": bare_epoch(model, inputs, targets, batches),
        "bare subnetwork": bare_epoch(network, inputs, targets, batches),
        "dense validation": lambda: validate(model, unseen),
        "subnetwork validation": lambda: validate(network, unseen),
    }


def bare_epoch(model: nn.Module, inputs: Tensor, targets: Tensor, batches: int) -> Action:
    """Make a function that trains for an epoch in a new order."""
    now: list[Tensor] = [inputs[:BATCH].clone(), targets[:BATCH].clone()]
    step = training_step(model, (now[0], now[1]))

    def epoch() -> None:
        order = torch.randperm(len(inputs), device=inputs.device)
        for number in range(batches):
            index = order[number * BATCH : (number + 1) * BATCH]
            torch.index_select(inputs, 0, index, out=now[0])
            torch.index_select(targets, 0, index, out=now[1])
            step()

    return epoch


@torch.no_grad()
def validate(model: nn.Module, inputs: Tensor) -> None:
    """Compute outputs in evaluation mode, and return to training mode."""
    model.eval()
    for batch in inputs.split(500):
        model(batch)
    model.train()


def epochs(settings: Settings) -> Iterator[Record]:
    """Measure row 5."""
    os.environ.setdefault("WANDB_MODE", "offline")
    rounds = settings.rounds(6)
    task, name = mnist(settings.data_dir)
    overrides = [
        *task,
        "experiment=sequential",
        "pruning=at_init",
        f"tasks.mnist.batch_size={BATCH}",
        f"trainer.max_epochs={rounds + 1}",
        f"trainer.accelerator={'gpu' if settings.device == 'cuda' else 'cpu'}",
        "trainer.enable_progress_bar=false",
        "trainer.limit_test_batches=1",
        "+callbacks.turns={_target_: benchmarks.epoch.taking_turns}",
        *(["trainer.limit_train_batches=8", "trainer.limit_val_batches=1"] if settings.quick else []),
    ]
    turns.__init__()
    turns.settings = settings
    with tempfile.TemporaryDirectory() as folder:
        train(typed(*overrides, output_dir=Path(folder)), Path(folder))
    yield from _records(settings, name, rounds)


def _records(settings: Settings, name: str, rounds: int) -> Iterator[Record]:
    middle = {kind: statistics.median(taken[1 : rounds + 1]) for kind, taken in turns.times.items()}
    unit = "ratio (dense in s)"
    path = f"an epoch (training, validation, logging, callbacks) of a 90 % sparse subnetwork by train.py's path, {name}"
    loop = f"{FC}, batch {BATCH}{', first 8 batches' if settings.quick else ''}"
    ratio = middle["run"] / middle["dense"]
    what = f"{path}, {loop} / a bare loop that only trains the dense network"
    yield settings.record("5-epoch", what, ratio, unit, middle["dense"], rounds)
    both = middle["dense"] + middle["dense validation"]
    what = f"{path}, {loop} / a bare loop that trains and validates the dense network"
    yield settings.record("5-validated", what, middle["run"] / both, unit, both, rounds)
    share = 1 - middle["bare subnetwork"] / middle["run"]
    what = f"share of that epoch beyond a bare loop that only trains the same subnetwork, {loop}"
    yield settings.record("5-overhead", what, share, "share", None, rounds)
    share -= middle["subnetwork validation"] / middle["run"]
    what = f"share of that epoch beyond a bare loop that trains and validates the same subnetwork, {loop}"
    yield settings.record("5-frame", what, share, "share", None, rounds)
