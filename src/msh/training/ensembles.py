"""Ensembles: average the outputs of several subnetworks that learned the same data."""

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
from msh.tasks.lazy import equal
from msh.tasks.task import SplitName
from msh.training.config import RunConfig
from msh.training.fitting import evaluate_tasks
from msh.training.module import TaskModule

Members = Mapping[str, Sequence[str]]
"""Ensemble name to the names of its tasks."""


def check_members(ensembles: Members, tasks: Mapping[str, Task]) -> None:
    """Check that the tasks in each ensemble are evaluated on the same examples, by the same metric.

    Raises:
        ValueError: naming the ensemble, and the task that differs from its first one.
    """
    for name, members in ensembles.items():
        first = tasks[members[0]]
        for member in members[1:]:
            if not _same_data(first, tasks[member]):
                raise ValueError(
                    f"ensembles.{name}: tasks {members[0]!r} and {member!r} differ in test split, outputs or metric; "
                    "the tasks in an ensemble need the same data"
                )


def _same_data(one: Task, other: Task, split: SplitName = "test") -> bool:
    a, b = one.splits[split], other.splits[split]
    if any(getattr(one, key) != getattr(other, key) for key in ("kind", "outputs", "metric", "input_shape")):
        return False
    scales = [(one.target_mean, other.target_mean), (one.target_std, other.target_std), (a.targets, b.targets)]
    return all(torch.equal(x, y) for x, y in scales) and (a is b or equal(a.inputs, b.inputs))


class Ensemble(nn.Module):
    """Average several subnetworks' outputs.

    Args:
        network: holds the members, trained.
        members: ensemble to tasks.
        tasks: by name.
    """

    def __init__(self, network: MultiSubnetwork, members: Members, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.network, self.members, self.tasks = network, members, tasks

    def forward(self, inputs: Tensor, ensemble: str) -> Tensor:
        """Average the members' probabilities, or the values of a regression.

        Args:
            inputs: (batch, *input shape).
            ensemble: its name.
        Returns:
            (batch, outputs), in the form of a head's output: logits, or scaled values.
        """
        members = self.members[ensemble]
        each = [widened(self.network(inputs, member)) for member in members]
        outputs = torch.stack(each)  # (members, batch, outputs)
        kind = self.tasks[members[0]].kind
        if kind == "classification":  # log of the mean probability
            return outputs.log_softmax(-1).logsumexp(0) - math.log(len(members))  # (batch, outputs)
        if kind == "multilabel":  # logit of the mean probability: the number of members cancels
            return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)  # (batch, outputs)
        return outputs.mean(0)  # (batch, outputs)


class EnsembleModule(TaskModule):
    """Evaluate ensembles; nothing trains."""

    def groups(self) -> dict[tuple[str, ...], nn.Module]:
        """Return no groups."""
        return {}


def evaluate_ensembles(
    ensembles: Members, network: MultiSubnetwork, tasks: Mapping[str, Task], config: RunConfig, folder: Path
) -> dict[str, EnsembleResult]:
    """Evaluate ensembles on the test split, and on the validation split where all members have the same one.

    Args:
        ensembles: name to tasks, which are frozen.
        network: the run's.
        tasks: by name.
        config: the run's.
        folder: the run folder.
    Returns:
        Name to metric, direction, tasks, test and val (scores, in the metric's unit).
    """
    if not ensembles:
        return {}
    stand_ins = {name: replace(tasks[members[0]], name=name) for name, members in ensembles.items()}
    module = EnsembleModule(Ensemble(network, ensembles, tasks), stand_ins, instantiate(config.optimizer), config.seed)
    scores = evaluate_tasks(module, list(ensembles), "test", config, folder)
    same_split = [
        name
        for name, members in ensembles.items()
        if all(_same_data(tasks[members[0]], tasks[member], "val") for member in members[1:])
    ]
    validated = evaluate_tasks(module, same_split, "val", config, folder) if same_split else {}
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
