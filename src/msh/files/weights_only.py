"""Convert state to values that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
