"""From raw data to a task: check, split, scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from msh.errors import one_of
from msh.recipes import Recipe
from msh.tasks.augmentation import read_augmentation
from msh.tasks.lazy import LazyInputs
from msh.tasks.task import DEFAULT_METRIC, METRICS, Kind, Split, SplitName, Task
from msh.tasks.tokens import Texts

Normalize = Literal["feature", "all", "minmax", "none"]
NORMALIZE: tuple[Normalize, ...] = ("feature", "all", "minmax", "none")


@dataclass(frozen=True)
class RawData:
    """What a source of data returns.

    Attributes:
        kind: of the task.
        train: all examples that may be learned from; the validation split is taken from them.
        test: the test split; where the data has none of its own, a source makes one that no seed changes.
        outputs: classes, labels or regression outputs.
        texts: where the inputs are texts: these; the splits' inputs are then int64, (examples,), places among them.
        classes: names of a classification's classes, in the order of their numbers; () where they have none.
    """

    kind: Kind
    train: Split
    test: Split
    outputs: int
    texts: Texts | None = None
    classes: tuple[str, ...] = ()


def check_data(name: str, data: RawData) -> None:
    """Raise when a task's data cannot be learned from.

    Raises:
        ValueError: empty or uneven splits, NaN or infinite values (with their count), a class beyond the head's, a
            single class to learn.
    """
    if data.train.inputs.shape[1:] != data.test.inputs.shape[1:]:
        test, train = (tuple(split.inputs.shape[1:]) for split in (data.test, data.train))
        raise ValueError(f"task {name!r}, test split: an input has shape {test}, in the train split it has {train}")
    for split_name, split in (("train", data.train), ("test", data.test)):
        where = f"task {name!r}, {split_name} split"
        if len(split) == 0 or len(split) != len(split.targets):
            raise ValueError(
                f"{where}: {len(split)} inputs and {len(split.targets)} targets; needs as many, at least 1"
            )
        inputs = split.inputs.base if isinstance(split.inputs, LazyInputs) else split.inputs
        for what, tensor in (("inputs", inputs), ("targets", split.targets)):
            if tensor.is_floating_point() and (bad := _count_bad(tensor)):
                raise ValueError(f"{where}: {bad} {what} are NaN or infinite")
        if data.kind == "classification":
            low, high = int(split.targets.min()), int(split.targets.max())
            if low < 0 or high >= data.outputs:
                raise ValueError(
                    f"{where}: targets hold the class {high if high >= data.outputs else low}, "
                    f"but the head has {data.outputs} classes: 0 to {data.outputs - 1}"
                )
            if split is data.train and low == high:
                raise ValueError(
                    f"{where}: all {len(split)} targets are of the class {low}; at least 2 classes are needed"
                )
        elif split.targets.shape[1:] != (data.outputs,):
            raise ValueError(
                f"{where}: targets have shape {tuple(split.targets.shape)}, not (examples, {data.outputs})"
            )


def _count_bad(values: Tensor) -> int:
    """How many are NaN or infinite; a finite sum, which costs far less, says none."""
    return 0 if bool(values.sum().isfinite()) else int((~values.isfinite()).sum())


def build_task(
    name: str,
    data: RawData,
    batch_size: int = 32,
    val_fraction: float = 0.2,
    normalize: Normalize | None = None,
    metric: str | None = None,
    loss_weight: float = 1.0,
    repeat: int = 1,
    normalize_target: Literal["minmax"] | None = None,
    stem: Recipe | None = None,
    augment: Sequence[Mapping[str, Any]] | None = None,
) -> Task:
    """Check the data, hold out validation examples, and scale inputs by the training split's statistics.

    Args:
        name: of the task.
        data: from a source.
        batch_size: examples an optimizer step sees, over all devices; at most the training split is used.
        val_fraction: share of the training examples held out for validation, in (0, 1); the same for every seed.
        normalize: "feature": each input to mean 0, variance 1; "all": all inputs together; "minmax": each input to
            [0, 1]; "none". When None, "feature", and "none" for texts.
        metric: a name in METRICS; the kind's usual one when None.
        loss_weight: factor of the loss where several tasks train together, more than 0.
        repeat: times an epoch goes through the training examples.
        normalize_target: "minmax": bring the target of a regression to [0, 1], and measure it so; None: its own unit.
        stem: as in `Task`.
        augment: random changes of the training images, as `read_augmentation` takes them.
    Raises:
        ValueError: the data or a setting is not allowed.
    """
    check_data(name, data)
    normalize = normalize or ("none" if data.texts else "feature")
    metric = metric or DEFAULT_METRIC[data.kind]
    _check_settings(name, data, batch_size, val_fraction, normalize, metric, loss_weight, repeat, normalize_target)
    train, val = hold_out(data.train, val_fraction, data.kind)
    splits: dict[SplitName, Split] = {"train": train, "val": val, "test": data.test}
    if normalize_target == "minmax":
        low, extent = _extent(train.targets)
        splits = {split: Split(s.inputs, (s.targets - low) / extent) for split, s in splits.items()}
    mean, std = torch.zeros(data.outputs), torch.ones(data.outputs)
    if data.kind == "regression":
        targets = splits["train"].targets
        mean, std = targets.mean(0), _positive(targets.std(0, correction=0))
    return Task(
        name=name,
        kind=data.kind,
        splits=_scaled_splits(splits, normalize) if data.texts is None else _token_splits(splits, data.texts),
        outputs=data.outputs,
        metric=metric,
        batch_size=min(batch_size, len(train)),
        target_mean=mean,
        target_std=std,
        loss_weight=loss_weight,
        repeat=repeat,
        vocabulary=data.texts.vocabulary if data.texts else None,
        stem=stem,
        augmentation=read_augmentation(name, augment, data.train.inputs.shape[1:]),
    )


def _check_settings(
    name: str,
    data: RawData,
    batch_size: int,
    val_fraction: float,
    normalize: str,
    metric: str,
    loss_weight: float,
    repeat: int,
    normalize_target: str | None,
) -> None:
    for key, value in (("batch_size", batch_size), ("repeat", repeat)):
        if value < 1:
            raise ValueError(f"tasks.{name}.{key} = {value} is not allowed: at least 1 is")
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"tasks.{name}.val_fraction = {val_fraction} is not allowed: in (0, 1)")
    if not 0.0 < loss_weight < math.inf:
        raise ValueError(f"tasks.{name}.loss_weight = {loss_weight} is not allowed: a number above 0 is")
    one_of(f"tasks.{name}.normalize", normalize, NORMALIZE if data.texts is None else ("none",))
    one_of(f"tasks.{name}.metric", metric, [n for n, spec in METRICS.items() if data.kind in spec.kinds])
    if normalize_target is not None:
        one_of(f"tasks.{name}.normalize_target", normalize_target, ("minmax",))
        if data.kind != "regression":
            raise ValueError(
                f"tasks.{name}.normalize_target = {normalize_target} is not allowed: the task is a {data.kind}"
            )


def hold_out(split: Split, fraction: float, kind: Kind) -> tuple[Split, Split]:
    """Split in two, the second part with this share, always the same way; classes in proportion where they have enough.

    Raises:
        ValueError: a part would be empty.
    """
    from sklearn.model_selection import train_test_split  # takes long to import

    if not 0 < math.ceil(fraction * len(split)) < len(split):
        raise ValueError(f"a share of {fraction} of {len(split)} examples leaves none for the rest: both need some")
    order = torch.arange(len(split)).numpy()
    strata = split.targets.numpy() if kind == "classification" and _can_stratify(split.targets, fraction) else None
    first, second = train_test_split(order, test_size=fraction, random_state=0, stratify=strata)
    a, b = (split.take(torch.from_numpy(part).sort().values) for part in (first, second))
    return a, b


def _can_stratify(targets: Tensor, fraction: float) -> bool:
    """Whether both parts have room for every class, and every class has an example for both."""
    counts, second = targets.bincount(), math.ceil(fraction * len(targets))
    return int(counts.min()) > 1 and min(second, len(targets) - second) >= len(counts)


def _token_splits(splits: dict[SplitName, Split], texts: Texts) -> dict[SplitName, Split]:
    places = {split: cast(Tensor, s.inputs) for split, s in splits.items()}
    tokenizer = texts.tokenizer(places["train"])
    return {split: Split(texts.tokens(tokenizer, places[split]), s.targets) for split, s in splits.items()}


def _scaled_splits(splits: dict[SplitName, Split], normalize: Normalize) -> dict[SplitName, Split]:
    shift, scale = _scaling(splits["train"].inputs[:], normalize)
    function = partial(_scaled, shift=shift, scale=scale)
    return {
        split: s.then(function) if isinstance(s.inputs, LazyInputs) else Split(function(s.inputs), s.targets)
        for split, s in splits.items()
    }


def _scaled(inputs: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (inputs - shift) / scale


def _scaling(inputs: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    if normalize == "none":
        return torch.zeros(()), torch.ones(())
    if normalize == "minmax":
        return _extent(inputs)
    if normalize == "all":
        return inputs.mean(), _positive(inputs.std(correction=0))
    return inputs.mean(0), _positive(inputs.std(0, correction=0))


def _extent(values: Tensor) -> tuple[Tensor, Tensor]:
    low = values.amin(0)
    return low, _positive(values.amax(0) - low)


def _positive(std: Tensor) -> Tensor:
    return torch.where(std > 0, std, torch.ones(()))
