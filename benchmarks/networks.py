"""Networks to compare, and a training step for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Action
from msh.backbones import MLP, PaperConv
from msh.subnetworks import Budget, MultiSubnetwork, prune

CLASSES = 10
FC, CONV = "FC 6 x 1000", "paper's conv net"
BACKBONES: dict[str, Callable[[], nn.Module]] = {FC: lambda: MLP((784,)), CONV: lambda: PaperConv((1, 28, 28))}
SHAPES = {FC: (784,), CONV: (1, 28, 28)}
"""Shape of one input."""


def dense(backbone: nn.Module, device: str = "cpu") -> nn.Module:
    """Build a dense network: the backbone and a head."""
    return nn.Sequential(backbone, nn.Linear(backbone.features, CLASSES)).to(device)


def begun(
    network: MultiSubnetwork, task: str, granularity: str = "weight", generator: torch.Generator | None = None
) -> None:
    """Add a task with a head; every free weight is a candidate. A generator draws its values again."""
    network.add_task(task, nn.Linear(network.backbone.features, CLASSES), granularity=granularity)
    network.begin(task, generator=generator)


def pruned(network: MultiSubnetwork, task: str, density: float) -> None:
    """Prune a masked task to its budget by magnitude, and compact it."""
    prune(network, task, Budget(density=density).counts(network.sizes(), {}))
    network.compact(task)


def compact(backbone: nn.Module, density: float = 0.1, tasks: int = 1, device: str = "cpu") -> MultiSubnetwork:
    """Build a network with compact tasks "0", "1", ..., ready to train."""
    network = MultiSubnetwork(backbone).to(device)
    for task in map(str, range(tasks)):
        begun(network, task)
        pruned(network, task, density)
    return network


def frozen(backbone: nn.Module, density: float = 0.1, tasks: int = 1, device: str = "cpu") -> MultiSubnetwork:
    """Build a network with frozen tasks "0", "1", ...; the last one is active."""
    network = MultiSubnetwork(backbone).to(device)
    for task in map(str, range(tasks)):
        begun(network, task)
        pruned(network, task, density)
        network.freeze(task)
    return network.eval()


def drawn(shape: Sequence[int], batch: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw random inputs (batch, *shape) and classes (batch,)."""
    return torch.randn(batch, *shape, device=device), torch.randint(0, CLASSES, (batch,), device=device)


def training_step(model: nn.Module, batch: tuple[Tensor, Tensor], forward: Callable | None = None) -> Action:
    """Make a function that does one training step: gradients to None, forward, loss, backward, fused Adam.

    Args:
        model: the model to train.
        batch: inputs and classes.
        forward: inputs to outputs; the model itself when None.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = batch
    compute = model if forward is None else forward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(compute(inputs), targets).backward()
        optimizer.step()

    return step
