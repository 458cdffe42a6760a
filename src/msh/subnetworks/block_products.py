"""Compute linear layers with the blocks of a weight alone, by batched products, where that costs less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msh.subnetworks.blocks import BlockSize, block_mask, grid, whole_blocks
from msh.subnetworks.sparse import SMALLEST, Pattern, has_sparse_products, laid_out_as, transposed

SHORTEST, FEWEST = 8, 512
"""Shortest side, and fewest weights, of a block with which these products cost less than others."""
SMALL, MANY = 2**17, 32
"""Matrix size in weights from which these products cost less than a dense one with at least so many inputs."""
FULLEST = 0.25
"""Share of weights above which a dense product costs less."""
AT_ONCE = 2**21
"""Bytes of a layer's inputs or outputs that are computed at a time, so that they stay in the cache."""
PER_BLOCK = 1024
"""Inputs from which a product per block, where inputs and outputs lie in memory, costs less on a CPU than a batch."""


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


class BlockPattern(Pattern):
    """Indices of the blocks of a matrix.

    Values come in the order of their flat indices. The inputs of all blocks are gathered and multiplied in one batched
    product; then the products of each line of blocks are added up. Smaller blocks, at the edges, are padded by 0. For
    many inputs on a CPU, each block is multiplied where its inputs and outputs lie in memory. The same inputs give the
    same bits: no sum depends on the order in which threads finish.

    Args:
        held: bool (rows, columns), all weights of some blocks.
        index: int64 (k,), its flat indices in rising order.
        size: rows and columns of a block.
    """

    def __init__(self, held: Tensor, index: Tensor, size: BlockSize) -> None:
        super().__init__(index, held.shape)
        self.size, self.grid = size, grid(held.shape, size)
        self._fixed: Tensor | None = None
        self._made_sources: dict[tuple[int, int], Tensor] = {}
        blocks = whole_blocks(held, size)
        row, column = blocks.nonzero(as_tuple=True)
        self._lines = row, column  # (blocks,): each block's row and column of blocks
        self._pairs = list(zip(row.tolist(), column.tolist(), strict=True)) if held.is_cpu else []
        self._members = None if held.is_cpu else [_members(*each) for each in zip(self._lines, self.grid, strict=True)]
        width = blocks.sum(1)
        first = (width.cumsum(0) - width)[row]  # of each block's row
        left = torch.arange(len(row), device=held.device) - first
        number = torch.arange(size[0], device=held.device)
        # (blocks, rows of a block), among all blocks' rows: those of rows above, then those in the same row to the left
        part = (first * size[0] + left)[:, None] + number * width[row, None]
        self._order, self._back = part.view(-1), part.view(-1).argsort()
        padded = [lines * side for lines, side in zip(self.grid, size, strict=True)]
        within = F.pad(held, (0, padded[1] - held.shape[1], 0, padded[0] - held.shape[0]))
        places = within[block_mask(blocks, padded, size)].nonzero().squeeze(1)  # (k,)
        self._places = None if len(places) == len(row) * math.prod(size) else places

    def fix(self, values: Tensor) -> None:
        """Arrange the values (k,) of a weight that never changes once."""
        self._fixed = self._matrices(values)

    def suits(self, inputs: Tensor) -> bool:
        """Return True if products with the blocks cost less for these inputs (*batch, columns)."""
        kind, rows = inputs.device.type, inputs.numel() // self.shape[1]
        enough = rows >= MANY or (rows > 0 and math.prod(self.shape) >= SMALLEST)
        return enough and inputs.device == self.index.device and not torch.is_autocast_enabled(kind)

    def along_batch(self, inputs: Tensor) -> bool:
        """Return True for matrices that fit the cache: a block's numbers are neighbours then, and quickly gathered.

        Inputs of more dimensions would be turned before and after each layer, as norms and attention need them.
        """
        return inputs.dim() <= 2 and 4 * max(self.shape) * (inputs.numel() // self.shape[1]) <= AT_ONCE

    def outputs(self, inputs: Tensor, values: Tensor, bias: Tensor | None, along_batch: bool) -> Tensor:
        """Compute the outputs from inputs (batch, columns)."""
        if len(inputs) == 1 and has_sparse_products(values):
            outputs = super().outputs(inputs, values, bias, along_batch=True)
            return outputs if along_batch else outputs.t().clone()  # no view: see `sparse_linear`
        matrices = self._matrices(values) if self._fixed is None else self._fixed
        if self._per_block(len(inputs), along_batch):
            outputs = inputs.new_empty(len(inputs), self.shape[0])
            for here in self._slices(len(inputs), along_batch):
                self._write_each(outputs[here], matrices, inputs[here], 0)
            return outputs if bias is None else outputs.add_(bias)
        outputs = self._new(inputs, 0, along_batch)
        for here in self._slices(len(inputs), along_batch):
            self._add_products(outputs, matrices, self._gathered(inputs, here, 1, along_batch), here, 0, along_batch)
        outputs = self._trimmed(outputs, 0, along_batch)
        return outputs if bias is None else outputs.add_(bias.unsqueeze(1) if along_batch else bias)

    def gradients(
        self, gradient: Tensor, inputs: Tensor, values: Tensor, of_inputs: bool, of_values: bool, along_batch: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradients of inputs (batch, columns) and values (k,) from the outputs' (batch, rows)."""
        if self._per_block(len(inputs), along_batch):
            return self._gradients_per_block(gradient, inputs, values, of_inputs, of_values)
        back, matrices, products = None, None, None
        if of_inputs:
            back, matrices = self._new(gradient, 1, along_batch), self._matrices(values).transpose(1, 2)
        for here in self._slices(len(inputs), along_batch):
            left = self._gathered(gradient, here, 0, along_batch)
            if back is not None and matrices is not None:
                self._add_products(back, matrices, left, here, 1, along_batch)
            if of_values:
                right = self._gathered(inputs, here, 1, along_batch).transpose(1, 2)
                products = torch.bmm(left, right) if products is None else products.baddbmm_(left, right)
        if back is not None:
            back = self._trimmed(back, 1, along_batch)
            back = laid_out_as(inputs, back) if along_batch else back
        return back, None if products is None else self._values(products)

    def _per_block(self, batch: int, along_batch: bool) -> bool:
        return bool(self._pairs) and batch >= PER_BLOCK and not along_batch

    def _gradients_per_block(
        self, gradient: Tensor, inputs: Tensor, values: Tensor, of_inputs: bool, of_values: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute `gradients` with a product per block."""
        matrices = self._matrices(values).transpose(1, 2)
        back = torch.empty_like(inputs, memory_format=torch.contiguous_format) if of_inputs else None
        products = torch.zeros_like(matrices)
        for here in self._slices(len(inputs), False):
            if back is not None:
                self._write_each(back[here], matrices, gradient[here], 1)
            if of_values:
                self._add_weights(products, gradient[here], inputs[here])
        return back, self._values(products.transpose(1, 2).contiguous()) if of_values else None

    def _write_each(self, result: Tensor, matrices: Tensor, tensor: Tensor, axis: int) -> None:
        """Multiply each block (side, side across) with its columns of (batch, lines across), and add up by line.

        Args:
            result: (batch, rows) for axis 0, (batch, columns) for axis 1; written wholly.
            matrices: (blocks, side, side across).
            tensor: (batch, columns) for axis 0, (batch, rows) for axis 1.
            axis: in which blocks write.
        """
        into, across = result.split(self.size[axis], 1), tensor.split(self.size[1 - axis], 1)
        empty = set(range(len(into)))
        for pair, matrix in zip(self._pairs, matrices, strict=True):
            target, source = into[pair[axis]], across[pair[1 - axis]]
            matrix = matrix[: target.shape[1], : source.shape[1]].t()
            if pair[axis] in empty:
                torch.mm(source, matrix, out=target)
                empty.remove(pair[axis])
            else:
                target.addmm_(source, matrix)
        for line in empty:
            into[line].zero_()

    def _add_weights(self, products: Tensor, gradient: Tensor, inputs: Tensor) -> None:
        """Add each block's gradient to products (blocks, columns, rows), from (batch, rows) and (batch, columns)."""
        rows, columns = gradient.split(self.size[0], 1), inputs.split(self.size[1], 1)
        for (row, column), product in zip(self._pairs, products, strict=True):
            left, right = columns[column], rows[row]
            product[: left.shape[1], : right.shape[1]].addmm_(left.t(), right)

    def _matrices(self, values: Tensor) -> Tensor:
        """Arrange values (k,) by block: (blocks, rows, columns)."""
        if self._places is not None:
            padded = values.new_zeros(len(self._order) * self.size[1])
            values = padded.index_copy(0, self._places, values)
        return values.view(-1, self.size[1]).index_select(0, self._order).view(-1, *self.size)

    def _values(self, matrices: Tensor) -> Tensor:
        """Undo `_matrices`."""
        values = matrices.view(-1, self.size[1]).index_select(0, self._back).view(-1)
        return values if self._places is None else values.index_select(0, self._places)

    def _gathered(self, tensor: Tensor, here: slice, axis: int, along_batch: bool) -> Tensor:
        """Gather each block's rows or columns, axis says which, of a slice of (batch, rows or columns).

        Returns:
            (blocks, side, slice of the batch); its memory runs along the batch or along the side.
        """
        side, missing, lines = self.size[axis], self._missing(axis), self._lines[axis]
        if along_batch:
            turned = F.pad(transposed(tensor), (0, 0, 0, missing)) if missing else transposed(tensor)
            return turned.view(self.grid[axis], -1).index_select(0, lines).view(len(lines), side, -1)
        padded = F.pad(tensor[here], (0, missing)) if missing else tensor[here]
        source = self._source(axis, len(padded))
        return padded.reshape(-1, side).index_select(0, source).view(len(lines), -1, side).transpose(1, 2)

    def _new(self, like: Tensor, axis: int, along_batch: bool) -> Tensor:
        """Make room for (rows or columns, batch), or (batch, rows or columns), with what is padded."""
        length = self.grid[axis] * self.size[axis]
        return like.new_zeros(length, len(like)) if along_batch else like.new_empty(len(like), length)

    def _add_products(
        self, result: Tensor, matrices: Tensor, gathered: Tensor, here: slice, axis: int, along_batch: bool
    ) -> None:
        """Multiply (blocks, side, side across) with gathered (blocks, side across, batch), and add up by line."""
        lines, side = self.grid[axis], self.size[axis]
        if along_batch:
            self._add_up(result.view(lines, -1), torch.bmm(matrices, gathered).flatten(1), axis)
            return
        products = torch.bmm(gathered.transpose(1, 2), matrices.transpose(1, 2))  # (blocks, batch, side)
        sums = products.new_zeros(lines, products[0].numel())
        self._add_up(sums, products.flatten(1), axis)
        within = result[here].view(-1, side)
        torch.index_select(sums.view(-1, side), 0, self._source(2 + axis, products.shape[1]), out=within)

    def _add_up(self, sums: Tensor, products: Tensor, axis: int) -> None:
        """Add products (blocks, numbers) to the sums (lines, numbers) of their lines."""
        if self._members is None:
            sums.index_add_(0, self._lines[axis], products)
            return
        members = self._members[axis]  # a processor with many threads would add in any order
        padded = torch.cat([products, products.new_zeros(1, products.shape[1])])
        sums += padded.index_select(0, members.view(-1)).view(*members.shape, -1).sum(1)

    def _source(self, kind: int, batch: int) -> Tensor:
        """Return an order of the sides of blocks, int32; made once for each batch size.

        Args:
            kind: 0 or 1: the axis by which (blocks, batch) are gathered from (batch, lines); 2 or 3: the axis in which
                (batch, lines) are taken from (lines, batch).
            batch: number of inputs.
        """
        if (kind, batch) not in self._made_sources:
            each = torch.arange(batch, device=self.index.device)
            if kind < 2:
                index = self._lines[kind][:, None] + self.grid[kind] * each
            else:
                index = torch.arange(self.grid[kind - 2], device=self.index.device) * batch + each[:, None]
            if len(self._made_sources) > 8:  # those of two batch sizes: all inputs, and the last ones
                self._made_sources.clear()
            self._made_sources[kind, batch] = index.view(-1).int()
        return self._made_sources[kind, batch]

    def _trimmed(self, result: Tensor, axis: int, along_batch: bool) -> Tensor:
        """Remove what lies beyond the matrix; no view: see `sparse_linear`."""
        length = self.shape[axis]
        if not self._missing(axis):
            return result
        return result.resize_(length, result.shape[1]) if along_batch else result[:, :length].clone()

    def _missing(self, axis: int) -> int:
        return self.grid[axis] * self.size[axis] - self.shape[axis]

    def _slices(self, batch: int, along_batch: bool) -> Iterator[slice]:
        """Divide a batch into slices that fit the cache, equal ones if possible, as each size has orders of its own."""
        least = PER_BLOCK if self._per_block(batch, along_batch) else 128
        number = 1 if along_batch else max(1, round(batch / max(least, AT_ONCE // (4 * max(self.shape)))))
        step = math.ceil(max(1, batch) / next((n for n in range(number, 2 * number) if batch % n == 0), number))
        yield from (slice(start, min(start + step, batch)) for start in range(0, batch, step))


def _members(line: Tensor, lines: int) -> Tensor:
    """List the blocks of each line, given each block's, int64 (blocks,): (lines, most); the rest are len(line)."""
    order = line.argsort(stable=True)
    number = torch.bincount(line, minlength=lines)
    place = torch.arange(len(line), device=line.device) - (number.cumsum(0) - number)[line[order]]
    members = torch.full((lines, int(number.max())), len(line), device=line.device)
    members[line[order], place] = order
    return members
