"""Augmentation: change training images at random, in a new way each epoch; validation and test images never."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from msh.errors import Problems, at_least, invalid, one_of
from msh.tasks.checks import check_image_shape, check_one_entry


@dataclass(frozen=True)
class Change:
    """One random change to images.

    Attributes:
        draws: random numbers per example.
        function: maps images (batch, channels, height, width) and draws in [0, 1), (batch, `draws`), to images.
    """

    draws: int
    function: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Changes, applied in order."""

    changes: tuple[Change, ...]

    def draw(self, examples: int, seed: int) -> Tensor:
        """Draw the numbers that determine each example's changes: uniform in [0, 1), (examples, draws)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(examples, sum(change.draws for change in self.changes), generator=generator)

    def __call__(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Change each image (batch, channels, height, width) by its row of draws."""
        columns = draws.split([change.draws for change in self.changes], dim=1)
        for change, numbers in zip(self.changes, columns, strict=True):
            inputs = change.function(inputs, numbers)
        return inputs


def flip(key: str, argument: Any) -> Change:
    """Mirror half of the images left to right.

    Raises:
        ValueError: the argument is not "horizontal".
    """
    one_of(key, argument, ("horizontal",))
    return Change(1, _flipped)


def _flipped(inputs: Tensor, draws: Tensor) -> Tensor:
    return torch.where((draws[:, 0] < 0.5).view(-1, 1, 1, 1), inputs.flip(-1), inputs)


def shift(key: str, argument: Any) -> Change:
    """Move each image by at most `argument` pixels, vertically and horizontally; its edge pixels fill the gap.

    Raises:
        ValueError: the argument is no whole number >= 1.
    """
    at_least(key, 1, argument)
    return Change(2, partial(_shifted, most=argument))


def _shifted(inputs: Tensor, draws: Tensor, most: int) -> Tensor:
    moves = (draws * (2 * most + 1)).long() - most  # (batch, 2) in [-most, most]
    for dim in (2, 3):
        size = inputs.shape[dim]
        sources = (torch.arange(size) + moves[:, dim - 2, None]).clamp(0, size - 1)  # (batch, size)
        index = sources[:, None, :, None] if dim == 2 else sources[:, None, None, :]
        inputs = inputs.gather(dim, index.expand_as(inputs))
    return inputs


CHANGES: dict[str, Callable[[str, Any], Change]] = {"flip": flip, "shift": shift}


def read_augmentation(
    name: str, entries: Sequence[Mapping[str, Any]] | None, input_shape: Sequence[int]
) -> Augmentation | None:
    """Build the augmentation that a task's config describes.

    Args:
        name: the task's name.
        entries: each {name of a change: its argument}; None or empty: no augmentation.
        input_shape: one example's shape.
    Raises:
        ValueError: an entry is unknown or its argument invalid, or the inputs are not images.
    """
    if not entries:
        return None
    key = f"tasks.{name}.augment"
    if not isinstance(entries, list | tuple):
        raise invalid(key, "a list, such as [{shift: 2}]", entries)
    with Problems() as problems:
        problems.check(check_image_shape, key, input_shape)
        changes = [problems.check(_read_change, key, entry) for entry in entries]
    return Augmentation(tuple(filter(None, changes)))


def _read_change(key: str, entry: Mapping[str, Any]) -> Change:
    check_one_entry(f"an entry of {key}", entry, "shift: 2")
    [(kind, argument)] = entry.items()
    one_of(f"a change of {key}", kind, CHANGES)
    return CHANGES[kind](f"{key}.{kind}", argument)
