"""Compute linear layers with the blocks of a weight alone, by batched products, where that costs less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msh.subnetworks.blocks import BlockSize, block_mask, grid, whole_blocks
from msh.subnetworks.sparse import SMALLEST, Pattern, has_sparse_products

SHORTEST, FEWEST = 8, 512
"""Shortest side, and fewest weights, of a block with which these products cost less than others."""
SMALL, MANY = 2**17, 32
"""Matrix size in weights from which these products cost less than a dense one with at least so many inputs."""
FULLEST = 0.25
"""Share of weights above which a dense product costs less."""
AT_ONCE = 2**21
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
        lines: int64 (lines with blocks,): their indices, in this order.
        place: int64 (lines,): each line's place in this order; the place after the last for those without blocks.
        across: int64 (blocks,), each block's index along its line.
        parts: int64 (blocks * rows,): the order of the parts, a block's columns in a row each.
    """

    groups: list[Lines]
    lines: Tensor
    place: Tensor
    across: Tensor
    parts: Tensor

    @property
    def has_empty(self) -> bool:
        """True if there are lines without blocks."""
        return len(self.lines) < len(self.place)


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
        self._made_sources: dict[tuple[str, int, int], Tensor] = {}
        blocks = whole_blocks(held, size)
        row, column = blocks.nonzero(as_tuple=True)
        before, after = _firsts(blocks.sum(1)), torch.arange(len(row), device=held.device)
        width = blocks.sum(1)[row]  # blocks in the block's row
        number = torch.arange(size[0], device=held.device)
        # (blocks, rows of a block): the parts before a block's row, those in earlier rows of it, and to the left
        part = (before[row] * size[0] + after - before[row])[:, None] + number * width[:, None]
        self.by_rows = self._ordered(blocks, torch.arange(len(row), device=held.device), column, part, together=True)
        self.by_columns = self._ordered(blocks.t(), column.argsort(stable=True), row, part, together=False)
        self._sides = self.by_rows, self.by_columns
        self._lines_of = [[len(group.lines) for group in side.groups] for side in self._sides]
        self._blocks_of = [[group.blocks * len(group.lines) for group in side.groups] for side in self._sides]
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
        lines = torch.cat([group.lines for group in groups])
        place = torch.full_like(number, len(lines))
        place[lines] = torch.arange(len(lines), device=number.device)
        order = order[torch.cat(ordered)]
        parts = part[order]
        if together:
            parts = torch.cat([parts[g.here].view(len(g.lines), -1).sort().values.view(-1) for g in groups])
        return Ordered(groups, lines, place, across[order], parts.view(-1))

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
        if len(inputs) == 1 and has_sparse_products(values):
            return super().outputs(inputs, values, bias).t().clone()  # no view: see `sparse_linear`
        parts = self._parts(values).index_select(0, self.by_rows.parts) if self._fixed is None else self._fixed
        matrices = [each.view(n, self.size[0], -1).transpose(1, 2) for n, each in self._divided(parts, 0)]
        outputs = self._multiply(inputs, matrices, 0)
        return outputs if bias is None else outputs.add_(bias)

    def back(self, gradient: Tensor, values: Tensor, like: Tensor) -> Tensor:
        """Compute the gradient of the inputs `like` (batch, columns) from the outputs' (batch, rows)."""
        parts = self._parts(values).index_select(0, self.by_columns.parts)
        return self._multiply(gradient, [each.view(n, -1, self.size[1]) for n, each in self._divided(parts, 1)], 1)

    def of_values(self, gradient: Tensor, inputs: Tensor) -> Tensor:
        """Compute the values' gradient (k,) from the outputs' (batch, rows) and the inputs (batch, columns)."""
        rows, columns = self.size
        parts = gradient.new_empty(len(self.by_rows.parts), columns)
        products = [each.view(n, rows, -1) for n, each in self._divided(parts, 0)]  # (lines, rows, blocks * columns)
        left, right = self._in_blocks(gradient, 0), self._in_blocks(inputs, 1)
        for here in self._slices(len(inputs)):
            batch = here.stop - here.start
            of_lines = self._gathered(left, here, "lines", 0).view(-1, batch, rows).split(self._lines_of[0])
            of_blocks = self._gathered_blocks(right, here, 0)
            for product, factor, wide in zip(products, of_lines, of_blocks, strict=True):
                torch.baddbmm(product, factor.transpose(1, 2), wide, beta=float(here.start > 0), out=product)
        found = parts.index_select(0, self._back).view(-1)
        return found if self._places is None else found.index_select(0, self._places)

    def _multiply(self, factor: Tensor, matrices: Sequence[Tensor], axis: int) -> Tensor:
        """Multiply (batch, columns or rows) with matrices (lines, blocks * side across, side), one per group.

        Returns:
            (batch, rows or columns); axis says which.
        """
        ordered, side = self._sides[axis], self.size[axis]
        result = factor.new_empty(len(factor), self.grid[axis] * side)
        across, lines = self._in_blocks(factor, 1 - axis), result.view(-1, side)
        for here in self._slices(len(factor)):
            batch = here.stop - here.start
            found = factor.new_empty(len(ordered.lines) + ordered.has_empty, batch, side)
            gathered = self._gathered_blocks(across, here, axis)
            outputs = found[: len(ordered.lines)].split(self._lines_of[axis])
            for matrix, blocks, output in zip(matrices, gathered, outputs, strict=True):
                torch.bmm(blocks, matrix, out=output)
            if ordered.has_empty:
                found[-1].zero_()
            within = lines[here.start * self.grid[axis] : here.stop * self.grid[axis]]
            torch.index_select(found.view(-1, side), 0, self._sources("place", axis, batch), out=within)
        return result[:, : self.shape[axis]].clone() if self._missing(axis) else result  # no view: see `sparse_linear`

    def _divided(self, parts: Tensor, axis: int) -> list[tuple[int, Tensor]]:
        """Divide ordered parts into each group's: (number of lines, parts)."""
        sizes = [blocks * self.size[0] for blocks in self._blocks_of[axis]]
        return list(zip(self._lines_of[axis], parts.split(sizes), strict=True))

    def _in_blocks(self, tensor: Tensor, axis: int) -> Tensor:
        """Divide (batch, rows or columns) into blocks: (batch * lines, side)."""
        padded = F.pad(tensor, (0, missing)) if (missing := self._missing(axis)) else tensor
        return padded.reshape(-1, self.size[axis])

    def _gathered(self, blocks: Tensor, here: slice, of: str, axis: int) -> Tensor:
        """Gather the blocks (batch * lines, side) of inputs that products need, in their order."""
        grid = self.grid[axis if of == "lines" else 1 - axis]
        within = blocks[here.start * grid : here.stop * grid]
        return within.index_select(0, self._sources(of, axis, here.stop - here.start))

    def _gathered_blocks(self, blocks: Tensor, here: slice, axis: int) -> list[Tensor]:
        """Gather the inputs' blocks side by side: (lines, batch, blocks * side across) for each group."""
        batch = here.stop - here.start
        parts = self._gathered(blocks, here, "blocks", axis).split([number * batch for number in self._blocks_of[axis]])
        return [part.view(lines, batch, -1) for part, lines in zip(parts, self._lines_of[axis], strict=True)]

    def _sources(self, of: str, axis: int, batch: int) -> Tensor:
        """Return the order in which blocks of a batch are gathered, int32; made once for each batch size.

        Args:
            of: "lines": (lines with blocks, batch); "blocks": (lines, batch, blocks), group by group; both index
                (batch, lines or blocks across). "place": (batch, lines), indexes (lines with blocks, batch).
            axis: 0 for block rows, 1 for block columns.
            batch: number of inputs.
        """
        if (key := (of, axis, batch)) not in self._made_sources:
            ordered, each = self._sides[axis], torch.arange(batch, device=self.index.device)
            if of == "place":
                index = ordered.place * batch + each[:, None]
            elif of == "lines":
                index = ordered.lines[:, None] + self.grid[axis] * each
            else:
                start = self.grid[1 - axis] * each[:, None]
                blocks = [ordered.across[g.here].view(-1, 1, g.blocks) + start for g in ordered.groups]
                index = torch.cat([block.view(-1) for block in blocks])
            if len(self._made_sources) > 12:  # those of two batch sizes and their last slices
                self._made_sources.clear()
            self._made_sources[key] = index.view(-1).int()
        return self._made_sources[key]

    def _parts(self, values: Tensor) -> Tensor:
        """Pad the values, and divide them into parts: (blocks * rows, columns of a block)."""
        if self._places is not None:
            padded = values.new_zeros(len(self._back) * self.size[1])
            values = padded.index_copy(0, self._places, values)
        return values.view(-1, self.size[1])

    def _missing(self, axis: int) -> int:
        return self.grid[axis] * self.size[axis] - self.shape[axis]

    def _slices(self, batch: int) -> Iterator[slice]:
        """Divide a batch into slices that fit the cache, equal ones if possible, as each size has orders of its own."""
        number = max(1, round(batch / max(128, AT_ONCE // (4 * max(self.shape)))))
        step = math.ceil(max(1, batch) / next((n for n in range(number, 2 * number) if batch % n == 0), number))
        yield from (slice(start, min(start + step, batch)) for start in range(0, batch, step))


def _firsts(counts: Tensor) -> Tensor:
    """Return where each line's blocks start, given their numbers (lines,)."""
    return counts.cumsum(0) - counts
