"""Compute a task's outputs as its run did: batch size, subnormal numbers and precision decide their last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


def flushes_denormal() -> bool:
    """Return true if this thread computes 0 for subnormal results, below 2**-126 in float32."""
    smallest = torch.tensor([2.0**-126])
    return float((smallest * torch.tensor([0.5])).view(torch.int32)) == 0


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
