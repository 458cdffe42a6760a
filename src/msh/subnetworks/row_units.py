"""Find the units of layers: the rows that operations compute with together, and so stay or go together.

Every row of every layer has a number, and so has every entry of other parameters, such as a number per head. An
activation has the numbers of the rows that its entries come from. An operation unites the rows that it computes with
together; the sets of united rows are the units. A task that keeps some of them computes each activation at their
entries alone, so that code must not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from msh.subnetworks.marks import Attribute, Marked, Origin

ALWAYS = -1
"""Number of an entry that is there for every task."""


@dataclass(frozen=True)
class Along:
    """Units must lie along one dimension of an activation: this one, or any when None."""

    rows: Tensor
    why: str
    dim: int | None = None


@dataclass(frozen=True)
class Still:
    """Units must not lie along a dimension: code selects entries of it, or computes with its size."""

    rows: Tensor
    why: str
    dim: int


@dataclass(frozen=True)
class Alike:
    """A dimension is split into pieces, which must have the same units."""

    rows: Tensor
    why: str
    dim: int
    pieces: int


@dataclass(frozen=True)
class Sized:
    """Code gives the size of a dimension: where units lie along it, the size must follow from their number.

    Attributes:
        factors: where the size comes from; () for a plain number.
    """

    rows: Tensor
    why: str
    dim: int
    factors: tuple[Origin, ...]


Need = Along | Still | Alike | Sized


@dataclass(frozen=True)
class Structure:
    """A layer's units: its rows are laid out as (parts, units, size), and `units` has a label for each unit."""

    parts: int
    size: int
    units: Tensor


@dataclass(frozen=True)
class Parameter:
    """A parameter that is not a layer's weight, with entries per unit.

    Attributes:
        layer: has these units.
        dim: of the parameter, along which they lie.
        units: int64 (size of the dimension,), the unit of each index; ALWAYS where there is none.
    """

    layer: str
    dim: int
    units: Tensor


@dataclass(frozen=True)
class Solution:
    """The units of all layers.

    Attributes:
        structures: layer to its units, for those that do not stay whole.
        leaders: layer to the first layer with the same units.
        counts: attributes that count something per unit, to a layer that has these units.
        parameters: name of each other parameter with entries per unit to these.
    """

    structures: dict[str, Structure]
    leaders: dict[str, str]
    counts: dict[Attribute, str]
    parameters: dict[str, Parameter]
    _layer_of: Callable[[Tensor], str | None]

    def source(self, rows: Tensor) -> tuple[str, int] | None:
        """Return the layer whose units feed these columns, (columns,), and the columns per unit; None if all stay."""
        layer = self._layer_of(rows)
        if layer not in self.structures:
            return None
        return layer, len(rows) // len(self.structures[layer].units)


