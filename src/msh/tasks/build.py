"""From raw data to a task: check, split, scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from msh.names import one_of
from msh.tasks.task import DEFAULT_METRIC, METRICS, Kind, Split, SplitName, Task

Normalize = Literal["feature", "all", "none"]


@dataclass(frozen=True)
class RawData:
    """What a source of data returns.

    Attributes:
        kind: of the task.
        train: all examples that may be learned from; the validation split is taken from them.
        test: the test split; where the data has none of its own, a source makes one that no seed changes.
        outputs: classes, labels or regression outputs.
    """

    kind: Kind
    train: Split
    test: Split
    outputs: int


def check_data(name: str, data: RawData) -> None:
    """Raise when a task's data cannot be learned from.

    Raises:
        ValueError: empty or uneven splits, NaN or infinite values (with their count), a class beyond the head's.
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
        for what, tensor in (("inputs", split.inputs), ("targets", split.targets)):
            if tensor.is_floating_point() and (bad := int((~tensor.isfinite()).sum())):
                raise ValueError(f"{where}: {bad} {what} are NaN or infinite")
        if data.kind == "classification":
            low, high = int(split.targets.min()), int(split.targets.max())
            if low < 0 or high >= data.outputs:
                raise ValueError(
                    f"{where}: targets hold the class {high if high >= data.outputs else low}, "
                    f"but the head has {data.outputs} classes: 0 to {data.outputs - 1}"
                )
        elif split.targets.shape[1:] != (data.outputs,):
            raise ValueError(
                f"{where}: targets have shape {tuple(split.targets.shape)}, not (examples, {data.outputs})"
            )


def build_task(
    name: str,
    data: RawData,
    batch_size: int = 32,
    val_fraction: float = 0.2,
    normalize: Normalize = "feature",
    metric: str | None = None,
    loss_weight: float = 1.0,
    repeat: int = 1,
) -> Task:
    """Check the data, hold out validation examples, and scale inputs by the training split's statistics.

    Args:
        name: of the task.
        data: from a source.
        batch_size: examples an optimizer step sees, over all devices; at most the training split is used.
        val_fraction: share of the training examples held out for validation, in (0, 1); the same for every seed.
        normalize: "feature": each input to mean 0, variance 1; "all": all inputs together; "none".
        metric: a name in METRICS; the kind's usual one when None.
        loss_weight: factor of the loss where several tasks train together, more than 0.
        repeat: times an epoch goes through the training examples.
    Raises:
        ValueError: the data or a setting is not allowed.
    """
    check_data(name, data)
    for key, value in (("batch_size", batch_size), ("repeat", repeat)):
        if value < 1:
            raise ValueError(f"tasks.{name}.{key} = {value} is not allowed: at least 1 is")
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"tasks.{name}.val_fraction = {val_fraction} is not allowed: in (0, 1)")
    if not 0.0 < loss_weight < math.inf:
        raise ValueError(f"tasks.{name}.loss_weight = {loss_weight} is not allowed: a number above 0 is")
    one_of(f"tasks.{name}.normalize", normalize, ("feature", "all", "none"))
    metric = metric or DEFAULT_METRIC[data.kind]
    one_of(f"tasks.{name}.metric", metric, [n for n, spec in METRICS.items() if data.kind in spec.kinds])
    train, val = hold_out(data.train, val_fraction, data.kind)
    shift, scale = _scaling(train.inputs, normalize)
    splits = {"train": train, "val": val, "test": data.test}
    scaled = {split: Split((s.inputs - shift) / scale, s.targets) for split, s in splits.items()}
    mean, std = torch.zeros(data.outputs), torch.ones(data.outputs)
    if data.kind == "regression":
        mean, std = train.targets.mean(0), _positive(train.targets.std(0, correction=0))
    return Task(
        name=name,
        kind=data.kind,
        splits=cast(dict[SplitName, Split], scaled),
        outputs=data.outputs,
        metric=metric,
        batch_size=min(batch_size, len(train)),
        target_mean=mean,
        target_std=std,
        loss_weight=loss_weight,
        repeat=repeat,
    )


def hold_out(split: Split, fraction: float, kind: Kind) -> tuple[Split, Split]:
    """Split in two, the second part with this share; classes in proportion. Always the same way.

    Raises:
        ValueError: a part would be empty.
    """
    from sklearn.model_selection import train_test_split  # takes long to import

    order = torch.arange(len(split)).numpy()
    strata = split.targets.numpy() if kind == "classification" and int(split.targets.bincount().min()) > 1 else None
    first, second = train_test_split(order, test_size=fraction, random_state=0, stratify=strata)
    parts = (torch.from_numpy(first).sort().values, torch.from_numpy(second).sort().values)
    a, b = (Split(split.inputs[part], split.targets[part]) for part in parts)
    return a, b


def _scaling(inputs: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    if normalize == "none":
        return torch.zeros(()), torch.ones(())
    if normalize == "all":
        return inputs.mean(), _positive(inputs.std(correction=0))
    return inputs.mean(0), _positive(inputs.std(0, correction=0))


def _positive(std: Tensor) -> Tensor:
    return torch.where(std > 0, std, torch.ones(()))
