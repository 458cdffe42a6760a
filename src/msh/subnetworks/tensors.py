"""Name a module's tensors by role, hold them in bags, and compute with masked and scattered weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from msh.compat import is_transformed, list_weights, non_persistent, own_buffers, own_modules, own_parameters
from msh.subnetworks.roles import Prunable, check_aliases, check_tables, find_roles, padding_rows, tied_names


@dataclass(frozen=True)
class TensorNames:
    """A backbone's tensors by role, as dotted names, each tensor once.

    Attributes:
        prunable: shared by tasks weight by weight.
        parameters: private to each task (biases, normalisation).
        buffers: private to each task until it is frozen; a frozen task uses the backbone's where it changed nothing.
        shared: parameters that the user has frozen: every task uses the backbone's, which never change.
        transient: non-persistent buffers: never saved; frozen tasks use the backbone's.
        tied: further name of a tensor (tied weights) to its name above.
        padding: name of an embedding to the row that stays 0.
    """

    prunable: list[str]
    parameters: list[str]
    buffers: list[str]
    shared: list[str]
    transient: list[str]
    tied: dict[str, str]
    padding: dict[str, int]

    @property
    def all(self) -> list[str]:
        """Every name except the further ones of tied tensors."""
        return [*self.prunable, *self.parameters, *self.buffers, *self.shared, *self.transient]

    @property
    def were_parameters(self) -> set[str]:
        """Names of the tensors that are parameters before the backbone is wrapped, further names included."""
        first = {*self.prunable, *self.parameters, *self.shared}
        return first | {again for again, name in self.tied.items() if name in first}


def name_tensors(backbone: nn.Module, prunable: Prunable = None) -> TensorNames:
    """Find a module's tensors and their roles; see `roles`.

    Raises:
        ValueError: a parameter has no clear role, or is used in a way that would leave it untrained.
    """
    check_aliases(backbone)
    check_tables(backbone)
    roles = find_roles(backbone, prunable)
    by_kind = {kind: [r.name for r in roles if (r.kind, r.parameter) == kind] for kind in KINDS}
    rows = padding_rows(backbone)
    return TensorNames(
        prunable=by_kind["prunable", True],
        parameters=by_kind["private", True],
        buffers=by_kind["private", False],
        shared=by_kind["shared", True],
        transient=by_kind["shared", False],
        tied=tied_names(backbone),
        padding={name: rows[name] for name in by_kind["prunable", True] if name in rows},
    )


KINDS = [("prunable", True), ("private", True), ("private", False), ("shared", True), ("shared", False)]
"""Every (kind of role, True for parameters)."""


def buffer_of(module: nn.Module, name: str) -> Tensor:
    """Look up a buffer by its dotted name; a tenth of the time of `get_buffer`, for every step of a training."""
    *path, leaf = name.split(".")
    for part in path:
        module = cast(nn.Module, own_modules(module)[part])
    return cast(Tensor, own_buffers(module)[leaf])


def put_tensor(holder: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Set a module's tensor, as a parameter if it is one, else as a buffer."""
    into, other = own_parameters(holder), own_buffers(holder)
    if not isinstance(tensor, nn.Parameter):
        into, other = cast(Any, (other, into))
    other.pop(leaf, None)
    into[leaf] = cast(Any, tensor)
    if isinstance(holder, nn.RNNBase):
        list_weights(holder)