class RowUnits:
    """Number rows, unite them, and solve for the units."""

    def __init__(self) -> None:
        self.first: dict[str, int] = {}
        """Layer, or other parameter, to the number of its first row."""
        self.others: dict[str, torch.Size] = {}
        """Other parameter to its shape."""
        self.count = 0
        self.united: list[Tensor] = []
        """Pairs of rows, (2, pairs)."""
        self.needs: list[Need] = []
        self.mixers: dict[str, str] = {}
        """Layer to the last operation that united some of its rows."""
        self.fixed: set[Attribute] = set()
        """Attributes that code computes with otherwise than as a size."""

    def add(self, layer: str, rows: int) -> Tensor:
        """Number a layer's rows: (rows,)."""
        self.first[layer], self.count = self.count, self.count + rows
        return torch.arange(self.count - rows, self.count)

    def add_other(self, parameter: str, shape: torch.Size) -> Tensor:
        """Number the entries of a parameter that is not a layer's weight: (*shape)."""
        self.others[parameter] = shape
        return self.add(parameter, shape.numel()).view(shape)

    def layers(self, *rows: Tensor | None) -> list[str]:
        """Name the layers and other parameters that these rows belong to, in computing order."""
        found: set[int] = set()
        for numbers in rows:
            if numbers is not None:
                valid = lean(numbers).flatten()
                found.update(self._owners(valid[valid >= 0]).unique().tolist())
        names = [*self.first]
        return [names[index] for index in sorted(found)]

    def _owners(self, rows: Tensor) -> Tensor:
        """Look up the index of each row's layer."""
        starts = torch.tensor([*self.first.values()], dtype=torch.int64)
        return torch.bucketize(rows.contiguous(), starts, right=True) - 1

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Unite rows that stand at the same position of two tensors, which broadcast."""
        one, other = torch.broadcast_tensors(one, other)
        for dim in range(one.dim()):
            if one.stride(dim) == other.stride(dim) == 0:
                one, other = one.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
        one, other = one.flatten(), other.flatten()
        apart = (one >= 0) & (other >= 0) & (one != other)
        pairs = ((one[apart] << 32) + other[apart]).unique()  # far faster than of two columns
        if pairs.numel():
            self.united.append(torch.stack((pairs >> 32, pairs & 0xFFFFFFFF)))

    def mix(self, rows: Tensor, dims: Iterable[int], why: str) -> tuple[Tensor, bool]:
        """Unite all rows along dimensions.

        Returns:
            One row of each set, of size 1 along these dimensions; and True unless the sets are a single one.
        """
        rows = lean(rows)
        dims = [dim for dim in {dim % rows.dim() for dim in dims} if rows.shape[dim] > 1]
        if not dims:
            return rows, True
        self.mixers |= dict.fromkeys(self.layers(rows), why)
        kept = rows.amax(dims, keepdim=True)
        self.unite(rows, kept.expand_as(rows))
        apart = len(kept[self.of_layers(kept)].unique()) != 1 or len(rows[self.of_layers(rows)].unique()) == 1
        return kept, apart

    def of_layers(self, rows: Tensor) -> Tensor:
        """Mark the rows of layers, unlike those of other parameters and entries that are always there."""
        layers = torch.tensor([name not in self.others for name in self.first])
        return (rows >= 0) & layers[self._owners(rows).clamp(min=0)]

    def sized(self, rows: Tensor, sizes: Sequence[int], why: str, first: int = 0) -> None:
        """Note the sizes of an activation's dimensions, from dimension `first` on, that code gives; -1 is none."""
        for dim, size in enumerate(sizes, first):
            if int.__int__(size) != -1 and rows.shape[dim] > 1:
                factors = size.factors if isinstance(size, Marked) else ()
                self.needs.append(Sized(lean(rows), why, dim, factors))

    def solve(
        self,
        shapes: Mapping[str, Sequence[int]],
        columns: Mapping[str, Tensor],
        whole: dict[str, str],
        last: Sequence[str] = (),
    ) -> Solution:
        """Find the units of all layers, and the layers that must stay whole.

        Args:
            shapes: layer to its weight's shape, for all that have rows.
            columns: the rows, (columns,), that feed each layer's columns, or pass through a norm, by any name.
            whole: layer to the reason why it stays whole; more are added.
            last: the layer behind the outputs, whose activations have all entries even where a task keeps some units.
        """
        if not shapes:
            return Solution({}, {}, {}, {}, lambda rows: None)
        labels, leaders = self.labels, self.leaders
        rows = torch.arange(self.count)
        owners, used = self._owners(rows), labels[self.of_layers(rows)]
        united = torch.zeros(self.count, dtype=torch.bool).index_fill(0, used, True)[labels]
        while True:
            for name in [name for name in self.first if name in whole]:
                for other in self.first:
                    if leaders[other] == leaders[name]:
                        whole.setdefault(other, whole[name])
            before = len(whole)
            alive = torch.tensor([name not in whole for name in self.first])[owners]
            current = torch.where(alive & united, labels, ALWAYS)
            structures = self._structures(shapes, whole)
            if len(whole) == before:
                some = current.clone()
                for name in last:
                    some[self.first[name] : self.first[name] + shapes[name][0]] = ALWAYS
                counts = self._check_needs(some, whole)
            if len(whole) == before:
                self._check_columns(columns, structures, current, whole)
            if len(whole) == before:
                parameters = self._parameters(structures, some, whole)
            if len(whole) == before:
                return Solution(structures, leaders, counts, parameters, self._layer_of)

    @cached_property
    def labels(self) -> Tensor:
        """Label every row by the set that it is united to, (rows,), once all are united."""
        pairs = torch.cat(self.united, 1) if self.united else torch.empty(2, 0, dtype=torch.int64)
        return _components(pairs, self.count)

    @cached_property
    def leaders(self) -> dict[str, str]:
        """Map each layer to the first that shares a unit with it, directly or through others, once all are united."""
        names, owners = [*self.first], self._owners(torch.arange(self.count))
        least = torch.full((self.count,), len(names)).scatter_reduce(0, self.labels, owners, "amin")[self.labels]
        pairs = (owners * len(names) + least).unique()  # far faster than of two columns
        groups = _components(torch.stack((pairs // len(names), pairs % len(names))), len(names)).tolist()
        leader: dict[int, str] = {}
        for name, group in sorted(zip(names, groups, strict=True), key=lambda pair: pair[0] in self.others):
            leader.setdefault(group, name)
        return {name: leader[group] for name, group in zip(names, groups, strict=True)}

    def _leader(self, rows: Tensor) -> str:
        """Name the first layer that has the units of these rows, of one unit or more."""
        return self.leaders[self.layers(rows)[0]]

    def _layer_of(self, rows: Tensor) -> str | None:
        """Name a layer that has the units of these rows."""
        names = self.layers(rows)
        return None if not names else self.leaders[names[0]] if names[0] in self.others else names[0]

    def _parameters(
        self, structures: Mapping[str, Structure], current: Tensor, whole: dict[str, str]
    ) -> dict[str, Parameter]:
        """Find other parameters' entries per unit; units must lie along one of their dimensions."""
        found: dict[str, Parameter] = {}
        for name, shape in self.others.items():
            labels = current[self.first[name] : self.first[name] + shape.numel()].view(shape)
            if not bool((labels >= 0).any()):
                continue
            dims = [dim for dim in range(len(shape)) if varies(labels, dim)]
            if len(dims) != 1:
                whole[name] = f"parameter {name!r}: units do not lie along one of its dimensions"
                continue
            units = structures[self.leaders[name]].units
            index = torch.full((self.count,), ALWAYS).index_copy(0, units, torch.arange(len(units)))
            found[name] = Parameter(self.leaders[name], dims[0], _labelled(index, line(labels, dims[0])))
        return found

    def _structures(self, shapes: Mapping[str, Sequence[int]], whole: dict[str, str]) -> dict[str, Structure]:
        structures: dict[str, Structure] = {}
        for name, start in self.first.items():
            if name in whole or name in self.others:
                continue
            rows = self.labels[start : start + shapes[name][0]]
            found = _structure(rows)
            if found is None:
                whole[name] = "its units lie in no regular order"
            elif len(found.units) == 1 < len(rows):
                whole[name] = f"{self.mixers.get(name, 'an operation')}: it needs all units together"
            elif not torch.equal(found.units, structures.get(self.leaders[name], found).units):
                whole[name] = "layers with the same units have them in different orders"
            else:
                structures[name] = found
        return structures

    def _check_columns(
        self,
        columns: Mapping[str, Tensor],
        structures: Mapping[str, Structure],
        current: Tensor,
        whole: dict[str, str],
    ) -> None:
        """Let layers stay whole unless each of their units feeds as many columns, one unit after the other."""
        for where, rows in columns.items():
            labels = _labelled(current, rows)
            if not bool((labels >= 0).any()):
                continue
            units = structures[self._leader(rows[labels >= 0])].units
            block, rest = divmod(len(rows), len(units))
            if rest or not torch.equal(labels, units.repeat_interleave(block)):
                for name in self.layers(rows[labels >= 0]):
                    whole.setdefault(name, f"{where}: the units that feed it lie in no regular order")

    def _check_needs(self, current: Tensor, whole: dict[str, str]) -> dict[Attribute, str]:
        """Let layers stay whole whose activations do not meet a need; return the attributes that count units."""
        counts: dict[Attribute, str] = {}
        sized: list[tuple[Sized, Tensor]] = []
        for need in self.needs:
            labels = _labelled(current, need.rows)
            if isinstance(need, Sized):
                sized.append((need, labels))
                if varies(labels, need.dim) and len(need.factors) == 1 and isinstance(need.factors[0], Attribute):
                    counts[need.factors[0]] = self._leader(need.rows[labels >= 0])
                continue
            if isinstance(need, Along):
                dims = [dim for dim in range(labels.dim()) if varies(labels, dim)]
                met = len(dims) <= 1 if need.dim is None else set(dims) <= {need.dim}
            elif isinstance(need, Still):
                met = not varies(labels, need.dim)
            else:
                pieces = labels.chunk(need.pieces, need.dim)
                met = all(torch.equal(piece, pieces[0]) for piece in pieces)
            if not met:
                self._stay(need, labels, whole)
        for need, labels in sized:
            if not self._follows(need, labels, current, counts):
                self._stay(need, labels, whole)
                for factor in need.factors:
                    if isinstance(factor, Attribute) and factor in counts:  # of layers that lie elsewhere
                        whole.setdefault(counts[factor], need.why)
        return counts

    def _follows(
        self,
        need: Sized,
        labels: Tensor,
        current: Tensor,
        counts: Mapping[Attribute, str],
    ) -> bool:
        """Tell whether a size follows from the number of units along its dimension."""
        varying = varies(labels, need.dim)
        found = line(labels, need.dim)
        changing = 0
        for factor in need.factors:
            if isinstance(factor, Attribute):
                if factor not in counts:
                    continue
                if factor in self.fixed or not varying or factor.value % len(found.unique()):
                    return False
                if self._leader(need.rows[labels >= 0]) != counts[factor]:
                    return False
                changing += 1
            elif varies(others := _labelled(current, factor.rows), factor.dim):
                if not torch.equal(line(others, factor.dim).unique(), found.unique()):
                    return False
                changing += 1
        if not varying:
            return changing == 0
        _, times = found.unique(return_counts=True)
        return changing == 1 and bool((found >= 0).all()) and bool((times == times[0]).all())

    def _stay(self, need: Need, labels: Tensor, whole: dict[str, str]) -> None:
        for name in self.layers(need.rows[labels >= 0]):
            whole.setdefault(name, need.why)


def lean(rows: Tensor) -> Tensor:
    """Keep one entry along each dimension in which a tensor repeats its entries: the rest says nothing more."""
    for dim in range(rows.dim()):
        if rows.shape[dim] > 1 and (rows.stride(dim) == 0 or bool((rows == rows.narrow(dim, 0, 1)).all())):
            rows = rows.narrow(dim, 0, 1)
    return rows


def _components(pairs: Tensor, count: int) -> Tensor:
    """Label the connected components of a graph of so many nodes: (count,)."""
    ends = pairs.numpy()
    graph = coo_array((torch.ones(pairs.shape[1], dtype=torch.bool).numpy(), (ends[0], ends[1])), shape=(count, count))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def _structure(labels: Tensor) -> Structure | None:
    """Lay out a layer's rows, (rows,), by their labels as (parts, units, size); None where that is impossible."""
    units = len(labels.unique())
    size = int((labels == labels[0]).long().cumprod(0).sum())
    parts, rest = divmod(len(labels), units * size)
    if rest:
        return None
    laid_out = labels.view(parts, units, size)
    order = laid_out[0, :, 0]
    return Structure(parts, size, order) if bool((laid_out == order[:, None]).all()) else None


def _labelled(labels: Tensor, rows: Tensor) -> Tensor:
    """Replace rows by their labels; ALWAYS stays."""
    return torch.where(rows >= 0, labels[rows.clamp(min=0)], ALWAYS)


def varies(numbers: Tensor, dim: int) -> bool:
    """Tell whether entries along a dimension differ."""
    return numbers.shape[dim] > 1 and bool((numbers != numbers.narrow(dim, 0, 1)).any())


def line(numbers: Tensor, dim: int) -> Tensor:
    """Take the entries along a dimension, at the first index of the others."""
    return numbers.movedim(dim, -1).flatten(0, -2)[0] if numbers.dim() > 1 else numbers
