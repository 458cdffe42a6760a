"""Scores of a task's weights within a fit, by any criterion."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from msh.subnetworks import WEIGHTS, Criterion, Granularity, loss_gradients, score
from msh.tasks.seeds import derive_seed
from msh.training.module import SubnetworkModule

GRADIENT_BATCH = 500
"""Most examples whose activations are held at once. Sums over other batches round otherwise, and may choose others."""


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
        sample: training examples that gradients are computed on.
        number: of the cut within the fit, from 1; the draw follows from it.
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
    """Gradient of a task's mean loss over a sample of its training examples, summed up batch by batch.

    Args:
        module: its network holds the task.
        name: of the task.
        sample: number of examples.
        number: of the cut within the fit; the draw follows from it.
        batch_size: most examples whose activations are held at once; never more than `GRADIENT_BATCH`.
    Returns:
        Tensor name to (*shape).
    """
    task = module.tasks[name]
    split = task.splits["train"]
    generator = torch.Generator().manual_seed(derive_seed(module.seed, name, "sample", number))
    chosen = torch.randperm(len(split), generator=generator)[:sample]

    def part_of_loss(rows: Tensor) -> Tensor:
        inputs, targets = split.inputs[rows].to(module.device), split.targets[rows].to(module.device)
        return len(rows) / len(chosen) * task.loss(module(inputs, name), targets)

    total: dict[str, Tensor] = {}
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        for rows in chosen.split(min(GRADIENT_BATCH, batch_size or GRADIENT_BATCH)):
            found = loss_gradients(module.network, name, partial(part_of_loss, rows))
            total = {tensor: total[tensor] + found[tensor] if total else found[tensor] for tensor in found}
    module.train(was_training)
    return total
