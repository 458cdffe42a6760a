"""Task: data in three splits, a loss, and a metric with a direction."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import ExplainedVariance, MeanSquaredError, Metric, R2Score, RelativeSquaredError
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy
from torchmetrics.text import Perplexity

from msh.recipes import Recipe, build
from msh.subnetworks.tensors import widened
from msh.tasks.augmentation import Augmentation
from msh.tasks.lazy import Function, Inputs, LazyInputs
from msh.tasks.options import TOKEN_KINDS, Kind
from msh.tasks.outputs import IGNORED, Outputs, outputs_from_data
from msh.tasks.preprocessing import steps_to_data
from msh.tasks.steps import Quantiles, Scale, Steps, Tokenize
from msh.tasks.tokens import PADDING, TokenCounts, WindowCounts
from msh.tasks.windows import Windowed

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps outputs (batch, outputs) and targets to a scalar."""
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
LOGITS = 2**24
"""Most outputs that are in memory at once where one answer is evaluated for a whole split."""


@dataclass(frozen=True)
class RawInputs:
    """A split's raw inputs, which are read when they are indexed.

    Attributes:
        read: maps rows of the source, int64 (rows,) in any order, to the inputs of a task's first step: texts, or a
            DataFrame of texts.
        rows: int64, (examples,), the examples' rows.
    """

    read: Callable[[Tensor], Any]
    rows: Tensor

    def __getitem__(self, index: Tensor | slice) -> Any:
        """Read the raw inputs of the examples at an index."""
        return self.read(self.rows[index])


