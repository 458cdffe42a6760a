"""Augmentation: training images changed at random, each time anew; validation and test images stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from msh.errors import one_of


@dataclass(frozen=True)
class Change:
    """One random change of images.

    Attributes:
        draws: numbers that an example takes.
        function: images (batch, channels, height, width) and draws, uniform in [0, 1), (batch, `draws`), to images.
    """

    draws: int
    function: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Changes, one after the other."""

    changes: tuple[Change, ...]

    def draw(self, examples: int, seed: int) -> Tensor:
        """What decides the changes of so many examples: uniform in [0, 1), (examples, draws)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(examples, sum(change.draws for change in self.changes), generator=generator)

    def __call__(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Images (batch, channels, height, width), each changed as its row of the draws says."""
        for change, own in zip(
            self.changes, draws.split([change.draws for change in self.changes], dim=1), strict=True
        ):
            inputs = change.function(inputs, own)
        return inputs


def flip(argument: Any) -> Change:
    """Half of the images mirrored left to right.

    Raises:
        ValueError: the argument is another than "horizontal".
    """
    one_of("flip", argument, ("horizontal",))
    return Change(1, _flipped)


def _flipped(inputs: Tensor, draws: Tensor) -> Tensor:
    return torch.where((draws[:, 0] < 0.5).view(-1, 1, 1, 1), inputs.flip(-1), inputs)


def shift(argument: Any) -> Change:
    """Each image moved by up to so many pixels, up or down and left or right; its edge fills what it leaves.

    Raises:
        ValueError: the argument is no whole number of at least 1.
    """
    if isinstance(argument, bool) or not isinstance(argument, int) or argument < 1:
        raise ValueError(f"shift = {argument!r} is not allowed: a number of pixels, at least 1, is")
    return Change(2, partial(_shifted, most=argument))


def _shifted(inputs: Tensor, draws: Tensor, most: int) -> Tensor:
    moves = (draws * (2 * most + 1)).long() - most
    for dim in (2, 3):
        places = (torch.arange(inputs.shape[dim]) + moves[:, dim - 2, None]).clamp(0, inputs.shape[dim] - 1)
        index = places[:, None, :, None] if dim == 2 else places[:, None, None, :]
        inputs = inputs.gather(dim, index.expand_as(inputs))
    return inputs


CHANGES: dict[str, Callable[[Any], Change]] = {"flip": flip, "shift": shift}


def read_augmentation(
    name: str, given: Sequence[Mapping[str, Any]] | None, input_shape: Sequence[int]
) -> Augmentation | None:
    """What a task's config asks for.

    Args:
        name: of the task.
        given: each {name of a change: its argument}; None or none at all: no augmentation.
        input_shape: of one example.
    Raises:
        ValueError: a change is unknown or its argument not allowed, or the task has no images.
    """
    if not given:
        return None
    where = f"tasks.{name}.augment"
    if len(input_shape) != 3:
        raise ValueError(
            f"{where} is not allowed for inputs of shape {tuple(input_shape)}: images of (channels, height, width) are"
        )
    if isinstance(given, str | Mapping) or not all(isinstance(one, Mapping) and len(one) == 1 for one in given):
        raise ValueError(f"{where} = {given!r} is not allowed: a list of {{name: argument}} is, such as [{{shift: 2}}]")
    changes = []
    for change in given:
        [(kind, argument)] = change.items()
        one_of(f"a change of {where}", kind, CHANGES)
        try:
            changes.append(CHANGES[kind](argument))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return Augmentation(tuple(changes))
