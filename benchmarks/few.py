"""Load a few images of CIFAR-10, Fashion-MNIST and MNIST, all in colours and of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import cast

import torch

from msh.tasks import RawData
from msh.tasks.images import image_folder
from msh.tasks.task import SplitName
from msh.tasks.transforms import repeat_channels, split_classes
from msh.tasks.vision import vision

SIZE = 28


@cache
def images(name: str, folder: str) -> RawData:
    """Load a data set; once per process."""
    if name.startswith("cifar"):
        train, test = (f"{folder}/cifar10-jpeg/{split}" for split in ("train", "test"))
        return image_folder(train, test, size=SIZE, mode="RGB", cache="memory")
    return repeat_channels(vision({"mnist": "MNIST"}.get(name, "FashionMNIST"), folder, download=False), 3)


def few(name: str, folder: str, classes: Sequence[str] | None, train: int, test: int, seed: int) -> RawData:
    """Load a task's images of some classes; draw training images with a seed, and test images always alike."""
    data = images(name, folder)
    data = split_classes(data, list(classes)) if classes else data
    drawn = {}
    for split, count, draw in (("train", train, seed), ("test", test, 0)):
        examples = data.splits[cast(SplitName, split)]
        rows = torch.randperm(len(examples), generator=torch.Generator().manual_seed(draw))[:count]
        drawn[split] = examples.take(rows)
    return replace(data, **drawn)
