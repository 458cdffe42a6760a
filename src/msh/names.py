"""Names: errors for one that is not among those allowed, and dotted keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """ "; did you mean ...?" with the nearest allowed name, or nothing."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless the value is one of the allowed names.

    Raises:
        ValueError: naming the key, the value, what is allowed and the nearest of it.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"{key} = {value!r} is not allowed: one of {', '.join(allowed)}{suggestion(str(value), allowed)}"
        )


def is_under(key: str, roots: Iterable[str]) -> bool:
    """Whether a dotted key is one of these, or below one."""
    return any(key == root or key.startswith(f"{root}.") for root in roots)
