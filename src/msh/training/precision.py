"""Read from `trainer.precision` the type in which a network computes throughout a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from msh.errors import invalid
from msh.training.config import RunConfig

TRUE = {"64-true": "float64", "64": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
"""`trainer.precision` to the type that the network is built in. Lightning converts nothing: outside its loops, in the
guarantee, scores and files, results would differ."""


def true_type(config: RunConfig) -> str | None:
    """Name the type of the whole backbone, a key of `msh.recipes.DTYPES`; None: the backbone's own.

    Args:
        config: the run's.
    """
    return type_of(config.trainer.precision)


def type_of(precision: int | str | None) -> str | None:
    """Name the type that a value of `trainer.precision` gives the whole backbone; None: the backbone's own."""
    return TRUE.get(str(precision))


def precision_of(kind: str | None) -> str | None:
    """Return the `trainer.precision` that gives the whole backbone this type; None where it keeps its own."""
    return next((precision for precision, of in TRUE.items() if of == kind), None)


def check_precision(config: RunConfig) -> None:
    """Check that a run can train in the type that `trainer.precision` names.

    Args:
        config: the run's.
    Raises:
        ValueError: naming the setting.
    """
    kind, precision = true_type(config), config.trainer.precision
    if kind == "float16" and not config.master_weights:
        bound = "'bf16-true' with master_weights=false, as Adam's eps and small gradients are 0 in float16"
        raise invalid("trainer.precision", bound, precision)
    takes_mps = config.trainer.accelerator in ("auto", "gpu", "mps") and not CUDAAccelerator.is_available()
    if kind == "float64" and takes_mps and MPSAccelerator.is_available():
        raise invalid("trainer.accelerator", f"'cpu' with trainer.precision={precision}", config.trainer.accelerator)


@contextmanager
def drawing_in(kind: str | None) -> Iterator[None]:
    """Build modules inside the context with initial values drawn in float64, if `kind` is "float64"."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if kind == "float64" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
