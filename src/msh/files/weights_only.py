"""Convert state to values that `torch.load(weights_only=True)` reads, and its tensors to few bytes."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from math import prod
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msh.checked import check_promised
from msh.files.codec import decode_mask, decode_owners, encode_mask, encode_owners
from msh.subnetworks.tensors import as_integers, count_true

READABLE = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Parameter)
"""Types that are read back as they are, without the containers."""
SIMPLER: list[tuple[type | tuple[type, ...], Callable[[Any], Any]]] = [
    (np.generic, lambda value: value.item()),
    (np.ndarray, lambda value: torch.from_numpy(value.copy())),
    (PurePath, str),
    (bool, bool),
    (int, int),
    (float, float),
    (str, str),
]
"""Type, and its subclasses, to the function that converts a value to a readable one of equal content."""


class UnreadableStateError(ValueError):
    """A state has a value that a checkpoint could not be read back with."""


def readable(state: Any, where: str) -> Any:
    """Copy a state, with values of other types converted: NumPy scalars and arrays, paths, enumerations, deques.

    Containers become dicts, lists, tuples and sets; arrays become tensors. Tensors are shared, not copied.

    Args:
        state: nested containers of values.
        where: names the state in errors.
    Raises:
        UnreadableStateError: a value has another type; the message says where.
    """
    kind = type(state)
    if kind in READABLE:
        return state
    if isinstance(state, dict):
        pairs = [(readable(k, f"a key of {where}"), readable(v, f"{where}[{k!r}]")) for k, v in state.items()]
        return kind(dict(pairs)) if kind in (OrderedDict, Counter) else dict(pairs)
    if isinstance(state, list | deque):
        return [readable(value, f"{where}[{i}]") for i, value in enumerate(state)]
    if isinstance(state, tuple) and kind is not torch.Size:
        return tuple(readable(value, f"{where}[{i}]") for i, value in enumerate(state))
    if isinstance(state, set | frozenset):
        return {readable(value, f"an element of {where}") for value in state}
    for known, convert in SIMPLER:
        if isinstance(state, known):
            try:
                return readable(convert(state), where)
            except (TypeError, RecursionError):
                break  # an array of objects, or a NumPy scalar that is no Python number
    if _is_read_back(state):
        return state
    raise UnreadableStateError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, with which a checkpoint could not be read back: "
        "use numbers, strings, tensors, and lists or dicts of these"
    )


def _is_read_back(value: Any) -> bool:
    """Return true if torch reads a value of a rarer type, such as a dtype or a device."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):
        return False
    return True


# ---- tensors in few bytes

PACKED = "msh.packed"
"""Key of a dict that stands for a tensor: its form, "mask", "bytes" or "sparse"."""
SMALL = 1024
"""Tensors with fewer elements are left as they are."""


class Packing:
    """Replace tensors by shorter ones with the same content, bit by bit.

    Masks and bytes are coded near their entropy; of other tensors, numbers that are 0 are left out where many are.
    Tensors that share memory do so afterwards too.
    """

    def __init__(self) -> None:
        self.done: dict[tuple[Any, ...], Any] = {}
        self.masks: dict[torch.Size, tuple[Tensor, dict[str, Any]]] = {}
        """Shape to the latest mask, and its code: several tensors are often 0 at the same places."""

    def packed(self, state: Any) -> Any:
        """Copy a state, nested containers as `readable` returns them, with its tensors packed."""
        kind = type(state)
        if kind is Tensor:
            return self._packed(state)
        if isinstance(state, dict):
            pairs = {key: self.packed(value) for key, value in state.items()}
            return kind(pairs) if kind in (OrderedDict, Counter) else pairs
        return kind(map(self.packed, state)) if kind in (list, tuple) else state

    def _packed(self, tensor: Tensor) -> Any:
        if tensor.numel() < SMALL or tensor.layout != torch.strided or not tensor.is_contiguous():
            return tensor
        place = tensor.data_ptr(), tensor.shape, tensor.dtype
        if place not in self.done:
            self.done[place] = self._shorter(tensor)
        return self.done[place]

    def _shorter(self, tensor: Tensor) -> Any:
        if tensor.dtype == torch.bool:
            return self._mask(tensor)
        if tensor.dtype == torch.uint8:
            return {PACKED: "bytes", "shape": list(tensor.shape), "bytes": encode_owners(tensor)}
        if not tensor.is_floating_point():
            return tensor
        mask = as_integers(tensor) != 0  # by its bits: -0.0 is none
        left_out = tensor.numel() - count_true(mask)
        if left_out * tensor.element_size() < tensor.numel() / 4:  # a mask takes at most half as much
            return tensor
        return {PACKED: "sparse", "mask": self._mask(mask), "values": tensor.detach()[mask]}

    def _mask(self, mask: Tensor) -> dict[str, Any]:
        known = self.masks.get(mask.shape)
        if known is None or known[0].device != mask.device or not torch.equal(known[0], mask):
            rarer = bool(2 * count_true(mask) <= mask.numel())
            coded = encode_mask(mask if rarer else ~mask)
            known = mask.clone(), {PACKED: "mask", "shape": list(mask.shape), "marks": rarer, "bytes": coded}
            self.masks[mask.shape] = known
        return known[1]


def unpacked(state: Any, held: int) -> Any:
    """Undo `Packing.packed`.

    Args:
        state: nested containers.
        held: bytes in the file, which bound what it can hold.
    Raises:
        ValueError: a packed tensor is damaged.
    """
    kind = type(state)
    if isinstance(state, dict) and PACKED in state:
        try:
            return _unpacked(state, held)
        except (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"a packed tensor is damaged: {error}") from error
    if isinstance(state, dict):
        pairs = {key: unpacked(value, held) for key, value in state.items()}
        return kind(pairs) if kind in (OrderedDict, Counter) else pairs
    return kind(unpacked(value, held) for value in state) if kind in (list, tuple) else state


def _unpacked(packed: dict[str, Any], held: int) -> Tensor:
    if packed[PACKED] == "sparse":
        mask, values = _unpacked(packed["mask"], held), packed["values"]
        if mask.dtype != torch.bool or values.shape != (count_true(mask),):
            raise ValueError("a packed tensor has a mask of another size")
        tensor: Tensor = values.new_zeros(mask.shape)
        tensor[mask.to(values.device)] = values
        return tensor
    shape = [int(length) for length in packed["shape"]]
    check_promised(prod(shape) if min(shape, default=0) >= 0 else held**2, held, "numbers")
    if packed[PACKED] == "bytes":
        return decode_owners(packed["bytes"], shape, torch.uint8)
    mask = decode_mask(packed["bytes"], shape)
    return mask if packed["marks"] else ~mask
