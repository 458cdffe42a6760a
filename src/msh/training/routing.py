"""Fit the router of tasks whose inputs have the same form, and evaluate it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from msh.inference.computing import Computing, computing_from_data
from msh.inference.router import (
    Means,
    Route,
    Rule,
    choose,
    confidence,
    fit_means,
    form_of,
    route_from_data,
    rules_for,
    standard,
)
from msh.runs.results import RouterForm, RouterResult
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.views import TaskNetwork
from msh.tasks import Task
from msh.tasks.lazy import CHUNK
from msh.tasks.options import TOKEN_KINDS, Kind
from msh.tasks.outputs import outputs_from_data
from msh.tasks.preprocessing import prepare, steps_from_data, steps_to_data
from msh.tasks.steps import Steps, Tokenize
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
FIRST_RULE: Rule = "means"
"""The rule of a task that alone has its form of input, standardized, until others are added: it suits all kinds."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A task of the network that may read inputs of a form.

    Attributes:
        name: the task's.
        kind: of its outputs.
        steps: of its preprocessing.
        computing: how it is evaluated.
        task: with its data, if the run has them.
    """

    name: str
    kind: Kind
    steps: Steps
    computing: Computing
    task: Task | None = None


def fit_router(network: MultiSubnetwork, tasks: Mapping[str, Task], config: RunConfig) -> RouterResult | None:
    """Choose how inputs without a task find it, store that with the tasks, and evaluate it on the test splits.

    Where several tasks share a form of input, the rule is chosen on their validation data. Where the run lacks the data
    of some, the others take over their rule: what a rule needs of a task comes from its own data, and is stored with
    it. So that this is possible, a task that alone has its form gets a rule too, unless it is from a plan: such tasks'
    files must merge to that of one run. Tasks have no router if they have the same examples, or if one's examples
    cannot be prepared for another.

    Args:
        network: holds the tasks, frozen; their recipes get "router".
        tasks: those with data, by name.
        config: the run's.
    Returns:
        Scores on the test splits; None if no tasks share a form of input.
    """
    before = next(iter(network.weights()))[1].device
    network.to(device_of(config.trainer))
    try:
        groups = _groups(network, tasks, config)
        groups = [group for group in groups if len(group) > 1 or config.plan is None]
        found = [form for group in groups if (form := _fitted(network, group)) is not None]
    finally:
        network.to(before).forget_modules()
    accuracy = {task: score for form in found for task, score in form.accuracy.items()}
    both = [score for form in found for score in form.with_class.values()]
    if not accuracy:
        return None
    return RouterResult(
        accuracy=sum(accuracy.values()) / len(accuracy),
        class_incremental=sum(both) / len(both) if both else None,
        tasks=accuracy,
        forms=[form.described for form in found],
    )


def _groups(network: MultiSubnetwork, tasks: Mapping[str, Task], config: RunConfig) -> list[list[Candidate]]:
    """Group the network's tasks by the form of their inputs, where the run has the data of at least one."""
    groups: dict[tuple[Any, ...], list[Candidate]] = {}
    for name in network.tasks:
        recipe = network.subnetwork(name).recipe
        if (task := tasks.get(name)) is not None:
            candidate = Candidate(name, task.kind, task.steps, computing(config, task), task)
        elif {"preprocessing", "outputs"} <= recipe.keys():
            steps, outputs = steps_from_data(recipe["preprocessing"]), outputs_from_data(recipe["outputs"])
            candidate = Candidate(name, outputs.kind, steps, computing_from_data(recipe.get("evaluation", {})))
        else:  # an earlier release's
            continue
        if candidate.kind in TOKEN_KINDS:  # each token has an answer, and a confidence of its own
            continue
        groups.setdefault(form_of(candidate.steps), []).append(candidate)
    return [group for group in groups.values() if any(candidate.task for candidate in group)]


def _fitted(network: MultiSubnetwork, group: Sequence[Candidate]) -> FormResult | None:
    """Fit the router of the tasks that share a form of input; None where nothing can be evaluated."""
    new = [candidate for candidate in group if candidate.task]
    old = {c.name: network.subnetwork(c.name).recipe.get("router") for c in group if not c.task}
    for candidate in new:
        network.subnetwork(candidate.name).recipe.pop("router", None)
    if not _can_be_told_apart([candidate.task for candidate in new if candidate.task]):
        return None
    if not old:
        fitting = Fitting(network, group)
        return fitting.choose_rule() if len(new) > 1 else fitting.take_over(FIRST_RULE, standardized=True)
    stored = {name: route_from_data(data) for name, data in old.items() if data is not None}
    names = ", ".join(candidate.name for candidate in group)
    if reason := _why_not(group, stored):
        log.warning("inputs without a task are not routed between %s: %s", names, reason)
        return Fitting(network, new).choose_rule() if len(new) > 1 else None
    first = next(iter(stored.values()))
    added = ", ".join(candidate.name for candidate in new)
    without = f"without the data of {', '.join(old)}, it cannot be validated with {added}"
    log.warning("the router of %s keeps its rule, %s: %s", names, first.name, without)
    return Fitting(network, group).take_over(first.rule, first.is_standardized, stored)


def _why_not(group: Sequence[Candidate], stored: Mapping[str, Route]) -> str:
    """Say why the tasks with data cannot take over the stored rule of those without; "" if they can."""
    if missing := [c.name for c in group if not c.task and c.name not in stored]:
        return f"{missing[0]} has no rule, and this run does not have its data"
    rules = sorted({route.name for route in stored.values()})
    if len(rules) > 1:
        return f"those without data have several rules ({'; '.join(rules)})"
    if next(iter(stored.values())).rule not in rules_for(candidate.kind for candidate in group):
        return f"their rule, {rules[0]}, does not compare regressions"
    return ""


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


