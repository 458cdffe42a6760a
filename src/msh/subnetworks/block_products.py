"""Compute linear layers with the blocks of a weight alone, by batched products, where that costs less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msh.subnetworks.blocks import BlockSize, block_mask, grid, whole_blocks
from msh.subnetworks.sparse import SMALLEST, Pattern

SHORTEST, FEWEST = 8, 512
"""Shortest side, and fewest weights, of a block with which these products cost less than others."""
SMALL, MANY = 2**17, 32
"""Matrix size in weights from which these products cost less than a dense one with at least so many inputs."""
FULLEST = 0.25
"""Share of weights above which a dense product costs less."""
AT_ONCE = 2**22
"""Bytes of a layer's inputs or outputs that are computed at a time, so that they stay in the cache."""


def may_be_in_blocks(shape: Sequence[int], values: Tensor, kept: int, size: BlockSize) -> bool:
    """Return True if products with blocks may cost less than dense ones.

    Args:
        shape: of the weight.
        values: for type and device.
        kept: number of weights in the blocks.
        size: rows and columns of a block.
    """
    return (
        len(shape) == 2
        and math.prod(shape) >= SMALL
        and 0 < kept <= FULLEST * math.prod(shape)
        and min(size) >= SHORTEST
        and math.prod(size) >= FEWEST
        and (values.dtype in (torch.float32, torch.float64) or values.device.type != "cpu")
    )


@dataclass(frozen=True)
class Lines:
    """Block rows, or block columns, that have the same number of blocks: the factors of one batched product.

    Attributes:
        blocks: number in each line, at least 1.
        lines: int64 (lines,), their indices.
        here: slice of the blocks, ordered by line.
    """

    blocks: int
    lines: Tensor
    here: slice


@dataclass(frozen=True)
class Ordered:
    """The blocks of a matrix, ordered by lines with the same number of blocks.

    Attributes:
        groups: in this order.
        across: int64 (blocks,), each block's index along its line.
        parts: int64 (blocks * rows,): the order of the parts, a block's columns in a row each.
    """

    groups: list[Lines]
    across: Tensor
    parts: Tensor


