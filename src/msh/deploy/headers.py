"""What the headers of files say, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated

from pydantic import Field

from msh.checked import check_promised

Size = Annotated[int, Field(ge=0, lt=2**48)]
Shapes = dict[str, list[Size]]
"""Tensor name to shape."""
Names = dict[str, str]
"""A further name of a tensor to its name."""


def check_sizes(shapes: Mapping[str, Sequence[int]], held: int) -> None:
    """Raise where a header promises more weights than its file can hold: see `check_promised`."""
    check_promised(sum(prod(shape) for shape in shapes.values()), held, "weights")
