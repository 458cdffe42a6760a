"""Run a backbone on an example to find the layer whose output units feed each layer's columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from msh.compat import NormBase
from msh.errors import one_of, requirement
from msh.subnetworks.options import GRANULARITIES, GranularityName
from msh.subnetworks.roles import TABLES
from msh.subnetworks.tensors import evaluating

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVED = (F.conv1d, F.conv2d, F.conv3d)
NORMALIZED = (F.batch_norm, F.instance_norm, F.group_norm)
ELEMENTWISE = (
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "softsign", "tanh"),
    *("sigmoid", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "threshold", "dropout", "alpha_dropout"),
    *("abs", "square", "exp", "neg", "clamp", "pow", "contiguous", "clone", "detach", "float", "half", "double"),
    "bfloat16",
)
"""Functions that treat every entry alike, by their names in torch and torch.nn.functional, or as a tensor's methods."""
CASTS = ("to", "type_as")
"""Those that may have a tensor as their other argument, whose values do not matter."""
BY_NUMBERS = ("add", "sub", "mul", "div", "true_divide", "truediv", "rsub")
"""Those that do so where their other argument is a number."""
BY_ENTRY = ("add", "iadd", "sub", "subtract", "isub", "mul", "multiply", "imul")
"""Those that combine two tensors entry by entry."""
REDUCED = ("mean", "sum", "amax", "amin")
"""Reductions of dimensions."""
POOLS = {f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
"""Name of a pooling to its number of spatial dimensions."""
VALUES = ("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy")
"""Methods that turn a tensor's values into Python's."""


@dataclass(frozen=True)
class UnitSource:
    """Units along one dimension of an activation.

    Attributes:
        layer: the tensor whose rows compute them.
        block: consecutive indices per unit: 1, a channel's positions once it is flattened, or those of a group.
        dim: the dimension.
    """

    layer: str
    block: int = 1
    dim: int = 1


@dataclass(frozen=True)
class Layer:
    """A prunable tensor (units, columns, *kernel) and its source.

    Attributes:
        module: dotted name of its module.
        shape: the tensor's.
        source: the units that feed its columns; None for the backbone's inputs, and for layers that stay whole.
        whole: why all of its units stay, as operations after it need them all; "" if tasks may keep some of them.
        group: the layer that has the same units: itself, the layer before a convolution with groups, or one whose
            outputs are added to its own, or multiply them.
        parts, size: rows are laid out as (parts, units, size): (1, units, 1), or (3, heads, size of a head) for an
            attention's projection to queries, keys and values, or (1, groups, channels of a group) around a
            convolution with groups, and before a group normalization.
    """

    module: str
    shape: tuple[int, ...]
    source: UnitSource | None
    whole: str = ""
    group: str = ""
    parts: int = 1
    size: int = 1

    @property
    def units(self) -> int:
        """Output units."""
        return self.shape[0] // (self.parts * self.size)

    def rows(self, units: Tensor) -> Tensor:
        """Expand a value per unit, (units,), to one per row, (rows,)."""
        return units.repeat_interleave(self.size).repeat(self.parts)

    def by_unit(self, rows: Tensor) -> Tensor:
        """Lay out a value per row, (rows,), by units: (units, parts x size)."""
        return rows.view(self.parts, -1, self.size).transpose(0, 1).flatten(1)

    @property
    def kernel(self) -> int:
        """Weights per unit and column."""
        return math.prod(self.shape[2:])


@dataclass(frozen=True)
class UnitGraph:
    """A backbone's units, and the layers that compute and use them.

    Attributes:
        layers: tensor name to layer, in computing order.
        norms: each normalisation's dotted name to the units it passes through.
        output: units behind the backbone's features; None if these are whole.
    """

    layers: dict[str, Layer]
    norms: dict[str, UnitSource]
    output: UnitSource | None

    @property
    def whole(self) -> dict[str, str]:
        """Map the tensors whose units all stay to the reason."""
        return {name: layer.whole for name, layer in self.layers.items() if layer.whole}

    @property
    def small(self) -> set[str]:
        """Name the tensors of which a task computes a part: some rows, or some columns."""
        return {name for name, layer in self.layers.items() if not layer.whole or layer.source is not None}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Map the first layer of each group to all that have its units, without layers that stay whole."""
        groups: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            if not layer.whole:
                groups.setdefault(layer.group, []).append(name)
        return groups

    @property
    def is_chain(self) -> bool:
        """True if every layer has units of its own, of which tasks may keep some."""
        own = all(layer.group == name and layer.parts == layer.size == 1 for name, layer in self.layers.items())
        return own and not self.whole


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
    example = example_inputs(network, example)
    tracer = _UnitTracer(network, granularity, example)
    with evaluating(network.backbone), torch.no_grad(), tracer.following(network.backbone), tracer:
        features = network.backbone(example)
    return tracer.finished(network, features)


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
    """Record the units of each activation while a backbone computes an example, operation by operation.

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
        self.layers: dict[str, Layer] = {}
        self.whole: dict[str, str] = {}
        """Tensor whose units all stay, to the reason."""
        self.leader: dict[str, str] = {}
        """Tensor to another one with the same units; the first of a group to itself."""
        self.norms: dict[str, UnitSource] = {}
        self.grouped: dict[str, tuple[int, str]] = {}
        """Tensor to the number of equal groups in which its rows stay or go, and the module that needs them so."""
        self.held: dict[int, tuple[Tensor, UnitSource | None]] = {id(example): (example, None)}
        """Tensor that depends on the inputs, by its id (the reference keeps the id valid), to its units."""
        self.discrete = set() if example.is_floating_point() else {id(example)}
        """Ids of tensors that follow from tokens alone, such as masks of padding: code may branch on these."""
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
        """Compute an operation, and its units from its inputs' units."""
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
        if not before or not outputs:
            return result
        units = None
        try:
            if func is F.multi_head_attention_forward and len(outputs) == 1:
                units = self._attention(known, outputs[0])
            elif len(outputs) != 1 or outputs[0] is not result:
                raise self._unknown(name)
            else:
                units = self._after(func, name, args, kwargs, known, shapes, result)
        except _UnknownEffectError as error:
            if any(known) or not self.lenient:
                self._keep_whole(known, str(error))
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self.names:
                    self.whole.setdefault(self.names[id(leaf)], str(error))
        for leaf in outputs:
            self.held[id(leaf)] = (leaf, units)
            if discrete and not leaf.is_floating_point():
                self.discrete.add(id(leaf))
        return result

    def _keep_whole(self, known: Iterable[UnitSource | None], why: str) -> None:
        """Let the layers of these units stay whole; without lenience, refuse the backbone."""
        if not self.lenient:
            raise self._refused(why)
        for units in known:
            if units is not None:
                self.whole.setdefault(units.layer, why)

    def _after(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        known: Sequence[UnitSource | None],
        shapes: Sequence[torch.Size],
        result: Tensor,
    ) -> UnitSource | None:
        """Return the units of an operation's result."""
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        if len(known) == 1 and (func is F.linear or func in CONVOLVED) and isinstance(weight, Tensor):
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1) if func in CONVOLVED else 1
            return self._layer(
                weight, groups, None if func is F.linear else CONVOLVED.index(func) + 1, known[0], shapes[0]
            )
        if not any(known):  # the inputs are kept whole
            if not self.lenient and len(known) > 1:
                raise self._unknown(name)
            return None
        if len(known) == 2 and name in BY_ENTRY and self.lenient:
            return self._combined(name, known, shapes, result)
        units = known[0]
        if len(known) > 1 or units is None:
            raise self._unknown(name)
        others = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        alone = sum(leaf.dim() > 0 for leaf in others) == 1  # beside numbers
        if (alone and name in (*ELEMENTWISE, *BY_NUMBERS)) or name in CASTS:
            return units
        before, after = shapes[0], result.shape
        if name in REDUCED and _leaves_dim(units.dim, len(before), args, kwargs):
            return units
        if units.dim == 1:
            if name == "flatten" and len(after) == 2 and before[0] == after[0]:
                return UnitSource(units.layer, units.block * math.prod(before[2:]))
            if func in NORMALIZED and self._normalizes(units, *self.inside[-1]):
                return units
            if len(before) == POOLS.get(name, -1) + 2:
                return units
        raise self._unknown(name)

    def _normalizes(self, units: UnitSource, path: str, module: nn.Module) -> bool:
        """Note a normalization that computes with each unit alone, or with groups of units; False for others."""
        if isinstance(module, nn.GroupNorm) and self.lenient and units.block == 1:
            self._group(units.layer, module.num_groups)
        elif not isinstance(module, NormBase):
            return False
        self.norms[path] = units
        return True

    def _layer(
        self, weight: Tensor, groups: int, spatial: int | None, units: UnitSource | None, before: torch.Size
    ) -> UnitSource | None:
        """Note a linear layer (`spatial` is None) or a convolution, and return its units."""
        tensor, name = self.names.get(id(weight), ""), "linear" if spatial is None else f"conv{spatial}d"
        expected = (spatial or 0) + 2
        dim = 1 if spatial is not None else len(before) - 1
        if spatial is not None and self.granularity == "neuron":
            raise self._unknown(name, "a convolution's units are channels: use 'unit'")
        grouped = groups != 1
        if grouped and not self.lenient:
            raise self._unknown(name, requirement("groups", "1", groups))
        if len(before) != expected and not (self.lenient and spatial is None):
            raise self._unknown(name, f"its input has {len(before)} dimensions, not {expected}")
        module = self.inside[-1][1]
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.weight is not weight:
            raise self._unknown(name)
        if not tensor or tensor in self.tied:
            raise self._unknown(name, "its weight is tied, or is not shared between tasks")
        if tensor in self.layers:
            error = self._unknown(name, "it is used more than once in a forward pass")
            self._keep_whole([self.layers[tensor].source], str(error))
            raise error
        if (units is not None and units.dim != dim) or (grouped and (units is None or units.block != 1)):
            raise self._unknown(name)
        self.layers[tensor] = Layer(tensor.rpartition(".")[0], tuple(weight.shape), None if grouped else units)
        self.leader[tensor] = tensor
        if grouped and units is not None:
            self._tie(units.layer, tensor)
            self._group(tensor, groups)
        return UnitSource(tensor, dim=dim)

    def _attention(self, known: Sequence[UnitSource | None], result: Tensor) -> UnitSource:
        """Note the projections of torch's self-attention, whose units are heads, and return the output's units."""
        module, names = self.inside[-1][1], [""]
        if type(module) is nn.MultiheadAttention:
            names = [self.names.get(id(weight), "") for weight in (module.in_proj_weight, module.out_proj.weight)]
        plain = all(names) and not self.tied.intersection(names) and not self.layers.keys() & set(names)
        more = getattr(module, "bias_k", None) is not None or getattr(module, "add_zero_attn", False)
        if not self.lenient or any(known) or not plain or more:
            raise self._unknown("multi_head_attention_forward")
        assert isinstance(module, nn.MultiheadAttention)
        inner, outer = names
        shapes = tuple(module.in_proj_weight.shape), tuple(module.out_proj.weight.shape)
        size = cast(int, module.head_dim)
        self.layers[inner] = Layer(inner.rpartition(".")[0], shapes[0], None, parts=3, size=size)
        self.layers[outer] = Layer(outer.rpartition(".")[0], shapes[1], UnitSource(inner, size))
        self.leader |= {inner: inner, outer: outer}
        return UnitSource(outer, dim=result.dim() - 1)

    def _combined(
        self, name: str, known: Sequence[UnitSource | None], shapes: Sequence[torch.Size], result: Tensor
    ) -> UnitSource:
        """Tie the layers of two activations that are combined unit by unit: gates, and a residual stream's."""
        one, other = known
        if one is None or other is None or (one.block, one.dim) != (other.block, other.dim):
            raise self._unknown(name)
        if len({len(result.shape), *map(len, shapes)}) > 1 or shapes[0][one.dim] != shapes[1][one.dim]:
            raise self._unknown(name)
        self._tie(one.layer, other.layer)
        return one

    def _group(self, tensor: str, number: int) -> None:
        """Let a layer's rows stay or go in a number of equal groups, and in all that it has been given so far."""
        before, _ = self.grouped.get(tensor, (number, ""))
        self.grouped[tensor] = math.gcd(before, number), self._where("groups")

    def _tie(self, one: str, other: str) -> None:
        self.leader[self._first(other)] = self._first(one)

    def _first(self, tensor: str) -> str:
        while self.leader[tensor] != tensor:
            tensor = self.leader[tensor]
        return tensor

    def finished(self, network: MultiSubnetwork, features: Any) -> UnitGraph:
        """Return the graph; the units of layers that stay whole are nobody's source."""
        output = self.held.get(id(features), (None, None))[1]
        if not isinstance(features, Tensor):
            held = [self.held[id(leaf)][1] for leaf in tree_leaves(features) if id(leaf) in self.held]
            self._keep_whole(held, "its outputs: they must be one tensor")
        for name, weight in network.weights():
            if name not in self.layers:
                if not self.lenient:
                    raise self._refused(f"{name}: no linear layer or convolution of the forward pass computes with it")
                kind = type_before_parametrizations(_holder(network, name)).__name__
                path, _, leaf = name.rpartition(".")
                why = f"module {path!r} ({kind}): no linear layer or convolution computes with its {leaf} alone"
                self.whole.setdefault(name, why)
                self.layers[name] = Layer(name.rpartition(".")[0], tuple(weight.shape), None)
                self.leader[name] = name
        if output is None and not self.lenient:
            raise self._refused("its outputs: they must be one tensor, of the units of one layer")
        if output is not None and self.lenient:
            self._check_output(network, output.layer)
        sizes = self._sizes()
        for name in list(self.whole):
            for other in self.layers:
                if self._first(other) == self._first(name):
                    self.whole.setdefault(other, self.whole[name])
        if self.whole.keys() >= self.layers.keys():
            first = min(self.whole, key=lambda name: isinstance(_holder(network, name), TABLES))  # tables have no units
            raise self._refused(self.whole[first])

        def source(units: UnitSource | None) -> UnitSource | None:
            if units is None or units.layer in self.whole:
                return None
            return replace(units, block=units.block * sizes.get(units.layer, 1))

        layers = {}
        for name, layer in self.layers.items():
            group = next(other for other in self.layers if self._first(other) == self._first(name))
            size = 1 if name in self.whole else sizes.get(name, 1)
            layers[name] = replace(
                layer, source=source(layer.source), whole=self.whole.get(name, ""), group=group, size=layer.size * size
            )
        passed = {where: source(units) for where, units in self.norms.items()}
        norms = {where: units for where, units in passed.items() if units is not None}
        return UnitGraph(layers, norms, source(output))

    def _sizes(self) -> dict[str, int]:
        """Map each layer whose rows stay or go in groups to the rows of one; those with a single group stay whole."""
        sizes: dict[str, int] = {}
        for first in dict.fromkeys(self._first(name) for name in self.grouped):
            members = {name: self.layers[name].shape[0] for name in self.layers if self._first(name) == first}
            numbers, reasons = zip(*(self.grouped[name] for name in members if name in self.grouped), strict=True)
            number = math.gcd(*numbers, *members.values())
            sizes |= {name: rows // number for name, rows in members.items()}
            if number == 1:
                self.whole.setdefault(first, f"{reasons[0]}: its groups need all units together")
        return sizes

    def _check_output(self, network: MultiSubnetwork, name: str) -> None:
        """Keep the last layer whole, unless its outputs can be written between those of units without weights."""
        kind = type(network.backbone.get_submodule(self.layers[name].module))
        if kind not in (nn.Linear, *CONVOLUTIONS):
            self.whole.setdefault(
                name, f"module {self.layers[name].module!r} ({kind.__name__}): it computes the outputs"
            )
        if sum(self._first(other) == self._first(name) for other in self.layers) > 1:
            self.whole.setdefault(name, "its outputs: several layers have their units")

    # ---- messages

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"granularity {self.granularity!r} does not work for this backbone: {why}")

    def _unknown(self, name: str, why: str = "its effect on units is not known") -> _UnknownEffectError:
        return _UnknownEffectError(f"{self._where(name)}: {why}")

    def _where(self, name: str) -> str:
        """Name the module of torch's that computes, or else the operation."""
        if self.inside:
            path, module = self.inside[-1]
            if type(module).__module__.startswith("torch.nn"):
                return f"module {path!r} ({type(module).__name__})"
        return f"operation {name!r}"


def _holder(network: MultiSubnetwork, name: str) -> nn.Module:
    return network.backbone.get_submodule(name.rpartition(".")[0])


def _leaves_dim(dim: int, dims: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a reduction leaves a dimension of its input as it is, and at its place."""
    reduced = kwargs.get("dim", args[1] if len(args) > 1 else None)
    kept = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    if reduced is None:
        return False
    places = [place % dims for place in ([reduced] if isinstance(reduced, int) else reduced)]
    return dim not in places and (bool(kept) or min(places) > dim)
