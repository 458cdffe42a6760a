"""Roofline: this machine's peaks, the least time for a training step in row 1, and the share that msh attains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.networks import BACKBONES, CLASSES, FC, SHAPES, compact, dense, drawn, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings, take_turns

LAYERS = ((784, 1000), *((1000, 1000),) * 5)


@dataclass(frozen=True)
class Work:
    """Least work in a step.

    Attributes:
        flops: multiplications and additions.
        bytes: to and from memory; each tensor larger than a cache counts once per use.
    """

    flops: float
    bytes: float

    def seconds(self, peak: float, bandwidth: float) -> float:
        """Return the least time at these peaks, FLOP/s and bytes/s."""
        return max(self.flops / peak, self.bytes / bandwidth)


def work(batch: int, density: float, index_bytes: float) -> Work:
    """Count the work in a training step: FC 6 x 1000 with a head, fp32 Adam.

    Products: outputs, weight gradients, and input gradients (not in the first layer); 2 FLOPs per owned weight and
    example each. Memory per owned weight: read in two products with its index, its gradient written, Adam reads four
    numbers (weight, gradient, two moments) and writes three; activations are written and read twice.

    Args:
        batch: examples.
        density: owned share of the backbone's weights.
        index_bytes: per owned weight and product: 0 for a dense network.
    """
    owned = [density * i * o for i, o in LAYERS] + [1000.0 * CLASSES]
    weights, first = sum(owned), owned[0]
    flops = 2 * batch * (3 * weights - first)
    activations = batch * sum(o for _, o in LAYERS)
    moved = weights * (2 * 4 + 3 * index_bytes + 4 + 7 * 4) + activations * 4 * 4
    return Work(flops, moved)


def roofline(settings: Settings) -> Iterator[Record]:
    """Measure the peaks, and the attained share."""
    peak, bandwidth = _peak(settings), _bandwidth(settings)
    rounds = settings.rounds(15)
    yield settings.record("roofline-gemm", "dense fp32 product of 2048 x 2048", peak / 1e9, "GFLOP/s", None, rounds)
    yield settings.record("roofline-bandwidth", "copy of 256 MB", bandwidth / 1e9, "GB/s", None, rounds)
    for batch in settings.cases((32, 128, 512), (128,)):
        data = drawn(SHAPES[FC], batch, settings.device)
        contestants = {
            "dense": training_step(dense(BACKBONES[FC](), settings.device), data),
            "subnetwork": training_step(compact(BACKBONES[FC](), device=settings.device), data),
        }
        times = take_turns(contestants, rounds, burst=2, device=settings.device)
        works = {"dense": work(batch, 1.0, 0), "subnetwork": work(batch, 0.1, 4)}
        for kind, needed in works.items():
            least = needed.seconds(peak, bandwidth)
            what = (
                f"share of the roofline attained by the step of the {kind}, {FC}, batch {batch}: "
                f"{needed.flops / 1e9:.2f} GFLOP, {needed.bytes / 1e6:.1f} MB, at least {1e3 * least:.2f} ms of "
                f"{1e3 * times[kind]:.2f} ms; {needed.flops / times[kind] / 1e9:.0f} GFLOP/s"
            )
            dense_ms = 1e3 * times["dense"]
            id = f"roofline-{kind}-batch{batch}"
            yield settings.record(id, what, least / times[kind], "share (dense in ms)", dense_ms, rounds)


def _peak(settings: Settings) -> float:
    a, b = (torch.randn(2048, 2048, device=settings.device) for _ in range(2))
    taken = take_turns({"product": lambda: a @ b}, settings.rounds(15), device=settings.device)
    return 2 * 2048**3 / taken["product"]


def _bandwidth(settings: Settings) -> float:
    a, b = (torch.zeros(2**26, device=settings.device) for _ in range(2))
    taken = take_turns({"copy": lambda: b.copy_(a)}, settings.rounds(15), device=settings.device)
    return 2 * 4 * 2**26 / taken["copy"]
