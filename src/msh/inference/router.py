"""Route inputs that come without a task: the task whose subnetwork is most confident answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from msh.subnetworks.tensors import widened
from msh.tasks.options import Kind
from msh.tasks.steps import CONFIG, Array, Step, Steps

Rule = Literal["softmax", "energy", "entropy", "means"]
RULES: tuple[Rule, ...] = get_args(Rule)
SMOOTHING = 0.1
"""Part of the features' mean variance that is added to each, so that a feature which is constant in training counts
no more than others."""


@dataclass(frozen=True, config=CONFIG)
class Means:
    """Features of a task's training inputs, as a diagonal normal distribution per class.

    Attributes:
        centers: float32 (classes, features), the mean of each class; a single row where a task has no classes.
        variances: float32 (features,), within the classes, all > 0.
    Source: Lee et al. 2018, arXiv 1807.03888, with a diagonal covariance.
    """

    centers: Array
    variances: Array

    def __post_init__(self) -> None:
        if self.centers.dim() != 2 or not len(self.centers) or self.variances.shape != self.centers.shape[1:]:
            raise ValueError(f"centers of shape {tuple(self.centers.shape)}, variances {tuple(self.variances.shape)}")
        if not (self.centers.isfinite().all() and self.variances.isfinite().all() and (self.variances > 0).all()):
            raise ValueError("centers must be finite, variances finite and > 0")

    def confidence(self, features: Tensor) -> Tensor:
        """Return the negative mean squared distance to the nearest center, in standard deviations: (batch,)."""
        scale = self.variances.to(features).rsqrt()
        distances = torch.cdist(features * scale, self.centers.to(features) * scale)  # (batch, classes)
        return -distances.amin(1).square() / features.shape[1]


def fit_means(features: Tensor, classes: Tensor) -> Means:
    """Fit `Means`.

    Args:
        features: (examples, features), of training inputs.
        classes: int64 (examples,); all 0 where a task has no classes.
    """
    features = features.double()
    numbers, classes = classes.unique(return_inverse=True)
    counts = classes.bincount(minlength=len(numbers)).to(features)
    sums = features.new_zeros(len(numbers), features.shape[1]).index_add(0, classes, features)
    centers = sums / counts[:, None]
    variances = (features - centers[classes]).square().mean(0)
    variances = variances + SMOOTHING * variances.mean()
    variances = torch.where(variances > 0, variances, torch.ones_like(variances))
    return Means(centers.float(), variances.float().clamp_min(torch.finfo(torch.float32).tiny))


@dataclass(frozen=True, config=CONFIG)
class Route:
    """Score how confident a task is of an input, comparably between tasks whose inputs have the same form.

    Attributes:
        rule: "softmax": the largest probability; "energy": the logarithm of the sum of exponentials of the logits;
            "entropy": the negative entropy, a share of its maximum; "means": the negative distance of the features to
            the nearest class mean.
        tasks: between which the rule chooses.
        validated: the rule was chosen on examples of all these tasks. Else some were added when the others' data was
            missing: they took over the rule, with their own center, scale and means.
        center: subtracted from what the rule gives.
        scale: divides the difference, > 0.
        means: for the rule "means".
    Source: Hendrycks and Gimpel 2017 (softmax); Liu et al. 2020 (energy), and Wang et al. 2021 for several labels.
    """

    rule: Rule
    tasks: tuple[str, ...]
    center: float = 0.0
    scale: float = 1.0
    means: Means | None = None
    validated: bool = True

    @property
    def is_standardized(self) -> bool:
        """True if confidences have mean 0 and variance 1 on the task's own examples."""
        return (self.center, self.scale) != (0.0, 1.0)

    @property
    def name(self) -> str:
        """The rule's name in results.json."""
        return rule_name(self.rule, self.is_standardized)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center) and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"center {self.center} and scale {self.scale} must be finite, and scale > 0")
        if (self.rule == "means") != (self.means is not None):
            raise ValueError(f"the rule {self.rule!r} {'needs' if self.rule == 'means' else 'has no'} means")

    def confidence(self, kind: Kind, outputs: Tensor, features: Tensor | None) -> Tensor:
        """Compute the confidence, float64 (batch,), from the head's outputs, or from its inputs for "means"."""
        return (confidence(self.rule, kind, outputs, features, self.means) - self.center) / self.scale

    def to_data(self) -> dict[str, Any]:
        """Convert to JSON values."""
        data: dict[str, Any] = _ROUTE.dump_python(self, mode="json")
        usual = {"means": None, "validated": True}
        return {key: value for key, value in data.items() if key not in usual or value != usual[key]}


_ROUTE = TypeAdapter(Route)


def route_from_data(data: Any) -> Route:
    """Read `Route.to_data`, from a file of unknown origin.

    Raises:
        ValueError: values of wrong types or sizes.
    """
    try:
        return _ROUTE.validate_python(data)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the router's settings are invalid: {error}") from error


def rule_name(rule: Rule, standardized: bool) -> str:
    """Name a rule, whose confidences may be standardized: mean 0 and variance 1 on each task's own examples."""
    return f"{rule}, standardized" if standardized else rule


def standard(confidences: Tensor) -> tuple[float, float]:
    """Return the center and the scale that standardize confidences, float64 (examples,), of a task in its examples."""
    scale = float(confidences.std(correction=0))
    return float(confidences.mean()), scale if scale > 0 else 1.0


