"""Report errors of the user's own classes and functions with the setting that names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException

from msh.errors import described

CALLED = "Error in call to target"
"""Start of Hydra's message about an error of what it calls; others say why it cannot call it."""


@contextmanager
def reporting(key: str, target: Any, failed: str = "cannot be built") -> Iterator[None]:
    """Report any error of a class or function that is not msh's, in one line; its traceback stays in the log file.

    Args:
        key: dotted key of the setting that names it.
        target: its dotted name.
        failed: what it was called for.
    Raises:
        ValueError: naming key, target, and the error's type and message; an OSError stays one.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        if isinstance(error, InstantiationException):
            cause = error.__cause__ if str(error).startswith(CALLED) else None
        if cause is None or str(target).startswith("msh."):
            raise
        kind = OSError if isinstance(cause, OSError) else ValueError
        raise kind(f"{key} = {target} {failed}: {described(cause)}") from cause
