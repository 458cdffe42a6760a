"""Run a backbone on an example to find the layer whose output units feed each layer's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from msh.compat import NormBase
from msh.errors import one_of, requirement
from msh.subnetworks.marks import Attribute, Marked, Origin, Size, is_torchs, marked_attributes
from msh.subnetworks.options import GRANULARITIES, GranularityName
from msh.subnetworks.roles import TABLES
from msh.subnetworks.row_rules import (
    ARRANGED,
    BY_ENTRY,
    CASTS,
    ELEMENTWISE,
    GIVEN_SIZES,
    JOINED,
    PIECES,
    POOLS,
    PRODUCTS,
    REDUCED,
    SELECTED,
    Call,
    RowRules,
    UnknownEffectError,
)
from msh.subnetworks.row_units import Along, Still, lean, line, varies
from msh.subnetworks.tensors import evaluating
from msh.subnetworks.unit_graph import Layer, UnitGraph, UnitSource

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVED = (F.conv1d, F.conv2d, F.conv3d)
NORMALIZED = (F.batch_norm, F.instance_norm, F.group_norm)
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


class _UnitTracer(RowRules, TorchFunctionMode):
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
        name, kwargs = getattr(func, "__name__", str(func)), dict(kwargs or {})
        call = Call(func, name.strip("_"), args, kwargs, None)
        before = [leaf for leaf in call.tensors if id(leaf) in self.held]
        known = [self.held[id(leaf)][1] for leaf in before]
        shapes = [leaf.shape for leaf in before]
        discrete = self.discrete.issuperset(map(id, before))
        if before and name in VALUES and not discrete:
            raise self._refused(f"{self.where(call.name)}: what it computes depends on the values of its inputs")
        call = replace(call, result=func(*args, **kwargs))
        if self.private:
            call = replace(call, result=self._follow_own(call, known))
        if not before or (not call.outputs and call.name != "setitem"):
            return call.result if not known or known[0] is None else self._size(call, known[0])
        found: Sequence[Tensor | None] = [None] * len(call.outputs)
        try:
            found = self._after_call(call, known, shapes)
        except UnknownEffectError as error:
            if not self.lenient:
                raise self._refused(str(error)) from None
            self._keep_whole(known, str(error))
            for leaf in call.tensors:
                if id(leaf) in self.names:
                    self.whole.setdefault(self.names[id(leaf)], str(error))
        for leaf, rows in zip(call.outputs, found, strict=True):
            self.held[id(leaf)] = (leaf, rows)
            if discrete and not leaf.is_floating_point():
                self.discrete.add(id(leaf))
        return call.result

    def _after_call(
        self, call: Call, known: Sequence[Tensor | None], shapes: Sequence[torch.Size]
    ) -> Sequence[Tensor | None]:
        """Return the rows of each tensor that an operation returns."""
        if call.name == "setitem":
            self.assign(call)
            return []
        if call.func is F.multi_head_attention_forward and len(call.outputs) == 1:
            return [self._attention(known, call.outputs[0])]
        if call.name in PIECES and self.lenient:
            return [None] * len(call.outputs) if known[0] is None else self.pieces(call, known[0])
        if len(call.outputs) != 1 or call.outputs[0] is not call.result:
            raise self.unknown(call.name)
        return [self._after(call, known, shapes)]

    def rows_of(self, tensor: Tensor) -> Tensor | None:
        """Return the rows of a tensor's entries; None if all are always there."""
        if id(tensor) in self.held:
            return self.held[id(tensor)][1]
        if id(tensor) in self.private and id(tensor) not in self.own:
            self.own[id(tensor)] = tensor, self.rows.add_other(self.private[id(tensor)], tensor.shape)
        return self.own[id(tensor)][1] if id(tensor) in self.own else None

    def _follow_own(self, call: Call, known: Sequence[Tensor | None]) -> Any:
        """Follow parameters that are no layer's through an operation, before they meet activations.

        Where an operation's effect on their entries is not known, or all entries of an activation are always there, so
        are theirs.

        Returns:
            The operation's result, in which sizes are marked.
        """
        own = [leaf for leaf in call.tensors if id(leaf) in self.own or id(leaf) in self.private]
        met = call.func is F.scaled_dot_product_attention or call.name in (*ELEMENTWISE, *BY_ENTRY, *JOINED, *PRODUCTS)
        if not own or (met and any(rows is not None for rows in known)):
            return call.result  # in the latter case they are followed as activations
        if not known and not call.outputs and len(own) == 1 and call.name in ("get", "size", "dim"):
            rows = self.rows_of(own[0])
            return call.result if rows is None else self._size(call, rows)
        try:
            if known or len(call.outputs) != 1 or call.outputs[0] is not call.result:
                raise self.unknown(call.name)
            self.own[id(call.result)] = call.result, self._after_own(call)
        except UnknownEffectError as error:
            for leaf in own:
                if id(leaf) in self.own:
                    self.rows.needs.append(Still(self.own[id(leaf)][1].flatten(), str(error), 0))
                self.private.pop(id(leaf), None)
        return call.result

    def _after_own(self, call: Call) -> Tensor:
        """Return the rows of a result that is computed from parameters alone."""
        rows: Tensor | None = None
        if call.name in CASTS:
            rows = self.rows_of(call.tensors[0])
        elif call.name in (*ELEMENTWISE, *BY_ENTRY):
            tensors = [(leaf.shape, self.rows_of(leaf)) for leaf in call.tensors if leaf.dim() > 0]
            rows = self.by_entry(call.name, tensors, call.result.shape)
        elif call.name in (*ARRANGED, *GIVEN_SIZES, *SELECTED, *JOINED):
            rows = self.arrange(call)
        if rows is None:
            raise self.unknown(call.name)
        return rows

    def report(self, origin: Origin) -> None:
        """Note that code computes with an attribute, or with a tensor's size, otherwise than as a size."""
        if isinstance(origin, Attribute):
            self.rows.fixed.add(origin)
        elif self.inside:  # else code has kept a size beyond the forward pass
            path, module = self.inside[-1]
            why = f"module {path!r} ({type(module).__name__}) computes with the number of units"
            self.rows.needs.append(Still(lean(origin.rows), why, origin.dim))

    def _keep_whole(self, known: Iterable[Tensor | None], why: str) -> None:
        """Let the layers of these rows stay whole; without lenience, refuse the backbone."""
        if not self.lenient:
            raise self._refused(why)
        for name in self.rows.layers(*known):
            self.whole.setdefault(name, why)

    def _size(self, call: Call, rows: Tensor) -> Any:
        """Mark the sizes that code asks for, other than torch's, whose modules get their own sizes."""
        if is_torchs(self.inside[-1][1]):
            return call.result
        if isinstance(call.result, torch.Size):
            sizes = (Marked(size, (Size(rows, dim),), self.report) for dim, size in enumerate(call.result))
            return torch.Size(sizes)
        if call.name == "size":
            return Marked(call.result, (Size(rows, call.given("dim", 1)),), self.report)
        for dim in {"len": range(1), "numel": range(rows.dim())}.get(call.name, ()):
            self.report(Size(rows, dim))
        return call.result

    def _after(self, call: Call, known: Sequence[Tensor | None], shapes: Sequence[torch.Size]) -> Tensor | None:
        """Return the rows of an operation's result."""
        name, weight = call.name, call.given("weight", 1)
        if len(known) == 1 and (call.func is F.linear or call.func in CONVOLVED) and isinstance(weight, Tensor):
            groups = int(call.given("groups", 6, 1)) if call.func in CONVOLVED else 1
            spatial = None if call.func is F.linear else CONVOLVED.index(call.func) + 1
            return self._layer(weight, groups, spatial, known[0], shapes[0], call.result)
        if name == "addmm" and len(known) == 1 and id(call.args[2]) in self.names:
            self.transposed.add(self.names[id(call.args[2])])
            return self._layer(call.args[2], 1, None, known[0], shapes[0], call.result)
        if all(rows is None for rows in known):  # the inputs are kept whole
            if not self.lenient and len(known) > 1:
                raise self.unknown(name)
            return None
        tensors = [(leaf.shape, self.rows_of(leaf)) for leaf in call.tensors if leaf.dim() > 0]
        rows = tensors[0][1]
        entries = name in (*ELEMENTWISE, *BY_ENTRY)
        if not self.lenient and (len(known) > 1 or name not in IN_CHAINS or (entries and len(tensors) > 1)):
            raise self.unknown(name)
        if name in CASTS:
            return rows
        if entries:
            return self.by_entry(name, tensors, call.result.shape)
        if name in PRODUCTS:
            return self.product(call, tensors)
        if call.func is F.scaled_dot_product_attention:
            return self.attended(call, tensors)
        if name not in JOINED and (rows is None or any(other is not None for _, other in tensors[1:])):
            raise self.unknown(name)
        if name in (*ARRANGED, *GIVEN_SIZES, *SELECTED, *JOINED):
            return self.arrange(call)
        assert rows is not None
        if call.func in NORMALIZED and self._normalizes(rows, *self.inside[-1]):
            return rows
        return self.mixed(call, rows)

    def _normalizes(self, rows: Tensor, path: str, module: nn.Module) -> bool:
        """Note a normalization that computes with each channel alone, or with groups of channels; False for others."""
        channels = line(rows, 1)
        if isinstance(module, nn.GroupNorm) and self.lenient:
            self.rows.mix(channels.view(module.num_groups, -1), [1], self.where("groups"))
        elif not isinstance(module, NormBase):
            return False
        self.rows.needs.append(Along(lean(rows), str(self.unknown("norm")), 1))
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
            raise self.unknown(name, "a convolution's units are channels: use 'unit'")
        if groups != 1 and not self.lenient:
            raise self.unknown(name, requirement("groups", "1", groups))
        if len(before) != expected and not (self.lenient and spatial is None):
            raise self.unknown(name, f"its input has {len(before)} dimensions, not {expected}")
        self._check_module(name, weight, tensor in self.transposed)
        if not tensor or tensor in self.tied:
            raise self.unknown(name, "its weight is tied, or is not shared between tasks")
        if tensor in self.layers:
            error = self.unknown(name, "it is used more than once in a forward pass")
            self._keep_whole([self.columns.get(tensor)], str(error))
            raise error
        if groups != 1 and rows is None:
            raise self.unknown(name)
        own = self._add(tensor, tuple(weight.T.shape if tensor in self.transposed else weight.shape))
        if rows is not None:
            self.rows.needs.append(Along(lean(rows), str(self.unknown(name)), dim))
            feeding = line(rows, dim)
            if groups == 1:
                self.columns[tensor] = feeding
            else:
                where = self.where("groups")
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
            raise self.unknown(name)
        if more := own.keys() - {"weight", "bias"}:
            raise self.unknown(name, f"it has more tensors than a weight and a bias: {', '.join(sorted(more))}")

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
            raise self.unknown("multi_head_attention_forward")
        assert isinstance(module, nn.MultiheadAttention)
        inner, outer = names
        heads = self._add(inner, tuple(module.in_proj_weight.shape)).view(3, module.num_heads, -1)
        self.rows.mix(heads, (0, 2), self.where("attention"))
        self.columns[outer] = heads[2].flatten()
        return self._add(outer, tuple(module.out_proj.weight.shape)).expand(result.shape)

    def finished(self, network: MultiSubnetwork, features: Any) -> UnitGraph:
        """Return the graph; the units of layers that stay whole are nobody's source."""
        output = self.held.get(id(features), (None, None))[1]
        if not isinstance(features, Tensor):
            held = [self.held[id(leaf)][1] for leaf in tree_leaves(features) if id(leaf) in self.held]
            self._keep_whole(held, "its outputs: they must be one tensor")
        shapes = dict(self.layers)
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
                source(name),
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
        leaders, kept = self.rows.leaders, {}
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
