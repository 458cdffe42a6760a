"""The Multiple Subnetwork Hypothesis: many tasks in one network, each in its own subnetwork, nothing forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msh.cli.python import train as train
    from msh.inference.predictor import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load` or `train` when it is used: torch takes a second, and commands need none."""
    if name == "train":
        from msh.cli.python import train

        return train
    if name != "load":
        raise AttributeError(f"module 'msh' has no attribute {name!r}")
    from msh.inference.predictor import load

    return load
