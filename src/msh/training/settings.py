"""What two configs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf


def differences(before: Any, now: Any, leave_out: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ.

    Args:
        before: a config.
        now: another.
        leave_out: dotted keys that are not compared, nor what is below them.
    Returns:
        Dotted key, in alphabetical order, to its two values, interpolations as they are written; None: not there.
    """
    values = _flat(before), _flat(now)
    return {
        key: (values[0].get(key), values[1].get(key))
        for key in sorted(values[0].keys() | values[1].keys())
        if values[0].get(key) != values[1].get(key)
        and not any(key == left_out or key.startswith(f"{left_out}.") for left_out in leave_out)
    }


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key to value; interpolations as they are written."""
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if not isinstance(container, dict):
        return {prefix: container}
    flat: dict[str, Any] = {}
    for key, value in container.items():
        flat |= _flat(value, prefix + "." + str(key) if prefix else str(key))
    return flat
