"""What a config of unknown origin may call: classes and functions of msh, torch and Lightning alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object

SAFE = ("msh.", "torch.nn.", "torch.optim.", "pytorch_lightning.callbacks.", "pytorch_lightning.loggers.")
"""Start of what may be called."""
CALLED = ("tasks", "backbone", "optimizer")
"""Parts of a run's config whose targets are called when it is measured again."""


def check_targets(config: Mapping[str, Any], origin: str) -> None:
    """Raise where a config would have other code called than msh's, torch's and Lightning's.

    Args:
        config: of a run, as plain values.
        origin: the file it was read from, for the message.
    Raises:
        ValueError: naming the key and the target.
    """
    for part in CALLED:
        for key, target in _targets(config.get(part), part):
            if not is_safe(target):
                raise ValueError(
                    f"{origin}: {key} = {target!r} is not allowed: only what msh, torch and Lightning define is called "
                    "for a run folder; unsafe=true calls it, if you trust where the folder is from"
                )


def _targets(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every `_target_` at or below a value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        if name == "_target_":
            yield f"{key}.{name}", child
        else:
            yield from _targets(child, f"{key}.{name}")


def is_safe(target: Any) -> bool:
    """Whether a target's name and the module that defines it are of these libraries."""
    if not isinstance(target, str) or not target.startswith(SAFE):
        return False
    try:
        found = get_object(target)
    except Exception:  # there is no such thing: that is told where it is called
        return True
    return f"{getattr(found, '__module__', '')}.".startswith(SAFE)
