"""Row 9: file sizes against their information content."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.networks import BACKBONES, FC, frozen
from benchmarks.records import Record
from benchmarks.timing import Settings
from msh.files.state_file import save_network, save_subnetwork
from msh.subnetworks import MultiSubnetwork


def bound(network: MultiSubnetwork, task: str, width: int = 4) -> float:
    """Compute a subnetwork's least bytes: values, private tensors, entropy of the mask.

    Args:
        network: with the task.
        task: its name.
        width: bytes per owned weight.
    """
    bits = 0.0
    owned = 0
    for mask in network.masks(task).values():
        count, density = int(mask.sum()), float(mask.float().mean())
        owned += count
        bits += mask.numel() * entropy(density)
    private = sum(t.numel() * t.element_size() for t in network.subnetwork(task).private_tensors().values())
    return width * owned + private + bits / 8


def entropy(share: float) -> float:
    """Return the bits per choice with this probability."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def storage(settings: Settings) -> Iterator[Record]:
    """Measure row 9."""
    dense = 4.0 * sum(parameter.numel() for parameter in BACKBONES[FC]().parameters())
    unit = "ratio (dense in bytes)"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for density in (0.1, 0.02):
            network = frozen(BACKBONES[FC](), density)
            save_subnetwork(path, network, "0")
            ratio = path.stat().st_size / bound(network, "0")
            what = (
                f"subnetwork file at {density:.0%} density / its bound (kept values and private tensors in fp32, "
                f"entropy of the mask), {FC}"
            )
            yield settings.record(f"9-density{density}", what, ratio, unit, dense, 1)
            for dtype in (torch.float16, torch.bfloat16):
                name = str(dtype).removeprefix("torch.")
                save_subnetwork(path, network, "0", dtype)
                ratio = path.stat().st_size / bound(network, "0", width=2)
                what = f"the same file with values in {name} / its bound with values of 2 bytes"
                yield settings.record(f"9-density{density}-{name}", what, ratio, unit, dense, 1)
        yield _network_file(settings, path, dense)


def _network_file(settings: Settings, path: Path, dense: float) -> Record:
    network = frozen(BACKBONES[FC](), 0.1, 10)
    parts = 0
    for task in network.tasks:
        save_subnetwork(path, network, task)
        parts += path.stat().st_size
    save_network(path, network, free_weights=False)
    what = f"network file of 10 tasks of 10 % / the sum of their subnetwork files, {FC}"
    return settings.record("9-network", what, path.stat().st_size / parts, "ratio (dense in bytes)", dense, 1)
