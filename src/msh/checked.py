"""What files say, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

A_BYTE = 4096
"""Most numbers that a compressed file can hold for each of its bytes. Deflate manages a quarter of it; a task that owns
one weight in 20,000 needs more bytes, as they are floats."""
FEW = 2**22
"""Numbers that any file may promise."""


def parsed(header: Mapping[str, str], key: str, kind: Any) -> Any:
    """A value of a file's header, or of a state, that is JSON.

    Args:
        header: key to JSON.
        key: of the value.
        kind: the type that it must be of, as pydantic checks it.
    Raises:
        KeyError: there is no such key.
        ValueError: it is not JSON, or of another type.
    """
    try:
        return TypeAdapter(kind).validate_json(header[key], strict=True)
    except ValidationError as error:
        raise ValueError(f"{key}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first of what is wrong, and where, in a line."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def check_promised(numbers: int, held: int, what: str) -> None:
    """Raise where a header promises more than its file can hold, before memory is taken for it.

    Args:
        numbers: that are promised.
        held: bytes of the file.
        what: they are.
    Raises:
        ValueError: naming both numbers.
    """
    if numbers > max(FEW, A_BYTE * held):
        raise ValueError(f"it has {held} bytes, and its header promises {numbers} {what}")
