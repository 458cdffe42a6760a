"""Compute the rows that the entries of an operation's result come from, and unite those that it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from msh.subnetworks.marks import is_torchs
from msh.subnetworks.row_units import ALWAYS, Alike, Along, RowUnits, Still, lean, varies

ELEMENTWISE = (
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "softsign", "tanh"),
    *("sigmoid", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "threshold", "dropout", "alpha_dropout"),
    *("abs", "square", "exp", "neg", "clamp", "pow", "contiguous", "clone", "detach", "float", "half", "double"),
    *("bfloat16", "rsqrt", "sqrt"),
)
"""Functions that treat every entry alike, by their names in torch and torch.nn.functional, or as a tensor's methods."""
CASTS = ("to", "type_as")
"""Those that may have a tensor as their other argument, whose values do not matter."""
BY_ENTRY = (
    *("add", "iadd", "sub", "subtract", "isub", "rsub", "mul", "multiply", "imul", "div", "divide", "true_divide"),
    *("truediv", "where", "masked_fill", "maximum", "minimum"),
)
"""Those that combine tensors, or a tensor and numbers, entry by entry."""
REDUCED = ("mean", "sum", "amax", "amin")
"""Reductions of dimensions."""
MIXED = {"softmax": -1, "log_softmax": -1, "normalize": 1}
"""Functions that keep a shape and compute with all entries along a dimension, to that dimension if none is given."""
NORMALIZED_LAST = ("layer_norm", "rms_norm")
"""Those that do so along the last dimensions, whose sizes they are given."""
POOLS = {f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
"""Name of a pooling to its number of spatial dimensions."""
PRODUCTS = ("matmul", "bmm")
"""Products of matrices."""
ARRANGED = (
    *("flatten", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "movedim", "moveaxis", "repeat"),
    *("repeat_interleave", "get"),
)
"""Functions that only arrange entries, whatever the number of units, and getters of attributes such as `mT`."""
GIVEN_SIZES = ("reshape", "view", "expand", "broadcast_to", "unflatten")
"""Those that are given sizes."""
JOINED = ("cat", "concat", "concatenate", "stack")
"""Those that join tensors."""
PIECES = ("chunk", "split", "unbind")
"""Those that split one."""
SELECTED = ("getitem", "select", "narrow")
"""Those that select entries along dimensions."""


class UnknownEffectError(Exception):
    """An operation has an unknown effect on units; the message names it."""


@dataclass(frozen=True)
class Call:
    """An operation, its arguments and its result.

    Attributes:
        func: the function, as torch dispatches it.
        name: its own, without underscores.
        args, kwargs: its arguments.
        result: a tensor, several of them, or another value.
    """

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Tensors among its arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Tensors of its result."""
        return [leaf for leaf in tree_leaves(self.result) if isinstance(leaf, Tensor)]

    def given(self, key: str, place: int, default: Any = None) -> Any:
        """Return an argument by its name or place."""
        return self.kwargs.get(key, self.args[place] if len(self.args) > place else default)


Shaped = tuple[torch.Size, Tensor | None]
"""A tensor's shape, and its entries' rows; None if all are always there."""


class RowRules:
    """Follow rows through operations on one example."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowUnits()
        self.inside: list[tuple[str, nn.Module]] = []
        """Modules whose forward pass is under way, with their dotted names."""

    def rows_of(self, tensor: Tensor) -> Tensor | None:
        """Return the rows of a tensor's entries; None if all are always there."""
        raise NotImplementedError

    def mixed(self, call: Call, rows: Tensor) -> Tensor:
        """Return the rows of a result that is computed from all entries along dimensions of one activation."""
        name, shape = call.name, call.result.shape
        if name in REDUCED:
            dims, kept = call.given("dim", 1), call.given("keepdim", 2, False)
            dims = [dims] if isinstance(dims, int) else dims
            if not dims:
                raise self.unknown(name)
            each = self.mix(name, rows, dims)
            return (each if kept else each.squeeze(tuple(dims))).expand(shape)
        if rows.dim() == POOLS.get(name, -1) + 2:
            return self.mix(name, rows, range(2, rows.dim())).expand(shape)
        if name in MIXED:
            self.mix(name, rows, [call.given("dim", 2 if name == "normalize" else 1, MIXED[name])])
            return rows
        if name in NORMALIZED_LAST:
            self.mix(name, rows, range(-len(call.given("normalized_shape", 1)), 0))
            return rows
        if name == "glu":
            dim = call.given("dim", 1, -1)
            one, other = rows.chunk(2, dim)
            self.rows.needs.append(Alike(lean(rows), str(self.unknown(name)), dim, 2))
            self.rows.unite(one, other)
            return one
        raise self.unknown(name)

    def mix(self, name: str, rows: Tensor, dims: Iterable[int]) -> Tensor:
        """Unite rows along dimensions, whose sizes become 1; refuse it if that leaves a single unit."""
        each, apart = self.rows.mix(rows, dims, self.where(name))
        if not apart:
            raise self.unknown(name)
        return each

    def by_entry(self, name: str, tensors: Sequence[Shaped], shape: torch.Size) -> Tensor | None:
        """Unite the rows of tensors that are combined entry by entry: gates, residual streams, numbers per unit.

        Args:
            name: of the operation.
            tensors: the shape of each, and its rows; these broadcast to the shape.
            shape: of the result.
        """
        sizes = [(1,) * (len(shape) - len(size)) + tuple(size) for size, _ in tensors]
        tensors = self._met_by_entry(name, sizes, tensors)
        first: Tensor | None = None
        for index, (_, rows) in enumerate(tensors):
            if rows is None:
                continue
            rows = rows.expand(sizes[index])
            others = [(i, other) for i, (_, other) in enumerate(tensors) if i != index]
            alone = [
                dim
                for dim in range(len(shape))
                if varies(rows, dim) and any((sizes[i][dim] > 1) == (other is None) for i, other in others)
            ]
            rows = self.mix(name, rows, alone).expand(shape)
            if first is None:
                first = rows
                continue
            if not torch.equal(lean(first < 0), lean(rows < 0)):
                raise self.unknown(name)
            self.rows.unite(first, rows)
        return first

    def _met_by_entry(self, name: str, sizes: Sequence[tuple[int, ...]], tensors: Sequence[Shaped]) -> Sequence[Shaped]:
        """Let all of a parameter stay that has no entry per unit of the activation which it meets.

        Units lie along the first of several dimensions: heads lie before the size of a head.
        """
        own = [rows is not None and not bool(self.rows.of_layers(lean(rows)).any()) for _, rows in tensors]
        met = [(size, rows) for size, (_, rows), mine in zip(sizes, tensors, own, strict=True) if not mine]
        dims = [
            dim for size, rows in met if rows is not None for dim in range(len(size)) if varies(rows.expand(size), dim)
        ]
        found = []
        for size, (shape, rows), mine in zip(sizes, tensors, own, strict=True):
            if mine and rows is not None and dims and size[min(dims)] == 1:
                self.rows.needs.append(Still(lean(rows).flatten(), str(self.unknown(name)), 0))
                rows = None
            found.append((shape, rows))
        return found

    def product(self, call: Call, tensors: Sequence[Shaped]) -> Tensor | None:
        """Unite the rows that a product of matrices adds up, and those of the matrices that it multiplies."""
        if len(tensors) != 2 or min(len(size) for size, _ in tensors) < 2:
            raise self.unknown(call.name)
        summed = []
        for dim, (size, rows) in zip((-1, -2), tensors, strict=True):
            left = [*size]
            left[dim] = 1
            summed.append((torch.Size(left), None if rows is None else self.mix(call.name, rows, [dim]).expand(left)))
        return self.by_entry(call.name, summed, call.result.shape)

    def attended(self, call: Call, tensors: Sequence[Shaped]) -> Tensor | None:
        """Unite the rows of each head's queries, keys and values, (batch, heads, tokens, size)."""
        heads, left = call.result.shape[-3], []
        for place, (size, rows) in enumerate(tensors):  # queries, keys, values and a mask, (.., tokens, keys)
            summed = 2 if place in (1, 2) else 1  # dimensions that are added up, or lie along another tensor's
            after = (*size[:-summed], *[1] * summed)
            each = None if rows is None else self.mix(call.name, rows, range(-summed, 0)).expand(after)
            if place in (1, 2) and size[-3] < heads and call.kwargs.get("enable_gqa", False):
                after = (*after[:-3], heads, 1, 1)  # several queries' heads for each of keys and values
                each = None if each is None else each.repeat_interleave(heads // size[-3], -3)
            left.append((torch.Size(after), each))
        rows = self.by_entry(call.name, left, torch.Size((*call.result.shape[:-1], 1)))
        return None if rows is None else rows.expand(call.result.shape)

    def arrange(self, call: Call) -> Tensor:
        """Arrange rows as an operation arranges the entries."""
        if call.name in SELECTED and (selected := self.rows_of(call.args[0])) is not None:
            self.select(call, selected)
        rows = self._apply(call)
        if not isinstance(rows, Tensor) or rows.shape != call.result.shape:
            raise self.unknown(call.name)
        noted = self._noted(call.name, rows)
        if call.name in GIVEN_SIZES:
            self._sized(call, noted)
        return noted

    def _noted(self, name: str, rows: Tensor) -> Tensor:
        """Note an activation in which entries lie otherwise than in the one before."""
        self.rows.needs.append(Along(lean(rows), str(self.unknown(name))))
        return lean(rows).expand(rows.shape)

    def _apply(self, call: Call) -> Any:
        """Apply an operation to rows in place of entries."""

        def rows_of(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0:
                return leaf
            rows = self.rows_of(leaf)
            if rows is None and call.name in SELECTED:  # an index
                return leaf
            return torch.full((), ALWAYS).expand(leaf.shape) if rows is None else rows

        if any(isinstance(leaf, torch.dtype) for leaf in tree_leaves((call.args, call.kwargs))):
            raise self.unknown(call.name)  # other numbers in the same memory
        args, kwargs = tree_map(rows_of, (call.args, dict(call.kwargs)))
        return (torch.Tensor.reshape if call.name == "view" else call.func)(*args, **kwargs)

    def _sized(self, call: Call, rows: Tensor) -> None:
        """Note the sizes that an operation is given."""
        first, sizes = 0, [*call.args[1:], *call.kwargs.values()]
        if call.name == "unflatten":
            first, sizes = int(sizes[0]) % (rows.dim() - len(sizes[1]) + 1), sizes[1:]
        flat = [size for each in sizes for size in (each if isinstance(each, tuple | list) else (each,))]
        why = f"{self.where(call.name)}: it is given a size that does not follow from the number of units"
        self.rows.sized(rows, flat, why, first)

    def select(self, call: Call, rows: Tensor) -> None:
        """Note the dimensions of which an operation selects entries, or assigns to."""
        dims: list[int] = []
        if call.name in ("getitem", "setitem"):
            index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
            used = [each for each in index if each is not None and each is not Ellipsis]
            if any(isinstance(each, Tensor) and each.dtype == torch.bool for each in used):
                raise self.unknown(call.name)
            dim = 0
            for each in index:
                if each is Ellipsis:
                    dim += rows.dim() - len(used)
                elif each is not None:
                    if isinstance(each, Tensor) or each != slice(None):
                        dims.append(dim)
                    dim += 1
        else:
            dims.append(call.given("dim", 1))
        self.rows.needs += [Still(lean(rows), str(self.unknown(call.name)), dim) for dim in dims]

    def assign(self, call: Call) -> None:
        """Note the dimensions of which an assignment selects entries."""
        target, _, value = call.args
        rows = self.rows_of(target)
        if rows is not None and not (isinstance(value, Tensor) and value.dim() > 0):
            self.select(call, rows)
        elif rows is not None or (isinstance(value, Tensor) and self.rows_of(value) is not None):
            raise self.unknown(call.name)

    def pieces(self, call: Call, rows: Tensor) -> list[Tensor | None]:
        """Return the rows of the pieces of a tensor."""
        found: Sequence[Tensor] = self._apply(call)
        why, dim = str(self.unknown(call.name)), int(call.given("dim", 1 if call.name == "unbind" else 2, 0))
        if [rows.shape for rows in found] != [leaf.shape for leaf in call.outputs]:
            raise self.unknown(call.name)
        if call.name == "unbind" or len({piece.shape for piece in found}) > 1:
            self.rows.needs.append(Still(lean(rows), why, dim))
        else:
            self.rows.needs.append(Alike(lean(rows), why, dim, len(found)))
            if call.name == "split":
                sizes = next(each for each in (*call.args[1:], *call.kwargs.values()))
                sizes = sizes if isinstance(sizes, tuple | list) else [sizes] * len(found)
                for piece, size in zip(found, sizes, strict=True):
                    self.rows.sized(piece, [size], why, dim % rows.dim())
        return [self._noted(call.name, piece) for piece in found]

    # ---- messages

    def unknown(self, name: str, why: str = "its effect on units is not known") -> UnknownEffectError:
        """Write the error for an operation."""
        return UnknownEffectError(f"{self.where(name)}: {why}")

    def where(self, name: str) -> str:
        """Name the module of torch's that computes, or else the operation."""
        if self.inside:
            path, module = self.inside[-1]
            if is_torchs(module):
                return f"module {path!r} ({type(module).__name__})"
        return f"operation {name!r}"
