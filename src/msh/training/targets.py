"""Check that a run folder's config calls nothing but classes and functions of msh, torch and Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object

from msh.errors import requirement
from msh.recipes import targets_in

SAFE = (
    *("msh.", "torch.nn.", "torch.optim.", "pytorch_lightning.callbacks.", "pytorch_lightning.loggers."),
    *("torchmetrics.classification.", "torchmetrics.regression."),
)
"""Prefixes of names that may be called."""
CALLED = ("tasks", "backbone", "optimizer")
"""Parts of a run's config whose targets are called when it is evaluated again."""


def check_targets(config: Mapping[str, Any], origin: str) -> None:
    """Check that a config calls no other code than msh's, torch's and Lightning's.

    Args:
        config: a run's, as plain values.
        origin: its file, for the message.
    Raises:
        ValueError: naming the key and the target.
    """
    for part in CALLED:
        for key, target in targets_in(config.get(part), part):
            if not is_safe(target):
                problem = requirement(key, "a name that msh, torch or Lightning defines", target)
                raise ValueError(f"{origin}: {problem}; if you trust the run folder, unsafe=true allows other code")


def is_safe(target: Any) -> bool:
    """Return true if a target's name, and the module that defines it, belong to these libraries."""
    if not isinstance(target, str) or not target.startswith(SAFE):
        return False
    try:
        called = get_object(target)
    except Exception:  # it does not exist: the error comes where it is called
        return True
    return f"{getattr(called, '__module__', '')}.".startswith(SAFE)
