"""Steps, inference and memory of subnetworks on a GPU, against the dense network, in each precision.

    make bench-gpu

Writes outputs/benchmarks/gpu/performance.md, with the card's name; about ten minutes on one GPU. Row "gpu" of
benchmarks.run: with --device cpu it checks the code, not the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import dense
from benchmarks.others import DENSITY, GPT, ViT, compact_task, inputs_of
from benchmarks.records import Record
from benchmarks.timing import Action, Settings
from msh.backbones import MLP, PaperConv, ResNet18

PRECISIONS = ("tf32", "bf16")


@dataclass(frozen=True)
class Case:
    """A network, and the batch that fills a card.

    Attributes:
        name: for people.
        batch: examples.
        build: makes the backbone.
        small: makes a smaller one, to check the code.
    """

    name: str
    batch: int
    build: Callable[[], nn.Module]
    small: Callable[[], nn.Module]


CASES = {
    "fc": Case("FC 6 x 1000", 8192, lambda: MLP((784,)), lambda: MLP((784,), 100, 2)),
    "conv": Case("paper's conv net", 1024, lambda: PaperConv((1, 28, 28)), lambda: PaperConv((1, 28, 28))),
    "resnet": Case("ResNet-18", 512, lambda: ResNet18((3, 32, 32)), lambda: ResNet18((3, 32, 32), 8)),
    "vit": Case("ViT-S (12 blocks of 384)", 256, lambda: ViT(384, 12, 6), lambda: ViT(24, 1, 2)),
    "gpt": Case("GPT-2 small (12 blocks of 768)", 64, lambda: GPT(768, 12, 12), lambda: GPT(24, 1, 2)),
}


def gpu(settings: Settings) -> Iterator[Record]:
    """Measure row "gpu"."""
    on_card = settings.device == "cuda"
    for short, case in CASES.items():
        build, batch = (case.build, case.batch) if on_card else (case.small, 4)
        inputs = inputs_of(build(), batch, settings.device)
        model = dense(build(), settings.device)
        for granularity in ("weight", "block", "unit"):
            network = compact_task(build(), granularity, settings.device)
            what = f"{case.name}, batch {batch}, granularity {granularity}, {DENSITY:.0%} of the weights"
            for precision in PRECISIONS:
                key = f"gpu-{short}-{granularity}-{precision}"
                how = partial(_precision, precision, settings.device)
                steps = [_step(each, inputs, how) for each in (model, network)]
                yield settings.against(
                    f"{key}-step", f"training step, {precision}: {what}", *steps, settings.rounds(20)
                )
                if on_card:
                    peaks = [_peak(step) for step in steps]
                    text = f"peak memory of a training step, {precision}: {what}"
                    yield settings.record(f"{key}-memory", text, peaks[1] / peaks[0], "ratio", None, 1)
            network.freeze("task")
            for precision in PRECISIONS:
                key, how = f"gpu-{short}-{granularity}-{precision}", partial(_precision, precision, settings.device)
                forwards = [_forward(each, inputs[0], how) for each in (model.eval(), network.eval().module("task"))]
                text = f"forward of the frozen task, {precision}: {what}"
                yield settings.against(f"{key}-forward", text, *forwards, settings.rounds(20))
            model.train()


def _precision(name: str, device: str) -> AbstractContextManager:
    """Compute in bfloat16 where torch's autocast does; or in float32, whose products may round as TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.autocast(device, torch.bfloat16) if name == "bf16" else nullcontext()


def _step(model: nn.Module, batch: tuple[Tensor, Tensor], how: Callable[[], AbstractContextManager]) -> Action:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = batch

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with how():
            loss = F.cross_entropy(model(inputs).float(), targets)
        loss.backward()
        optimizer.step()

    return step


def _forward(model: nn.Module, inputs: Tensor, how: Callable[[], AbstractContextManager]) -> Action:
    def forward() -> None:
        with torch.inference_mode(), how():
            model(inputs)

    return forward


def _peak(step: Action) -> int:
    """Return the bytes that a step needs at most beyond those in use before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
