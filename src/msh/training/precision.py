"""Read the type in which a network computes throughout a run, from `trainer.precision`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from msh.training.config import RunConfig

TRUE = {"64-true": "float64", "64": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
"""Values of `trainer.precision` to types of the network, which is built in it: Lightning converts nothing, as what is
computed outside its loops (guarantee, scores, files) would differ."""


def true_type(config: RunConfig) -> str | None:
    """Name the type that the whole backbone has, a key of `msh.recipes.DTYPES`; None: its own.

    Args:
        config: of a run.
    """
    return TRUE.get(str(config.trainer.precision))


def check_precision(config: RunConfig) -> None:
    """Raise where a run cannot train in the type that `trainer.precision` names.

    Args:
        config: of a run.
    Raises:
        ValueError: naming the setting.
    """
    kind, precision = true_type(config), config.trainer.precision
    if kind == "float16" and not config.master_weights:
        raise ValueError(
            f"trainer.precision = {precision} does not go with master_weights = false: in float16 Adam's eps is 0, and "
            "small gradients too; set master_weights=true, or trainer.precision=bf16-true"
        )
    takes_mps = config.trainer.accelerator in ("auto", "gpu", "mps") and not CUDAAccelerator.is_available()
    if kind == "float64" and takes_mps and MPSAccelerator.is_available():
        raise ValueError(f"trainer.precision = {precision}: mps has no float64; set trainer.accelerator=cpu")


@contextmanager
def drawing_in(kind: str | None) -> Iterator[None]:
    """Let modules that are built inside draw their initial values in float64, if that is their type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if kind == "float64" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
