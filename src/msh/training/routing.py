"""Fit the router of tasks whose inputs have the same form, and evaluate it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from msh.inference.router import (
    Choice,
    Means,
    Route,
    Rule,
    choose,
    confidence,
    fit_means,
    form_of,
    right_tasks,
    rules_for,
)
from msh.runs.results import RouterForm, RouterResult
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.views import TaskNetwork
from msh.tasks import Task
from msh.tasks.lazy import CHUNK
from msh.tasks.preprocessing import prepare, steps_to_data
from msh.tasks.steps import Tokenize
from msh.tasks.task import SplitName
from msh.training.build import computing
from msh.training.config import RunConfig
from msh.training.trainers import device_of

log = logging.getLogger(__name__)

VALIDATION_ROWS = 1000
"""Most validation examples of a task by which the rule is chosen."""
TRAINING_ROWS, ROWS_PER_CLASS = 2000, 20
"""Most training examples of a task for the means of its features: so many, or so many per class if that is more."""

Answers = Iterator[tuple[Tensor, Tensor]]
"""Batches of (features, the head's outputs)."""


def fit_router(network: MultiSubnetwork, tasks: Mapping[str, Task], config: RunConfig) -> RouterResult | None:
    """Choose how inputs without a task find it, store that with the tasks, and evaluate it on the test splits.

    The rule is chosen on validation data, separately for each form of input that several tasks share. Tasks have no
    router if they have the same examples, or if one's examples cannot be prepared for another.

    Args:
        network: holds the tasks, frozen; their recipes get "router".
        tasks: by name.
        config: the run's.
    Returns:
        Scores on the test splits; None if no tasks share a form of input.
    """
    for task in network.tasks:
        network.subnetwork(task).recipe.pop("router", None)
    groups = [group for group in _groups(network, tasks) if _can_be_told_apart(group)]
    if not groups:
        return None
    before = next(iter(network.weights()))[1].device
    network.to(device_of(config.trainer))
    try:
        found = [Fitting(network, group, config).fit() for group in groups]
    finally:
        network.to(before).forget_modules()
    accuracy = {task: score for form in found for task, score in form.accuracy.items()}
    both = [score for form in found for score in form.with_class.values()]
    return RouterResult(
        accuracy=sum(accuracy.values()) / len(accuracy),
        class_incremental=sum(both) / len(both) if both else None,
        tasks=accuracy,
        forms=[form.described for form in found],
    )


def _groups(network: MultiSubnetwork, tasks: Mapping[str, Task]) -> list[list[Task]]:
    """Group the network's tasks by the form of their inputs; a group has two or more."""
    groups: dict[tuple[Any, ...], list[Task]] = {}
    for name in network.tasks:
        if name in tasks and not tasks[name].per_token:  # each token has an answer, and a confidence of its own
            groups.setdefault(form_of(tasks[name].steps), []).append(tasks[name])
    return [group for group in groups.values() if len(group) > 1]


def _can_be_told_apart(group: Sequence[Task]) -> bool:
    """Tell whether every task's examples can be prepared for the others, and differ from theirs."""
    names = ", ".join(task.name for task in group)
    for task in group:
        for other in group:
            few = torch.arange(min(CHUNK, len(task.splits["test"])))
            inputs = inputs_for(task, other, "test", few)
            if inputs is None:
                log.info("tasks %s: no router, as they read their inputs in different ways", names)
                return False
            if other is not task and len(task.splits["test"]) == len(other.splits["test"]):
                own = other.splits["test"].inputs[few]
                if torch.allclose(inputs.double(), own.double(), rtol=1e-4, atol=1e-5):
                    log.info("tasks %s: no router, as %s and %s have the same inputs", names, task.name, other.name)
                    return False
    return True


def inputs_for(source: Task, reader: Task, split: SplitName, rows: Tensor) -> Tensor | None:
    """Prepare a task's examples as another task prepares raw inputs, within rounding.

    Images are at the size that the source's preprocessing gave them.

    Args:
        source: the task whose examples these are.
        reader: the task to prepare them for.
        split: of the source.
        rows: int64, (examples,).
    Returns:
        (examples, *the reader's input shape); None if the raw inputs are not known.
    """
    if source is reader:
        return source.splits[split].inputs[rows]
    raw = source.splits[split].raw
    if raw is not None and isinstance(source.steps[0], Tokenize):
        return prepare(reader.steps, raw[rows])
    read = source.as_read(split, rows)
    first, other = cast(Any, reader.steps[0]), source.steps[0]
    if read is None:
        return None
    if first.step == "arrays" or steps_to_data([first]) == steps_to_data([other]):
        return prepare(reader.steps[1:], read.to(getattr(torch, first.dtype)))
    if first.step == "images":
        return prepare((replace(first, range=None), *reader.steps[1:]), read.float().clamp(0, 1))
    return None


def spread(number: int, most: int) -> Tensor:
    """Choose `most` of `number` rows, evenly spaced: int64 (rows,); all if there are fewer."""
    return torch.arange(number) if number <= most else torch.linspace(0, number - 1, most).long()


@dataclass(frozen=True)
class FormResult:
    """The router of one form of input.

    Attributes:
        accuracy: task to the share of its test examples that found it.
        with_class: classification to the share whose class was right too.
        described: for results.json.
    """

    accuracy: dict[str, float]
    with_class: dict[str, float]
    described: RouterForm


class Fitting:
    """Fit and evaluate the router of the tasks that share a form of input.

    Args:
        network: holds the tasks.
        group: the tasks.
        config: the run's.
    """

    def __init__(self, network: MultiSubnetwork, group: Sequence[Task], config: RunConfig) -> None:
        self.network, self.group, self.config = network, group, config

    def fit(self) -> FormResult:
        """Choose the rule on validation data, store it, and evaluate it on the test splits."""
        means = {task.name: self._means(task) for task in self.group}
        choice = choose(self._validated(means))
        names = tuple(task.name for task in self.group)
        routes = {
            name: Route(choice.rule, names, center, scale, means[name] if choice.rule == "means" else None)
            for name, center, scale in zip(names, choice.centers, choice.scales, strict=True)
        }
        for name, route in routes.items():
            self.network.subnetwork(name).recipe["router"] = route.to_data()
        return self._evaluated(routes, choice)

    def _answers(self, source: Task, reader: Task, split: SplitName, rows: Tensor) -> Answers:
        """Compute a task's answers to another's examples."""
        module = cast(TaskNetwork, self.network.module(reader.name))
        device, settings = next(iter(self.network.weights()))[1].device, computing(self.config, reader)
        with settings.applied(device):
            for part in rows.split(settings.batch_size):
                inputs = inputs_for(source, reader, split, part)
                assert inputs is not None
                features = module.features(inputs.to(device))
                yield features.flatten(1).cpu(), module.answers(features).cpu()

    def _means(self, task: Task) -> Means:
        split = task.splits["train"]
        most = TRAINING_ROWS
        classes = torch.zeros(len(split), dtype=torch.int64)
        if task.kind == "classification":
            most, classes = max(most, ROWS_PER_CLASS * task.outputs), split.targets
        rows = spread(len(split), most)
        features = torch.cat([features for features, _ in self._answers(task, task, "train", rows)])
        return fit_means(features, classes[rows])

    def _validated(self, means: Mapping[str, Means]) -> dict[Rule, dict[str, Tensor]]:
        """Compute by every rule the confidences (candidates, examples) in each task's validation examples."""
        rules = rules_for(task.kind for task in self.group)
        found: dict[Rule, dict[str, list[Tensor]]] = {rule: {t.name: [] for t in self.group} for rule in rules}
        for reader in self.group:
            for source in self.group:
                rows = spread(len(source.splits["val"]), VALIDATION_ROWS)
                answers = list(self._answers(source, reader, "val", rows))
                for rule in rules:
                    parts = [
                        means[reader.name].confidence(features.double())
                        if rule == "means"
                        else confidence(rule, reader.kind, outputs)
                        for features, outputs in answers
                    ]
                    found[rule][source.name].append(torch.cat(parts))
        return {rule: {t: torch.stack(rows) for t, rows in by_task.items()} for rule, by_task in found.items()}

    def _evaluated(self, routes: Mapping[str, Route], choice: Choice) -> FormResult:
        """Evaluate the router on the test splits."""
        scores: dict[str, Tensor] = {}
        classes: dict[str, Tensor] = {}
        for source in self.group:
            rows, confidences = torch.arange(len(source.splits["test"])), []
            for reader in self.group:
                answers = self._answers(source, reader, "test", rows)
                found = [(routes[reader.name].confidence(reader.kind, out, f), out.argmax(1)) for f, out in answers]
                confidences.append(torch.cat([confident for confident, _ in found]))
                if reader is source and source.kind == "classification":
                    classes[source.name] = torch.cat([label for _, label in found]) == source.splits["test"].targets
            scores[source.name] = torch.stack(confidences)
        number = len(self.group)
        right = right_tasks(scores, [0.0] * number, [1.0] * number)
        form = RouterForm(candidates=list(routes), rule=choice.name, validation=choice.accuracy)
        both = {task: right[task] & known for task, known in classes.items()}
        return FormResult(_shares(right), _shares(both), form)


def _shares(marks: Mapping[str, Tensor]) -> dict[str, float]:
    return {task: float(mark.double().mean()) for task, mark in marks.items()}
