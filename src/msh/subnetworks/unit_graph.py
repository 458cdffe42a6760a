"""Hold a backbone's units: the layers that compute them, and the layers and parameters that use them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from msh.subnetworks.marks import Attribute
from msh.subnetworks.row_units import Parameter


@dataclass(frozen=True)
class UnitSource:
    """Units along one dimension of an activation.

    Attributes:
        layer: the tensor whose rows compute them.
        block: consecutive indices per unit: 1, a channel's positions once it is flattened, or those of a group.
    """

    layer: str
    block: int = 1


@dataclass(frozen=True)
class Layer:
    """A prunable tensor (units, columns, *kernel) and its source.

    Attributes:
        module: dotted name of its module.
        shape: (units, columns, *kernel).
        source: the units that feed its columns; None for the backbone's inputs, and for layers that stay whole.
        whole: why all of its units stay, as operations after it need them all; "" if tasks may keep some of them.
        group: the first layer that has the same units: itself, the layer before a convolution with groups, one whose
            outputs are added to its own, or multiply them, or the projection to queries for those to keys and values.
        transposed: the tensor is (columns, units), as the layer multiplies its inputs with it from the right.
        parts, size: rows are laid out as (parts, units, size): (1, units, 1), or (3, heads, size of a head) for an
            attention's projection to queries, keys and values, (1, groups, channels of a group) around a convolution
            with groups and before a group normalization, or (2, units, 1) for the two halves of a gated layer.
    """

    module: str
    shape: tuple[int, ...]
    source: UnitSource | None
    whole: str = ""
    group: str = ""
    parts: int = 1
    size: int = 1
    transposed: bool = False

    @property
    def units(self) -> int:
        """Output units."""
        return self.shape[0] // (self.parts * self.size)

    def turned(self, tensor: Tensor) -> Tensor:
        """Turn the tensor's values into (units, columns, *kernel), and back; a view."""
        return tensor.transpose(0, 1) if self.transposed else tensor

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
        counts: modules' attributes that count units, such as `num_heads`, or something per unit, to a layer that has
            these units.
        parameters: other parameters with entries per unit, such as a table of position biases per head, to these.
    """

    layers: dict[str, Layer]
    norms: dict[str, UnitSource]
    output: UnitSource | None
    counts: dict[Attribute, str] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)

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
        return own and not self.whole and not any(layer.transposed for layer in self.layers.values())
