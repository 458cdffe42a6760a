"""Tensors of a module by role, a bag that names them, and the operations on masked and scattered weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from msh.compat import list_weights, non_persistent, own_buffers, own_modules, own_parameters
from msh.subnetworks.roles import Prunable, check_aliases, find_roles, padding_rows, tied_names


@dataclass(frozen=True)
class TensorNames:
    """A backbone's tensors by role, as dotted names, each tensor once.

    Attributes:
        prunable: tasks share these weight by weight.
        parameters: each task has its own (biases, normalisation).
        buffers: each task has its own until it is frozen; those that it has not changed are then the backbone's.
        shared: every task uses the backbone's, which never change: parameters that the user has frozen.
        transient: buffers that are not persistent: never saved, and the backbone's once a task is frozen.
        tied: each further name of a tensor (tied weights) to the name that stands for it above.
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
        """Every name but the further ones of tied tensors."""
        return [*self.prunable, *self.parameters, *self.buffers, *self.shared, *self.transient]


def name_tensors(backbone: nn.Module, prunable: Prunable = None) -> TensorNames:
    """Find a module's tensors and their roles; see `roles`.

    Raises:
        ValueError: a parameter's role cannot be told, or it is used in a way that would leave it untrained.
    """
    check_aliases(backbone)
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
"""(kind of role, whether of a parameter) that there are."""


def put_tensor(holder: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Let a module use a tensor under a name, as a parameter if it is one, else as a buffer."""
    into, other = own_parameters(holder), own_buffers(holder)
    if not isinstance(tensor, nn.Parameter):
        into, other = cast(Any, (other, into))
    other.pop(leaf, None)
    into[leaf] = cast(Any, tensor)
    if isinstance(holder, nn.RNNBase):
        list_weights(holder)


def as_buffers(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Turn every parameter below a module into a buffer of the same name, so that no optimizer can find it.

    The memory stays the same; tied parameters become tied buffers. Returns where they were, for `as_parameters`.
    """
    made: dict[int, Tensor] = {}
    places: list[tuple[nn.Module, str]] = []
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False, remove_duplicate=False)):
            tensor = made.setdefault(id(parameter), parameter.detach().contiguous())
            delattr(child, name)
            child.register_buffer(name, tensor)
            places.append((child, name))
        if isinstance(child, nn.RNNBase):
            list_weights(child)
    return places


def as_parameters(places: list[tuple[nn.Module, str]]) -> None:
    """Undo `as_buffers`."""
    made: dict[int, nn.Parameter] = {}
    for child, name in places:
        tensor = child.get_buffer(name)
        delattr(child, name)
        child.register_parameter(name, made.setdefault(id(tensor), nn.Parameter(tensor)))
        if isinstance(child, nn.RNNBase):
            list_weights(child)


def trainable(tensor: Tensor) -> Tensor:
    """A parameter; or the tensor itself where it holds nothing: some optimizers divide by a parameter's size."""
    return nn.Parameter(tensor) if tensor.numel() else tensor


def tie_again(module: nn.Module, names: TensorNames) -> None:
    """Let tied buffers be one tensor again after a move, which takes them one by one."""
    for again, name in names.tied.items():
        parent, _, leaf = again.rpartition(".")
        holder = module.get_submodule(parent)
        if leaf in own_buffers(holder):
            setattr(holder, leaf, module.get_buffer(name))


def bag_key(name: str) -> str:
    """The name under which a bag, and so a state dict, keeps what has a dotted name."""
    return name.replace(".", "/")


def name_of_key(key: str) -> str:
    """The tensor name that `bag_key` made a key of."""
    return key.replace("/", ".")


