"""Plan and select N of each M weights at neighbouring inputs of a unit, which some processors compute faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.conv import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

from msh.errors import invalid, requirement
from msh.subnetworks.allocation import CapacityError, EmptyLayerError, top_k_mask
from msh.subnetworks.blocks import matrices
from msh.subnetworks.empty import ALLOW

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

TRANSPOSED = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
"""Layers whose weights have their inputs first."""


@dataclass(frozen=True)
class Groups:
    """Groups of M weights at neighbouring inputs of a unit (and, in convolutions, one kernel position).

    Tensors whose number of inputs M does not divide, embeddings, and tensors that are no matrix and no convolution's
    have no groups: a task keeps N / M of their single weights, rounded down.

    Attributes:
        n: most weights that a task owns of a group.
        m: weights of a group.
        inputs: name of each tensor with groups, to the dimension of its inputs.
        sizes: tensor name to the number of its weights that tasks can own.
    """

    n: int
    m: int
    inputs: Mapping[str, int]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, network: MultiSubnetwork, n: int, m: int) -> Groups:
        """Find the groups of a network's tensors.

        Raises:
            ValueError: n or m is out of range.
        """
        if not 1 <= n < m:
            raise invalid("nm", "[N, M] with 1 <= N < M", [n, m])
        found = {}
        for name, weight, layer in matrices(network):
            inputs = 0 if isinstance(layer, TRANSPOSED) else 1
            if weight.shape[inputs] % m == 0:
                found[name] = inputs
        return cls(n, m, found, network.sizes())

    @property
    def tasks(self) -> int:
        """Number of tasks that fit: M / N, rounded down."""
        return self.m // self.n

    def budget(self, name: str) -> int:
        """Count the weights that a task keeps of a tensor."""
        return self.sizes[name] * self.n // self.m

    def room(self, name: str, free: Tensor) -> int:
        """Count the tasks that fit into a tensor's free weights, bool (*shape)."""
        if name not in self.inputs:
            return int(free.sum()) // max(1, self.budget(name))
        return int(self.arranged(name, free).sum(-1).min()) // self.n

    def arranged(self, name: str, tensor: Tensor) -> Tensor:
        """Arrange a tensor (*shape) by groups: (..., groups, M)."""
        arranged: Tensor = tensor.movedim(self.inputs[name], -1).unflatten(-1, (-1, self.m))
        return arranged

    def best(self, name: str, scores: Tensor, numbers: Tensor | int, candidates: Tensor) -> Tensor:
        """Keep the highest-scoring candidates of each group.

        Args:
            name: a tensor with groups.
            scores: (*shape), higher is kept; unitless; no candidate's is NaN.
            numbers: kept of each group, int64 (..., groups, 1) or one for all; all candidates where these are fewer.
            candidates: bool, (*shape).
        Returns:
            bool, (*shape); ties go to the earlier input.
        """
        finite = torch.finfo(scores.dtype)
        ranked = self.arranged(name, scores.detach().clamp(finite.min, finite.max))
        open_to = self.arranged(name, candidates)
        order = ranked.masked_fill(~open_to, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(-1)  # (..., groups, M), 0 for the highest score
        mask: Tensor = ((rank < numbers) & open_to).flatten(-2).movedim(-1, self.inputs[name]).contiguous()
        return mask

    def choose(self, name: str, scores: Tensor, k: int, candidates: Tensor) -> Tensor:
        """Keep k weights with high scores, such that every group can end with N.

        The N best of each group come first, then the highest scores. So the last cut, which keeps N of each group
        alone, finds enough candidates.

        Args:
            name: of the tensor.
            scores: (*shape), higher is kept; unitless.
            k: number kept, 0 <= k <= candidates.
            candidates: bool, (*shape).
        Returns:
            bool, (*shape), exactly k True; with k up to the budget, no group has more than N.
        Raises:
            ValueError: k is out of range, a candidate's score is NaN, or some groups have fewer than N candidates.
        Source: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, sec. 3.
        """
        plain = top_k_mask(scores, k, candidates)  # also checks the arguments
        if name not in self.inputs:
            return plain
        first = self.best(name, scores, self.n, candidates)
        count = int(first.sum())
        if k <= count:
            return top_k_mask(scores, k, first)
        if count < self.budget(name):
            raise ValueError(f"some groups of layer {name!r} have fewer than {self.n} candidates")
        return first | top_k_mask(scores, k - count, candidates & ~first)

    def grow(self, name: str, scores: Tensor, candidates: Tensor, dropped: Tensor) -> Tensor:
        """Select weights in place of as many dropped ones, in the same groups.

        Args:
            name: of the tensor.
            scores: (*shape), higher is selected; unitless.
            candidates: bool, (*shape), the dropped ones among them.
            dropped: bool, (*shape).
        Returns:
            bool, (*shape), as many True as dropped.
        """
        if name not in self.inputs:
            return top_k_mask(scores, int(dropped.sum()), candidates)
        numbers = self.arranged(name, dropped).sum(-1, keepdim=True)  # (..., groups, 1)
        return self.best(name, scores, numbers, candidates)


# ---- budgets


def plan_groups(
    groups: Groups, tasks: Sequence[str], free: Mapping[str, Tensor], allow_empty: bool = False
) -> dict[str, dict[str, int]]:
    """Plan the tasks' budgets in order: N of each M weights for each task.

    Args:
        groups: of the network.
        tasks: in the order of training.
        free: tensor name to bool (*shape), the weights that no task owns.
        allow_empty: allow tensors of which a task would get no weight.
    Returns:
        Task name to {tensor name: weights}.
    Raises:
        EmptyLayerError: a task would get no weight of a layer.
        CapacityError: a task needs more weights of a group than earlier tasks leave free.
    """
    wanted = {name: groups.budget(name) for name in free}
    if empty := [name for name, count in wanted.items() if not count and not (allow_empty and any(wanted.values()))]:
        shape = tuple(free[empty[0]].shape)
        raise EmptyLayerError(
            f"{groups.n} of {groups.m} weights are none of layer {empty[0]!r}, of shape {shape}; "
            f"{requirement('its weights', f'>= {-(-groups.m // groups.n)}', groups.sizes[empty[0]])}, or {ALLOW}"
        )
    room = {name: groups.room(name, mask) for name, mask in free.items() if wanted[name]}
    for place, task in enumerate(tasks):
        if full := [name for name in room if room[name] <= place]:
            count = int(free[full[0]].sum()) - place * wanted[full[0]]
            raise CapacityError(
                f"task {task!r} wants {groups.n} of each {groups.m} weights of layer {full[0]!r}, {wanted[full[0]]} in "
                f"all, but only {max(0, count)} are free, in some groups too few: "
                f"{groups.tasks} tasks fit into a network; choose another pruning.nm, or give the network more weights"
            )
    return {task: dict(wanted) for task in tasks}
