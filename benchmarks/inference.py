"""Row 10: inference with an activated subnetwork, against a dense network with the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.networks import BACKBONES, FC, SHAPES, dense, drawn, frozen
from benchmarks.records import Record
from benchmarks.timing import Settings


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
