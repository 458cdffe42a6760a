"""Transforms of any data set: a task on some of its classes, or on its images changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from msh.errors import one_of
from msh.tasks.build import RawData
from msh.tasks.lazy import Function
from msh.tasks.seeds import derive_seed
from msh.tasks.task import Split


def split_classes(data: RawData, keep: Sequence[int | str]) -> RawData:
    """Keep the examples of some classes; these are numbered from 0, in the order given.

    Args:
        data: of a classification.
        keep: at least two classes, by number or, where they have one, by name.
    Raises:
        ValueError: a class is missing from the data or named twice, or fewer than two are left.
    """
    if data.kind != "classification":
        raise ValueError(f"split_classes is not allowed for a {data.kind} task: it has no classes")
    allowed = f"at least two different classes, by number{' or name' * bool(data.classes)}, are"
    if not isinstance(keep, list | tuple) or not all(type(label) in (int, str) for label in keep):
        raise ValueError(f"split_classes = {keep} is not allowed: {allowed}")
    numbers = [label if isinstance(label, int) else _number_of(label, data, allowed) for label in keep]
    if len(set(numbers)) < 2 or len(set(numbers)) != len(numbers):
        raise ValueError(f"split_classes = {keep} is not allowed: {allowed}")
    train, test = _of_classes("train", data.train, numbers), _of_classes("test", data.test, numbers)
    classes = tuple(data.classes[number] for number in numbers) if data.classes else ()
    return replace(data, train=train, test=test, outputs=len(numbers), classes=classes)


def _number_of(name: str, data: RawData, allowed: str) -> int:
    if not data.classes:
        raise ValueError(f"split_classes names {name!r}, and the classes have no names: {allowed}")
    one_of("a class of split_classes", name, data.classes)
    return data.classes.index(name)


def _of_classes(name: str, split: Split, keep: Sequence[int]) -> Split:
    there = split.targets.unique().tolist()
    for label in keep:
        if label not in there:
            raise ValueError(f"split_classes = {list(keep)}: the {name} split has no class {label}, only {there}")
    wanted = torch.tensor(keep)
    kept = split.take(torch.isin(split.targets, wanted).nonzero().squeeze(1))
    return Split(kept.inputs, (kept.targets[:, None] == wanted).int().argmax(1))


def permute_pixels(data: RawData, seed: int) -> RawData:
    """Bring the pixels of every image (the features of every row) into one other order, drawn from the seed.

    Args:
        data: images, all channels of which are permuted alike, or rows of features.
        seed: at least 0; 0 leaves the order as it is.
    Raises:
        ValueError: the data are texts, or the seed is not allowed.
    Source: Goodfellow et al. 2013, arXiv 1312.6211 (permuted MNIST).
    """
    _check_numbers("permute_pixels", data)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"permute_pixels = {seed!r} is not allowed: a seed, a whole number of at least 0, is")
    shape = data.train.inputs.shape[1:]
    size = math.prod(shape[1:] if len(shape) == 3 else shape)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "pixels")))
    return _then(data, partial(_reordered, order=order if seed else torch.arange(size)))


def _reordered(inputs: Tensor, order: Tensor) -> Tensor:
    flat = inputs.flatten(2 if inputs.dim() == 4 else 1)
    return flat.gather(-1, order.expand_as(flat)).view(inputs.shape)  # several times as fast as an index_select here


def rotate(data: RawData, degrees: float) -> RawData:
    """Rotate every image counter-clockwise about its centre, by bilinear interpolation; corners are filled with 0.

    Raises:
        ValueError: the data are not images, or the angle is no number.
    """
    if isinstance(degrees, bool) or not isinstance(degrees, int | float):
        raise ValueError(f"rotate = {degrees!r} is not allowed: an angle in degrees is")
    if len(data.train.inputs.shape) != 4:
        shape = tuple(data.train.inputs.shape[1:])
        raise ValueError(f"rotate is not allowed for inputs of shape {shape}: images of (channels, height, width) are")
    return _then(data, partial(_rotated, degrees=float(degrees)))


def _rotated(inputs: Tensor, degrees: float) -> Tensor:
    from torchvision.transforms import functional  # takes long to import, and only these tasks need it

    if degrees % 360 == 0:
        return inputs
    turned: Tensor = functional.rotate(inputs, degrees, functional.InterpolationMode.BILINEAR)
    return turned


def repeat_channels(data: RawData, number: int) -> RawData:
    """Give grey images so many equal channels, to go through a network that reads colour images.

    Raises:
        ValueError: the data are not images of one channel, or the number is not allowed.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"repeat_channels = {number!r} is not allowed: a whole number of at least 1 is")
    shape = tuple(data.train.inputs.shape[1:])
    if len(shape) != 3 or shape[0] != 1:
        raise ValueError(f"repeat_channels is not allowed for inputs of shape {shape}: images of one channel are")
    return _then(data, partial(_with_channels, number=number))


def _with_channels(inputs: Tensor, number: int) -> Tensor:
    return inputs.expand(-1, number, -1, -1)


def _check_numbers(name: str, data: RawData) -> None:
    if data.texts is not None:
        raise ValueError(f"{name} is not allowed for texts: images or rows of features are")


def _then(data: RawData, function: Function) -> RawData:
    return replace(data, train=data.train.then(function), test=data.test.then(function))


TRANSFORMS: dict[str, Callable[[RawData, Any], RawData]] = {
    "split_classes": split_classes,
    "permute_pixels": permute_pixels,
    "rotate": rotate,
    "repeat_channels": repeat_channels,
}


def transformed(name: str, data: RawData, transforms: Sequence[Mapping[str, Any]]) -> RawData:
    """Apply transforms in order.

    Args:
        name: of the task.
        data: from a source.
        transforms: each {name of a transform: its argument}.
    Raises:
        ValueError: a transform is unknown, or cannot be applied to the data.
    """
    for transform in transforms:
        if not isinstance(transform, Mapping) or len(transform) != 1:
            raise ValueError(
                f"tasks.{name}.transforms has {transform!r}; {{name: argument}} is allowed, such as rotate: 30"
            )
        for kind, argument in transform.items():
            one_of(f"a transform of tasks.{name}", kind, TRANSFORMS)
            try:
                data = TRANSFORMS[kind](data, argument)
            except ValueError as error:
                raise ValueError(f"tasks.{name}.transforms: {error}") from error
    return data
