"""Answer raw inputs with the tasks of a trained network: load its file, prepare, predict."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msh.errors import at_least, invalid, one_of
from msh.files.merging import merged
from msh.files.state_file import read_state
from msh.inference.computing import Computing, computing_from_data
from msh.inference.hub import source_file
from msh.inference.predictions import Predictions
from msh.inference.rebuilding import network_of
from msh.recipes import Constructors
from msh.subnetworks import MultiSubnetwork
from msh.tasks.outputs import Kind, Outputs, outputs_from_data
from msh.tasks.preprocessing import prepare, steps_from_data
from msh.tasks.steps import Steps

SHOWN_BATCHES = 50
"""Batches from which a progress bar is shown."""
LISTED = 5
"""Bad inputs that an error names."""


@dataclass(frozen=True)
class TaskInfo:
    """Facts about a task that can be asked.

    Attributes:
        name: the task's name.
        kind: "classification", "multilabel" or "regression".
        names: of the classes, labels or values, in order; () if they have none.
        unit: a regression's.
        steps: from raw inputs to the network's; the first one reads raw inputs.
        outputs: how answers are computed from the head's numbers.
        computing: how the run evaluated the task.
    """

    name: str
    kind: Kind
    names: tuple[str, ...]
    unit: str
    steps: Steps
    outputs: Outputs
    computing: Computing


class Predictor:
    """Tasks of a trained network, frozen, which answer raw inputs. Several threads may use one predictor.

    Args:
        network: holds the tasks, frozen.
        tasks: by name.
    """

    def __init__(self, network: MultiSubnetwork, tasks: Mapping[str, TaskInfo]) -> None:
        self.network = network
        self.tasks = dict(tasks)

    def module(self, task: str | None = None) -> nn.Module:
        """Return a task's module: prepared tensors (batch, *input shape) to the head's outputs (batch, outputs).

        Raises:
            ValueError: there is no such task.
        """
        return self.network.module(self.task(task).name)

    def prepare(self, task: str, inputs: Any) -> Tensor:
        """Prepare raw inputs as in training: (examples, *input shape).

        Raises:
            ValueError: there is no such task, or inputs cannot be read: names the first of them, and why.
        """
        info = self.task(task)
        with info.computing.applied(self._device):
            prepared, bad = _prepared(info.steps, as_examples(info.steps, inputs))
        if bad:
            raise _refused(info.name, bad, None)
        if prepared is None:
            raise invalid("inputs", "at least one input", 0)
        return prepared.clone()

    def answer(self, task: str, prepared: Sequence[Tensor]) -> list[Predictions]:
        """Answer the inputs of several requests together, in batches of the run's size.

        Args:
            task: the task's name.
            prepared: of each request, from `prepare`: (examples, *input shape).
        Raises:
            ValueError: there is no such task.
        """
        info = self.task(task)
        module, sizes = self.network.module(info.name), [len(inputs) for inputs in prepared]
        with info.computing.applied(self._device):
            batches = torch.cat(list(prepared)).split(info.computing.batch_size)
            raw = torch.cat([module(batch.to(self._device)).cpu() for batch in batches])
            numbers = info.outputs.values(raw)
        parts = zip(raw.clone().split(sizes), numbers.clone().split(sizes), strict=True)
        return [Predictions(info.name, info.outputs, own, values, tuple(range(len(own)))) for own, values in parts]

    @property
    def _device(self) -> torch.device:
        return next(iter(self.network.weights()))[1].device

    def predict(
        self,
        task: Any,
        inputs: Any = None,
        *,
        batch_size: int | None = None,
        skip_bad: bool = False,
        names: Sequence[str] | None = None,
    ) -> Predictions:
        """Answer raw inputs, in batches.

        Args:
            task: the task's name; a network with a single task takes the inputs in its place.
            inputs: one or several, as the task's first step reads them: paths or images, rows of a table as a
                DataFrame or dictionaries, texts, arrays.
            batch_size: inputs per batch; None: as in the run's evaluation, so that outputs are bitwise the run's.
            names: of the inputs, for messages; None: their positions.
            skip_bad: leave out inputs that cannot be read, and keep the reasons in `Predictions.errors`.
        Raises:
            ValueError: there is no such task, or inputs cannot be read: names the first of them, and why.
        """
        if inputs is None:
            task, inputs = None, task
        info = self.task(task)
        size = info.computing.batch_size if batch_size is None else batch_size
        at_least("batch_size", 1, size)
        examples = as_examples(info.steps, inputs)
        module, device = self.network.module(info.name), self._device
        raw: list[Tensor] = []
        errors: dict[int, str] = {}
        with info.computing.applied(device):
            for start in _shown(range(0, len(examples), size)):
                batch, bad = _prepared(info.steps, _part(examples, slice(start, start + size)))
                errors |= {start + row: reason for row, reason in bad.items()}
                if errors and not skip_bad:
                    raise _refused(info.name, errors, names)
                if batch is not None:
                    raw.append(module(batch.to(device)).cpu())
            outputs = torch.cat(raw) if raw else torch.empty(0, info.outputs.number)
            numbers = info.outputs.values(outputs)
        indices = tuple(row for row in range(len(examples)) if row not in errors)
        return Predictions(info.name, info.outputs, outputs.clone(), numbers.clone(), indices, errors)

    def task(self, name: str | None = None) -> TaskInfo:
        """Return the facts about a task; None: the only one.

        Raises:
            ValueError: there is no such task, or there are several.
        """
        if name is None:
            if len(self.tasks) > 1:
                raise ValueError(f"name the task, as there are {len(self.tasks)}: {', '.join(self.tasks)}")
            return next(iter(self.tasks.values()))
        one_of("task", name, self.tasks)
        return self.tasks[name]


def load(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    classes: Constructors | None = None,
) -> Predictor:
    """Load a trained network from its file alone: no config, data set or user code is needed.

    Args:
        source: run folder, network file, a task's subnetwork file, or a repository on the Hugging Face hub,
            "hf://user/name" or "hf://user/name@revision".
        base: network file, run folder or repository with the tasks that a subnetwork file's task reads.
        device: where to compute.
        classes: constructors of modules outside msh, torch, torchvision, timm and transformers that the file names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, names code that was not passed in, lacks a task that another one reads, or was
            written by an earlier release, which stored no preprocessing; or it cannot be downloaded.
    """
    path = source_file(source)
    file = read_state(path, "network", "subnetwork")
    if base is not None:
        file = merged(source_file(base), [path])
    network = network_of(path, file, classes)
    tasks = {}
    for name, entry in file.state.tasks.items():
        if "preprocessing" not in entry.recipe or "outputs" not in entry.recipe:
            raise ValueError(
                f"{path}: task {name!r} has no preprocessing, as it was not written by `msh train` of this release: "
                "train the task again, or use msh.inference.rebuilding.rebuild_network with prepared tensors"
            )
        try:
            steps, outputs = steps_from_data(entry.recipe["preprocessing"]), outputs_from_data(entry.recipe["outputs"])
            computing = computing_from_data(entry.recipe.get("evaluation", {}))
        except ValueError as error:
            raise ValueError(f"{path}: task {name!r}: {error}") from error
        tasks[name] = TaskInfo(name, outputs.kind, outputs.names, outputs.unit, steps, outputs, computing)
    return Predictor(network.to(device), tasks)


def as_examples(steps: Steps, inputs: Any) -> Any:
    """Return several inputs, as a sequence or a DataFrame, from one or several.

    Args:
        steps: the task's; the first one reads the inputs.
        inputs: one input (a path, text, bytes, image or dictionary; an array of an example's shape), or several.
    """
    first: Any = steps[0]
    if isinstance(inputs, str | bytes | Path | Mapping) or hasattr(inputs, "getexif"):
        return [inputs]
    if hasattr(inputs, "iloc"):
        return inputs.to_frame().T if inputs.ndim == 1 else inputs
    if not hasattr(inputs, "ndim"):
        return list(inputs)
    is_one = first.is_one(inputs) if hasattr(first, "is_one") else inputs.ndim == len(first.shape)
    return inputs[None] if is_one else inputs


def _part(examples: Any, part: slice) -> Any:
    return examples.iloc[part] if hasattr(examples, "iloc") else examples[part]


def _prepared(steps: Steps, examples: Any) -> tuple[Tensor | None, dict[int, str]]:
    """Prepare a batch: the good examples, None if there are none, and the others' positions and reasons."""
    try:
        return prepare(steps, examples), {}
    except (ValueError, FileNotFoundError) as error:
        if len(examples) == 1:
            return None, {0: str(error)}
    good: list[Tensor] = []
    bad: dict[int, str] = {}
    for row in range(len(examples)):
        batch, reasons = _prepared(steps, _part(examples, slice(row, row + 1)))
        if batch is None:
            bad[row] = reasons[0]
        else:
            good.append(batch)
    return torch.cat(good) if good else None, bad


def _refused(task: str, errors: Mapping[int, str], names: Sequence[str] | None) -> ValueError:
    """Build the error for inputs that cannot be read: a line per reason."""
    found: dict[str, list[str]] = {}
    for row, reason in errors.items():
        found.setdefault(reason, []).append(f"input {row}" if names is None else names[row])
    lines = [f"task {task!r}, {_listed(inputs)}: {reason}" for reason, inputs in list(found.items())[:LISTED]]
    more = [f"and {len(found) - LISTED} more problems"] if len(found) > LISTED else []
    return ValueError("\n".join([*lines, *more]))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _shown(batches: range) -> Iterator[int]:
    """Iterate with a progress bar on a terminal, if there are many batches."""
    if len(batches) < SHOWN_BATCHES:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(batches, "predicting", console=Console(stderr=True), transient=True)
