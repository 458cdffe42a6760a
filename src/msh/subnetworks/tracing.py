"""Run a backbone on an example to find the layer whose output units feed each layer's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from msh.compat import NormBase
from msh.errors import one_of, requirement
from msh.subnetworks.marks import Attribute, Marked, Origin, Size, is_torchs, marked_attributes
from msh.subnetworks.options import GRANULARITIES, GranularityName
from msh.subnetworks.roles import TABLES
from msh.subnetworks.row_units import ALWAYS, Alike, Along, RowUnits, Still, lean, line, varies
from msh.subnetworks.tensors import evaluating
from msh.subnetworks.unit_graph import Layer, UnitGraph, UnitSource

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVED = (F.conv1d, F.conv2d, F.conv3d)
NORMALIZED = (F.batch_norm, F.instance_norm, F.group_norm)
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
IN_CHAINS = frozenset((*ELEMENTWISE, *CASTS, *BY_ENTRY, *REDUCED, *POOLS, "flatten", "batch_norm", "instance_norm"))
"""Those that a chain of layers may have, of which each has units of its own."""
OUTPUT = "its outputs"
"""Name of the backbone's features among those that units feed."""
VALUES = ("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy")
"""Methods that turn a tensor's values into Python's."""


def trace_units(
    network: MultiSubnetwork, granularity: GranularityName = "unit", example: Tensor | None = None
) -> UnitGraph:
    """Find a backbone's units.

    With granularity "unit", a layer stays whole if an operation behind it has an unknown effect on units, such as a
    layer normalisation. With the others, that is an error.

    Args:
        network: in any phase; not changed.
        granularity: "unit" or "channel"; or "neuron" for backbones whose prunable layers are all linear.
        example: (batch, *input shape) for the backbone; when None, zeros with its `input_shape`, or tokens that are no
            padding.
    Raises:
        ValueError: the backbone's code branches on values it has computed, all of its layers would stay whole, or, with
            "neuron" and "channel", it has an operation with an unknown effect on units.
    """
    one_of("granularity", granularity, GRANULARITIES[3:])
    usual = example is None
    if usual and granularity in network.graphs:
        return network.graphs[granularity]
    example = example_inputs(network, example)
    tracer = _UnitTracer(network, granularity, example)
    marked = marked_attributes(network.backbone, tracer.report)
    with evaluating(network.backbone), torch.no_grad(), tracer.following(network.backbone), marked, tracer:
        features = network.backbone(example)
    graph = tracer.finished(network, features)
    if usual:
        network.graphs[granularity] = graph
    return graph


def example_inputs(network: MultiSubnetwork, example: Tensor | None = None) -> Tensor:
    """Return the example, or zeros (1, *input shape), or tokens that are no padding.

    Raises:
        ValueError: there is no example, and the backbone has no `input_shape`.
    """
    if example is not None:
        return example
    backbone: Any = network.backbone
    shape: Sequence[int] | None = getattr(backbone, "input_shape", None)
    if shape is None:
        raise ValueError(f"{type(backbone).__name__} has no input_shape: pass an example of its inputs")
    weight = next(network.weights())[1]
    if vocabulary := getattr(backbone, "vocabulary", None):
        token = (getattr(backbone, "padding", 0) + 1) % max(2, vocabulary)
        return torch.full((1, *shape), token, device=weight.device)
    return weight.new_zeros(1, *shape)


class _UnknownEffectError(Exception):
    """An operation has an unknown effect on units; the message names it."""


