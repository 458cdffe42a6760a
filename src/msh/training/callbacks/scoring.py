"""Score a task's weights within a fit, by any criterion."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from msh.subnetworks import WEIGHTS, Criterion, Granularity, loss_gradients, score
from msh.tasks.seeds import derive_seed
from msh.training.module import SubnetworkModule

GRADIENT_BATCH = 500
"""Most examples per batch. Another size rounds gradients differently, and may choose other weights."""


def score_task(
    module: SubnetworkModule,
    task: str,
    criterion: Criterion,
    sample: int,
    number: int,
    granularity: Granularity = WEIGHTS,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Score the weights of a masked task, or its units.

    Args:
        module: its network holds the task.
        task: its name.
        criterion: scores the weights.
        sample: number of training examples for gradients.
        number: index of the cut within the fit, from 1; seeds the draw.
        granularity: elements that are scored as one.
        batch_size: as for `sample_gradients`.
    Returns:
        Tensor name to float (*shape), or (units,); higher is kept.
    """
    gradients = sample_gradients(module, task, sample, number, batch_size) if criterion.needs_gradient else None
    generator = torch.Generator().manual_seed(derive_seed(module.seed, task, "criterion", number))
    return score(module.network, task, criterion, gradients, generator, granularity)


def sample_gradients(
    module: SubnetworkModule, name: str, sample: int, number: int, batch_size: int | None = None
) -> dict[str, Tensor]:
    """Compute the gradient of a task's mean loss on a sample of its training examples, batch by batch.

    Args:
        module: its network holds the task.
        name: the task's.
        sample: number of examples.
        number: index of the cut within the fit; seeds the draw.
        batch_size: most examples per batch, up to `GRADIENT_BATCH`.
    Returns:
        Tensor name to (*shape).
    """
    task = module.tasks[name]
    split = task.splits["train"]
    generator = torch.Generator().manual_seed(derive_seed(module.seed, name, "sample", number))
    chosen = torch.randperm(len(split), generator=generator)[:sample]  # (sample,), rows of the split

    def part_of_loss(rows: Tensor) -> Tensor:  # (batch,) to (): parts add up to the sample's mean loss
        inputs, targets = split.inputs[rows].to(module.device), split.targets[rows].to(module.device)
        return len(rows) / len(chosen) * task.loss(module(inputs, name), targets)

    total: dict[str, Tensor] = {}
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        for rows in chosen.split(min(GRADIENT_BATCH, batch_size or GRADIENT_BATCH)):
            part = loss_gradients(module.network, name, partial(part_of_loss, rows))  # tensor name to (*shape)
            total = {tensor: total[tensor] + part[tensor] if total else part[tensor] for tensor in part}
    module.train(was_training)
    return total
