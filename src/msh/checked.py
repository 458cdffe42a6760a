"""Validate file headers before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

A_BYTE = 4096
"""Most numbers per byte of a compressed file. Deflate reaches a quarter; a task that owns one weight in 20,000 needs
more bytes, as its values are floats."""
FEW = 2**22
"""Numbers that any file may claim."""


def parsed(header: Mapping[str, str], key: str, kind: Any) -> Any:
    """Parse a JSON value in a file's header.

    Args:
        header: key to JSON.
        key: the value's key.
        kind: the value's type, which pydantic checks.
    Raises:
        KeyError: there is no such key.
        ValueError: the value is not JSON, or has another type.
    """
    try:
        return TypeAdapter(kind).validate_json(header[key], strict=True)
    except ValidationError as error:
        raise ValueError(f"{key}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first validation error and its location in one line."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def check_promised(numbers: int, held: int, noun: str) -> None:
    """Raise if a header claims more than its file can hold, before memory is allocated.

    Args:
        numbers: claimed count.
        held: bytes in the file.
        noun: for the message, such as "weights".
    Raises:
        ValueError: naming both numbers.
    """
    if numbers > max(FEW, A_BYTE * held):
        raise ValueError(f"it has {held} bytes, and its header claims {numbers} {noun}")
