"""Read the inputs in a request, per kind of task, and describe them with an example; clients cannot name files."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from msh.errors import ProblemsError, invalid
from msh.tasks.columns import AnyColumn, Boolean, Category, Date, Written
from msh.tasks.steps import Steps

LISTED = 5
"""Problems of a body that an error lists."""
STRICT = ConfigDict(extra="forbid", strict=True)


class EncodedImage(BaseModel):
    """An image in JSON.

    Attributes:
        image: base64 of an image file's content.
    """

    model_config = STRICT
    image: str


KINDS: dict[str, Any] = {
    "images": EncodedImage,
    "table": dict[str, Any],
    "tokenize": str,
    "next_tokens": str,
    "tagged_words": str | list[str],
    "arrays": list[Any],
    "named": dict[str, Any],
}
"""First step of a task to the type of one input in JSON."""


def _body(kind: Any) -> TypeAdapter[Any]:
    inputs: Any = Annotated[list[kind], Field(min_length=1)]
    return TypeAdapter(create_model("Body", __config__=STRICT, inputs=(inputs, ...)))


_BODIES = {step: _body(kind) for step, kind in KINDS.items()}


def inputs_from_json(steps: Steps, body: bytes) -> Any:
    """Read the raw inputs of a body `{"inputs": [...]}`, as the task's first step reads them.

    Args:
        steps: the task's.
        body: JSON. Images are objects `{"image": BASE64}`, rows of a table objects, texts strings, arrays lists.
    Raises:
        ValueError: the body is not such JSON; paths are no images; lists and objects are no cells of a row.
    """
    first: Any = steps[0]
    kind = first.step
    try:
        inputs = _BODIES[kind].validate_json(body).inputs
    except ValidationError as error:
        raise ProblemsError(_problems(error)) from error
    if kind == "images":
        return [_decoded(image.image, number) for number, image in enumerate(inputs)]
    if kind == "table":
        _check_cells(first.inputs, inputs)
    return _numbers(inputs) if kind == "arrays" else inputs


def _check_cells(columns: Collection[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise if cells are lists or objects; additional columns may have them, in rows that have all columns.

    Args:
        columns: that the task reads.
        rows: name of a column to its cell.
    """
    problems = []
    for number, row in enumerate(rows):
        nested = [name for name, cell in row.items() if isinstance(cell, list | dict)]
        if nested and {*columns} <= {name.strip() for name in row}:
            nested = [name for name in nested if name.strip() in columns]
        problems += [f"inputs.{number}.{name}"[:100] for name in nested]
    if problems:
        raise ProblemsError(_listed([f"{where}: must be a text, a number, true, false or null" for where in problems]))


def _problems(error: ValidationError) -> list[str]:
    """List a problem per place in the body, without its values: they may be large."""
    found: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"][:3]) or "the body"
        found.setdefault(where[:100], problem["msg"])
    return _listed([f"{where}: {message}" for where, message in found.items()])


def _listed(problems: Sequence[str]) -> list[str]:
    rest = [f"and {len(problems) - LISTED} more problems"] if len(problems) > LISTED else []
    return [*problems[:LISTED], *rest]


def _decoded(text: str, number: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"inputs.{number}.image must be base64 of an image file's content ({error})") from error


def _numbers(inputs: Sequence[Any]) -> np.ndarray:
    """Convert nested lists to an array of numbers."""
    bound = "lists of numbers, all of one shape"
    try:
        array = np.asarray(inputs)
    except (ValueError, OverflowError) as error:
        raise invalid("inputs", bound, "lists of several shapes") from error
    if array.dtype.kind not in "iuf":  # objects where a number is too large, or where something is none
        raise invalid("inputs", bound, "other values")
    return array


def example_input(steps: Steps) -> Any:
    """Make an example of one input in JSON, which the task answers."""
    first: Any = steps[0]
    if first.step == "images":
        from PIL import Image

        content = io.BytesIO()
        Image.new(first.mode, first.size[::-1], 128 if first.mode == "L" else (128, 128, 128)).save(content, "PNG")
        return {"image": base64.b64encode(content.getvalue()).decode()}
    if first.step == "table":
        return {column.name: _cell(column) for column in first.columns if column.role != "dropped"}
    if first.step == "tokenize":
        return "a text to classify"
    if first.step == "next_tokens":
        return "a text to read on"
    if first.step == "tagged_words":
        return ["a", "text", "in", "words"]
    if first.step == "named":
        return {name: np.zeros(part.shape, dtype=part.dtype).tolist() for name, part in first.parts.items()}
    return np.zeros(first.shape, dtype=first.dtype).tolist()


def _cell(column: AnyColumn) -> Any:
    if isinstance(column, Written):
        return column.fill
    if isinstance(column, Boolean):
        return bool(column.fill >= 0.5)
    if isinstance(column, Category):
        return column.values[0] if column.values else None
    if isinstance(column, Date):
        from datetime import UTC, datetime

        date = datetime.fromtimestamp(column.fill / 1e6, UTC)
        return date.strftime("%Y-%m-%dT%H:%M:%S" if column.times else "%Y-%m-%d")
    return "a text"


def describe_input(steps: Steps) -> dict[str, Any]:
    """Describe one input of a task: its kind, what it is in JSON, its columns or shape, and an example."""
    first: Any = steps[0]
    if first.step == "table":
        columns = [{"name": c.name, "role": c.role} for c in first.columns if c.role != "dropped"]
        facts: dict[str, Any] = {"json": "an object with a value per column", "columns": columns}
    elif first.step == "images":
        facts = {"json": 'an object {"image": BASE64}, or a file in a multipart upload', "shape": list(first.shape)}
    elif first.step == "tagged_words":
        facts = {"json": "a list of words, or a string, which is parted at white space"}
    elif first.step in ("tokenize", "next_tokens"):
        facts = {"json": "a string"}
    elif first.step == "named":
        parts = [{"name": n, "shape": list(part.shape), "dtype": part.dtype} for n, part in first.parts.items()]
        facts = {"json": "an object with nested lists of numbers by name", "parts": parts}
    else:
        facts = {"json": "nested lists of numbers", "shape": list(first.shape), "dtype": first.dtype}
    return {"kind": first.step, **facts, "example": example_input(steps)}
