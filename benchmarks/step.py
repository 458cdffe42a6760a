"""Cost of a training step of a 90 % sparse subnetwork, as a ratio to the dense network's in the same run.

    python benchmarks/step.py [--batches 32 128 512] [--threads N] [--repeats 60]

Both train the FC 6 x 1000 on 784 inputs with Adam (forward, loss, backward, step). The two take turns, step by step,
so that a machine whose speed drifts slows both alike; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from msh.backbones import MLP
from msh.subnetworks import Budget, MultiSubnetwork, prune

TARGETS = {128: 1.0}


def trained(model: nn.Module, forward: Callable, batch: int, fused: bool) -> Callable[[], None]:
    """A function that does one training step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    inputs, targets = torch.randn(batch, 784), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(inputs), targets).backward()
        optimizer.step()

    return step


def dense_step(batch: int, fused: bool) -> Callable[[], None]:
    model = nn.Sequential(MLP((784,)), nn.Linear(1000, 10))
    return trained(model, model, batch, fused)


def sparse_step(batch: int, fused: bool, compact: bool) -> Callable[[], None]:
    network = MultiSubnetwork(MLP((784,)))
    network.add_task("task", nn.Linear(1000, 10))
    network.begin("task")
    prune(network, "task", Budget(density=0.1).counts(network.sizes(), {}))
    if compact:
        network.compact("task")
    return trained(network, network, batch, fused)


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(
        "batch", "Adam", "dense ms", "subnetwork ms", "ratio", "target", "while pruning", title="training step"
    )
    for batch in options.batches:
        for fused in (False, True):
            steps = [dense_step(batch, fused), sparse_step(batch, fused, True), sparse_step(batch, fused, False)]
            times = [[seconds(step) for step in steps] for _ in range(options.repeats + 5)][5:]
            dense, compact, masked = (statistics.median(column) for column in zip(*times, strict=True))
            target = f"<= {TARGETS[batch]:.2f}" if batch in TARGETS else ""
            row = [f"{1e3 * dense:.1f}", f"{1e3 * compact:.1f}", f"{compact / dense:.2f}", target]
            table.add_row(str(batch), "fused" if fused else "plain", *row, f"{masked / dense:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}")


if __name__ == "__main__":
    main()