def rules_for(kinds: Iterable[Kind]) -> tuple[Rule, ...]:
    """List the rules that compare tasks of these kinds: a regression has values, which tell no confidence."""
    return ("means",) if "regression" in kinds else RULES


def confidence(
    rule: Rule, kind: Kind, outputs: Tensor, features: Tensor | None = None, means: Means | None = None
) -> Tensor:
    """Compute how confident outputs are, higher is surer, float64 (batch,).

    With several labels, softmax and entropy are means over the labels, energy is their sum.

    Args:
        rule: for a regression, "means".
        kind: of the task.
        outputs: logits (batch, classes or labels), or a regression's values.
        features: the head's inputs (batch, features); only "means" reads them.
        means: for "means".
    """
    if rule == "means":
        assert features is not None
        assert means is not None
        return means.confidence(features.double())
    logits = widened(outputs).double()
    if kind == "multilabel":
        certain, doubtful = F.logsigmoid(logits), F.logsigmoid(-logits)
        if rule == "softmax":
            return torch.maximum(certain, doubtful).exp().mean(1)
        if rule == "energy":
            return F.softplus(logits).sum(1)
        return (certain.exp() * certain + doubtful.exp() * doubtful).mean(1) / math.log(2)
    logs = logits.log_softmax(1)
    if rule == "softmax":
        return logs.amax(1).exp()
    if rule == "energy":
        return logits.logsumexp(1)
    return (logs.exp() * logs).sum(1) / math.log(max(2, logits.shape[1]))


Scores = Mapping[str, Tensor]
"""Task to the confidence of each candidate in each of its examples: float64 (candidates, examples)."""


@plain_dataclass(frozen=True)
class Choice:
    """A rule, chosen on validation data.

    Attributes:
        rule: its name.
        centers: per candidate; see `Route`.
        scales: per candidate.
        accuracy: of every rule, by its name, and with ", standardized" for confidences with mean 0 and variance 1 on
            each task's own examples.
    """

    rule: Rule
    centers: list[float]
    scales: list[float]
    accuracy: dict[str, float]

    @property
    def name(self) -> str:
        """Name of the best rule in `accuracy`: the first one of the best."""
        return max(self.accuracy, key=self.accuracy.__getitem__)


def choose(scores: Mapping[Rule, Scores]) -> Choice:
    """Choose the rule that most often finds the right task, each task counting equally.

    Args:
        scores: rule to confidences, in validation data; all have the same tasks, which are the candidates, in order.
    """
    found: dict[str, tuple[Rule, list[float], list[float]]] = {}
    accuracy: dict[str, float] = {}
    for rule, by_task in scores.items():
        own = [by_task[task][place] for place, task in enumerate(by_task)]
        plain, standardized = [(0.0, 1.0)] * len(own), [*map(standard, own)]
        for name, pairs in ((rule, plain), (rule_name(rule, standardized=True), standardized)):
            centers, scales = [center for center, _ in pairs], [scale for _, scale in pairs]
            found[name] = rule, centers, scales
            right = right_tasks(by_task, centers, scales)
            accuracy[name] = sum(float(part.double().mean()) for part in right.values()) / len(right)
    best = max(accuracy, key=accuracy.__getitem__)
    return Choice(*found[best], accuracy)


def right_tasks(scores: Scores, centers: Sequence[float], scales: Sequence[float]) -> dict[str, Tensor]:
    """Mark the examples whose most confident candidate is their task: task to bool (examples,)."""
    center, scale = (torch.tensor(part, dtype=torch.float64)[:, None] for part in (centers, scales))
    return {
        task: ((raw.double() - center) / scale).argmax(0) == place for place, (task, raw) in enumerate(scores.items())
    }


# ---- forms of input

Form = tuple[Any, ...]
TEXTS = ("tokenize", "next_tokens", "tagged_words")
"""First steps that read texts."""


def form_of(steps: Steps) -> Form:
    """Return the form of a task's raw inputs: tasks with the same one read the same inputs.

    It is all images, all texts, arrays of a shape, or tables by the columns that they need.
    """
    first: Any = steps[0]
    if first.step == "arrays":
        return ("arrays", *first.shape)
    if first.step == "named":
        return ("named", *((name, *part.shape) for name, part in sorted(first.parts.items())))
    return ("table", *sorted(first.inputs)) if first.step == "table" else (first.step,)


def may_read(step: Step, inputs: Any) -> bool:
    """Tell from the type of raw inputs whether a first step may read them; it may still refuse their content.

    Args:
        step: of a task.
        inputs: one or several.
    """
    kind = step.step
    if hasattr(inputs, "iloc"):  # of pandas; a Series whose index has names is a row, else a column
        is_column = inputs.ndim == 1 and inputs.index.inferred_type != "string"
        return kind == "table" or (is_column and any(may_read(step, one) for one in inputs))
    if hasattr(inputs, "ndim"):
        is_text = getattr(getattr(inputs, "dtype", None), "kind", None) in ("O", "U", "S")
        return kind in (("images", *TEXTS) if is_text else ("arrays", "images", "table"))
    if isinstance(inputs, Mapping):
        return kind in ("table", "named")
    if isinstance(inputs, str):
        return kind in (*TEXTS, "images")
    if isinstance(inputs, bytes | Path) or hasattr(inputs, "getexif"):
        return kind == "images"
    if isinstance(inputs, int | float):
        return kind == "arrays"
    return isinstance(inputs, Iterable) and any(may_read(step, one) for one in inputs)