@dataclass(frozen=True)
class Split:
    """A split's examples.

    Attributes:
        inputs: float, or int64 token ids, (examples, *input shape); indexed by tensors and slices.
        targets: classification: int64, (examples,); multilabel: float 0 or 1, (examples, labels);
            regression: float, (examples, outputs), in the data's unit; lm and token_classification: int64 (examples,
            tokens), the next token or the class, IGNORED where there is none.
        raw: the inputs as written in the source's file, for texts and tables.
    """

    inputs: Inputs
    targets: Tensor
    raw: RawInputs | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Tensor) -> Split:
        """Select the examples at these rows, int64 (examples,)."""
        inputs = self.inputs.take(rows) if isinstance(self.inputs, LazyInputs) else self.inputs[rows]
        raw = None if self.raw is None else replace(self.raw, rows=self.raw.rows[rows])
        return Split(inputs, self.targets[rows], raw)

    def then(self, function: Function) -> Split:
        """Pass the inputs through a function, batch by batch, on each access."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            inputs = LazyInputs(inputs, torch.arange(len(inputs)))
        return replace(self, inputs=inputs.then(function))


@dataclass(frozen=True)
class MetricSpec:
    """A metric and its direction.

    Attributes:
        build: maps the number of outputs to a torchmetrics metric.
        direction: "max" if higher is better, or "min".
        kinds: kinds of task that may use it.
    """

    build: Callable[[int], Metric]
    direction: Literal["max", "min"]
    kinds: tuple[Kind, ...]


CLASSES: tuple[Kind, ...] = ("classification", "token_classification")
SUMS_OF_SQUARES = ExplainedVariance, R2Score, RelativeSquaredError
"""Metrics that subtract a squared mean from a mean of squares, which is not exact for targets far from 0; and take
small differences for none."""
LARGEST = 1e12
"""Distance of targets from their mean whose square float32 holds, also of larger errors and summed over examples; and 1
over it, of the smallest distance."""
METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(lambda n: MulticlassAccuracy(n, average="micro"), "max", CLASSES),
    "f1": MetricSpec(lambda n: MulticlassF1Score(n, average="macro"), "max", CLASSES),
    "label_accuracy": MetricSpec(
        lambda n: MultilabelAccuracy(n, average="micro") if n > 1 else BinaryAccuracy(), "max", ("multilabel",)
    ),
    "rmse": MetricSpec(lambda n: MeanSquaredError(squared=False), "min", ("regression",)),
    "mse": MetricSpec(lambda n: MeanSquaredError(), "min", ("regression",)),
    "r2": MetricSpec(lambda n: R2Score(), "max", ("regression",)),
    "perplexity": MetricSpec(lambda n: Perplexity(), "min", ("lm",)),
}
DEFAULT_METRIC: dict[Kind, str] = {
    "classification": "accuracy",
    "multilabel": "label_accuracy",
    "regression": "rmse",
    "lm": "perplexity",
    "token_classification": "accuracy",
}


def metric_in(recipe: Recipe) -> tuple[str, Literal["max", "min"]]:
    """Return (name, direction) of a task's metric; recipes of earlier releases have the usual one for their kind.

    Raises:
        ValueError: its outputs are invalid.
    """
    match recipe.get("metric"):
        case {"name": str(name), "direction": "max" | "min" as direction}:
            return name, direction
    name = DEFAULT_METRIC[outputs_from_data(recipe.get("outputs")).kind]
    return name, METRICS[name].direction


@dataclass(frozen=True)
class Task:
    """A data set with its loss and metric, apart from any network.

    Attributes:
        name: chosen by the user.
        kind: determines the loss: cross-entropy (of each token that has a target, in kinds that answer tokens), binary
            cross-entropy, or squared error on the scaled target.
        splits: the data; "test" chooses nothing.
        outputs: size of the head: classes, labels, regression outputs, or tokens.
        metric: a name in METRICS.
        batch_size: examples per optimizer step, over all devices.
        target_mean: (outputs,), mean of a regression's training targets, in the data's unit.
        target_std: (outputs,), their standard deviation.
        loss_weight: loss factor where several tasks train together.
        repeat: passes through the training examples per epoch.
        vocabulary: number of token ids if inputs are tokens, else None.
        stem: the stem's recipe; `input_shape`, `output_shape` (the backbone's) and, for tokens, `vocabulary` and
            a `padding` other than 0 are added.
            None: linear if the shapes differ, else no stem.
        augmentation: random changes to the training images in each batch.
        names: of the classes, labels or values, in order; () if they have none.
        unit: of a regression's values.
        target_range: (lowest training target (outputs,), extent (outputs,)) if targets are scaled to [0, 1].
        steps: from raw inputs to the splits' inputs.
        tokens: counts, if inputs are tokens.
        own_metric: instead of the one in METRICS; `metric` is then its name.
        own_loss: of (outputs, targets), instead of the kind's; a regression's targets are scaled for it.
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
    names: tuple[str, ...] = ()
    unit: str = ""
    target_range: tuple[Tensor, Tensor] | None = None
    steps: Steps = ()
    tokens: TokenCounts | WindowCounts | None = None
    own_metric: MetricSpec | None = None
    own_loss: Loss | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example's shape."""
        return tuple(self.splits["train"].inputs.shape[1:])

    @property
    def padding(self) -> int:
        """The token id that fills short texts."""
        first = self.steps[0] if self.steps else None
        return first.padding if isinstance(first, Tokenize | Windowed) else PADDING

    @property
    def per_token(self) -> bool:
        """Return true if the head answers each token of a text."""
        return self.kind in TOKEN_KINDS

    @property
    def direction(self) -> Literal["max", "min"]:
        """Return "max" if a higher metric is better, or "min"."""
        return self._metric.direction

    @property
    def _metric(self) -> MetricSpec:
        return METRICS[self.metric] if self.own_metric is None else self.own_metric

    def build_metric(self) -> Metric:
        """Build a metric, to be updated by `update`."""
        metric = self._metric.build(self.outputs)
        return metric.set_dtype(torch.float64) if self._leaves_float32 else metric

    @cached_property
    def _leaves_float32(self) -> bool:
        """Return true if the squares of a regression's errors may be too large or too small for float32."""
        if self.kind != "regression":
            return False
        mean = self.target_mean
        largest = max(float((split.targets - mean.to(split.targets)).abs().max()) for split in self.splits.values())
        return largest > LARGEST or 0.0 < largest < 1 / LARGEST

    def as_read(self, split: SplitName, rows: Tensor) -> Tensor | None:
        """Return examples as the preprocessing's first step returns them, within rounding and the range of quantiles.

        Args:
            split: the examples'.
            rows: int64, (examples,).
        Returns:
            (examples, *shape of the first step); None if a later step's inputs are unknown, and it cannot be undone.
        """
        inputs, steps = self.splits[split].inputs, list(self.steps[1:])
        if isinstance(inputs, LazyInputs):
            functions = list(inputs.functions)
            while functions and steps and functions[-1] is steps[-1]:
                functions.pop()
                steps.pop()
            inputs = LazyInputs(inputs.base, inputs.rows, tuple(functions))
        read = inputs[rows]
        for step in reversed(steps):
            if not isinstance(step, Scale | Quantiles):
                return None
            read = step.undo(read)
        return read

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return a batch's mean loss, a scalar.

        Args:
            outputs: from the head, (batch, outputs), or (batch, tokens, outputs).
            targets: as in `Split`.
        """
        if self.own_loss is not None:
            return self._own_loss(*self.counted(outputs, targets))
        if self.per_token:  # the mean over the tokens that have a target
            return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets)
        if outputs.dtype == torch.float64:
            targets = targets.to(outputs)
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(outputs, targets)
        return F.mse_loss(outputs, self._scaled(outputs, targets))

    def with_fresh_loss(self) -> Task:
        """Copy the task with a copy of its own loss, whose buffers may change in use."""
        return replace(self, own_loss=copy.deepcopy(self.own_loss)) if isinstance(self.own_loss, nn.Module) else self

    def _own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.own_loss is not None
        if isinstance(self.own_loss, nn.Module):
            self.own_loss.to(outputs.device)
        if targets.is_floating_point() and outputs.dtype == torch.float64:
            targets = targets.to(outputs)
        return self.own_loss(outputs, self._scaled(outputs, targets) if self.kind == "regression" else targets)

    def _scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scale a regression's targets, in the outputs' precision."""
        scaled = (targets - self.target_mean.to(targets)) / self.target_std.to(targets)
        return scaled.float() if outputs.dtype != torch.float64 else scaled

    def predictions(self, outputs: Tensor) -> Tensor:
        """Convert the head's outputs (batch, outputs) for the metric: a regression's to the data's unit."""
        outputs = widened(outputs)
        if self.kind == "regression":
            mean, std = self.target_mean.to(outputs.device), self.target_std.to(outputs.device)
            return outputs * std + mean
        return outputs

    def counted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Select the tokens that have a target: (tokens, outputs) and (tokens,); of other kinds, all as they are."""
        if not self.per_token:
            return outputs, targets
        has_target = targets != IGNORED  # (batch, tokens)
        return outputs[has_target], targets[has_target]

    def count(self, targets: Tensor) -> int:
        """Count a batch's examples, or its tokens that have a target: the weight of its loss."""
        return int((targets != IGNORED).sum()) if self.per_token else len(targets)

    def update(self, metric: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Update a metric with a batch.

        Args:
            metric: from `build_metric`.
            outputs: from the head, (batch, outputs), or (batch, tokens, outputs).
            targets: as in `Split`.
        """
        outputs, targets = self.counted(self.predictions(outputs), targets)
        if self._leaves_float32:
            outputs, targets = outputs.double(), targets.double()
        if self.kind == "regression" and isinstance(metric, SUMS_OF_SQUARES):  # neither shift nor unit changes them
            mean, unit = self.target_mean.to(targets), 2.0 ** round(math.log2(float(self.target_std.max())))
            outputs, targets = (outputs - mean.to(outputs)) / unit, (targets - mean) / unit
        if self.kind == "lm":  # torchmetrics wants (texts, tokens, outputs)
            outputs, targets = outputs[None], targets[None]
        metric.update(outputs, targets)

    def constant_score(self, split: SplitName) -> float:
        """Evaluate one answer to every example of a split.

        A regression's is the mean training target; a language model's is how often the training split has each token.
        """
        targets, metric = self.splits[split].targets, self.build_metric()
        answer = torch.zeros(self.outputs)
        if self.kind == "lm":
            known = self.splits["train"].targets
            counts = known[known != IGNORED].bincount(minlength=self.outputs) + 1.0  # as if each were there once more
            answer = (counts / counts.sum()).log()
        for part in targets.split(max(1, LOGITS // self.outputs_per_example)):
            self.update(metric, answer.expand(*part.shape[: 1 + self.per_token], -1), part)
        return float(metric.compute())

    @property
    def outputs_per_example(self) -> int:
        """Number of numbers that the head returns for an example."""
        return self.outputs * (self.input_shape[0] if self.per_token else 1)

    def head_recipe(self, features: int) -> Recipe:
        """Return the head's recipe: linear, from the backbone's features."""
        return {"_target_": "torch.nn.Linear", "in_features": features, "out_features": self.outputs}

    def stem_recipe(self, input_shape: tuple[int, ...]) -> Recipe | None:
        """Return the stem's recipe, from the task's input to the backbone's; None if none is needed."""
        if self.stem is not None:
            shapes = {"input_shape": list(self.input_shape), "output_shape": list(input_shape)}
            tokens = {} if self.vocabulary is None else {"vocabulary": self.vocabulary}
            if self.padding != PADDING:
                tokens["padding"] = self.padding
            return {**self.stem, **shapes, **tokens}
        if self.input_shape == input_shape:
            return None
        size = math.prod(self.input_shape)
        return {"_target_": "msh.tasks.stems.linear", "inputs": size, "output_shape": list(input_shape)}

    def data_recipe(self) -> Recipe:
        """Return what a file needs to answer raw inputs: "preprocessing" and "outputs"."""
        scales = {"mean": self.target_mean, "std": self.target_std} if self.kind == "regression" else {}
        if self.target_range is not None:
            scales |= dict(zip(("low", "extent"), self.target_range, strict=True))
        outputs = Outputs(self.kind, self.outputs, self.names, unit=self.unit, **scales)
        return {"preprocessing": steps_to_data(self.steps), "outputs": outputs.to_data()}

    def build_head(self, features: int) -> nn.Module:
        """Build `head_recipe`."""
        return build(self.head_recipe(features))

    def build_stem(self, input_shape: tuple[int, ...]) -> nn.Module | None:
        """Build `stem_recipe`."""
        recipe = self.stem_recipe(input_shape)
        return None if recipe is None else build(recipe)