class TensorBag(nn.Module):
    """Named tensors, parameters or buffers, under dotted names that a module itself would not allow."""

    def set(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Keep a tensor, in place of what had that name; a Parameter stays one, any other becomes a buffer."""
        key = bag_key(name)
        own_parameters(self).pop(key, None)
        own_buffers(self).pop(key, None)
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(key, tensor)
        else:
            self.register_buffer(key, tensor, persistent=persistent)

    def drop(self, name: str) -> None:
        """Forget one tensor."""
        own_parameters(self).pop(bag_key(name), None)
        own_buffers(self).pop(bag_key(name), None)

    def __getitem__(self, name: str) -> Tensor:
        key = bag_key(name)
        found: Tensor | None = own_parameters(self).get(key)
        if found is None:
            found = own_buffers(self).get(key)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: str) -> bool:
        key = bag_key(name)
        return key in own_parameters(self) or key in own_buffers(self)

    def __iter__(self) -> Iterator[str]:
        for key in (*own_parameters(self), *own_buffers(self)):
            yield name_of_key(key)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for each."""
        for name in self:
            yield name, self[name]

    def clear(self) -> None:
        """Forget every tensor."""
        own_parameters(self).clear()
        own_buffers(self).clear()
        non_persistent(self).clear()


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes per number to the integer type of that width."""


def mask_bits(mask: Tensor, values: Tensor) -> Tensor:
    """Integers as wide as the values, (*shape): all bits set where a mask is True, none elsewhere.

    A bitwise and with them keeps the values there. Of another width they would have to be converted each time.
    """
    return mask.to(_INTEGERS[values.element_size()]).neg_()


def _as_integers(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()])


class _MaskedGradient(torch.autograd.Function):
    """The weight itself going forward; going backward, no gradient where the mask has no bits."""

    @staticmethod
    def forward(ctx, values: Tensor, bits: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.bits = bits  # not saved: a checkpoint may go through this node twice
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        bits = ctx.bits
        if torch.is_grad_enabled():  # this backward pass is to be differentiated itself
            return torch.where(bits.bool(), gradient, gradient.new_zeros(())), None
        return _as_integers(gradient).bitwise_and(bits).view(gradient.dtype), None


class _Scattered(torch.autograd.Function):
    """A dense buffer that holds the values already; going backward, the gradient at their places."""

    @staticmethod
    def forward(ctx, values: Tensor, dense: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.index = index
        return dense.view_as(dense)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        return gradient.take(ctx.index), None, None


def masked_weight(values: Tensor, bits: Tensor) -> Tensor:
    """A tensor's weight while its task may still be pruned.

    Args:
        values: (*shape), the parameter, after `restore`.
        bits: (*shape), from `mask_bits`: where the task holds weights.
    Returns:
        (*shape), the values; its gradient is 0 outside the mask.
    """
    weight: Tensor = _MaskedGradient.apply(values, bits)
    return weight


def restore(values: Tensor, bits: Tensor, base: Tensor) -> None:
    """Set what lies outside a mask to the base, in place: undo what an optimizer (weight decay, momentum) did there.

    Autograd does not see it: no graph depends on what stood there. It is a bitwise operation, as a choice
    element by element costs several times as much.

    Args:
        values: (*shape), the parameter.
        bits: (*shape), from `mask_bits`.
        base: (*shape), 0 where the mask is True; or (), 0: what stands outside the mask.
    """
    numbers = _as_integers(values.data)
    numbers.bitwise_and_(bits)
    if base.dim():
        numbers.bitwise_or_(_as_integers(base))


def scattered_weight(values: Tensor, dense: Tensor, index: Tensor, unchanged: bool) -> Tensor:
    """A tensor's weight from the compact parameter of its task.

    Args:
        values: (k,), the parameter.
        dense: (*shape), holds what else the task reads, else 0; overwritten at the index.
        index: int64, (k,), flat places of the values.
        unchanged: the values are known not to have changed since the last call. They are written again all the
            same (a write through `.data` leaves no trace), but without telling autograd, so that two forward
            passes before one backward pass are allowed, as they are with any module.
    Returns:
        (*shape), sharing memory with `dense`; its gradient reaches only the values.
    """
    target = dense.data if unchanged else dense
    with torch.no_grad():
        target.view(-1).index_copy_(0, index, values.detach().to(dense.dtype))
    weight: Tensor = _Scattered.apply(values, dense, index)
    return weight


class TaskDict(nn.ModuleDict):
    """Modules by task; unlike its parent it takes every name, also those of its own methods."""

    def __setitem__(self, task: str, module: nn.Module) -> None:
        own_modules(self)[task] = module


def pack_bits(mask: Tensor) -> Tensor:
    """A mask at a bit a weight: bool (*shape) to uint8, (bytes,)."""
    bits = functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _powers(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_bits`: bool, (*shape)."""
    bits = (packed.unsqueeze(1) & _powers(packed.device)).bool()
    return bits.view(-1)[: prod(shape)].view(tuple(shape))


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def wide_enough(owners: Tensor, owner: int) -> Tensor:
    """An owner map, in a wider integer type where an id does not fit its own."""
    if owner <= torch.iinfo(owners.dtype).max - 1:
        return owners
    return owners.to(torch.int16 if owner < 2**15 - 1 else torch.int32)


def belongs(owners: Tensor, ids: Tensor) -> Tensor:
    """Bool, shape of owners: whether each owner is among the ids; a comparison, or a look-up table for several."""
    if ids.numel() == 0:
        return torch.zeros_like(owners, dtype=torch.bool)
    if ids.numel() == 1:
        return owners == int(ids)
    table = torch.zeros(int(ids.max()) + 2, dtype=torch.bool)
    table[ids.long()] = True
    table = table.to(owners.device)
    return table[owners.int().clamp(max=table.numel() - 1)]


def raw_bytes(tensor: Tensor) -> Any:
    """The tensor's memory, as a buffer of bytes."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors bit by bit; NaN equals itself here, and 0 is not -0."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(raw_bytes(a) == raw_bytes(b))


def widened(tensor: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is of that type."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again outside."""
    training = [child for module in modules for child in module.modules() if child.training]
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True


def ids_of_tensors(modules: Iterable[nn.Module]) -> set[int]:
    """`id` of all parameters and buffers of modules: those that have one in common have the tensor in common."""
    return {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
