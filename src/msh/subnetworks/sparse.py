"""Compute linear layers with a sparse weight's values alone, where that costs less."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from msh.compat import Loadable, is_exporting, is_transformed, version_of

SMALLEST = 2**18
"""Matrix size in weights below which a dense product costs less, however sparse."""
DENSEST = 0.125
"""Density above which a dense product costs less."""
CACHED = 2**23
"""Bytes of layer outputs that fit the cache; larger ones make a sparse product slow."""
BLOCK = 2**21
"""Bytes of layer inputs that a sparse product reads at a time."""
PARALLEL = 2**17
"""Number of elements from which several threads transpose a matrix faster."""


@dataclass(frozen=True)
class Block:
    """Neighbouring columns of a sparse matrix, in CSR.

    Attributes:
        columns: slice of the matrix's columns.
        values: slice of the ordered values.
        starts: int32, (rows + 1,).
        column: int32, (values,), counted from the block's first column.
    """

    columns: slice
    values: slice
    starts: Tensor
    column: Tensor


@dataclass(frozen=True)
class Blocks:
    """A sparse matrix in blocks whose products stay in the cache.

    Attributes:
        rows: number of rows.
        order: int64, (k,): index of the blocks' values among the matrix's; None if they are in order.
        parts: from left to right.
        last: CSR matrices of the last values, if these are in order.
    """

    rows: int
    order: Tensor | None
    parts: list[Block]
    last: list[Tensor] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the last CSR matrices, which torch cannot copy."""
        return {**vars(self), "last": []}

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """Multiply with (batch, columns) transposed: (rows, batch)."""
        if len(dense) == 1 and len(self.parts) == 1:  # MKL takes a third of the time for a vector
            return (self._matrices(values)[0] @ dense[0]).unsqueeze(1)
        product = dense.new_empty(self.rows, len(dense))
        for i, (matrix, part) in enumerate(zip(self._matrices(values), self.parts, strict=True)):
            torch.addmm(product, matrix, self._factor(dense, part), beta=float(i > 0), out=product)
        return product

    def sampled(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply (batch, rows) transposed and (batch, columns), only at the matrix's indices: (k,)."""
        values, rows = left.new_zeros(self.parts[-1].values.stop), transposed(left)
        for part in self.parts:
            matrix = self._matrix(part, values)  # in place, as torch copies the indices otherwise
            columns = self._factor(right, part)
            torch.sparse.sampled_addmm(matrix, rows, columns.t(), beta=0.0, out=matrix)
        return values if self.order is None else torch.empty_like(values).index_copy_(0, self.order, values)

    def _factor(self, dense: Tensor, part: Block) -> Tensor:
        return transposed(dense if len(self.parts) == 1 else dense[:, part.columns])

    def _matrices(self, values: Tensor) -> list[Tensor]:
        """Convert the blocks to CSR; where values are in order, they share their memory and are made once."""
        if self.order is not None:
            ordered = values.index_select(0, self.order)
            return [self._matrix(part, ordered) for part in self.parts]
        if not self.last or self.last[0].values().data_ptr() != values.data_ptr():
            self.last[:] = [self._matrix(part, values) for part in self.parts]
        return self.last

    def _matrix(self, part: Block, ordered: Tensor) -> Tensor:
        shape = (self.rows, part.columns.stop - part.columns.start)
        values = ordered[part.values]
        return torch.sparse_csr_tensor(part.starts, part.column, values, shape, check_invariants=False)


def _blocks(row: Tensor, column: Tensor, shape: tuple[int, int], number: int) -> Blocks:
    """Divide values into blocks; their rows and columns are int64, (k,)."""
    rows, columns = shape
    edges = [columns * i // number for i in range(number + 1)]
    which = torch.bucketize(column, torch.tensor(edges[1:]), right=True)
    order = (which * rows + row).argsort(stable=True) if number > 1 or bool((row.diff() < 0).any()) else None
    if order is not None:
        row, column, which = row[order], column[order], which[order]
    ends = [0, *torch.bincount(which, minlength=number).cumsum(0).tolist()]
    parts = []
    for i in range(number):
        columns_here, here = slice(edges[i], edges[i + 1]), slice(ends[i], ends[i + 1])
        parts.append(Block(columns_here, here, _starts(row[here], rows), (column[here] - edges[i]).int()))
    return Blocks(rows, order, parts)


class Pattern:
    """Indices of a sparse matrix's values.

    Args:
        index: int64, (k,), flat indices in rising order.
        shape: (rows, columns) of the matrix.

    The derived tensors are int32, which the MKL's sparse products need.

    Attributes:
        handle: int64, (), on the CPU: names this object in compiled graphs, which hold tensors alone.
    """

    def __init__(self, index: Tensor, shape: Sequence[int]) -> None:
        _silence_beta_warning()
        self._index: Tensor | None = index
        self.shape = (int(shape[0]), int(shape[1]))
        self._laid_out: dict[tuple[bool, int], Blocks] = {}
        self.handle = self._registered()

    def _registered(self) -> Tensor:
        number = next(_NUMBERS)
        _PATTERNS[number] = self
        return torch.tensor(number)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy a handle of its own."""
        vars(self).update(state, handle=self._registered())

    @property
    def index(self) -> Tensor:
        """The flat indices, int64 (k,), rising."""
        if self._index is not None:
            return self._index
        [block] = self._laid_out[False, 1].parts
        row = torch.arange(self.shape[0]).repeat_interleave(block.starts.diff())
        return row * self.shape[1] + block.column

    def compress(self) -> None:
        """Keep the rows' starts and the columns in place of the indices, which take twice the memory."""
        self._lay_out(False, 1)
        self._index = None

    def fix(self, values: Tensor) -> None:
        """Prepare for values (k,) that never change."""
        self.compress()

    def scattered(self, values: Tensor) -> Tensor:
        """Write values (k,) at the indices into zeros: (rows, columns)."""
        made = values.new_zeros(math.prod(self.shape))
        return made.index_copy_(0, self.index.to(values.device), values).view(self.shape)

    def suits(self, inputs: Tensor) -> bool:
        """Return True if the sparse product costs less than the dense one for these inputs (*batch, columns)."""
        rows = inputs.numel() // self.shape[1]
        return (
            0 < 4 * rows * self.shape[0] <= CACHED
            and inputs.dtype == torch.float32
            and inputs.is_cpu
            and not torch.is_autocast_enabled("cpu")
        )

    def along_batch(self, inputs: Tensor) -> bool:
        """Return True if the memory of the outputs for these inputs (*batch, columns) is to run along the batch."""
        return True

    def outputs(self, inputs: Tensor, values: Tensor, bias: Tensor | None, along_batch: bool) -> Tensor:
        """Compute the outputs from inputs (batch, columns): (rows, batch) if along the batch, else (batch, rows)."""
        outputs = self.matrix(len(inputs)).times(values, inputs)
        return outputs if bias is None else outputs.add_(bias.unsqueeze(1))

    def gradients(
        self, gradient: Tensor, inputs: Tensor, values: Tensor, of_inputs: bool, of_values: bool, along_batch: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradients of inputs (batch, columns) and values (k,) from the outputs' (batch, rows)."""
        back = laid_out_as(inputs, self.transposed(len(gradient)).times(values, gradient)) if of_inputs else None
        return back, self.matrix(len(gradient)).sampled(gradient, inputs) if of_values else None

    def matrix(self, batch: int) -> Blocks:
        """Divide the matrix into blocks for products with (batch, columns) transposed."""
        return self._blocks(False, batch)

    def transposed(self, batch: int) -> Blocks:
        """Divide the transposed matrix into blocks for products with (batch, rows) transposed."""
        return self._blocks(True, batch)

    def _blocks(self, across: bool, batch: int) -> Blocks:
        columns = self.shape[0 if across else 1]
        number = 1
        while number < columns and 4 * columns * batch > number * BLOCK:  # powers of two: few layouts for all batches
            number *= 2
        return self._lay_out(across, number)

    def _lay_out(self, across: bool, number: int) -> Blocks:
        """Divide the matrix, or the transposed one, into a number of blocks; each layout is made once."""
        if (across, number) not in self._laid_out:
            index = self.index
            row, column = index // self.shape[1], index % self.shape[1]
            if across:
                row, column = column, row
            self._laid_out[across, number] = _blocks(row, column, self.shape[::-1] if across else self.shape, number)
        return self._laid_out[across, number]


_PATTERNS: WeakValueDictionary[int, Pattern] = WeakValueDictionary()
"""Number in a handle to its pattern."""
_NUMBERS = count()


@cache
def _silence_beta_warning() -> None:
    """Trigger and ignore torch's one warning that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def _starts(which: Tensor, lines: int) -> Tensor:
    counts = torch.bincount(which, minlength=lines)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def has_sparse_products(values: Tensor) -> bool:
    """Return True if MKL multiplies CSR matrices of these values' type, where they are."""
    return values.device.type == "cpu" and values.dtype == torch.float32 and torch.backends.mkl.is_available()


def may_be_sparse(shape: Sequence[int], values: Tensor, kept: int) -> bool:
    """Return True if a weight's device, type, size and density let a sparse form cost less than the dense one.

    Args:
        shape: of the weight.
        values: for type and device.
        kept: number of values that are not 0.
    """
    size = math.prod(shape)
    return len(shape) == 2 and has_sparse_products(values) and size >= SMALLEST and 0 < kept <= DENSEST * size


class SparseForm:
    """A weight that is 0 outside a pattern, as values or as a dense tensor; each is made when first needed.

    Args:
        pattern: indices of the values.
        sparse: makes the values (k,), in the pattern's order.
        dense: makes the dense tensor (*shape).
    """

    def __init__(self, pattern: Pattern, sparse: Callable[[], Tensor], dense: Callable[[], Tensor]) -> None:
        self.pattern, self.sparse, self.dense = pattern, _once(sparse), _once(dense)


def _once(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Cache a tensor, once with gradients and once without: a reentrant checkpoint first computes without.

    Compiled graphs make it each time: what they leave behind would be one of their outputs.
    """
    cached: dict[bool, Tensor] = {}

    def get() -> Tensor:
        if torch.compiler.is_compiling():
            return make()
        graph = torch.is_grad_enabled()
        if graph not in cached:
            cached[graph] = make()
        return cached[graph]

    return get


class FrozenForm:
    """A frozen weight that is 0 outside a pattern, as values.

    A layer computes with them while its own tensor is the one that they come from, unchanged: one whose tensors are
    loaded, moved to another type or changed in place computes with these as any layer does.

    Args:
        pattern: indices of the values.
        values: (k,), in the pattern's order.
        source: the layer's tensor; None: the values are it.
    """

    def __init__(self, pattern: Pattern, values: Tensor, source: Tensor | None = None) -> None:
        pattern.fix(values)
        self.pattern, self.values, self._source = pattern, values, values if source is None else source
        self._version: int | None = version_of(self._source)

    def sparse(self) -> Tensor:
        """Return the values, (k,)."""
        return self.values

    def dense(self) -> Tensor:
        """Make the dense tensor, (*shape)."""
        return self.pattern.scattered(self.values)

    def is_current(self, source: Tensor) -> bool:
        """Tell whether a layer's tensor is still the one that the values come from."""
        return source is self._source and version_of(source) == self._version

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_version": 0 if self.is_current(self._source) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let a copy belong to the copied tensor, whose count begins anew."""
        vars(self).update(state)
        if self._version is not None:
            self._version = version_of(self._source)


class SparseLinear(Loadable, nn.Linear):
    """Compute with the values of a sparse weight where that costs less.

    Exporters and tracers see the dense weight, and so do transformations of torch.func.
    """

    form = cast(Any, None)  # a form, or the dense tensor; without an annotation, which torch.jit would read

    def forward(self, input: Tensor) -> Tensor:
        """(*batch, columns) to (*batch, rows)."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            form = self.form
            if self._suits(form, input):
                return sparse_linear(input, form.sparse(), form.pattern, self.bias)
        return F.linear(input, self.weight, self.bias)

    def _suits(self, form: Any, input: Tensor) -> bool:
        """Tell whether a form costs less, is not traced, and has the layer's weight, in the input's type."""
        if not costs_less(form, input):
            return False
        if isinstance(form, SparseForm) or torch.compiler.is_compiling():
            return True
        return bool(form.values.dtype == input.dtype and form.is_current(self.source()))

    def source(self) -> Tensor:
        """Return the tensor that a frozen layer's values come from."""
        return self.weight

    def loaded(self) -> None:
        """Drop a form that has not the loaded weight: compiled graphs do not look at it in each call."""
        if isinstance(self.form, FrozenForm) and not self.form.is_current(self.source()):
            vars(self)["form"] = None


class TrainedLinear(SparseLinear):
    """A linear layer whose weight comes from a task's values: in training new ones in each forward pass."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(rows, columns), made on first use."""
        assert self.form is not None
        return self.form.dense() if isinstance(self.form, SparseForm) else self.form


class LeanLinear(SparseLinear):
    """A frozen linear layer that has its weight's values alone, (k,), as buffer `values`."""

    values: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(rows, columns), made on each use."""
        scattered: Tensor = self.form.pattern.scattered(self.values)
        return scattered

    def source(self) -> Tensor:
        """Return the values."""
        return self.values

    def loaded(self) -> None:
        """Keep the form, which has the indices."""


def costs_less(form: Any, inputs: Tensor) -> bool:
    """Tell whether a layer's form is sparse, costs less than the dense weight for these inputs, and is not traced."""
    return isinstance(form, SparseForm | FrozenForm) and not _is_traced(inputs) and form.pattern.suits(inputs)


def _is_traced(inputs: Any) -> bool:
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if torch.compiler.is_compiling():
        return bool(tracing or is_exporting())
    return bool(tracing or isinstance(inputs, fx.Proxy) or is_transformed())


def sparse_linear(inputs: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer whose weight has these values at the pattern's indices and 0 elsewhere.

    The cost grows with the number of values: the outputs and the inputs' gradient are sparse products, and the
    weight's gradient is computed only at the pattern's indices.

    Args:
        inputs: (*batch, columns).
        values: (k,).
        pattern: indices in a (rows, columns) matrix.
        bias: (rows,) or None.
    Returns:
        (*batch, rows). With one batch dimension its memory may run along the batch, which suits the next CSR product.
    """
    flat = inputs.reshape(-1, pattern.shape[1])
    along_batch = pattern.along_batch(inputs)
    if torch.compiler.is_compiling():
        outputs: Tensor = torch.ops.msh.sparse_linear(flat, values, pattern.handle, pattern.shape[0], along_batch)
        if bias is not None:  # outside, where it fuses with what follows
            outputs = outputs + (bias.unsqueeze(1) if along_batch else bias)
    elif torch.is_grad_enabled():
        outputs = _SparseLinear.apply(flat, values, bias, pattern, along_batch)
    else:
        outputs = pattern.outputs(flat, values, bias, along_batch)
    if along_batch:
        outputs = outputs.t()  # here, not in the function: the next layer may change a view that autograd has made
    return outputs if inputs.dim() == 2 else outputs.reshape(*inputs.shape[:-1], pattern.shape[0])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, along_batch: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, values)
        ctx.pattern, ctx.along_batch = pattern, along_batch
        return pattern.outputs(inputs, values, bias, along_batch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, values), pattern = ctx.saved_tensors, ctx.pattern
        gradient = gradient.t() if ctx.along_batch else gradient  # (batch, rows)
        of_inputs, of_values, of_bias, *_ = ctx.needs_input_grad
        bias = gradient.sum(0) if of_bias else None
        if torch.is_grad_enabled():  # this backward pass is to be differentiated itself
            return *dense_backward(inputs, values, pattern, gradient), bias, None, None
        back, found = pattern.gradients(gradient, inputs, values, of_inputs, of_values, ctx.along_batch)
        return back, found, bias, None, None


def transposed(matrix: Tensor) -> Tensor:
    """Transpose to (columns, rows), contiguous, without a copy where possible."""
    turned = matrix.t()
    if turned.is_contiguous() or turned.numel() < PARALLEL:
        return turned.contiguous()
    image = matrix[None, :, :, None].contiguous(memory_format=torch.channels_last)  # torch copies these in parallel
    return image[0, :, :, 0].t()


def laid_out_as(like: Tensor, turned: Tensor) -> Tensor:
    """Turn (columns, batch) to (batch, columns), with its memory in the order of the other tensor's."""
    return transposed(turned) if like.is_contiguous() else turned.t()


def dense_backward(inputs: Tensor, values: Tensor, pattern: Pattern, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of inputs and values from the outputs' (batch, rows), such that they can be derived."""
    weight = values.new_zeros(pattern.shape).view(-1).index_copy(0, pattern.index, values).view(pattern.shape)
    return gradient @ weight, (gradient.t() @ inputs).take(pattern.index)


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.index = index  # not saved: gradient checkpointing may run this node twice
        ctx.shape = values.shape
        return values.take(index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(ctx.shape).view(-1).index_copy(0, ctx.index, gradient).view(ctx.shape), None


def taken_values(values: Tensor, index: Tensor) -> Tensor:
    """Take the elements at flat indices: (k,); the gradient has the tensor's shape, 0 elsewhere."""
    taken: Tensor = _Taken.apply(values, index)
    return taken


# ---- the same as operations of torch's, for compiled graphs

OPERATIONS = torch.library.Library("msh", "DEF")
OPERATIONS.define("sparse_linear(Tensor inputs, Tensor values, Tensor handle, SymInt rows, bool along_batch) -> Tensor")
OPERATIONS.define(
    "sparse_linear_backward(Tensor gradient, Tensor inputs, Tensor values, Tensor handle, bool along_batch, "
    "bool of_inputs, bool of_values) -> (Tensor, Tensor)"
)


@torch.library.impl(OPERATIONS, "sparse_linear", "CompositeExplicitAutograd")
def _outputs(inputs: Tensor, values: Tensor, handle: Tensor, rows: int, along_batch: bool) -> Tensor:
    return _PATTERNS[int(handle)].outputs(inputs, values, None, along_batch)


@torch.library.register_fake("msh::sparse_linear", lib=OPERATIONS)  # type: ignore[untyped-decorator]
def _outputs_laid_out(inputs: Tensor, values: Tensor, handle: Tensor, rows: int, along_batch: bool) -> Tensor:
    return inputs.new_empty((rows, len(inputs)) if along_batch else (len(inputs), rows))


@torch.library.impl(OPERATIONS, "sparse_linear_backward", "CompositeExplicitAutograd")
def _gradients(
    gradient: Tensor,
    inputs: Tensor,
    values: Tensor,
    handle: Tensor,
    along_batch: bool,
    of_inputs: bool,
    of_values: bool,
) -> tuple[Tensor, Tensor]:
    back, found = _PATTERNS[int(handle)].gradients(gradient, inputs, values, of_inputs, of_values, along_batch)
    return gradient.new_empty(0) if back is None else back, gradient.new_empty(0) if found is None else found


@torch.library.register_fake("msh::sparse_linear_backward", lib=OPERATIONS)  # type: ignore[untyped-decorator]
def _gradients_laid_out(
    gradient: Tensor,
    inputs: Tensor,
    values: Tensor,
    handle: Tensor,
    along_batch: bool,
    of_inputs: bool,
    of_values: bool,
) -> tuple[Tensor, Tensor]:
    back = gradient.new_empty(0)
    if of_inputs and along_batch and not inputs.is_contiguous():
        back = inputs.new_empty(inputs.shape[::-1]).t()
    elif of_inputs:
        back = inputs.new_empty(inputs.shape)
    return back, values.new_empty(values.shape if of_values else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, values, handle, _, ctx.along_batch = inputs
    ctx.save_for_backward(features, values, handle)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs, values, handle = ctx.saved_tensors
    gradient = gradient.t() if ctx.along_batch else gradient  # (batch, rows)
    of_inputs, of_values, *_ = ctx.needs_input_grad
    back, found = torch.ops.msh.sparse_linear_backward(
        gradient, inputs, values, handle, ctx.along_batch, of_inputs, of_values
    )
    return back if of_inputs else None, found if of_values else None, None, None, None


torch.library.register_autograd("msh::sparse_linear", _backward, setup_context=_save, lib=OPERATIONS)
