"""Row 19: steps of other architectures, with weights, blocks and whole units, against the dense network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.networks import CLASSES, dense, training_step
from benchmarks.records import Record
from benchmarks.timing import Settings
from msh.backbones import ResNet18
from msh.subnetworks import (
    WEIGHTS,
    Blocks,
    Budget,
    Granularity,
    MultiSubnetwork,
    OverlappingUnits,
    prune,
    trace_units,
)
from msh.subnetworks.modules import flops_share

DENSITY, VOCABULARY = 0.1, 1000


class ViT(nn.Module):
    """A small vision transformer: 64 patches of 4 x 4."""

    input_shape = (3, 32, 32)

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.features = width
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, 32, 32) to (batch, width)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (batch, 64, width)
        features: Tensor = self.blocks(tokens + self.positions).mean(1)
        return features


class GPT(nn.Module):
    """A small causal transformer over 128 tokens."""

    input_shape, vocabulary = (128,), VOCABULARY

    def __init__(self, width: int = 256, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.features = width
        self.table = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(128), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, 128) to (batch, width)."""
        features: Tensor = self.blocks(self.table(tokens), mask=self.mask, is_causal=True)[:, -1]
        return features


NETWORKS: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {
    "resnet": ("narrow ResNet-18 (width 32)", 64, lambda: ResNet18((3, 32, 32), 32)),
    "vit": ("small ViT (6 blocks of 192)", 32, ViT),
    "gpt": ("small GPT (4 blocks of 256)", 16, GPT),
}
"""Short name to (name, batch size, constructor)."""


def others(settings: Settings) -> Iterator[Record]:
    """Measure row 19."""
    for short, (name, batch, build) in NETWORKS.items():
        model = dense(build(), settings.device)
        inputs = inputs_of(build(), batch, settings.device)
        for granularity in ("weight", "unit") if short == "resnet" else ("weight", "block", "unit"):
            network = compact_task(build(), granularity, settings.device)
            what = (
                f"training step of a subnetwork of {DENSITY:.0%} of the weights (granularity: {granularity}) / of the "
                f"dense network, {name}, batch {batch}"
            )
            what += f"; {flops_share(network, 'task'):.3f} of its FLOPs" if granularity == "unit" else ""
            steps = training_step(model, inputs), training_step(network, inputs)
            yield settings.against(f"19-{short}-{granularity}", what, *steps, settings.rounds(15))


def inputs_of(backbone: nn.Module, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw inputs and classes."""
    shape = (batch, *backbone.input_shape)
    drawn = torch.randint(0, VOCABULARY, shape) if hasattr(backbone, "vocabulary") else torch.randn(shape)
    return drawn.to(device), torch.randint(0, CLASSES, (batch,), device=device)


def compact_task(backbone: nn.Module, granularity: str, device: str) -> MultiSubnetwork:
    """Build a network with a compact task of single weights, blocks or overlapping units."""
    network = MultiSubnetwork(backbone).to(device)
    kinds: dict[str, Callable[[], Granularity]] = {
        "weight": lambda: WEIGHTS,
        "block": lambda: Blocks.of(network),
        "unit": lambda: OverlappingUnits(trace_units(network)),
    }
    kind = kinds[granularity]()
    blocks = kind.sizes if isinstance(kind, Blocks) else None
    network.add_task("task", nn.Linear(backbone.features, CLASSES), granularity=granularity, blocks=blocks)
    network.begin("task")
    counts = Budget(density=DENSITY).counts(kind.counts(network.sizes()), {})
    prune(network, "task", counts, granularity=kind)
    network.compact("task")
    return network.train()
