"""Ensembles: tasks of the same data whose subnetworks answer together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from msh.runs.results import EnsembleResult
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.tensors import widened
from msh.tasks import Task
from msh.tasks.task import SplitName
from msh.training.config import RunConfig
from msh.training.fitting import measure
from msh.training.module import TaskModule

Members = Mapping[str, Sequence[str]]
"""Name of an ensemble to the names of its tasks."""


def check_members(ensembles: Members, tasks: Mapping[str, Task]) -> None:
    """Raise where tasks of an ensemble are not measured on the same examples in the same way.

    Raises:
        ValueError: naming the ensemble and the task that differs from its first.
    """
    for name, members in ensembles.items():
        first = tasks[members[0]]
        for member in members[1:]:
            if not _are_alike(first, tasks[member]):
                raise ValueError(
                    f"ensembles.{name}: the test split, outputs or metric of task {member!r} differ from those of "
                    f"{members[0]!r}; the tasks of an ensemble need the same data"
                )


def _are_alike(one: Task, other: Task, split: SplitName = "test") -> bool:
    a, b = one.splits[split], other.splits[split]
    if any(getattr(one, key) != getattr(other, key) for key in ("kind", "outputs", "metric", "input_shape")):
        return False
    scales = [(one.target_mean, other.target_mean), (one.target_std, other.target_std), (a.targets, b.targets)]
    return all(torch.equal(x, y) for x, y in scales) and (a is b or torch.equal(a.inputs[:], b.inputs[:]))


class Ensemble(nn.Module):
    """The mean of several subnetworks' answers.

    Args:
        network: has learned the members.
        members: ensemble to tasks.
        tasks: by name.
    """

    def __init__(self, network: MultiSubnetwork, members: Members, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.network, self.members, self.tasks = network, members, tasks

    def forward(self, inputs: Tensor, ensemble: str) -> Tensor:
        """(batch, *input shape) to outputs (batch, outputs) as a head has them: logits, or scaled values.

        Probabilities are averaged, or the values of a regression.
        """
        members = self.members[ensemble]
        outputs = torch.stack([widened(self.network(inputs, member)) for member in members])
        kind = self.tasks[members[0]].kind
        if kind == "classification":
            return outputs.log_softmax(-1).logsumexp(0) - math.log(len(members))
        if kind == "multilabel":
            return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)
        return outputs.mean(0)


class EnsembleModule(TaskModule):
    """Measures ensembles; it trains nothing."""

    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """None."""
        return {}


def measure_ensembles(
    ensembles: Members, network: MultiSubnetwork, tasks: Mapping[str, Task], config: RunConfig, folder: Path
) -> dict[str, EnsembleResult]:
    """Measure ensembles on the test split, and on the validation split where their members have the same.

    Args:
        ensembles: name to tasks, all of which are frozen.
        network: of the run.
        tasks: by name.
        config: of the run.
        folder: the run folder.
    Returns:
        Name to metric, direction, tasks, test and val (scores, in the metric's unit).
    """
    if not ensembles:
        return {}
    stand_ins = {name: replace(tasks[members[0]], name=name) for name, members in ensembles.items()}
    module = EnsembleModule(Ensemble(network, ensembles, tasks), stand_ins, instantiate(config.optimizer), config.seed)
    scores = measure(module, list(ensembles), "test", config, folder)
    alike = [
        name
        for name, members in ensembles.items()
        if all(_are_alike(tasks[members[0]], tasks[member], "val") for member in members[1:])
    ]
    validated = measure(module, alike, "val", config, folder) if alike else {}
    return {
        name: {
            "metric": stand_ins[name].metric,
            "direction": stand_ins[name].direction,
            "tasks": list(members),
            "test": scores[name],
            "val": validated.get(name),
        }
        for name, members in ensembles.items()
    }