def inputs_for(source: Task, reader: Task | Candidate, split: SplitName, rows: Tensor) -> Tensor | None:
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
    """

    def __init__(self, network: MultiSubnetwork, group: Sequence[Candidate]) -> None:
        self.network, self.group = network, group
        self.sources = [(candidate, candidate.task) for candidate in group if candidate.task is not None]

    def choose_rule(self) -> FormResult | None:
        """Choose the rule on validation data, store it, and evaluate it on the test splits."""
        means = {reader.name: self._means(reader, task) for reader, task in self.sources}
        choice = choose(self._validated(means))
        names = tuple(means)
        routes = {
            name: Route(choice.rule, names, center, scale, means[name] if choice.rule == "means" else None)
            for name, center, scale in zip(names, choice.centers, choice.scales, strict=True)
        }
        return self._stored(routes, choice.accuracy)

    def take_over(self, rule: Rule, standardized: bool, stored: Mapping[str, Route] | None = None) -> FormResult | None:
        """Give the tasks with data a rule, with statistics of their own data, and evaluate it on their test splits.

        Args:
            rule: its name.
            standardized: each task's confidences in its own validation data get mean 0 and variance 1.
            stored: the routes of tasks without data, which have this rule.
        """
        routes = dict(stored or {})
        for reader, task in self.sources:
            means, center, scale = self._means(reader, task) if rule == "means" else None, 0.0, 1.0
            if standardized:
                answers = self._answers(task, reader, "val", spread(len(task.splits["val"]), VALIDATION_ROWS))
                found = [confidence(rule, reader.kind, outputs, features, means) for features, outputs in answers]
                center, scale = standard(torch.cat(found))
            routes[reader.name] = Route(rule, (), center, scale, means)
        names = tuple(candidate.name for candidate in self.group)
        return self._stored({n: replace(routes[n], tasks=names, validated=not stored) for n in names}, {})

    def _stored(self, routes: Mapping[str, Route], validation: dict[str, float]) -> FormResult | None:
        """Store the routes with their tasks, and evaluate them if there are several."""
        for name, route in routes.items():
            self.network.subnetwork(name).recipe["router"] = route.to_data()
        return self._evaluated(routes, validation) if len(routes) > 1 else None

    def _answers(self, source: Task, reader: Candidate, split: SplitName, rows: Tensor) -> Answers:
        """Compute a task's answers to another's examples."""
        module = cast(TaskNetwork, self.network.module(reader.name))
        device = next(iter(self.network.weights()))[1].device
        with reader.computing.applied(device):
            for part in rows.split(reader.computing.batch_size):
                inputs = inputs_for(source, reader.task or reader, split, part)
                assert inputs is not None
                features = module.features(inputs.to(device))
                yield features.flatten(1).cpu(), module.answers(features).cpu()

    def _means(self, reader: Candidate, task: Task) -> Means:
        split = task.splits["train"]
        most = TRAINING_ROWS
        classes = torch.zeros(len(split), dtype=torch.int64)
        if task.kind == "classification":
            most, classes = max(most, ROWS_PER_CLASS * task.outputs), split.targets
        rows = spread(len(split), most)
        features = torch.cat([features for features, _ in self._answers(task, reader, "train", rows)])
        return fit_means(features, classes[rows])

    def _validated(self, means: Mapping[str, Means]) -> dict[Rule, dict[str, Tensor]]:
        """Compute by every rule the confidences (candidates, examples) in each task's validation examples."""
        rules = rules_for(reader.kind for reader, _ in self.sources)
        found: dict[Rule, dict[str, list[Tensor]]] = {rule: {name: [] for name in means} for rule in rules}
        for reader, _ in self.sources:
            for _, source in self.sources:
                rows = spread(len(source.splits["val"]), VALIDATION_ROWS)
                answers = list(self._answers(source, reader, "val", rows))
                for rule in rules:
                    parts = [
                        confidence(rule, reader.kind, outputs, features, means[reader.name])
                        for features, outputs in answers
                    ]
                    found[rule][source.name].append(torch.cat(parts))
        return {rule: {t: torch.stack(rows) for t, rows in by_task.items()} for rule, by_task in found.items()}

    def _evaluated(self, routes: Mapping[str, Route], validation: dict[str, float]) -> FormResult:
        """Evaluate the router on the test splits of the tasks with data."""
        right: dict[str, Tensor] = {}
        classes: dict[str, Tensor] = {}
        for place, source in enumerate(candidate.task for candidate in self.group):
            if source is None:
                continue
            rows, confidences = torch.arange(len(source.splits["test"])), []
            if any(inputs_for(source, reader.task or reader, "test", rows[:1]) is None for reader in self.group):
                continue  # another task reads them in a way that cannot be recomputed from what this task read
            for reader in self.group:
                answers = self._answers(source, reader, "test", rows)
                found = [(routes[reader.name].confidence(reader.kind, out, f), out.argmax(1)) for f, out in answers]
                confidences.append(torch.cat([confident for confident, _ in found]))
                if reader.task is source and source.kind == "classification":
                    classes[source.name] = torch.cat([label for _, label in found]) == source.splits["test"].targets
            right[source.name] = torch.stack(confidences).argmax(0) == place
        first = next(iter(routes.values()))
        form = RouterForm(candidates=list(routes), rule=first.name, validation=validation)
        if not first.validated:
            form["validated"] = False
        both = {task: right[task] & known for task, known in classes.items()}
        return FormResult(_shares(right), _shares(both), form)


def _shares(marks: Mapping[str, Tensor]) -> dict[str, float]:
    return {task: float(mark.double().mean()) for task, mark in marks.items()}
