"""Compute a task of whole units as the smaller dense network that it is: every layer has its units alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from msh.compat import ConvolutionBase, NormBase
from msh.subnetworks.attention import FewHeads
from msh.subnetworks.forms import flat_index
from msh.subnetworks.narrow_norm import NarrowBatchNorm2d
from msh.subnetworks.sparse import LeanLinear, Pattern, SparseForm, SparseLinear, TrainedLinear, may_be_sparse
from msh.subnetworks.tensors import buffer_of, sliced_weight
from msh.subnetworks.tracing import trace_units
from msh.subnetworks.unit_graph import UnitGraph
from msh.subnetworks.units import columns, units_in_use

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork


FULLEST = 0.65
"""Share of the weights, between the units of a masked task's candidates, above which the whole network costs less."""


class SmallTensors:
    """Slice a task's tensors to its units.

    The features behind the last layer keep their full width, since the head reads all of them: the last layer writes
    its units' outputs between the biases of the others, and what follows it stays whole. Layers that stay whole at both
    sides are not sliced.

    Attributes:
        units: tensor name to bool (units,), the units it computes with.
        shapes: tensor name to the shape (units, columns, *kernel) of its small weight, for sliced tensors; here and
            below (columns, units) for a transposed one.
        places: tensor name to the flat indices (k,) of the task's values there, where it does not own all of them.
        patterns: tensor name to these indices as a pattern, where so few are its own that a sparse product may cost
            less; so it is for the last tasks that share units.
        slices: while the task is masked: tensor name to its rows and columns, int64 (units,) and (columns,), and to its
            candidates there, bool (units, columns, *kernel); None if all are.
        rows: module name to the indices of its units, int64 (units,): layers, and the normalisations before the last.
        last: name of the last layer's module; None if it stays whole.
        share: of the prunable weights, those that it computes with.

    Args:
        network: holds the task.
        task: a masked, compact or frozen one.
        graph: of the backbone, from `trace_units`, which is called when None.
    Raises:
        ValueError: the backbone's units are not known.
    """

    def __init__(self, network: MultiSubnetwork, task: str, graph: UnitGraph | None = None) -> None:
        graph, masks = graph or trace_units(network), network.masks(task)
        self.units = units = units_in_use(graph, masks)
        self.shapes, self.places, self.patterns, self.slices = {}, {}, {}, {}
        masked = network.subnetwork(task).phase == "masked"
        self.rows: dict[str, Tensor] = {}
        output = None if graph.output is None else graph.output.layer
        for name in graph.layers:
            layer = graph.layers[name]
            if name not in graph.small:
                continue
            fed, rows = columns(layer.source, units, layer.shape[1], units[name].device), layer.rows(units[name])
            index, inputs = flat_index(rows), flat_index(fed)
            owned = layer.turned(layer.turned(masks[name])[rows][:, fed])
            self.shapes[name] = tuple(owned.shape)
            inside = None if bool(owned.all()) else owned
            if masked:
                self.slices[name] = (inputs, index, inside) if layer.transposed else (index, inputs, inside)
            elif inside is not None:
                self.places[name] = flat_index(inside)
                kept, whole = len(self.places[name]), network.backbone.get_buffer(name)
                if not layer.transposed and may_be_sparse(self.shapes[name], whole, kept):
                    self.patterns[name] = Pattern(self.places[name], self.shapes[name])
            if not layer.whole:
                self.rows[layer.module] = index
        sizes = {name: mask.numel() for name, mask in masks.items()}
        self.share = sum((sizes | {n: math.prod(s) for n, s in self.shapes.items()}).values()) / sum(sizes.values())
        self.last = None if output is None else graph.layers[output].module
        layers = graph.layers.items()
        self._kept = {layer.module: units[name] for name, layer in layers if not layer.whole}
        self._counts = {where: (int(units[name].sum()), len(units[name])) for where, name in graph.counts.items()}
        self._entries: dict[str, tuple[int, Tensor]] = {}
        for name, other in graph.parameters.items():
            mine = units[other.layer][other.units.clamp(min=0).to(units[other.layer].device)]
            self._entries[name] = other.dim, flat_index(mine | (other.units < 0).to(mine.device))
        for where, source in graph.norms.items():
            if source.layer != output:
                self.rows[where] = flat_index(columns(source, units, 0, units[source.layer].device))

    def weight(self, name: str, values: Tensor) -> Tensor:
        """Shape a task's values in a tensor, (k,), or (*shape) while masked, as its small weight.

        Returns:
            (units, columns, *kernel); a view of values (k,) where the task owns all of it, else 0 where it does not.
        """
        if name in self.slices:
            return sliced_weight(values, *self.slices[name])
        if (places := self.places.get(name)) is None:
            return values.view(self.shapes[name])
        return _filled(values, places, self.shapes[name])

    def form(self, name: str, values: Tensor) -> Tensor | SparseForm:
        """Return a task's small weight, or its sparse form where that may cost less; see `weight`."""
        if (pattern := self.patterns.get(name)) is None or values.dtype != torch.float32:
            return self.weight(name, values)
        return SparseForm(pattern, lambda: values, lambda: pattern.scattered(values))

    def private(self, name: str, tensor: Tensor) -> Tensor:
        """Slice a private tensor to the units of its module; the gradient reaches the whole tensor."""
        if name in self._entries:
            return tensor.index_select(*self._entries[name])
        rows = self.rows.get(name.rpartition(".")[0])
        return tensor if rows is None or tensor.dim() == 0 else tensor.index_select(0, rows)

    def put_back(self, name: str, whole: Tensor, small: Tensor) -> None:
        """Write a buffer's entries of the task's units, in place."""
        rows = self.rows.get(name.rpartition(".")[0])
        if rows is None or whole.dim() == 0:
            whole.copy_(small)
        else:
            whole.index_copy_(0, rows, small)

    def fit(self, tree: nn.Module) -> Widened | None:
        """Make a backbone's copy compute with small tensors, which it has, or gets later.

        The last layer writes into outputs of full width; for others see `shrink`.

        Returns:
            The last layer, for which the caller sets `others`; None if it stays whole.
        """
        self.shrink(tree)
        if self.last is None:
            return None
        layer = tree.get_submodule(self.last)
        layer.__class__ = WIDE[type(layer)]
        wide = cast(Widened, layer)
        vars(wide)["rows"] = self.rows[self.last]
        return wide

    def shrink(self, tree: nn.Module) -> None:
        """Adapt a backbone's copy to the units: heads of attention, groups of convolutions, norms, attributes."""
        for attribute, (few, all_) in self._counts.items():
            vars(tree.get_submodule(attribute.path))[attribute.name] = attribute.value * few // all_
        for where, kept in self._kept.items():
            attention = tree.get_submodule(where)
            if isinstance(attention, nn.MultiheadAttention):
                attention.__class__ = FewHeads
                vars(attention)["heads"] = kept.nonzero().squeeze(1)
                vars(attention)["_qkv_same_embed_dim"] = False  # or torch's fused operation would take the tensors
        for where, rows in self.rows.items():
            module = tree.get_submodule(where)
            if type(module) is nn.BatchNorm2d:
                module.__class__ = NarrowBatchNorm2d
            narrow(module, len(rows))

    def others(self, network: MultiSubnetwork, private: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's outputs for units without weights, (width,): their biases, or zeros.

        Args:
            network: holds the task.
            private: the task's private tensors, whole.
        """
        bias, weight = private.get(f"{self.last}.bias"), buffer_of(network.backbone, f"{self.last}.weight")
        return weight.new_zeros(len(weight)) if bias is None else bias


def narrow(module: nn.Module, units: int) -> None:
    """Set the sizes by which a module computes: groups, and the numbers that it checks its inputs against."""
    if isinstance(module, nn.GroupNorm):
        module.num_groups = units * module.num_groups // module.num_channels
        module.num_channels = units
    elif isinstance(module, NormBase):
        module.num_features = units
    elif isinstance(module, ConvolutionBase) and module.groups > 1:
        module.groups = units * module.groups // module.out_channels
        module.out_channels = units


def _filled(values: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Write values (k,) at their flat indices (k,) into zeros: (*shape)."""
    return values.new_zeros(math.prod(shape)).index_copy_(0, places, values).view(shape)


def sliced_in_training(network: MultiSubnetwork, task: str) -> SmallTensors | None:
    """Slice a task in training to its units, or to those of its candidates; None where it computes as a whole."""
    sub = network.subnetwork(task)
    if sub.exposed or sub.scored:
        return None
    if sub.phase == "compact":
        return sliced_to_units(network, task)
    if not network.small_while_masked or len(sub.whole) == len(network.names.prunable):
        return None
    small = sliced_to_units(network, task)
    return small if small is not None and small.share <= FULLEST else None


def sliced_to_units(network: MultiSubnetwork, task: str) -> SmallTensors | None:
    """Slice a task to its units; None where it computes as a whole: a convolution without units has no outputs."""
    if not computes_small(network.subnetwork(task)):
        return None
    small = SmallTensors(network, task)
    return None if any(0 in shape for shape in small.shapes.values()) else small


def computes_small(sub: Subnetwork) -> bool:
    """Return True for a task that computes as a smaller dense network once its weights are final."""
    return sub.granularity == "unit" and not sub.reads


class Widened(nn.Module):
    """A layer of some units whose outputs have the width of all: the others' outputs are their biases.

    Attributes:
        rows: int64 (units,), indices of its units.
        others: the biases of all units (width,), or zeros.
    """

    rows: Tensor
    others: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """As the layer, with the outputs of all units along its channels."""
        small = super().forward(input)
        dim = 1 if isinstance(self, nn.Conv1d | nn.Conv2d | nn.Conv3d) else small.dim() - 1
        shape = [*small.shape[:dim], len(self.others), *small.shape[dim + 1 :]]
        others = self.others.to(small.dtype).view(-1, *[1] * (small.dim() - dim - 1)).expand(shape)
        wide: Tensor = others.index_copy(dim, self.rows, small)
        return wide


class WideLinear(Widened, nn.Linear):
    """Such a linear layer."""


class WideSparseLinear(Widened, SparseLinear):
    """Such a linear layer that may be sparse."""


class WideTrainedLinear(Widened, TrainedLinear):
    """Such a linear layer in training."""


class WideLeanLinear(Widened, LeanLinear):
    """Such a linear layer that has its values alone."""


class WideConv1d(Widened, nn.Conv1d):
    """Such a convolution."""


class WideConv2d(Widened, nn.Conv2d):
    """Such a convolution."""


class WideConv3d(Widened, nn.Conv3d):
    """Such a convolution."""


WIDE: Mapping[type, type] = {
    cls: wide
    for wide in (WideLinear, WideSparseLinear, WideTrainedLinear, WideLeanLinear, WideConv1d, WideConv2d, WideConv3d)
    for cls in wide.__bases__[1:]
}
