"""A task: data in three splits, a loss, and a metric with a direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy

from msh.recipes import Recipe, build
from msh.subnetworks.tensors import widened
from msh.tasks.augmentation import Augmentation
from msh.tasks.lazy import Function, LazyInputs

Kind = Literal["classification", "multilabel", "regression"]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def skill_score(score: float, direction: str, constant: float | None) -> float:
    """A score without a unit, higher is better: of an error, 1 - error / error of a constant answer.

    So it is 1 at best, and 0 where nothing is learned. Source: Murphy 1988, Skill scores based on the mean square
    error.

    Args:
        score: in the metric's unit.
        direction: "max" or "min", as it is better; what is better high is given back as it is.
        constant: the error of a constant answer.
    Returns:
        nan where the constant answer's error is not known, or is 0.
    """
    if direction == "max":
        return score
    return 1.0 - score / constant if constant else math.nan


@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
        inputs: float, or int64 token ids, (examples, *input shape); to be indexed by tensors and slices.
        targets: classification: int64, (examples,); multilabel: float of 0 and 1, (examples, labels);
            regression: float, (examples, outputs), in the data's own unit.
    """

    inputs: Tensor | LazyInputs
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Tensor) -> Split:
        """The examples at these rows, int64 (examples,)."""
        inputs = self.inputs.take(rows) if isinstance(self.inputs, LazyInputs) else self.inputs[rows]
        return Split(inputs, self.targets[rows])

    def then(self, function: Function) -> Split:
        """The same examples, their inputs sent through a function, batch by batch, whenever they are asked for."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            inputs = LazyInputs(inputs, torch.arange(len(inputs)))
        return Split(inputs.then(function), self.targets)


@dataclass(frozen=True)
class MetricSpec:
    """A metric and which way is better.

    Attributes:
        build: number of outputs to a torchmetrics metric.
        direction: "max" or "min".
        kinds: kinds of task that it is for.
    """

    build: Callable[[int], Metric]
    direction: Literal["max", "min"]
    kinds: tuple[Kind, ...]


METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(lambda n: MulticlassAccuracy(n, average="micro"), "max", ("classification",)),
    "f1": MetricSpec(lambda n: MulticlassF1Score(n, average="macro"), "max", ("classification",)),
    "label_accuracy": MetricSpec(lambda n: MultilabelAccuracy(n, average="micro"), "max", ("multilabel",)),
    "rmse": MetricSpec(lambda n: MeanSquaredError(squared=False), "min", ("regression",)),
    "mse": MetricSpec(lambda n: MeanSquaredError(), "min", ("regression",)),
    "r2": MetricSpec(lambda n: R2Score(), "max", ("regression",)),
}
DEFAULT_METRIC: dict[Kind, str] = {"classification": "accuracy", "multilabel": "label_accuracy", "regression": "rmse"}


@dataclass(frozen=True)
class Task:
    """What there is to learn, apart from any network.

    Attributes:
        name: as users call it.
        kind: decides the loss: cross-entropy, binary cross-entropy, or squared error on the scaled target.
        splits: the data; "test" chooses nothing.
        outputs: size of the head: classes, labels or regression outputs.
        metric: a name in METRICS.
        batch_size: examples an optimizer step sees, over all devices together.
        target_mean: (outputs,), of the training targets (regression), in the data's unit.
        target_std: (outputs,), likewise.
        loss_weight: factor of this task's loss where several train together.
        repeat: times an epoch goes through the training examples.
        vocabulary: number of token ids where inputs are tokens, else None.
        stem: recipe of the stem, without `input_shape`, `output_shape` (the backbone's) and, for tokens, `vocabulary`,
            which are added; a linear one where the shapes differ, and none where they are the same, when None.
        augmentation: random changes of the training images, each time they are trained on.
    """

    name: str
    kind: Kind
    splits: dict[SplitName, Split]
    outputs: int
    metric: str
    batch_size: int
    target_mean: Tensor
    target_std: Tensor
    loss_weight: float = 1.0
    repeat: int = 1
    vocabulary: int | None = None
    stem: Recipe | None = None
    augmentation: Augmentation | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.splits["train"].inputs.shape[1:])

    @property
    def direction(self) -> Literal["max", "min"]:
        """Which way the metric is better."""
        return METRICS[self.metric].direction

    def build_metric(self) -> Metric:
        """A fresh metric, to be fed with `predictions` and targets."""
        return METRICS[self.metric].build(self.outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch: a scalar.

        Args:
            outputs: (batch, outputs), the head's.
            targets: as in `Split`.
        """
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets)
        if outputs.dtype == torch.float64:
            targets = targets.to(outputs)
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(outputs, targets)
        scaled = (targets - self.target_mean.to(targets)) / self.target_std.to(targets)
        return F.mse_loss(outputs, scaled)

    def predictions(self, outputs: Tensor) -> Tensor:
        """The head's outputs (batch, outputs) in the form the metric takes; regression in the data's unit."""
        outputs = widened(outputs)
        if self.kind == "regression":
            return outputs * self.target_std.to(outputs) + self.target_mean.to(outputs)
        return outputs

    def constant_score(self, split: SplitName) -> float:
        """The metric, on a split, of one answer to every example: of a regression, the mean of its training targets."""
        targets, metric = self.splits[split].targets, self.build_metric()
        metric.update(self.predictions(torch.zeros(len(targets), self.outputs)), targets)
        return float(metric.compute())

    def head_recipe(self, features: int) -> Recipe:
        """How to build the head: linear, from the backbone's features."""
        return {"_target_": "torch.nn.Linear", "in_features": features, "out_features": self.outputs}

    def stem_recipe(self, input_shape: tuple[int, ...]) -> Recipe | None:
        """How to build the stem, from the task's input to the backbone's; None where none is needed."""
        if self.stem is not None:
            shapes = {"input_shape": list(self.input_shape), "output_shape": list(input_shape)}
            words = {} if self.vocabulary is None else {"vocabulary": self.vocabulary}
            return {**self.stem, **shapes, **words}
        if self.input_shape == input_shape:
            return None
        size = math.prod(self.input_shape)
        return {"_target_": "msh.tasks.stems.linear", "inputs": size, "output_shape": list(input_shape)}

    def build_head(self, features: int) -> nn.Module:
        """Build `head_recipe`."""
        return build(self.head_recipe(features))

    def build_stem(self, input_shape: tuple[int, ...]) -> nn.Module | None:
        """Build `stem_recipe`."""
        recipe = self.stem_recipe(input_shape)
        return None if recipe is None else build(recipe)
