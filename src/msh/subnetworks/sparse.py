"""A weight in sparse form: where that costs less, a linear layer computes with the values alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

SMALLEST = 2**18
"""Weights of a matrix below which a dense product costs less, however sparse."""
DENSEST = 0.125
"""Density above which a dense product costs less."""
CACHED = 2**23
"""Bytes of activations that stay in the cache; a sparse product picks from more than that too slowly."""


class Pattern:
    """Places of a sparse matrix's values.

    Args:
        index: int64, (k,), flat places in rising order.
        shape: (rows, columns) of the matrix.

    The derived tensors are int32, as the sparse products of the MKL want them.
    """

    def __init__(self, index: Tensor, shape: Sequence[int]) -> None:
        _take_notice()
        self.index = index
        self.shape = (int(shape[0]), int(shape[1]))

    @cached_property
    def by_row(self) -> tuple[Tensor, Tensor]:
        """(starts (rows + 1,), column of each value (k,)): the matrix in CSR."""
        return _starts(self.index // self.shape[1], self.shape[0]), (self.index % self.shape[1]).int()

    @cached_property
    def order(self) -> Tensor:
        """int64, (k,): the values' places in the order of the transposed matrix."""
        return (self.index % self.shape[1]).argsort(stable=True)

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor]:
        """(starts (columns + 1,), row of each value (k,)): the transposed matrix in CSR."""
        rows = (self.index // self.shape[1])[self.order].int()
        return _starts(self.index % self.shape[1], self.shape[1]), rows

    @cached_property
    def nothing(self) -> Tensor:
        """(k,) zeros: the values of a matrix of which only the places count."""
        return torch.zeros(self.index.numel())

    def matrix(self, values: Tensor) -> Tensor:
        """(rows, columns), sparse CSR."""
        return torch.sparse_csr_tensor(*self.by_row, values, self.shape, check_invariants=False)

    def transposed(self, values: Tensor) -> Tensor:
        """(columns, rows), sparse CSR."""
        ordered, shape = values.index_select(0, self.order), self.shape[::-1]
        return torch.sparse_csr_tensor(*self.by_column, ordered, shape, check_invariants=False)


@cache
def _take_notice() -> None:
    """Let torch say once, unheard, that its CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def _starts(which: Tensor, lines: int) -> Tensor:
    counts = torch.bincount(which, minlength=lines)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def may_be_sparse(shape: Sequence[int], values: Tensor, kept: int) -> bool:
    """Whether a sparse form of a weight can cost less than the dense one: a question of place, size and density.

    Args:
        shape: of the weight.
        values: for its type and device.
        kept: number of its values that are not 0.
    """
    size = math.prod(shape)
    return (
        len(shape) == 2
        and values.device.type == "cpu"
        and values.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and size >= SMALLEST
        and 0 < kept <= DENSEST * size
    )


class SparseWeight(Tensor):
    """Stands for a weight that is 0 outside a pattern.

    A linear layer computes with the values where that costs less. Any other operation, and a linear layer
    where it does not, gets the dense tensor, which is made when it is first asked for.
    """

    pattern: Pattern
    sparse: Callable[[], Tensor]
    dense: Callable[[], Tensor]

    @classmethod
    def of(
        cls, like: Tensor, pattern: Pattern, sparse: Callable[[], Tensor], dense: Callable[[], Tensor]
    ) -> SparseWeight:
        """Make one.

        Args:
            like: (*shape), what it looks like to those who ask for its shape, type or device.
            pattern: places of the values.
            sparse: makes the values (k,), in the pattern's order.
            dense: makes the dense tensor (*shape).
        """
        weight = like.detach().as_subclass(cls)
        weight.pattern, weight.sparse, weight.dense = pattern, _once(sparse), _once(dense)
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take part in linear layers; send the dense tensor to all else."""
        kwargs = kwargs or {}
        if func is F.linear:
            inputs, weight, bias = _linear_arguments(*args, **kwargs)
            if isinstance(weight, cls) and not isinstance(inputs, cls) and weight._suits(inputs):
                return sparse_linear(inputs, weight.sparse(), weight.pattern, bias)
        args, kwargs = tree_map(_made_dense, (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)

    def _suits(self, inputs: Tensor) -> bool:
        """Whether the sparse product costs less than the dense one, with this many inputs."""
        with torch._C.DisableTorchFunctionSubclass():
            rows = inputs.numel() // self.pattern.shape[1]
            cached = 4 * rows * max(self.pattern.shape) <= CACHED
            return (
                rows > 0
                and cached
                and inputs.dtype == torch.float32
                and inputs.device.type == "cpu"
                and not torch.is_autocast_enabled("cpu")
            )


def _once(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
    made: list[Tensor] = []

    def get() -> Tensor:
        if not made:
            made.append(make())
        return made[0]

    return get


def _linear_arguments(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    return input, weight, bias


def _made_dense(argument: Any) -> Any:
    return argument.dense() if isinstance(argument, SparseWeight) else argument


def sparse_linear(inputs: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose weight has these values at the pattern's places and 0 elsewhere.

    The work grows with the number of values: forward and for the inputs' gradient it is a sparse product, and
    of the weight's gradient only the kept places are computed.

    Args:
        inputs: (*batch, columns).
        values: (k,).
        pattern: places in a (rows, columns) matrix.
        bias: (rows,) or None.
    Returns:
        (*batch, rows). With one batch dimension its memory runs along the batch, as the next sparse product likes it.
    """
    flat = inputs.reshape(-1, pattern.shape[1])
    outputs: Tensor = _SparseLinear.apply(flat, values, bias, pattern)
    return outputs if inputs.dim() == 2 else outputs.reshape(*inputs.shape[:-1], pattern.shape[0])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(inputs, values)
        ctx.pattern = pattern
        outputs = pattern.matrix(values) @ inputs.t().contiguous()
        return (outputs if bias is None else outputs.add_(bias.unsqueeze(1))).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, values = ctx.saved_tensors
        of_inputs, of_values, of_bias, _ = ctx.needs_input_grad
        bias = gradient.sum(0) if of_bias else None
        if torch.is_grad_enabled():  # this backward pass is to be differentiated itself
            return *_dense_backward(inputs, values, ctx.pattern, gradient), bias, None
        across = gradient.t().contiguous()
        back = (ctx.pattern.transposed(values) @ across).t() if of_inputs else None
        return back, _sampled(ctx.pattern, across, inputs) if of_values else None, bias, None


def _sampled(pattern: Pattern, across: Tensor, inputs: Tensor) -> Tensor:
    """(k,): the product of (rows, batch) and (batch, columns), only at the pattern's places."""
    places = pattern.matrix(pattern.nothing)
    product: Tensor = torch.sparse.sampled_addmm(places, across, inputs, beta=0.0)
    return product.values()


def _dense_backward(inputs: Tensor, values: Tensor, pattern: Pattern, gradient: Tensor) -> tuple[Tensor, Tensor]:
    weight = values.new_zeros(pattern.shape).view(-1).index_copy(0, pattern.index, values).view(pattern.shape)
    return gradient @ weight, (gradient.t() @ inputs).take(pattern.index)


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = values.shape
        return values.take(index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).view(-1).index_copy(0, index, gradient).view(ctx.shape), None


def taken_values(values: Tensor, index: Tensor) -> Tensor:
    """(k,): what stands at flat places of a tensor; going backward, a gradient of the tensor's shape, 0 elsewhere."""
    found: Tensor = _Taken.apply(values, index)
    return found
