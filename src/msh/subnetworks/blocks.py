"""Plan and select blocks: neighbouring output rows at neighbouring input columns, with all kernel positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msh.compat import ConvolutionBase
from msh.errors import invalid, requirement
from msh.subnetworks.allocation import Budget, CapacityError, EmptyLayerError, choose_at_most, top_k_mask
from msh.subnetworks.empty import ALLOW, decimals_from
from msh.subnetworks.roles import TABLES

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

BlockSize = tuple[int, int]
"""Rows and columns of a block."""
LONGEST, LINES = 64, 16
"""Longest side of a default block; block rows and columns of a layer that is large enough for them, at least."""
ROUNDING = 1e-6
"""Largest error of a number of blocks that is whole but for rounding, such as 0.29 * 100."""


def usual_side(length: int) -> int:
    """Choose a block's side for this many rows or columns.

    Returns:
        The longest side up to `LONGEST` that divides the length into `LINES` parts or more; where that is less than
        five eighths of the longest one possible, a side that leaves little to pad.
    """
    longest = min(LONGEST, max(1, length // LINES))
    for side in range(longest, longest * 5 // 8, -1):
        if length % side == 0:
            return side
    return -(-length // -(-4 * length // (3 * longest)))


def block_sizes(network: MultiSubnetwork, block_size: BlockSize | None = None) -> dict[str, BlockSize]:
    """Choose the block size of each tensor that is pruned in blocks.

    These are matrices (of linear, attention and recurrent layers) and the weights of convolutions. Embeddings, and
    tensors with other numbers of dimensions, are pruned by single weights.

    Args:
        network: in any phase.
        block_size: rows and columns of all blocks, less where a tensor has fewer; by `usual_side` when None.
    Returns:
        Tensor name to (rows, columns).
    Raises:
        ValueError: a side of the blocks is no whole number, or below 1.
    """
    if block_size is not None and not all(isinstance(side, int) and side >= 1 for side in block_size):
        raise invalid("block_size", "two whole numbers from 1 on", block_size)
    sizes: dict[str, BlockSize] = {}
    for name, weight, _ in matrices(network):
        rows, columns = weight.shape[:2]
        wanted = block_size or (usual_side(rows), usual_side(columns))
        sizes[name] = min(wanted[0], rows), min(wanted[1], columns)
    return sizes


def matrices(network: MultiSubnetwork) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Yield (name, weight, layer) of the matrices and of convolutions' weights; embeddings are left out."""
    for name, weight in network.weights():
        again = [other for other, first in network.names.tied.items() if first == name]
        layers = [network.backbone.get_submodule(_layer(dotted)) for dotted in (name, *again)]
        if any(isinstance(layer, TABLES) for layer in layers):
            continue
        if weight.dim() == 2 or (weight.dim() > 2 and isinstance(layers[0], ConvolutionBase)):
            yield name, weight, layers[0]


def _layer(name: str) -> str:
    """Name a tensor's layer, also where parametrizations hold the tensor."""
    return name.rpartition(".")[0].partition("parametrizations.")[0].removesuffix(".")


def grid(shape: Sequence[int], size: BlockSize) -> tuple[int, int]:
    """Count a tensor's block rows and block columns; the last ones may have fewer weights."""
    return -(-shape[0] // size[0]), -(-shape[1] // size[1])


def in_blocks(tensor: Tensor, size: BlockSize) -> Tensor:
    """Arrange a tensor (*shape) by blocks: (block rows, block columns, weights per block), with 0 beyond the edges."""
    rows, columns = size
    flat = tensor.reshape(*tensor.shape[:2], -1)
    flat = F.pad(flat, (0, 0, 0, -flat.shape[1] % columns, 0, -flat.shape[0] % rows))
    arranged: Tensor = flat.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2)
    return arranged


def whole_blocks(mask: Tensor, size: BlockSize) -> Tensor:
    """Mark the blocks of which a mask, bool (*shape), marks all weights: bool, (block rows, block columns)."""
    return ~in_blocks(~mask, size).any(2)


def block_means(scores: Tensor, size: BlockSize) -> Tensor:
    """Average a score per weight, (*shape), over each block: (block rows, block columns)."""
    sums = in_blocks(scores, size).sum(2)
    return sums / in_blocks(torch.ones_like(scores), size).sum(2)


def block_mask(blocks: Tensor, shape: Sequence[int], size: BlockSize) -> Tensor:
    """Mark the weights of blocks, bool (block rows, block columns): bool, (*shape)."""
    rows = blocks.repeat_interleave(size[0], 0)[: shape[0]]
    mask = rows.repeat_interleave(size[1], 1)[:, : shape[1]]
    return mask.view(*mask.shape, *[1] * (len(shape) - 2)).expand(tuple(shape)).contiguous()


