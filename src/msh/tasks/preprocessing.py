"""Preprocessing: the steps from a task's raw inputs to its tensors, as data that files carry.

Training and prediction run the same steps, so that raw inputs become bitwise the same tensors in both. A source's
first step reads raw inputs; transforms and scaling append theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from msh.tasks.image_step import ReadImages
from msh.tasks.steps import (
    Permute,
    Quantiles,
    ReadArrays,
    ReadNamed,
    RepeatChannels,
    Resize,
    Rotate,
    Scale,
    Step,
    Steps,
    Tokenize,
)
from msh.tasks.table_step import ReadTable
from msh.tasks.windows import NextTokens, TaggedWords

AnyStep = (
    ReadArrays
    | ReadNamed
    | ReadImages
    | ReadTable
    | Tokenize
    | NextTokens
    | TaggedWords
    | Permute
    | Rotate
    | RepeatChannels
    | Resize
    | Scale
    | Quantiles
)
_STEPS: TypeAdapter[list[AnyStep]] = TypeAdapter(list[Annotated[AnyStep, Field(discriminator="step")]])


def prepare(steps: Sequence[Step], inputs: Any) -> Tensor:
    """Run steps in order on raw inputs."""
    for step in steps:
        inputs = step(inputs)
    assert isinstance(inputs, Tensor)
    return inputs


def steps_to_data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Convert steps to JSON values."""
    data: list[dict[str, Any]] = _STEPS.dump_python(list(steps), mode="json")  # type: ignore[arg-type]
    return data


def steps_from_data(data: Any) -> Steps:
    """Read `steps_to_data`, from a file of unknown origin.

    Raises:
        ValueError: unknown steps, or values of wrong types.
    """
    try:
        return tuple(_STEPS.validate_python(data))
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the preprocessing is invalid: {error}") from error
