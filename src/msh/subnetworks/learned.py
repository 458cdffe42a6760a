"""Train a score per weight: a task computes with its highest-scoring weights, and scores train as weights do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from msh.errors import one_of
from msh.subnetworks.blocks import choose_held
from msh.subnetworks.network import MultiSubnetwork
from msh.subnetworks.options import ScoreStart
from msh.subnetworks.pruning import own_share
from msh.subnetworks.tensors import selected, widened


@torch.no_grad()
def start_scores(
    network: MultiSubnetwork, task: str, start: ScoreStart = "magnitude", generator: torch.Generator | None = None
) -> None:
    """Give a masked task a score per weight, as parameters that train with its weights; build the optimizer afterwards.

    Until `let_scores_choose`, the task computes with every candidate, and a score rises where its weight moves away
    from 0. Scores have mean 1, so that an optimizer that moves each number by its rate (Adam) does not shuffle them
    within a few steps.

    Args:
        network: holds the task.
        task: one that has just begun.
        start: "magnitude" starts from |w|; other tasks' weights, which are trained and so larger, get the scores of
            its own weights with the same ranks. "random" draws.
        generator: on the CPU, for the draw; a fixed seed when None.
    Raises:
        ValueError: the task is not masked, or the start is unknown.
    Source: Mallya et al. 2018, Piggyback; Sanh et al. 2020, Movement Pruning; Kang et al. 2022, Winning SubNetworks.
    """
    one_of("scores", start, get_args(ScoreStart))
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    sub = network.in_phase(task, "masked")
    held, scores = network.held(task), {}
    for name, own in network.masks(task).items():
        if start == "random":
            scores[name] = 2.0 * torch.rand(own.shape, generator=generator).to(sub.values[name])
        else:
            scores[name] = sub.values[name].abs()
            if bool(own.any()):
                scores[name][held[name] & ~own] = _of_same_ranks(scores[name][held[name] & ~own], scores[name][own])
    mean = torch.cat([scores[name][held[name]] for name in held]).mean()
    for name, started in scores.items():
        sub.scores.set(name, nn.Parameter(started / mean if mean > 0 else started))
    network.derive(sub)


def _of_same_ranks(values: Tensor, others: Tensor) -> Tensor:
    """Quantile-match: for each value (k,), the element of `others` (n,) with the same rank: (k,)."""
    ranks = values.argsort().argsort()
    return others.sort().values[(2 * ranks + 1) * len(others) // max(1, 2 * len(values))]


@torch.no_grad()
def let_scores_choose(network: MultiSubnetwork, task: str, kept: Mapping[str, int], rescale: bool = True) -> None:
    """Let a masked task compute with its highest-scoring candidates only, reselected in each forward pass.

    Args:
        network: holds the task.
        task: one with scores.
        kept: tensor name to the number of weights that it computes with, or {"": number over the whole network}.
        rescale: scale its own candidates so that the selected ones have the norm that all had.
    Raises:
        ValueError: the task has no scores.
    """
    sub = network.subnetwork(task)
    if not sub.scored:
        raise ValueError(f"task {task!r} has no scores: call start_scores first")
    network.settle(task)
    held, own = network.held(task), network.masks(task)
    for name, chosen in choose_held(sub.blocks, dict(sub.scores.items()), kept, held).items():
        values, mine = sub.values[name], chosen & own[name]
        norm, now = (widened(selected(values, mask)).norm() for mask in (own[name], mine))
        if rescale and now > 0:
            share = own_share(mine, chosen) / own_share(own[name], held[name])
            values[own[name]] *= (share * norm / now).to(values)
    sub.kept = dict(kept)
    network.derive(sub)
