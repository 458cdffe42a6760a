"""Row 21: training steps of subnetworks against those of other libraries and methods, each installed beside msh."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, compact, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.structured import of_units
from benchmarks.timing import Settings
from msh.subnetworks import MultiSubnetwork, let_scores_choose, start_scores

BATCH, DENSITY = 128, 0.1


class PeerMissingError(Exception):
    """A peer's library is not installed."""


def peer_module(name: str) -> Any:
    """Import a module of a peer's library.

    Raises:
        PeerMissingError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        raise PeerMissingError(f"{error.name} is not installed: `make bench` installs it") from error


def peers(settings: Settings) -> Iterator[Record]:
    """Measure row 21: each step against the peer's with the same number of weights."""
    yield from _against(settings, "21-packnet", "weight", "Avalanche's PackNet after it has pruned", packnet)
    yield from _against(
        settings, "21-scores", "weight", "score masks as in WSN, chosen in every step", lambda: Scored()
    )
    yield from _against(settings, "21-scores-learned", "learned", "the same", Scored)
    yield from _against(settings, "21-pruning", "unit", "torch-pruning's network of fewer units", fewer_units)


def _against(settings: Settings, id: str, kind: str, whom: str, make: Any) -> Iterator[Record]:
    data, rounds = drawn(SHAPES[FC], BATCH, settings.device), settings.rounds(20)
    network = {"weight": lambda: compact(BACKBONES[FC]()), "learned": learned, "unit": lambda: of_units(FC, "cpu")}[
        kind
    ]()
    how = "while it learns which weights to keep" if kind == "learned" else f"granularity: {kind}"
    what = f"training step of a subnetwork of {DENSITY:.0%} of the weights ({how}) / of {whom}, {FC}, batch {BATCH}"
    try:
        steps = training_step(make().to(settings.device), data), training_step(network.to(settings.device), data)
    except PeerMissingError as error:
        yield settings.record(id, f"not measured: {error} ({what})", None, "ratio (peer in ms)", None, 0)
        return
    yield settings.against(id, what, *steps, rounds, 4, of="peer")


def learned() -> MultiSubnetwork:
    """Build FC 6 x 1000 with a task whose scores choose its weights in every step, as `pruning=learned`."""
    network = MultiSubnetwork(BACKBONES[FC]())
    network.add_task("task", nn.Linear(network.backbone.features, CLASSES))
    network.begin("task")
    start_scores(network, "task")
    let_scores_choose(network, "task", {name: int(DENSITY * size) for name, size in network.sizes().items()})
    return network


def _hidden(layer: type[nn.Linear]) -> list[nn.Module]:
    """Build the hidden layers of FC 6 x 1000."""
    sizes = [math.prod(SHAPES[FC]), *[1000] * 6]
    return [part for pair in pairwise(sizes) for part in (layer(*pair), nn.ReLU())]


def packnet() -> nn.Module:
    """Build FC 6 x 1000 in Avalanche's PackNet, in its state after pruning."""
    library = peer_module("avalanche.models.packnet")
    wrapped = library.PackNetModel(nn.Sequential(*_hidden(nn.Linear)))
    wrapped.prune(1 - DENSITY)
    return nn.Sequential(wrapped.wrappee, nn.Linear(1000, CLASSES))  # without the task's index per example


def fewer_units() -> nn.Module:
    """Prune the dense network to a tenth of its weights by torch-pruning, in whole units of equal share."""
    library = peer_module("torch_pruning")
    model = dense(BACKBONES[FC]())
    inputs, first = torch.randn(2, *SHAPES[FC]), math.prod(SHAPES[FC])
    # first x u + 5 u^2 = DENSITY (first x 1000 + 5 x 1000^2)
    goal = DENSITY * (first * 1000 + 5 * 1000**2)
    kept = (math.sqrt(first**2 + 20 * goal) - first) / 10
    pruner = library.pruner.MagnitudePruner(
        model,
        inputs,
        importance=library.importance.MagnitudeImportance(p=1),
        pruning_ratio=1 - kept / 1000,
        ignored_layers=[model[1]],  # the head
    )
    pruner.step()
    return model


class _Chosen(torch.autograd.Function):
    """1 at the highest scores, 0 elsewhere; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: int) -> Tensor:
        bound = scores.flatten().kthvalue(scores.numel() - kept + 1).values
        return (scores >= bound).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class ScoredLinear(nn.Linear):
    """A linear layer that keeps the weights with the highest scores, which are trained too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scores = nn.Parameter(torch.empty_like(self.weight))
        nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        return F.linear(input, self.weight * _Chosen.apply(self.scores, int(DENSITY * self.scores.numel())), self.bias)


class Scored(nn.Sequential):
    """FC 6 x 1000 of such layers, with a head.

    Source: Kang et al. 2022, Winning SubNetworks, sec. 3.
    """

    def __init__(self) -> None:
        super().__init__(*_hidden(ScoredLinear), nn.Linear(1000, CLASSES))
