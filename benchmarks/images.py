"""Measure a folder of JPEGs on disk: memory, and batches per second, against torchvision in the same process.

python -m benchmarks.images --images 20000 --size 224 --folder /tmp/images
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from msh.tasks import build_task
from msh.tasks.images import image_folder
from msh.tasks.loaders import train_loader

BATCH = 32
DRAWN = 64
"""Different images that are drawn; the others are copies under other names."""


def write_images(folder: Path, images: int, size: int) -> None:
    """Write JPEGs with as much detail as photographs (smoothed noise) in two classes, unless they are there."""
    generator = np.random.default_rng(0)
    contents = []
    for i in range(DRAWN):
        noise = Image.fromarray(generator.integers(0, 256, (size // 4, size // 4, 3), np.uint8))
        path = folder / f"drawn-{i}.jpg"
        folder.mkdir(parents=True, exist_ok=True)
        noise.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
        contents.append(path.read_bytes())
    for i in range(images):
        path = folder / "train" / "ab"[i % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(contents[i % DRAWN])


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def images_per_second(batches: Iterable[Any], most: int, work: Callable[[Any], Any] = lambda batch: None) -> float:
    """Time up to `most` batches."""
    start, count = time.perf_counter(), 0
    for number, batch in enumerate(batches, 1):
        work(batch)
        count += len(batch[0])
        if number == most:
            break
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, default=100, help="most batches per measurement")
    parser.add_argument("--folder", type=Path, required=True, help="for images and cache, about 4 GB for 20,000")
    settings = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_images(settings.folder, settings.images, settings.size)
    path, start = str(settings.folder / "train"), time.perf_counter()
    raw = image_folder(path, cache="disk", cache_dir=str(settings.folder / "cache"))
    loaded = time.perf_counter()
    task = build_task("a", raw, batch_size=BATCH)
    print(f"decoded or found in {loaded - start:.1f} s, scaled in {time.perf_counter() - loaded:.1f} s")
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    optimizer = torch.optim.Adam(network.parameters())

    def train(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        optimizer.zero_grad()
        task.loss(network(batch[0]), batch[1]).backward()
        optimizer.step()

    ours = train_loader(task.splits["train"], BATCH, seed=0)
    print(f"msh trains on {images_per_second(ours, settings.batches, train):.0f} images/s")
    size = 4 * settings.images * 3 * settings.size**2
    print(f"peak memory {peak_memory() / 1e9:.2f} GB for {size / 1e9:.1f} GB of float32")
    convert = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.2,) * 3)])
    for workers in (0, 2):
        theirs = DataLoader(ImageFolder(path, convert), BATCH, shuffle=True, num_workers=workers)
        for name, loader in (("msh", ours), (f"torchvision, {workers} workers", theirs)):
            print(f"{name}: {images_per_second(loader, settings.batches):.0f} images/s")


if __name__ == "__main__":
    main()
