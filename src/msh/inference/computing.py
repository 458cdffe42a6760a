"""Compute a task's outputs as its run did: batch size, subnormal numbers and precision decide their last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


def flushes_denormal() -> bool:
    """Return true if this thread computes 0 for subnormal results, below 2**-126 in float32."""
    smallest, half = torch.tensor([2.0**-126, 0.5], dtype=torch.float32, device="cpu")
    return float((smallest * half).view(torch.int32)) == 0


class _Defaults:
    """Count the calls in all threads that compute with torch's usual type; keep the type of the program around them."""

    lock = Lock()
    calls = 0
    before = torch.float32


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make new tensors float32 and on the CPU, also in a program that has set other defaults; these come back.

    torch has one default type for all threads: where it is another one, other threads find float32 meanwhile.
    """
    with _Defaults.lock:
        counts = _Defaults.calls > 0 or torch.get_default_dtype() != torch.float32
        if counts and not _Defaults.calls:
            _Defaults.before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _Defaults.calls += counts
    try:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        with _Defaults.lock:
            _Defaults.calls -= counts
            if counts and not _Defaults.calls:
                torch.set_default_dtype(_Defaults.before)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Computing:
    """Settings of a run's evaluation, which files carry.

    Attributes:
        batch_size: examples per batch.
        flush_denormal: subnormal results are 0.
        autocast: type of mixed precision, or None.
    """

    batch_size: Annotated[int, Field(ge=1)] = 500
    flush_denormal: bool = False
    autocast: Literal["bfloat16", "float16"] | None = None

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Compute in this thread as the run did, without gradients; the thread's settings come back at the end."""
        before = flushes_denormal()
        kind = None if self.autocast is None else getattr(torch, self.autocast)
        torch.set_flush_denormal(self.flush_denormal)
        try:
            with torch.inference_mode(), torch.autocast(device.type, kind, enabled=kind is not None):
                yield
        finally:
            torch.set_flush_denormal(before)


_COMPUTING = TypeAdapter(Computing)


def computing_from_data(data: Any) -> Computing:
    """Read `Computing` from a file of unknown origin.

    Raises:
        ValueError: unknown settings, or values of wrong types.
    """
    try:
        return _COMPUTING.validate_python(data)
    except ValidationError as error:
        raise ValueError(f"the settings of the evaluation are invalid: {error}") from error