def as_buffers(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Turn every parameter below a module into a buffer with the same name and memory, which no optimizer finds.

    Tied parameters become tied buffers. Returns their (module, name), for `as_parameters`.
    """
    shared: dict[int, Tensor] = {}
    places: list[tuple[nn.Module, str]] = []
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            tensor = shared.setdefault(id(parameter), parameter.detach().contiguous())
            delattr(child, name)
            child.register_buffer(name, tensor)
            places.append((child, name))
        if isinstance(child, nn.RNNBase):
            list_weights(child)
    return places


def as_parameters(places: list[tuple[nn.Module, str]]) -> None:
    """Undo `as_buffers`."""
    shared: dict[int, nn.Parameter] = {}
    for child, name in places:
        tensor = child.get_buffer(name)
        delattr(child, name)
        child.register_parameter(name, shared.setdefault(id(tensor), nn.Parameter(tensor)))
        if isinstance(child, nn.RNNBase):
            list_weights(child)


def make_gradients_dense(module: nn.Module) -> None:
    """Let embedding tables below a module return dense gradients, with the same numbers as their sparse ones.

    Masks and optimizers such as Adam take no sparse gradients.
    """
    for child in module.modules():
        if isinstance(child, nn.Embedding | nn.EmbeddingBag):
            child.sparse = False


def trainable(tensor: Tensor) -> Tensor:
    """Wrap a tensor as a parameter, unless it is empty: some optimizers divide by a parameter's size."""
    return nn.Parameter(tensor) if tensor.numel() else tensor


def tie_again(module: nn.Module, names: TensorNames) -> None:
    """Tie buffers again after a move to a device or type, which moves them one by one."""
    for again, name in names.tied.items():
        parent, _, leaf = again.rpartition(".")
        holder = module.get_submodule(parent)
        if leaf in own_buffers(holder):
            setattr(holder, leaf, module.get_buffer(name))


def bag_key(name: str) -> str:
    """Convert a dotted name to the key that a bag, and so a state dict, has for it."""
    return name.replace(".", "/")


def name_of_key(key: str) -> str:
    """Undo `bag_key`."""
    return key.replace("/", ".")


class TensorBag(nn.Module):
    """Hold parameters and buffers under dotted names, which a module itself does not allow."""

    def set(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Set a tensor, in place of any with this name; a Parameter stays one, any other becomes a buffer."""
        key = bag_key(name)
        own_parameters(self).pop(key, None)
        own_buffers(self).pop(key, None)
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(key, tensor)
        else:
            self.register_buffer(key, tensor, persistent=persistent)

    def drop(self, name: str) -> None:
        """Remove one tensor."""
        own_parameters(self).pop(bag_key(name), None)
        own_buffers(self).pop(bag_key(name), None)

    def __getitem__(self, name: str) -> Tensor:
        key = bag_key(name)
        tensor: Tensor | None = own_parameters(self).get(key)
        if tensor is None:
            tensor = own_buffers(self).get(key)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def __contains__(self, name: str) -> bool:
        key = bag_key(name)
        return key in own_parameters(self) or key in own_buffers(self)

    def __iter__(self) -> Iterator[str]:
        for key in (*own_parameters(self), *own_buffers(self)):
            yield name_of_key(key)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) for each."""
        for name in self:
            yield name, self[name]

    def clear(self) -> None:
        """Remove every tensor."""
        own_parameters(self).clear()
        own_buffers(self).clear()
        non_persistent(self).clear()


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes per number to the integer type of the same width."""


def mask_bits(mask: Tensor, values: Tensor) -> Tensor:
    """Convert a mask to integers as wide as the values, (*shape): all bits set where it is True, none elsewhere.

    A bitwise and with them keeps the values there; another width would need a conversion each time.
    """
    return mask.to(_INTEGERS[values.element_size()]).neg_()


def keep_only(mask: Tensor, values: Tensor) -> None:
    """Set values (*shape) to 0 where a mask (*shape) is False, in place; `masked_fill_` takes several times as long."""
    as_integers(values.data).bitwise_and_(mask_bits(mask, values))


def as_integers(tensor: Tensor) -> Tensor:
    """View numbers as integers of the same width, for operations on their bits."""
    return tensor.view(_INTEGERS[tensor.element_size()])


class _MaskedGradient(torch.autograd.Function):
    """Forward: the weight itself. Backward: no gradient where the mask has no bits."""

    @staticmethod
    def forward(ctx, values: Tensor, bits: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.bits = bits  # not saved: gradient checkpointing may run this node twice
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        bits = ctx.bits
        if torch.is_grad_enabled():  # this backward pass is to be differentiated itself
            return torch.where(bits.bool(), gradient, gradient.new_zeros(())), None
        return as_integers(gradient.resolve_neg()).bitwise_and(bits).view(gradient.dtype), None


class _StillRow(torch.autograd.Function):
    """Forward: the weight itself. Backward: no gradient in one row."""

    @staticmethod
    def forward(ctx, values: Tensor, row: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.row = row
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        if gradient.is_cpu and not gradient[ctx.row].any():  # as where only an embedding layer computes with it
            return gradient, None
        return gradient.index_fill(0, torch.tensor(ctx.row, device=gradient.device), 0.0), None


def without_row(values: Tensor, row: int) -> Tensor:
    """Return a weight (rows, *columns) whose gradient is 0 in one row; that row must be 0."""
    if torch.compiler.is_compiling() or is_transformed():
        return values.index_fill(0, torch.tensor(row, device=values.device), 0.0)
    weight: Tensor = _StillRow.apply(values, row)
    return weight


class _Scattered(torch.autograd.Function):
    """Forward: a dense buffer that already holds the values. Backward: the gradient at their indices."""

    @staticmethod
    def forward(ctx, values: Tensor, dense: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.index = index
        return dense.view_as(dense)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        return gradient.take(ctx.index), None, None


class _Sliced(torch.autograd.Function):
    """Forward: some rows at some columns. Backward: their gradient, and 0 elsewhere."""

    @staticmethod
    def forward(ctx, values: Tensor, rows: Tensor, columns: Tensor, inside: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.at = values.shape, rows, columns, inside  # not saved: gradient checkpointing may run this node twice
        return values.index_select(0, rows).index_select(1, columns)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        shape, rows, columns, inside = ctx.at
        if inside is not None:
            gradient = torch.where(inside, gradient, gradient.new_zeros(()))
        wide = gradient.new_zeros(len(rows), *shape[1:]).index_copy_(1, columns, gradient)
        return gradient.new_zeros(shape).index_copy_(0, rows, wide), None, None, None


def sliced_weight(values: Tensor, rows: Tensor, columns: Tensor, inside: Tensor | None) -> Tensor:
    """Slice a tensor's weight while its task may still be pruned.

    Args:
        values: (*shape), the parameter, after `restore`.
        rows: int64 (r,), of a dimension.
        columns: int64 (c,), of the next one.
        inside: bool (r, c, *kernel), the task's candidates; None if all are.
    Returns:
        (r, c, *kernel); its gradient is 0 where there is no candidate.
    """
    if is_transformed():
        part = values.index_select(0, rows).index_select(1, columns)
        return part if inside is None else torch.where(inside, part, part.new_zeros(()))
    weight: Tensor = _Sliced.apply(values, rows, columns, inside)
    return weight


def masked_weight(values: Tensor, bits: Tensor) -> Tensor:
    """Compute a tensor's weight while its task may still be pruned.

    Args:
        values: (*shape), the parameter, after `restore`.
        bits: (*shape), from `mask_bits`: set where the task holds weights.
    Returns:
        (*shape), the values; its gradient is 0 outside the mask.
    """
    weight: Tensor = _MaskedGradient.apply(values, bits)
    return weight


def restore(values: Tensor, bits: Tensor, base: Tensor) -> None:
    """Set values outside a mask to the base, in place: undo an optimizer's changes (weight decay, momentum) there.

    Autograd does not see it: no graph depends on the old values. Bitwise operations cost a fraction of `torch.where`.

    Args:
        values: (*shape), the parameter.
        bits: (*shape), from `mask_bits`.
        base: (*shape), 0 where the mask is True; or (), 0.
    """
    numbers = as_integers(values.data)
    numbers.bitwise_and_(bits)
    if base.dim():
        numbers.bitwise_or_(as_integers(base))


def scattered_weight(values: Tensor, dense: Tensor, index: Tensor, unchanged: bool) -> Tensor:
    """Compute a tensor's weight from its task's compact parameter.

    Args:
        values: (k,), the parameter.
        dense: (*shape), holds the weights that the task reads, else 0; overwritten at the index.
        index: int64, (k,), flat indices of the values.
        unchanged: True if the values have the same version as in the last call. They are written again all the same
            (a write through `.data` leaves the version), but hidden from autograd, so that two forward passes before
            one backward pass are allowed, as with any module.
    Returns:
        (*shape), sharing memory with `dense`; its gradient reaches only the values.
    """
    target = dense.data if unchanged else dense
    with torch.no_grad():
        target.view(-1).index_copy_(0, index, values.detach().to(dense.dtype))
    weight: Tensor = _Scattered.apply(values, dense, index)
    return weight


class TaskDict(nn.ModuleDict):
    """Hold modules by task; unlike its parent it accepts every name, even that of a method."""

    def __setitem__(self, task: str, module: nn.Module) -> None:
        own_modules(self)[task] = module


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask at a bit per weight: bool (*shape) to uint8, (bytes,)."""
    bits = functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _powers(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_bits`: bool, (*shape)."""
    bits = (packed.unsqueeze(1) & _powers(packed.device)).bool()
    return bits.view(-1)[: prod(shape)].view(tuple(shape))


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def wide_enough(owners: Tensor, owner: int) -> Tensor:
    """Widen an owner map's integer type where an id does not fit."""
    if owner <= torch.iinfo(owners.dtype).max - 1:
        return owners
    return owners.to(torch.int16 if owner < 2**15 - 1 else torch.int32)


def belongs(owners: Tensor, ids: Tensor) -> Tensor:
    """Mark where an owner is among the ids: bool, shape of owners; by comparison, or a table for several ids."""
    if ids.numel() == 0:
        return torch.zeros_like(owners, dtype=torch.bool)
    if ids.numel() == 1:
        return owners == int(ids)
    table = torch.zeros(int(ids.max()) + 2, dtype=torch.bool)
    table[ids.long()] = True
    table = table.to(owners.device)
    return table[owners.int().clamp(max=table.numel() - 1)]


def only_at(mask: Tensor, weight: Tensor) -> Tensor:
    """Keep a weight (*shape) where a mask (*shape) is True; 0 elsewhere."""
    return torch.where(mask, weight, weight.new_zeros(()))


def raw_bytes(tensor: Tensor) -> Any:
    """View a tensor's memory as a buffer of bytes."""
    whole = tensor.detach().cpu().resolve_neg().contiguous()
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy().data  # one element may have any stride


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors bit by bit; NaN equals itself here, and 0 is not -0."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(raw_bytes(a) == raw_bytes(b))


def widened(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is of that type."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def count_true(mask: Tensor) -> int:
    """Count the True elements of a mask; `sum` takes three times as long."""
    return int(mask.count_nonzero())


def selected(values: Tensor, mask: Tensor) -> Tensor:
    """Select the values, (*shape), where a mask (*shape) is True, without gradients: (k,)."""
    values = values.detach()
    if not _for_numpy(values):
        return values.masked_select(mask)
    return torch.from_numpy(np.compress(mask.reshape(-1).numpy(), values.reshape(-1).numpy()))


def kth_highest(values: Tensor, k: int) -> Tensor:
    """Find the value, (), that k of the values (n,) are not below, 1 <= k <= n; none is NaN."""
    if not _for_numpy(values):
        return values.topk(k, sorted=False).values.min()
    place = len(values) - k
    return torch.from_numpy(np.partition(values.numpy(), place)[place : place + 1])[0]


def _for_numpy(values: Tensor) -> bool:
    """Tell whether numpy can select from a tensor, several times as fast as torch does on one thread."""
    return values.is_cpu and values.dtype in (torch.float32, torch.float64)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the context, and restore each module's mode after it."""
    training = [child for module in modules for child in module.modules() if child.training]
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True


def ids_of_tensors(modules: Iterable[nn.Module]) -> set[int]:
    """Collect the `id` of all parameters and buffers of modules, to find shared tensors."""
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