class BlockPattern(Pattern):
    """Indices of the blocks of a matrix.

    Values come in the order of their flat indices. With blocks at the edges that have fewer weights, the matrix, and so
    the values, are padded by 0. In that order, the values of a block row are a matrix: all its blocks, side by side.
    The same inputs give the same bits: no product depends on the order in which threads finish.

    Args:
        held: bool (rows, columns), all weights of some blocks.
        index: int64 (k,), its flat indices in rising order.
        size: rows and columns of a block.
    """

    along_batch = False

    def __init__(self, held: Tensor, index: Tensor, size: BlockSize) -> None:
        super().__init__(index, held.shape)
        self.size, self.grid = size, grid(held.shape, size)
        self._fixed: Tensor | None = None
        blocks = whole_blocks(held, size)
        row, column = blocks.nonzero(as_tuple=True)
        before, after = _firsts(blocks.sum(1)), torch.arange(len(row), device=held.device)
        width = blocks.sum(1)[row]  # blocks in the block's row
        number = torch.arange(size[0], device=held.device)
        # (blocks, rows of a block): the parts before a block's row, those in earlier rows of it, and to the left
        part = (before[row] * size[0] + after - before[row])[:, None] + number * width[:, None]
        self.by_rows = self._ordered(blocks, torch.arange(len(row), device=held.device), column, part, together=True)
        self.by_columns = self._ordered(blocks.t(), column.argsort(stable=True), row, part, together=False)
        self._back = torch.empty_like(self.by_rows.parts)
        self._back[self.by_rows.parts] = torch.arange(len(self._back), device=held.device)
        padded = [lines * side for lines, side in zip(self.grid, size, strict=True)]
        within = F.pad(held, (0, padded[1] - held.shape[1], 0, padded[0] - held.shape[0]))
        places = within[block_mask(blocks, padded, size)].nonzero().squeeze(1)  # (k,)
        self._places = None if len(places) == len(part) * size[0] * size[1] else places

    def _ordered(self, blocks: Tensor, order: Tensor, across: Tensor, part: Tensor, together: bool) -> Ordered:
        """Order blocks by lines.

        Args:
            blocks: bool (lines, blocks across).
            order: int64 (blocks,), the blocks line by line.
            across: int64 (blocks,), each block's index along its line.
            part: int64 (blocks, rows of a block), indices of the parts.
            together: a line's parts are a matrix already, in the order of their indices.
        """
        number = blocks.sum(1)
        groups, ordered, start = [], [], 0
        firsts = _firsts(number)
        for count in number.unique().tolist():
            lines = (number == count).nonzero().squeeze(1)
            if count:
                stop = start + count * len(lines)
                groups.append(Lines(count, lines, slice(start, stop)))
                ordered.append((firsts[lines, None] + torch.arange(count, device=number.device)).view(-1))
                start = stop
        order = order[torch.cat(ordered)]
        parts = part[order]
        if together:
            parts = torch.cat([parts[g.here].view(len(g.lines), -1).sort().values.view(-1) for g in groups])
        return Ordered(groups, across[order], parts.view(-1))

    def fix(self, values: Tensor) -> None:
        """Order the values (k,) of a weight that never changes once."""
        self._fixed = self._parts(values).index_select(0, self.by_rows.parts)

    def suits(self, inputs: Tensor) -> bool:
        """Return True if products with the blocks cost less for these inputs (*batch, columns)."""
        kind, rows = inputs.device.type, inputs.numel() // self.shape[1]
        enough = rows >= MANY or (rows > 0 and math.prod(self.shape) >= SMALLEST)
        return enough and inputs.device == self.index.device and not torch.is_autocast_enabled(kind)

    def outputs(self, inputs: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs (batch, rows) from inputs (batch, columns)."""
        parts = self._parts(values).index_select(0, self.by_rows.parts) if self._fixed is None else self._fixed
        result = self._like(inputs, 0)
        for here in self._slices(len(inputs)):
            self._multiply(
                self._by_line(result[here], 0), self._split(inputs[here], 1), parts, self.by_rows, transposed=True
            )
        outputs = self._trimmed(result, 0)
        return outputs if bias is None else outputs.add_(bias)

    def back(self, gradient: Tensor, values: Tensor, like: Tensor) -> Tensor:
        """Compute the gradient of the inputs `like` (batch, columns) from the outputs' (batch, rows)."""
        parts = self._parts(values).index_select(0, self.by_columns.parts)
        result = self._like(gradient, 1)
        for here in self._slices(len(gradient)):
            self._multiply(
                self._by_line(result[here], 1), self._split(gradient[here], 0), parts, self.by_columns, transposed=False
            )
        return self._trimmed(result, 1)

    def of_values(self, gradient: Tensor, inputs: Tensor) -> Tensor:
        """Compute the values' gradient (k,) from the outputs' (batch, rows) and the inputs (batch, columns)."""
        rows, columns = self.size
        parts = gradient.new_zeros(len(self.by_rows.parts), columns)
        for here in self._slices(len(inputs)):
            right = self._split(inputs[here], 1).index_select(1, self.by_rows.across)  # (batch, blocks, columns)
            left = self._split(gradient[here], 0)  # (batch, block rows, rows)
            for group in self.by_rows.groups:
                wide = (len(right), len(group.lines), group.blocks * columns)
                products = parts[group.here.start * rows : group.here.stop * rows].view(wide[1], rows, wide[2])
                factor = left.index_select(1, group.lines).permute(1, 2, 0)  # (lines, rows, batch)
                products.baddbmm_(factor, right[:, group.here].view(wide).transpose(0, 1))
        found = parts.index_select(0, self._back).view(-1)
        return found if self._places is None else found.index_select(0, self._places)

    def _multiply(self, result: Tensor, factor: Tensor, parts: Tensor, ordered: Ordered, transposed: bool) -> None:
        """Write the products of (batch, blocks across, side) with the blocks into (batch, lines, side)."""
        gathered = factor.index_select(1, ordered.across)  # (batch, blocks, side)
        rows, columns = self.size
        for group in ordered.groups:
            wide = (len(factor), len(group.lines), -1)
            matrices = parts[group.here.start * rows : group.here.stop * rows]
            if transposed:
                matrices = matrices.view(len(group.lines), rows, group.blocks * columns).transpose(1, 2)
            else:
                matrices = matrices.view(len(group.lines), group.blocks * rows, columns)
            products = torch.bmm(gathered[:, group.here].view(wide).transpose(0, 1), matrices)  # (lines, batch, side)
            result.index_copy_(1, group.lines, products.transpose(0, 1))

    def _parts(self, values: Tensor) -> Tensor:
        """Pad the values, and divide them into parts: (blocks * rows, columns of a block)."""
        if self._places is not None:
            padded = values.new_zeros(len(self._back) * self.size[1])
            values = padded.index_copy(0, self._places, values)
        return values.view(-1, self.size[1])

    def _split(self, tensor: Tensor, axis: int) -> Tensor:
        """Divide (batch, rows or columns) into blocks: (batch, lines, side)."""
        padded = F.pad(tensor, (0, missing)) if (missing := self._missing(axis)) else tensor
        return padded.reshape(len(tensor), self.grid[axis], self.size[axis])

    def _like(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.new_zeros(len(tensor), self.grid[axis] * self.size[axis])

    def _by_line(self, result: Tensor, axis: int) -> Tensor:
        return result.view(len(result), self.grid[axis], self.size[axis])

    def _trimmed(self, result: Tensor, axis: int) -> Tensor:
        """Remove what lies beyond the edge; no view, as the next layer may change it in place."""
        return result[:, : self.shape[axis]].clone() if self._missing(axis) else result

    def _missing(self, axis: int) -> int:
        return self.grid[axis] * self.size[axis] - self.shape[axis]

    def _slices(self, batch: int) -> Iterator[slice]:
        """Divide a batch such that inputs and outputs stay in the cache."""
        step = max(128, AT_ONCE // (4 * max(self.shape)))
        yield from (slice(start, start + step) for start in range(0, batch, step))


def _firsts(counts: Tensor) -> Tensor:
    """Return where each line's blocks start, given their numbers (lines,)."""
    return counts.cumsum(0) - counts