class _UnitTracer(TorchFunctionMode):
    """Record which rows each entry of an activation comes from while a backbone computes an example.

    Args:
        network: holds the backbone.
        granularity: of units.
        example: the backbone's inputs.
    """

    def __init__(self, network: MultiSubnetwork, granularity: str, example: Tensor) -> None:
        super().__init__()
        self.granularity, self.lenient = granularity, granularity == "unit"
        self.names = {id(weight): name for name, weight in network.weights()}
        self.tied = set(network.names.tied.values())
        self.rows = RowUnits()
        self.layers: dict[str, tuple[int, ...]] = {}
        """Tensor to its shape, in computing order."""
        self.transposed: set[str] = set()
        self.columns: dict[str, Tensor] = {}
        """Tensor to the rows that feed its columns, (columns,); a normalization's dotted name to its channels' rows."""
        self.norms: list[str] = []
        self.whole: dict[str, str] = {}
        """Tensor whose units all stay, to the reason."""
        self.held: dict[int, tuple[Tensor, Tensor | None]] = {id(example): (example, None)}
        """Tensor that depends on the inputs, by its id (the reference keeps the id valid), to its entries' rows; None
        if all entries are always there."""
        self.discrete = set() if example.is_floating_point() else {id(example)}
        """Ids of tensors that follow from tokens alone, such as masks of padding: code may branch on these."""
        self.private = _other_parameters(network) if self.lenient else {}
        """Id of each parameter beside layers' weights, biases and norms, such as a table of position biases, to its
        name."""
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        """Such a parameter, or a tensor computed from these alone, by its id, to its entries' rows."""
        self.inside: list[tuple[str, nn.Module]] = []
        """Modules whose forward pass is under way, with their dotted names."""

    @contextmanager
    def following(self, backbone: nn.Module) -> Iterator[None]:
        """Note which module computes, inside the context."""
        handles = []
        for path, module in backbone.named_modules():

            def enter(module: nn.Module, inputs: Any, path: str = path) -> None:
                self.inside.append((path, module))

            def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
                self.inside.pop()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute an operation, and its entries' rows from those of its inputs."""
        kwargs = dict(kwargs or {})
        before = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and id(leaf) in self.held]
        known = [self.held[id(leaf)][1] for leaf in before]
        shapes = [leaf.shape for leaf in before]
        name = getattr(func, "__name__", str(func))
        discrete = self.discrete.issuperset(map(id, before))
        if before and name in VALUES and not discrete:
            name = name.strip("_")
            raise self._refused(f"{self._where(name)}: what it computes depends on the values of its inputs")
        name = name.strip("_")
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if self.private:
            result = self._follow_own(func, name, args, kwargs, known, result, outputs)
        if not before or (not outputs and name != "setitem"):
            return result if not known or known[0] is None else self._size(name, known[0], args, kwargs, result)
        found: Sequence[Tensor | None] = [None] * len(outputs)
        try:
            if name == "setitem":
                self._assign(known, *args)
            elif func is F.multi_head_attention_forward and len(outputs) == 1:
                found = [self._attention(known, outputs[0])]
            elif name in PIECES and self.lenient:
                found = found if known[0] is None else self._pieces(name, known[0], func, args, kwargs, outputs)
            elif len(outputs) != 1 or outputs[0] is not result:
                raise self._unknown(name)
            else:
                found = [self._after(func, name, args, kwargs, known, shapes, result)]
        except _UnknownEffectError as error:
            if not self.lenient:
                raise self._refused(str(error)) from None
            self._keep_whole(known, str(error))
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self.names:
                    self.whole.setdefault(self.names[id(leaf)], str(error))
        for leaf, rows in zip(outputs, found, strict=True):
            self.held[id(leaf)] = (leaf, rows)
            if discrete and not leaf.is_floating_point():
                self.discrete.add(id(leaf))
        return result

    def _rows_of(self, tensor: Tensor) -> Tensor | None:
        """Return the rows of a tensor's entries; None if all are always there."""
        if id(tensor) in self.held:
            return self.held[id(tensor)][1]
        if id(tensor) in self.private and id(tensor) not in self.own:
            self.own[id(tensor)] = tensor, self.rows.add_other(self.private[id(tensor)], tensor.shape)
        return self.own[id(tensor)][1] if id(tensor) in self.own else None

    def _follow_own(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        known: Sequence[Tensor | None],
        result: Any,
        outputs: Sequence[Tensor],
    ) -> Any:
        """Follow parameters that are no layer's through an operation, before they meet activations.

        Where an operation's effect on their entries is not known, or all entries of an activation are always there, so
        are theirs.
        """
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        own = [leaf for leaf in leaves if id(leaf) in self.own or id(leaf) in self.private]
        if not own:
            return result
        met = func is F.scaled_dot_product_attention or name in (*ELEMENTWISE, *BY_ENTRY, *JOINED, *PRODUCTS)
        if any(rows is not None for rows in known) and met:
            return result  # as activations
        if not known and not outputs and len(own) == 1 and name in ("get", "size", "dim", "is_floating_point"):
            rows = self._rows_of(own[0])
            return result if rows is None else self._size(name, rows, args, kwargs, result)
        try:
            if known or len(outputs) != 1 or outputs[0] is not result:
                raise self._unknown(name)
            rows = self._after_own(func, name, args, kwargs, leaves, result)
            self.own[id(result)] = (result, rows)
        except _UnknownEffectError as error:
            for leaf in own:
                if id(leaf) in self.own:
                    self.rows.needs.append(Still(self.own[id(leaf)][1].flatten(), str(error), 0))
                self.private.pop(id(leaf), None)
        return result

    def _after_own(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        leaves: Sequence[Tensor],
        result: Tensor,
    ) -> Tensor:
        """Return the rows of a result that is computed from parameters alone."""
        if name in (*ELEMENTWISE, *BY_ENTRY, *CASTS):
            tensors = [(leaf.shape, self._rows_of(leaf)) for leaf in leaves[: 1 if name in CASTS else None]]
            rows = self._by_entry(name, [each for each in tensors if each[0]], result.shape)
        elif name in (*ARRANGED, *GIVEN_SIZES, *SELECTED, *JOINED):
            rows = self._arrange(func, name, args, kwargs, result)
        else:
            raise self._unknown(name)
        if rows is None:
            raise self._unknown(name)
        return rows

    def report(self, origin: Origin) -> None:
        """Note that code computes with an attribute, or with a tensor's size, otherwise than as a size."""
        if isinstance(origin, Attribute):
            self.rows.fixed.add(origin)
        else:
            path, module = self.inside[-1]
            why = f"module {path!r} ({type(module).__name__}) computes with the number of units"
            self.rows.needs.append(Still(lean(origin.rows), why, origin.dim))

    def _keep_whole(self, known: Iterable[Tensor | None], why: str) -> None:
        """Let the layers of these rows stay whole; without lenience, refuse the backbone."""
        if not self.lenient:
            raise self._refused(why)
        for name in self.rows.layers(*known):
            self.whole.setdefault(name, why)

    def _size(self, name: str, rows: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Mark the sizes that code asks for, other than torch's, whose modules get their own sizes."""
        if is_torchs(self.inside[-1][1]):
            return result
        if isinstance(result, torch.Size):
            sizes = (Marked(size, (Size(rows, dim),), self.report) for dim, size in enumerate(result))
            return torch.Size(sizes)
        if name == "size":
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            return Marked(result, (Size(rows, dim),), self.report)
        for dim in {"len": range(1), "numel": range(rows.dim())}.get(name, ()):
            self.report(Size(rows, dim))
        return result

    def _after(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        known: Sequence[Tensor | None],
        shapes: Sequence[torch.Size],
        result: Tensor,
    ) -> Tensor | None:
        """Return the rows of an operation's result."""
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        if len(known) == 1 and (func is F.linear or func in CONVOLVED) and isinstance(weight, Tensor):
            groups = int(kwargs.get("groups", args[6] if len(args) > 6 else 1)) if func in CONVOLVED else 1
            spatial = None if func is F.linear else CONVOLVED.index(func) + 1
            return self._layer(weight, groups, spatial, known[0], shapes[0], result)
        if name == "addmm" and len(known) == 1 and id(args[2]) in self.names:
            self.transposed.add(self.names[id(args[2])])
            return self._layer(args[2], 1, None, known[0], shapes[0], result)
        if all(rows is None for rows in known):  # the inputs are kept whole
            if not self.lenient and len(known) > 1:
                raise self._unknown(name)
            return None
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        tensors = [(leaf.shape, self._rows_of(leaf)) for leaf in leaves]
        if not self.lenient and (len(known) > 1 or name not in IN_CHAINS):
            raise self._unknown(name)
        if name in CASTS:
            return tensors[0][1]
        if name in (*ELEMENTWISE, *BY_ENTRY):
            if not self.lenient and len(tensors) > 1:
                raise self._unknown(name)
            return self._by_entry(name, tensors, result.shape)
        if name in PRODUCTS:
            return self._product(name, tensors, result)
        if func is F.scaled_dot_product_attention:
            return self._attended(name, kwargs, tensors, result)
        if name in JOINED:
            return self._arrange(func, name, args, kwargs, result)
        rows = tensors[0][1]
        if rows is None or any(other is not None for _, other in tensors[1:]):
            raise self._unknown(name)
        if name in (*ARRANGED, *GIVEN_SIZES, *SELECTED):
            return self._arrange(func, name, args, kwargs, result)
        return self._mixed(func, name, rows, args, kwargs, result)

    def _mixed(
        self,
        func: Callable[..., Any],
        name: str,
        rows: Tensor,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> Tensor:
        """Return the rows of a result that is computed from all entries along dimensions of one activation."""

        def given(key: str, place: int, default: Any = None) -> Any:
            return kwargs.get(key, args[place] if len(args) > place else default)

        if name in REDUCED:
            dims, kept = given("dim", 1), given("keepdim", 2, False)
            dims = [dims] if isinstance(dims, int) else dims
            if not dims:
                raise self._unknown(name)
            each = self._mix(name, rows, dims)
            each = each if kept else each.squeeze(tuple(dims))
            return each.expand(result.shape)
        if rows.dim() == POOLS.get(name, -1) + 2:
            return self._mix(name, rows, range(2, rows.dim())).expand(result.shape)
        if func in NORMALIZED and self._normalizes(rows, *self.inside[-1]):
            return rows
        if name in MIXED:
            dim = given("dim", 2 if name == "normalize" else 1, MIXED[name])
            self._mix(name, rows, [dim])
            return rows
        if name in NORMALIZED_LAST:
            self._mix(name, rows, range(-len(given("normalized_shape", 1)), 0))
            return rows
        if name == "glu":
            dim = given("dim", 1, -1)
            one, other = rows.chunk(2, dim)
            self.rows.needs.append(Alike(lean(rows), str(self._unknown(name)), dim, 2))
            self.rows.unite(one, other)
            return one
        raise self._unknown(name)

    def _mix(self, name: str, rows: Tensor, dims: Iterable[int]) -> Tensor:
        """Unite rows along dimensions, whose sizes become 1; refuse it if that leaves a single unit."""
        each, apart = self.rows.mix(rows, dims, self._where(name))
        if not apart:
            raise self._unknown(name)
        return each

    def _by_entry(
        self, name: str, tensors: Sequence[tuple[torch.Size, Tensor | None]], shape: torch.Size
    ) -> Tensor | None:
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
            rows = self._mix(name, rows, alone).expand(shape)
            if first is None:
                first = rows
                continue
            if not torch.equal(lean(first < 0), lean(rows < 0)):
                raise self._unknown(name)
            self.rows.unite(first, rows)
        return first

    def _met_by_entry(
        self, name: str, sizes: Sequence[tuple[int, ...]], tensors: Sequence[tuple[torch.Size, Tensor | None]]
    ) -> Sequence[tuple[torch.Size, Tensor | None]]:
        """Let all of a parameter stay that has no entry per unit of the activation which it meets.

        Units lie along the first of several dimensions: heads lie before the size of a head.
        """
        own = [rows is not None and not bool(self.rows.of_layers(lean(rows)).any()) for _, rows in tensors]
        met = [(size, rows) for size, (_, rows), mine in zip(sizes, tensors, own, strict=True) if not mine]
        dims = [dim for size, rows in met if rows is not None for dim in range(len(size)) if _along(rows, size, dim)]
        found = []
        for size, (shape, rows), mine in zip(sizes, tensors, own, strict=True):
            if mine and rows is not None and dims and size[min(dims)] == 1:
                self.rows.needs.append(Still(lean(rows).flatten(), str(self._unknown(name)), 0))
                rows = None
            found.append((shape, rows))
        return found

    def _product(self, name: str, tensors: Sequence[tuple[torch.Size, Tensor | None]], result: Tensor) -> Tensor | None:
        """Unite the rows that a product of matrices adds up, and those of the matrices that it multiplies."""
        if len(tensors) != 2 or min(len(size) for size, _ in tensors) < 2:
            raise self._unknown(name)
        summed = []
        for dim, (size, rows) in zip((-1, -2), tensors, strict=True):
            left = [*size]
            left[dim] = 1
            summed.append((torch.Size(left), None if rows is None else self._mix(name, rows, [dim]).expand(left)))
        return self._by_entry(name, summed, result.shape)

    def _attended(
        self,
        name: str,
        kwargs: Mapping[str, Any],
        tensors: Sequence[tuple[torch.Size, Tensor | None]],
        result: Tensor,
    ) -> Tensor | None:
        """Unite the rows of each head's queries, keys and values, (batch, heads, tokens, size)."""
        heads, left = result.shape[-3], []
        for place, (size, rows) in enumerate(tensors):  # queries, keys, values and a mask, (.., tokens, keys)
            summed = 2 if place in (1, 2) else 1  # dimensions that are added up, or lie along another tensor's
            after = (*size[:-summed], *[1] * summed)
            each = None if rows is None else self._mix(name, rows, range(-summed, 0)).expand(after)
            if place in (1, 2) and size[-3] < heads and kwargs.get("enable_gqa", False):
                after = (*after[:-3], heads, 1, 1)  # several queries' heads for each of keys and values
                each = None if each is None else each.repeat_interleave(heads // size[-3], -3)
            left.append((torch.Size(after), each))
        rows = self._by_entry(name, left, torch.Size((*result.shape[:-1], 1)))
        return None if rows is None else rows.expand(result.shape)

    def _arrange(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor
    ) -> Tensor:
        """Arrange rows as an operation arranges the entries."""
        if name in SELECTED and (selected := self._rows_of(args[0])) is not None:
            self._select(name, selected, args, kwargs)
        rows = self._apply(name, func, args, kwargs)
        if not isinstance(rows, Tensor) or rows.shape != result.shape:
            raise self._unknown(name)
        noted = self._noted(name, rows)
        if name in GIVEN_SIZES:
            self._sized(name, noted, args, kwargs)
        return noted

    def _noted(self, name: str, rows: Tensor) -> Tensor:
        """Note an activation in which entries lie otherwise than in the one before."""
        self.rows.needs.append(Along(lean(rows), str(self._unknown(name))))
        return lean(rows).expand(rows.shape)

    def _apply(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Apply an operation to rows in place of entries."""

        def rows_of(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0:
                return leaf
            rows = self._rows_of(leaf)
            if rows is None and name in SELECTED:  # an index
                return leaf
            return torch.full((), ALWAYS).expand(leaf.shape) if rows is None else rows

        replaced, named = tree_map(rows_of, (args, dict(kwargs)))
        if any(isinstance(leaf, torch.dtype) for leaf in tree_leaves((args, kwargs))):
            raise self._unknown(name)  # other numbers in the same memory
        return torch.Tensor.reshape(*replaced, **named) if name == "view" else func(*replaced, **named)

    def _sized(self, name: str, rows: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the sizes that an operation is given."""
        first, sizes = 0, [*args[1:], *kwargs.values()]
        if name == "unflatten":
            first, sizes = int(sizes[0]) % (rows.dim() - len(sizes[1]) + 1), sizes[1:]
        flat = [size for each in sizes for size in (each if isinstance(each, tuple | list) else (each,))]
        why = f"{self._where(name)}: it is given a size that does not follow from the number of units"
        self.rows.sized(rows, flat, why, first)

    def _select(self, name: str, rows: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the dimensions of which an operation selects entries."""
        dims: list[int] = []
        if name in ("getitem", "setitem"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            used = [each for each in index if each is not None and each is not Ellipsis]
            if any(isinstance(each, Tensor) and each.dtype == torch.bool for each in used):
                raise self._unknown(name)
            dim = 0
            for each in index:
                if each is Ellipsis:
                    dim += rows.dim() - len(used)
                elif each is not None:
                    if each != slice(None):
                        dims.append(dim)
                    dim += 1
        else:
            dims.append(kwargs["dim"] if "dim" in kwargs else args[1])
        self.rows.needs += [Still(lean(rows), str(self._unknown(name)), dim) for dim in dims]

    def _assign(self, known: Sequence[Tensor | None], target: Tensor, index: Any, value: Any) -> None:
        """Note the dimensions of which an assignment selects entries."""
        rows = self.held.get(id(target), (None, None))[1]
        if rows is not None and len(known) == 1 and not (isinstance(value, Tensor) and value.dim() > 0):
            self._select("setitem", rows, (target, index), {})
        elif any(rows is not None for rows in known):
            raise self._unknown("setitem")

    def _pieces(
        self,
        name: str,
        rows: Tensor,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
    ) -> list[Tensor | None]:
        """Return the rows of the pieces of a tensor."""
        found: Sequence[Tensor] = self._apply(name, func, args, kwargs)
        given, why = [*args[1:], *kwargs.values()], str(self._unknown(name))
        place = 0 if name == "unbind" else 1
        dim = int(kwargs.get("dim", given[place] if len(given) > place else 0))
        if [rows.shape for rows in found] != [leaf.shape for leaf in outputs]:
            raise self._unknown(name)
        if name == "unbind" or len({piece.shape for piece in found}) > 1:
            self.rows.needs.append(Still(lean(rows), why, dim))
        else:
            self.rows.needs.append(Alike(lean(rows), why, dim, len(found)))
            if name == "split":
                sizes = given[0] if isinstance(given[0], tuple | list) else [given[0]] * len(found)
                for piece, size in zip(found, sizes, strict=True):
                    self.rows.sized(piece, [size], why, dim % rows.dim())
        return [self._noted(name, piece) for piece in found]

    def _normalizes(self, rows: Tensor, path: str, module: nn.Module) -> bool:
        """Note a normalization that computes with each channel alone, or with groups of channels; False for others."""
        channels = line(rows, 1)
        if isinstance(module, nn.GroupNorm) and self.lenient:
            self.rows.mix(channels.view(module.num_groups, -1), [1], self._where("groups"))
        elif not isinstance(module, NormBase):
            return False
        self.rows.needs.append(Along(lean(rows), str(self._unknown("norm")), 1))
        self.norms.append(path)
        self.columns[path] = channels
        return True

    def _layer(
        self,
        weight: Tensor,
        groups: int,
        spatial: int | None,
        rows: Tensor | None,
        before: torch.Size,
        result: Tensor,
    ) -> Tensor:
        """Note a linear layer (`spatial` is None) or a convolution, and return its result's rows."""
        tensor, name = self.names.get(id(weight), ""), "linear" if spatial is None else f"conv{spatial}d"
        expected = (spatial or 0) + 2
        dim = 1 if spatial is not None else len(before) - 1
        if spatial is not None and self.granularity == "neuron":
            raise self._unknown(name, "a convolution's units are channels: use 'unit'")
        if groups != 1 and not self.lenient:
            raise self._unknown(name, requirement("groups", "1", groups))
        if len(before) != expected and not (self.lenient and spatial is None):
            raise self._unknown(name, f"its input has {len(before)} dimensions, not {expected}")
        self._check_module(name, weight, tensor in self.transposed)
        if not tensor or tensor in self.tied:
            raise self._unknown(name, "its weight is tied, or is not shared between tasks")
        if tensor in self.layers:
            error = self._unknown(name, "it is used more than once in a forward pass")
            self._keep_whole([self.columns.get(tensor)], str(error))
            raise error
        if groups != 1 and rows is None:
            raise self._unknown(name)
        own = self._add(tensor, tuple(weight.T.shape if tensor in self.transposed else weight.shape))
        if rows is not None:
            self.rows.needs.append(Along(lean(rows), str(self._unknown(name)), dim))
            feeding = line(rows, dim)
            if groups == 1:
                self.columns[tensor] = feeding
            else:
                where = self._where("groups")
                each = [self.rows.mix(part.view(groups, -1), [1], where)[0] for part in (feeding, own)]
                self.rows.unite(*each)
        return own.view(-1, *[1] * (result.dim() - dim - 1)).expand(result.shape)

    def _check_module(self, name: str, weight: Tensor, transposed: bool) -> None:
        """Refuse a layer that has other tensors than a weight and a bias per unit."""
        module = self.inside[-1][1]
        own = dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
        bias, units = own.get("bias"), weight.shape[1 if transposed else 0]
        known = transposed or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if not known or own.get("weight") is not weight or (bias is not None and bias.shape != (units,)):
            raise self._unknown(name)
        if more := own.keys() - {"weight", "bias"}:
            raise self._unknown(name, f"it has more tensors than a weight and a bias: {', '.join(sorted(more))}")

    def _add(self, tensor: str, shape: tuple[int, ...]) -> Tensor:
        self.layers[tensor] = shape
        return self.rows.add(tensor, shape[0])

    def _attention(self, known: Sequence[Tensor | None], result: Tensor) -> Tensor:
        """Note the projections of torch's self-attention, whose units are heads, and return the result's rows."""
        module, names = self.inside[-1][1], [""]
        if type(module) is nn.MultiheadAttention:
            names = [self.names.get(id(weight), "") for weight in (module.in_proj_weight, module.out_proj.weight)]
        plain = all(names) and not self.tied.intersection(names) and not self.layers.keys() & set(names)
        more = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
        if not self.lenient or any(rows is not None for rows in known) or not plain or more:
            raise self._unknown("multi_head_attention_forward")
        assert isinstance(module, nn.MultiheadAttention)
        inner, outer = names
        heads = self._add(inner, tuple(module.in_proj_weight.shape)).view(3, module.num_heads, -1)
        self.rows.mix(heads, (0, 2), self._where("attention"))
        self.columns[outer] = heads[2].flatten()
        return self._add(outer, tuple(module.out_proj.weight.shape)).expand(result.shape)

    def finished(self, network: MultiSubnetwork, features: Any) -> UnitGraph:
        """Return the graph; the units of layers that stay whole are nobody's source."""
        output = self.held.get(id(features), (None, None))[1]
        if not isinstance(features, Tensor):
            held = [self.held[id(leaf)][1] for leaf in tree_leaves(features) if id(leaf) in self.held]
            self._keep_whole(held, "its outputs: they must be one tensor")
        shapes, computing = dict(self.layers), [*self.layers]
        for name, weight in network.weights():
            if name not in self.layers:
                if not self.lenient:
                    raise self._refused(f"{name}: no linear layer or convolution of the forward pass computes with it")
                kind = type_before_parametrizations(_holder(network, name)).__name__
                path, _, leaf = name.rpartition(".")
                why = f"module {path!r} ({kind}): no linear layer or convolution computes with its {leaf} alone"
                self.whole.setdefault(name, why)
                shapes[name] = tuple(weight.shape)
        last: list[str] = []
        if output is None and not self.lenient:
            raise self._refused("its outputs: they must be one tensor, of the units of one layer")
        if output is not None:
            last = self._last(network, output)
        solution = self.rows.solve(self.layers, self.columns, self.whole, last)
        if self.whole.keys() >= shapes.keys():
            first = min(self.whole, key=lambda name: isinstance(_holder(network, name), TABLES))  # tables have no units
            raise self._refused(self.whole[first])

        def source(where: str) -> UnitSource | None:
            found = solution.source(self.columns[where]) if where in self.columns else None
            return None if found is None else UnitSource(*found)

        layers = {}
        for name, shape in shapes.items():
            found = solution.structures.get(name)
            layers[name] = Layer(
                name.rpartition(".")[0],
                shape,
                source(name) if name in computing else None,
                self.whole.get(name, ""),
                solution.leaders.get(name, name),
                *((1, 1) if found is None else (found.parts, found.size)),
                name in self.transposed,
            )
        norms = {where: units for where in self.norms if (units := source(where)) is not None}
        return UnitGraph(layers, norms, source(OUTPUT), solution.counts, solution.parameters)

    def _last(self, network: MultiSubnetwork, output: Tensor) -> list[str]:
        """Return the layer that computes the outputs.

        It stays whole, unless its outputs can be written between those of units without weights.
        """
        names = self.rows.layers(output)
        along = [dim for dim in range(output.dim()) if varies(output, dim)]
        self.columns[OUTPUT] = line(output, along[-1] if along else -1)
        if not self.lenient:
            return names
        leaders, kept = self.rows.leaders(), {}
        for name in names:
            path = name.rpartition(".")[0]
            kind = type(network.backbone.get_submodule(path))
            if kind not in (nn.Linear, *CONVOLUTIONS):
                kept[name] = f"module {path!r} ({kind.__name__}): it computes the outputs"
            elif len(along) > 1 or sum(leader == leaders[name] for leader in leaders.values()) > 1 or len(names) > 1:
                kept[name] = "its outputs: several layers have their units"
        for name, why in kept.items():
            self.whole.setdefault(name, why)
        return [name for name in names if name in self.layers]

    # ---- messages

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"granularity {self.granularity!r} does not work for this backbone: {why}")

    def _unknown(self, name: str, why: str = "its effect on units is not known") -> _UnknownEffectError:
        return _UnknownEffectError(f"{self._where(name)}: {why}")

    def _where(self, name: str) -> str:
        """Name the module of torch's that computes, or else the operation."""
        if self.inside:
            path, module = self.inside[-1]
            if is_torchs(module):
                return f"module {path!r} ({type(module).__name__})"
        return f"operation {name!r}"


def _along(rows: Tensor, size: Sequence[int], dim: int) -> bool:
    """Tell whether rows differ along a dimension of the shape that they broadcast to."""
    return varies(rows.expand(size), dim)


def _other_parameters(network: MultiSubnetwork) -> dict[int, str]:
    """Map the ids of private parameters of modules that are not torch's, and have no layer's weight, to their names."""
    layers = {name.rpartition(".")[0] for name, _ in network.weights()}
    found = {}
    for name in network.names.parameters:
        path, _, leaf = name.rpartition(".")
        tensor = getattr(network.backbone.get_submodule(path), leaf)
        if not is_torchs(network.backbone.get_submodule(path)) and path not in layers and tensor.numel() > 1:
            found[id(tensor)] = name
    return found


def _holder(network: MultiSubnetwork, name: str) -> nn.Module:
    return network.backbone.get_submodule(name.rpartition(".")[0])