def is_in_blocks(mask: Tensor, size: BlockSize) -> bool:
    """Tell whether a mask, bool (*shape), marks all or none of each block's weights."""
    return torch.equal(mask, block_mask(whole_blocks(mask, size), mask.shape, size))


def whole(sizes: Mapping[str, BlockSize], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mark the blocks of which masks mark all weights; masks of tensors without blocks stay."""
    return {name: whole_blocks(mask, sizes[name]) if name in sizes else mask for name, mask in masks.items()}


def mean_scores(sizes: Mapping[str, BlockSize], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average scores over blocks: their L1 norms, per weight, where the scores are magnitudes."""
    return {name: block_means(score, sizes[name]) if name in sizes else score for name, score in scores.items()}


def expanded(
    sizes: Mapping[str, BlockSize], masks: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Mark the weights of selected blocks; masks of tensors without blocks stay."""
    return {n: block_mask(mask, shapes[n], sizes[n]) if n in sizes else mask for n, mask in masks.items()}


# ---- selection


def choose_blocks(
    sizes: Mapping[str, BlockSize],
    scores: Mapping[str, Tensor],
    kept: Mapping[str, int],
    candidates: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Keep blocks by `choose_covering`, and single weights of tensors without blocks by score.

    Args:
        sizes: tensor name to its block size.
        scores: tensor name to a score per block or weight, higher is kept; unitless.
        kept: tensor name to the number kept there.
        candidates: tensor name to bool, as the scores; only these can be kept.
    Returns:
        Tensor name to bool, as the scores.
    Raises:
        ValueError: a number kept is missing or exceeds the candidates, or a candidate's score is NaN.
    """
    if "" in kept:
        raise invalid("kept", "a number per tensor, with blocks", dict(kept))
    if missing := [name for name in scores if name not in kept]:
        raise invalid("kept", f"a number for every tensor, also for {missing[0]!r}", dict(kept))
    choosers = {name: choose_covering if name in sizes else top_k_mask for name in scores}
    return {name: choosers[name](scores[name], kept[name], candidates[name]) for name in scores}


def choose_held(
    sizes: Mapping[str, BlockSize], scores: Mapping[str, Tensor], kept: Mapping[str, int], held: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Select a task's weights by scores of weights: the best blocks, or where there are none the best weights.

    Args:
        sizes: tensor name to its block size; empty for a task of single weights.
        scores: tensor name to (*shape).
        kept: tensor name, or "" for all, to the number of elements kept; all candidates where these are fewer.
        held: tensor name to bool (*shape), the candidates.
    Returns:
        Tensor name to bool (*shape).
    """
    if not sizes:
        return choose_at_most(scores, kept, held)
    means = mean_scores(sizes, {name: scores[name].detach() for name in held})
    masks = choose_at_most(means, kept, whole(sizes, held), partial(choose_blocks, sizes))
    return expanded(sizes, masks, {name: mask.shape for name, mask in held.items()})


def choose_covering(scores: Tensor, k: int, candidates: Tensor, kept: Tensor | None = None) -> Tensor:
    """Keep k blocks with high scores that leave no row or column of blocks empty.

    The fewest blocks that cover all rows and columns come first: pairs of a row and a column, then the best block of
    each other row and column. The highest scores fill the rest. Any subset keeps such pairs, so that the next cut can
    cover all lines, too.

    Args:
        scores: (block rows, block columns), higher is kept; unitless.
        k: number kept, 0 <= k <= candidates.
        candidates: bool, (block rows, block columns); only these can be kept.
        kept: bool, (block rows, block columns), blocks kept besides, which cover their rows and columns; or None.
    Returns:
        bool, (block rows, block columns), exactly k True. With max(rows, columns) of a full grid every line has one;
        fewer cover as many lines as they can.
    Raises:
        ValueError: k is out of range, or a candidate's score is NaN.
    """
    chosen = top_k_mask(scores, k, candidates)
    open_lines = [(torch.zeros_like(candidates) if kept is None else kept).any(dim).logical_not() for dim in (1, 0)]
    order = _cover(scores.detach().cpu().double(), candidates.cpu(), *(lines.cpu() for lines in open_lines))[:k]
    covering = torch.zeros(scores.numel(), dtype=torch.bool)
    covering[order] = True
    first = covering.view(scores.shape).to(chosen.device)
    return first | top_k_mask(scores, k - len(order), candidates & ~first)


def _cover(scores: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor) -> list[int]:
    """List the fewest candidates that cover these rows and columns (bool), as flat indices: pairs first."""
    width = scores.shape[1]
    column_of = _pairs(scores, candidates & rows[:, None] & columns)

    def by_score(blocks: list[tuple[int, int]]) -> list[int]:
        return [row * width + column for row, column in sorted(blocks, key=lambda at: (-float(scores[at]), at))]

    lines = []
    gains = scores.masked_fill(~candidates, -torch.inf)
    for row in (candidates.any(1) & rows).nonzero().flatten().tolist():
        if row not in column_of:
            lines.append((row, int(gains[row].argmax())))
    paired = set(column_of.values())
    for column in (candidates.any(0) & columns).nonzero().flatten().tolist():
        if column not in paired:
            lines.append((int(gains[:, column].argmax()), column))
    return by_score(list(column_of.items())) + by_score(lines)


def _pairs(scores: Tensor, candidates: Tensor) -> dict[int, int]:
    """Pair as many rows as possible with a column each, by candidates: row to column.

    The highest score between unpaired lines is paired first; then rows without a column get one by augmenting paths.
    Source: Kuhn 1955, The Hungarian Method; Hopcroft and Karp 1973.
    """
    column_of: dict[int, int] = {}
    row_of: dict[int, int] = {}
    places = candidates.flatten().nonzero().squeeze(1)
    falling = places[scores.flatten()[places].argsort(descending=True, stable=True)]
    most = min(int(candidates.any(dim).sum()) for dim in (0, 1))
    for row, column in zip((falling // scores.shape[1]).tolist(), (falling % scores.shape[1]).tolist(), strict=True):
        if row not in column_of and column not in row_of:
            column_of[row], row_of[column] = column, row
            if len(column_of) == most:
                break
    columns = {row: found.nonzero().flatten().tolist() for row, found in enumerate(candidates)}
    for start in columns:
        if start not in column_of:
            _augment(start, columns, column_of, row_of)
    return column_of


def _augment(start: int, columns: Mapping[int, list[int]], column_of: dict[int, int], row_of: dict[int, int]) -> None:
    """Pair one more row, in place, where a path of exchanges leads from it to an unpaired column."""
    reached: dict[int, int] = {}  # column to the row that it was reached from
    rows = [start]
    for row in rows:  # grows
        for column in columns[row]:
            if column in reached:
                continue
            reached[column] = row
            if column in row_of:
                rows.append(row_of[column])
                continue
            end: int | None = column
            while end is not None:
                row = reached[end]
                before = column_of.get(row)
                column_of[row], row_of[end] = end, row
                end = before
            return


# ---- budgets


def plan_blocks(
    sizes: Mapping[str, int],
    weights: int,
    budgets: Mapping[str, Budget],
    free: Mapping[str, int] | None = None,
    allow_empty: bool = False,
) -> dict[str, dict[str, int]]:
    """Plan the tasks' budgets in order, in blocks; in tensors that are pruned by single weights, in weights.

    A density d keeps d * blocks of each tensor's blocks, rounded down, so that ten tasks of a tenth fit; from half a
    block on, at least one. A weight count keeps the same share as of all weights; an equal share divides each tensor's
    free blocks.

    Args:
        sizes: tensor name to its number of blocks.
        weights: of the network.
        budgets: task name to its budget, of scope "tensor", in the order of training.
        free: tensor name to its number of free blocks; all of them when None.
        allow_empty: allow a budget that gives a task no block in some layers.
    Returns:
        Task name to {tensor name: blocks}.
    Raises:
        EmptyLayerError: a task would get no block of a layer; the message has the smallest budget that works.
        CapacityError: a task asks for more blocks than earlier tasks leave free.
        ValueError: a budget has another scope.
    """
    remaining = dict(sizes if free is None else free)
    plan: dict[str, dict[str, int]] = {}
    for position, (task, budget) in enumerate(budgets.items()):
        if budget.scope != "tensor":
            raise invalid("scope", f"tensor with blocks (task {task!r})", budget.scope)
        if budget.share is not None:
            wanted = budget.counts({}, remaining, len(budgets) - position)
        else:
            density = budget.density or (budget.weights or 0) / weights
            exact = {name: density * size for name, size in sizes.items()}
            wanted = {name: int(number + ROUNDING) or int(number + ROUNDING + 0.5) for name, number in exact.items()}
        for name, count in wanted.items():
            if count < 1 and not (allow_empty and any(wanted.values())):
                raise EmptyLayerError(
                    f"task {task!r} would get no block of layer {name!r}, of which {remaining[name]} are free; "
                    f"{_cure(budget, weights, min(sizes.values()))}, or {ALLOW}"
                )
            if count > remaining[name]:
                raise CapacityError(
                    f"task {task!r} wants {count} blocks of layer {name!r}, but only {remaining[name]} of its "
                    f"{sizes[name]} are free; lower its density, or give the network more weights"
                )
        plan[task] = wanted
        remaining = {name: remaining[name] - wanted[name] for name in remaining}
    return plan


def _cure(budget: Budget, weights: int, smallest: int) -> str:
    """Name the smallest budget that keeps a block of a layer with the smallest number of blocks."""
    if budget.density is not None:
        return requirement("density", f">= {decimals_from(1 / (2 * smallest))[0]}", budget.density)
    if budget.weights is not None:
        return requirement("weights", f">= {-(-weights // (2 * smallest))}", budget.weights)
    return "give the network more weights"
