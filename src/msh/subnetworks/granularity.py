"""Granularity: prune single weights, N of each M, blocks, or whole units of layers, which tasks may share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from msh.errors import invalid
from msh.subnetworks.allocation import FREE, choose, top_k_mask
from msh.subnetworks.blocks import (
    BlockSize,
    block_sizes,
    choose_blocks,
    choose_covering,
    expanded,
    grid,
    mean_scores,
    whole,
)
from msh.subnetworks.groups import Groups
from msh.subnetworks.initial import norm_of
from msh.subnetworks.network import MultiSubnetwork
from msh.subnetworks.tensors import count_true, widened
from msh.subnetworks.unit_graph import UnitGraph
from msh.subnetworks.units import candidate_units, choose_in_rectangles, unit_masks, unit_scores, units_in_use

Masks = Mapping[str, Tensor]
"""Tensor name to bool: (*shape) for weights, (block rows, block columns) for blocks, (units,) for units."""


class Granularity(Protocol):
    """Elements that are scored, counted and kept as one."""

    def counts(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Count each tensor's elements, given the number of its weights that tasks can own."""

    def candidates(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the elements that a masked task may still keep or read: tensor name to bool (elements)."""

    def scores(self, scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Turn scores of weights, (*shape) for each tensor, into scores of elements, from the weights in masks."""

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select elements among the candidates: see `choose`, whose arguments these are."""

    def weights(self, masks: Masks) -> dict[str, Tensor]:
        """Expand selected elements to weights: tensor name to bool (*shape)."""

    def owned(self, masks: Masks) -> dict[str, Tensor]:
        """Mark the elements of the weights that a compact task owns: the reverse of `weights`."""

    def replaceable(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the elements that a compact task may give up or take: its own and free ones, all of one size."""

    def fresh(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Mark the weights to draw, rather than start from 0, where a task owns other ones than before: (*shape)."""

    def grow(self, name: str, scores: Tensor, candidates: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Select candidates of a tensor, beside those kept, to replace as many dropped ones; all are (elements)."""

    def shared(self, network: MultiSubnetwork) -> dict[str, Tensor] | None:
        """Mark the elements that any number of tasks may keep, as they are only read; None if there are none."""

    def rescaled(self, name: str, before: Tensor, mask: Tensor) -> Tensor:
        """Mark the weights whose norm a cut from `before` to `mask` keeps; all are bool (*shape)."""

    def rewound_norm(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """Compute the norm, (), that the weights in a mask get when they are rewound to values, both (*shape)."""


class _Best:
    """Let the best candidates grow."""

    def grow(self, name: str, scores: Tensor, candidates: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Select the highest-scoring elements."""
        return top_k_mask(scores, count_true(dropped), candidates)


class Weights(_Best):
    """Prune single weights."""

    def counts(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Return the numbers: elements are weights."""
        return dict(weights)

    def candidates(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the weights that a masked task may still keep or read."""
        return network.held(task)

    def scores(self, scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Return the scores: elements are weights."""
        return scores

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select the highest-scoring weights."""
        return choose(scores, kept, candidates)

    def weights(self, masks: Masks) -> dict[str, Tensor]:
        """Return the masks: elements are weights."""
        return dict(masks)

    def owned(self, masks: Masks) -> dict[str, Tensor]:
        """Return the masks: elements are weights."""
        return dict(masks)

    def replaceable(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the task's and the free weights."""
        free = network.free()
        return {name: mask | free[name] for name, mask in network.masks(task).items()}

    def fresh(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Mark nothing: new weights start from 0."""
        return torch.zeros_like(after)

    def shared(self, network: MultiSubnetwork) -> dict[str, Tensor] | None:
        """Mark the weights that tasks own already: others can only read them."""
        return {name: ~free for name, free in network.free().items()}

    def rescaled(self, name: str, before: Tensor, mask: Tensor) -> Tensor:
        """Return `before`: the survivors get the norm of the whole tensor."""
        return before

    def rewound_norm(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """Compute the norm of the whole tensor."""
        norm: Tensor = widened(values).norm()
        return norm


@dataclass(frozen=True)
class Blocks(Weights):
    """Prune blocks of matrices and convolutions, and single weights of other tensors.

    Attributes:
        sizes: tensor name to its block size; without those that are pruned by single weights.
        shapes: tensor name to its shape.
    """

    sizes: Mapping[str, BlockSize]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, network: MultiSubnetwork, block_size: BlockSize | None = None) -> Blocks:
        """Choose the blocks of a network's tensors: see `block_sizes`."""
        shapes = {name: tuple(weight.shape) for name, weight in network.weights()}
        return cls(block_sizes(network, block_size), shapes)

    def counts(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Count each tensor's blocks, or its weights where these are pruned alone."""
        return {
            n: prod(grid(shape, self.sizes[n])) if n in self.sizes else weights[n] for n, shape in self.shapes.items()
        }

    def whole(self, masks: Masks) -> dict[str, Tensor]:
        """Mark the blocks whose weights are all in a mask."""
        return whole(self.sizes, masks)

    def candidates(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the blocks of which a masked task may still keep or read every weight."""
        return self.whole(network.held(task))

    def scores(self, scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Average the scores of each block's weights: see `mean_scores`."""
        return mean_scores(self.sizes, scores)

    def owned(self, masks: Masks) -> dict[str, Tensor]:
        """Mark the blocks whose weights are all in a mask."""
        return self.whole(masks)

    def replaceable(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the task's and the free blocks, except smaller ones at the edges."""
        blocks = self.whole(super().replaceable(network, task))
        for name, (rows, columns) in self.sizes.items():
            blocks[name][self.shapes[name][0] // rows :] = False
            blocks[name][:, self.shapes[name][1] // columns :] = False
        return blocks

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select blocks with high scores that cover each tensor's rows and columns of blocks: see `choose_covering`."""
        return choose_blocks(self.sizes, scores, kept, candidates)

    def grow(self, name: str, scores: Tensor, candidates: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Select blocks with high scores, first those that cover rows and columns of blocks without a kept one."""
        if name not in self.sizes:
            return super().grow(name, scores, candidates, kept, dropped)
        return choose_covering(scores, count_true(dropped), candidates, kept)

    def weights(self, masks: Masks) -> dict[str, Tensor]:
        """Expand selected blocks to their weights."""
        return expanded(self.sizes, masks, self.shapes)

    def shared(self, network: MultiSubnetwork) -> dict[str, Tensor] | None:
        """Mark the blocks whose weights tasks own already: others can only read them."""
        return self.whole({name: ~free for name, free in network.free().items()})


@dataclass(frozen=True)
class NofM(Weights):
    """Prune single weights such that a task owns N of each M at neighbouring inputs of a unit.

    Attributes:
        groups: of the network's tensors.
    """

    groups: Groups

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select the highest-scoring weights, such that every group can end with N: see `Groups.choose`."""
        if "" in kept:
            raise invalid("kept", "a number per tensor, with N of M weights", dict(kept))
        return {name: self.groups.choose(name, scores[name], kept[name], candidates[name]) for name in scores}

    def grow(self, name: str, scores: Tensor, candidates: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Select the highest-scoring weights of the groups that lose some: see `Groups.grow`."""
        return self.groups.grow(name, scores, candidates, dropped)


class _Rows(_Best):
    """Keep the norm of rows over a cut, and read no other task's weights: both kinds of units do.

    Attributes:
        graph: of the backbone, from `trace_units`.
    """

    graph: UnitGraph

    def rows(self, name: str, mask: Tensor) -> Tensor:
        """Mark the whole rows in which a tensor's mask has weights: bool, (*shape)."""
        turned = self.graph.layers[name].turned
        rows = turned(mask).flatten(1).any(1)
        return turned(rows.view(-1, *[1] * (mask.dim() - 1))).expand_as(mask)

    def shared(self, network: MultiSubnetwork) -> dict[str, Tensor] | None:
        """Return None: a task reads no other task's weights."""
        return None

    def rescaled(self, name: str, before: Tensor, mask: Tensor) -> Tensor:
        """Mark the weights of the kept rows."""
        return before & self.rows(name, mask)

    def rewound_norm(self, name: str, values: Tensor, mask: Tensor) -> Tensor:
        """Compute the norm of the kept rows."""
        return norm_of(values, self.rows(name, mask))


@dataclass(frozen=True)
class Units(_Rows):
    """Prune whole units.

    Attributes:
        graph: of the backbone, from `trace_units`.
    """

    graph: UnitGraph

    def counts(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Count each tensor's units."""
        return {name: layer.units for name, layer in self.graph.layers.items()}

    def candidates(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the units that a masked task may still keep: see `candidate_units`."""
        owners = {name: network.owners[name] for name in network.names.prunable}
        return candidate_units(self.graph, network.masks(task), owners)

    def scores(self, scores: dict[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Add up the scores of each unit's weights: (units,) for each tensor."""
        return unit_scores(self.graph, scores, masks)

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select the highest-scoring units."""
        return choose(scores, kept, candidates)

    def weights(self, masks: Masks) -> dict[str, Tensor]:
        """Expand units to their rows, at the columns that selected units feed."""
        return unit_masks(self.graph, masks)

    def owned(self, masks: Masks) -> dict[str, Tensor]:
        """Mark the units with a weight."""
        return {name: mask.flatten(1).any(1) for name, mask in masks.items()}

    def replaceable(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the task's and the free units."""
        own, free = network.masks(task), network.free()
        owners = {name: network.owners[name].masked_fill(mask, FREE) for name, mask in own.items()}
        return candidate_units(self.graph, {name: mask | free[name] for name, mask in own.items()}, owners)

    def fresh(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Mark the rows of new units: were both their rows and their columns 0, no gradient would reach them."""
        return after & ~self.rows(name, before)


@dataclass(frozen=True)
class OverlappingUnits(_Rows, Weights):
    """Prune single weights such that few units remain; other tasks may own other weights of the same units.

    Attributes:
        graph: of the backbone, from `trace_units`.
    """

    graph: UnitGraph

    def choose(self, scores: Masks, kept: Mapping[str, int], candidates: Masks) -> dict[str, Tensor]:
        """Select the highest-scoring weights of as few units as have enough: see `choose_in_rectangles`."""
        return choose_in_rectangles(self.graph, scores, kept, candidates)

    def replaceable(self, network: MultiSubnetwork, task: str) -> dict[str, Tensor]:
        """Mark the task's and the free weights between the units in use."""
        within = unit_masks(self.graph, units_in_use(self.graph, network.masks(task)))
        return {name: mask & within[name] for name, mask in super().replaceable(network, task).items()}


WEIGHTS = Weights()
