"""Transform data sets: select classes, or change images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import yaml

from msh.errors import Problems, at_least, invalid, one_of
from msh.tasks.build import RawData
from msh.tasks.checks import check_image_shape, check_one_entry
from msh.tasks.seeds import derive_seed
from msh.tasks.steps import Permute, ReadNamed, RepeatChannels, Rotate
from msh.tasks.task import Split


def split_classes(data: RawData, keep: Sequence[int | str]) -> RawData:
    """Keep the examples of some classes, and number these from 0 in the order listed.

    Args:
        data: a classification.
        keep: at least two different classes, by number or, if they have names, by name.
    Raises:
        ValueError: a class is missing from the data or listed twice, or fewer than two are listed.
    """
    if data.kind != "classification":
        raise ValueError(f"split_classes needs a classification; this is a {data.kind}")
    by = "number or name" if data.classes else "number"
    if not isinstance(keep, list | tuple) or len(keep) < 2:
        raise invalid("split_classes", f"a list of at least two classes, by {by}", keep)
    with Problems() as problems:
        numbers = [problems.check(_class_number, f"split_classes[{i}]", c, data) for i, c in enumerate(keep)]
    if len(set(numbers)) < len(numbers):
        raise invalid("split_classes", "a list of different classes", keep)
    classes = cast(list[int], numbers)
    data = data.map_splits(lambda split: _of_classes(split, classes))
    names = tuple(data.classes[number] for number in classes) if data.classes else ()
    return replace(data, outputs=len(classes), classes=names)


def _class_number(key: str, label: Any, data: RawData) -> int:
    number = _named(key, label, data.classes) if data.classes else label
    for name, split in data.splits.items():
        present = split.targets.unique().tolist()
        if type(number) is not int or number not in present:
            raise invalid(key, f"a class of the {name} split ({', '.join(map(str, present))})", label)
    return int(number)


def _named(key: str, label: Any, classes: Sequence[str]) -> Any:
    """Find a class by its name, as written in a config; YAML reads names such as yes, on, 1 and 2.5 as other types.

    Returns:
        The class's number; a label without such a name unchanged, which is a number unless names are numbers.
    Raises:
        ValueError: no class or several have this name.
    """
    if isinstance(label, str):
        one_of(key, label, classes)
        return classes.index(label)
    meanings = [_in_yaml(name) for name in classes]
    numbers = [i for i, meaning in enumerate(meanings) if type(meaning) is type(label) and meaning == label]
    if len(numbers) > 1:
        names = " or ".join(repr(classes[i]) for i in numbers)
        raise invalid(key, f"{names}, in quotation marks", label)
    if numbers:
        return numbers[0]
    others = [meaning for i, meaning in enumerate(meanings) if type(meaning) is int and meaning != i]
    if type(label) is not int or others:
        raise invalid(key, f"one of {', '.join(classes)}", label)
    return label


def _in_yaml(name: str) -> Any:
    """Read a class's name as YAML does."""
    try:
        return yaml.safe_load(name)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        return name


def _of_classes(split: Split, numbers: Sequence[int]) -> Split:
    wanted = torch.tensor(numbers)
    part = split.take(torch.isin(split.targets, wanted).nonzero().squeeze(1))
    return replace(part, targets=(part.targets[:, None] == wanted).int().argmax(1))


def permute_pixels(data: RawData, seed: int) -> RawData:
    """Permute the pixels of every image (the features of every row) in the same way, drawn from the seed.

    Args:
        data: images, whose channels are permuted equally, or rows of features.
        seed: >= 0; 0 keeps the order.
    Raises:
        ValueError: the data are texts, or the seed is invalid.
    Source: Goodfellow et al. 2013, arXiv 1312.6211 (permuted MNIST).
    """
    if data.texts is not None:
        raise ValueError("permute_pixels needs images or rows of features; this task has texts")
    at_least("permute_pixels", 0, seed)
    shape = data.train.inputs.shape[1:]
    size = math.prod(shape[1:] if len(shape) == 3 else shape)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "pixels")))
    return data.then(Permute(order if seed else torch.arange(size)))


def rotate(data: RawData, degrees: float) -> RawData:
    """Rotate every image counter-clockwise about its centre, by bilinear interpolation; corners are filled with 0.

    Raises:
        ValueError: the data are not images, or the angle is not a number.
    """
    with Problems() as problems:
        if isinstance(degrees, bool) or not isinstance(degrees, int | float):
            problems.add(invalid("rotate", "an angle in degrees", degrees))
        problems.check(check_image_shape, "rotate", data.train.inputs.shape[1:])
    return data.then(Rotate(float(degrees)))


def repeat_channels(data: RawData, number: int) -> RawData:
    """Repeat the channel of grey images, for a network that reads colour images.

    Raises:
        ValueError: the data are not images with one channel, or the number is invalid.
    """
    with Problems() as problems:
        problems.check(at_least, "repeat_channels", 1, number)
        problems.check(check_image_shape, "repeat_channels", data.train.inputs.shape[1:], channels="1")
    return data.then(RepeatChannels(number))


TRANSFORMS: dict[str, Callable[[RawData, Any], RawData]] = {
    "split_classes": split_classes,
    "permute_pixels": permute_pixels,
    "rotate": rotate,
    "repeat_channels": repeat_channels,
}


def transformed(name: str, data: RawData, transforms: Sequence[Mapping[str, Any]]) -> RawData:
    """Apply transforms in order.

    Args:
        name: the task's name.
        data: from a source.
        transforms: each {name of a transform: its argument}.
    Raises:
        ValueError: a transform is unknown, or cannot be applied to the data.
    """
    key = f"tasks.{name}.transforms"
    if transforms and data.texts is None and isinstance(data.raw_steps[0], ReadNamed):
        raise invalid(key, "none for inputs by name: change them in the data set", list(transforms))
    for transform in transforms:
        check_one_entry(f"an entry of {key}", transform, "rotate: 30")
        [(kind, argument)] = transform.items()
        one_of(f"a transform of tasks.{name}", kind, TRANSFORMS)
        with Problems(f"{key}.") as problems:
            data = problems.check(TRANSFORMS[kind], data, argument) or data
    return data
