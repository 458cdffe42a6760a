"""Row 10: inference with an activated subnetwork, against a dense network with the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.networks import BACKBONES, SHAPES, dense, drawn, frozen
from benchmarks.records import Record
from benchmarks.timing import Settings, take_turns

FC = "FC 6 x 1000"


def unstructured(settings: Settings) -> Iterator[Record]:
    """Measure row 10."""
    for density in settings.cases((0.1, 0.05, 0.02), (0.1, 0.05)):
        network = frozen(BACKBONES[FC](), density, device=settings.device)
        model = dense(BACKBONES[FC](), settings.device).eval()
        for batch in settings.cases((1, 32, 256), (1, 32)):
            inputs, _ = drawn(SHAPES[FC], batch, settings.device)
            contestants = {"dense": partial(model, inputs), "subnetwork": partial(network, inputs)}
            rounds = settings.rounds(60)
            with torch.no_grad():
                times = take_turns(contestants, rounds, burst=20 if batch < 256 else 5, device=settings.device)
            what = (
                f"forward of the active frozen task at {1 - density:.0%} sparsity / of a dense network of the same "
                f"shape, {FC}, batch {batch}"
            )
            ratio, of_dense = times["subnetwork"] / times["dense"], 1e3 * times["dense"]
            id = f"10-density{density}-batch{batch}"
            yield settings.record(id, what, ratio, "ratio (dense in ms)", of_dense, rounds)
