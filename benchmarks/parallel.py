"""Row 6: a step with several tasks at once, against separate dense networks and the peer's layers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, compact, dense, drawn, training_step
from benchmarks.peers import PeerMissingError
from benchmarks.records import Record
from benchmarks.timing import Action, Settings, take_turns

BATCH = 128
Batches = list[tuple[Tensor, Tensor]]


def peer_layer() -> type[nn.Module]:
    """Import the peer's masked multitask linear layer.

    Its package imports TensorFlow; an empty package with that name comes first, so that only the torch half loads.

    Raises:
        PeerMissingError: it is not installed.
    """
    if "beyondml" not in sys.modules:
        found = importlib.util.find_spec("beyondml")
        if found is None:
            raise PeerMissingError("beyondml is not installed: `make bench` installs it")
        package = types.ModuleType("beyondml")
        package.__path__ = list(found.submodule_search_locations or [])
        sys.modules["beyondml"] = package
    layers = importlib.import_module("beyondml.pt.layers")
    return layers.MultiMaskedDense


class PeerNetwork(nn.Module):
    """FC 6 x 1000 with the peer's layers, pruned to 90 % by the peer's method, with a head per task."""

    def __init__(self, layer: type[nn.Module], tasks: int) -> None:
        super().__init__()
        sizes = [784, *[1000] * 6]
        self.layers = nn.ModuleList(layer(i, o, tasks) for i, o in pairwise(sizes))
        self.heads = nn.ModuleList(nn.Linear(1000, CLASSES) for _ in range(tasks))
        for one in self.layers:
            one.prune(90)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Map a batch per task to outputs per task."""
        for layer in self.layers:
            inputs = [F.relu(outputs) for outputs in layer(inputs)]
        return [head(features) for head, features in zip(self.heads, inputs, strict=True)]


def joint_step(model: nn.Module, batches: Batches, outputs: object) -> Action:
    """Make a function that does one step on the sum of the tasks' losses.

    Args:
        model: the model to train.
        batches: one per task.
        outputs: function that returns the outputs per task.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = [F.cross_entropy(out, targets) for out, (_, targets) in zip(outputs(), batches, strict=True)]
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


def parallel(settings: Settings) -> Iterator[Record]:
    """Measure row 6."""
    for tasks in settings.cases((2, 4, 8), (2,)):
        yield from _of_tasks(settings, tasks)


def _of_tasks(settings: Settings, tasks: int) -> Iterator[Record]:
    rounds, device = settings.rounds(15), settings.device
    batches = [drawn(SHAPES[FC], BATCH, device) for _ in range(tasks)]
    separate = [training_step(dense(BACKBONES[FC](), device), batch) for batch in batches]
    network = compact(BACKBONES[FC](), tasks=tasks, device=device)
    contestants: dict[str, Action] = {
        "dense": lambda: [step() for step in separate],
        "msh": joint_step(network, batches, lambda: [network(x, str(i)) for i, (x, _) in enumerate(batches)]),
    }
    missing = ""
    try:
        peer = PeerNetwork(peer_layer(), tasks).to(device)
        contestants["beyondml"] = joint_step(peer, batches, lambda: peer([x for x, _ in batches]))
    except PeerMissingError as error:
        missing = str(error)
    times = take_turns(contestants, rounds, device=device)
    what = f"one step of {tasks} tasks in parallel, batch {BATCH} and 10 % density each"
    against = f"one step each of {tasks} separate dense networks, {FC}"
    yield settings.ratio(f"6-tasks{tasks}", f"{what} / {against}", times, "msh", "dense", rounds)
    id, what = f"6-tasks{tasks}-beyondml", f"{what} / the same with beyondml's torch layers, {FC}"
    if missing:
        yield settings.record(id, f"not measured: {missing} ({what})", None, "ratio (beyondml in ms)", None, 0)
    else:
        yield settings.ratio(id, what, times, "msh", "beyondml", rounds)
