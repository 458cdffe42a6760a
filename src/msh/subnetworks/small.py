"""Compute a task of whole units as the smaller dense network that it is: every layer has its units alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from msh.subnetworks.sparse import TrainedLinear
from msh.subnetworks.tracing import UnitGraph, trace_units
from msh.subnetworks.units import columns, units_in_use

if TYPE_CHECKING:
    from msh.subnetworks.network import MultiSubnetwork
    from msh.subnetworks.subnetwork import Subnetwork


class SmallTensors:
    """Slice a task's tensors to its units.

    The features behind the last layer keep their full width, since the head reads all of them: the last layer writes
    its units' outputs between the biases of the others, and what follows it stays whole. Layers that stay whole at both
    sides are not sliced.

    Attributes:
        units: tensor name to bool (units,), the units it computes with.
        shapes: tensor name to the shape (units, columns, *kernel) of its small weight, for sliced tensors.
        places: tensor name to the flat indices (k,) of the task's values there, where it does not own all of them.
        rows: module name to the indices of its units, int64 (units,): layers, and the normalisations before the last.
        last: name of the last layer's module; None if it stays whole.

    Args:
        network: holds the task.
        task: a compact or frozen one.
        graph: of the backbone, from `trace_units`, which is called when None.
    Raises:
        ValueError: the backbone's units are not known.
    """

    def __init__(self, network: MultiSubnetwork, task: str, graph: UnitGraph | None = None) -> None:
        graph, masks = graph or trace_units(network), network.masks(task)
        self.units = units = units_in_use(graph, masks)
        self.shapes, self.places = {}, {}
        self.rows: dict[str, Tensor] = {}
        output = None if graph.output is None else graph.output.layer
        for name in graph.layers:
            layer = graph.layers[name]
            if name not in graph.small:
                continue
            fed = columns(layer.source, units, layer.shape[1], units[name].device)
            self.shapes[name] = (int(units[name].sum()), int(fed.sum()), *layer.shape[2:])
            owned = masks[name][units[name]][:, fed]
            if not bool(owned.all()):
                self.places[name] = owned.flatten().nonzero().squeeze(1)
            if not layer.whole:
                self.rows[layer.module] = units[name].nonzero().squeeze(1)
        self.last = None if output is None else graph.layers[output].module
        self._depthwise = {m: r for m, r in self.rows.items() if _groups(network.backbone, m) > 1}
        for where, source in graph.norms.items():
            if source.layer != output:
                passed = columns(source, units, 0, units[source.layer].device)
                self.rows[where] = passed.nonzero().squeeze(1)

    def weight(self, name: str, values: Tensor) -> Tensor:
        """Shape a task's values in a tensor, (k,), as its small weight: (units, columns, *kernel).

        The weight is a view of the values where the task owns all of it, else 0 where it does not.
        """
        if (places := self.places.get(name)) is None:
            return values.view(self.shapes[name])
        return values.new_zeros(math.prod(self.shapes[name])).index_copy(0, places, values).view(self.shapes[name])

    def private(self, name: str, tensor: Tensor) -> Tensor:
        """Slice a private tensor to the units of its module; the gradient reaches the whole tensor."""
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

        Depthwise convolutions get as many groups as units; the last layer writes into outputs of full width.

        Returns:
            The last layer, for which the caller sets `others`; None if it stays whole.
        """
        for where, rows in self._depthwise.items():
            cast(nn.Conv2d, tree.get_submodule(where)).groups = len(rows)
        if self.last is None:
            return None
        layer = tree.get_submodule(self.last)
        layer.__class__ = WIDE[type(layer)]
        wide = cast(Widened, layer)
        vars(wide)["rows"] = self.rows[self.last]
        return wide

    def others(self, network: MultiSubnetwork, private: Mapping[str, Tensor]) -> Tensor:
        """Return the last layer's outputs for units without weights, (width,): their biases, or zeros.

        Args:
            network: holds the task.
            private: the task's private tensors, whole.
        """
        bias, weight = private.get(f"{self.last}.bias"), network.backbone.get_buffer(f"{self.last}.weight")
        return weight.new_zeros(len(weight)) if bias is None else bias


def _groups(backbone: nn.Module, where: str) -> int:
    return int(getattr(backbone.get_submodule(where), "groups", 1))


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


class WideTrainedLinear(Widened, TrainedLinear):
    """Such a linear layer in training."""


class WideConv1d(Widened, nn.Conv1d):
    """Such a convolution."""


class WideConv2d(Widened, nn.Conv2d):
    """Such a convolution."""


class WideConv3d(Widened, nn.Conv3d):
    """Such a convolution."""


WIDE: Mapping[type, type] = {
    cls: wide
    for wide in (WideLinear, WideTrainedLinear, WideConv1d, WideConv2d, WideConv3d)
    for cls in wide.__bases__[1:]
}
