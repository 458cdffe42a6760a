"""Outputs: a task's answers from its head's numbers, as data that files carry."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from msh.subnetworks.tensors import widened
from msh.tasks.options import TOKEN_KINDS, Kind
from msh.tasks.steps import CONFIG, Array

IGNORED = -100
"""Target of a position that counts neither in the loss nor in a metric."""


@dataclass(frozen=True, config=CONFIG)
class Outputs:
    """Names and scales of the numbers that a head returns.

    Attributes:
        kind: "classification": a logit per class; "multilabel": a logit per label; "regression": scaled values;
            "lm": a logit per next token, at each token; "token_classification": a logit per class, at each token.
        number: the head's size.
        names: of the classes, labels or values, in order; () if they have none.
        mean: regression: (number,), mean of the training targets.
        std: regression: (number,), their standard deviation.
        low: regression: (number,), value that the targets' normalization maps to 0.
        extent: regression: (number,), its scale.
        unit: a regression's.
    """

    kind: Kind
    number: Annotated[int, Field(ge=1)]
    names: tuple[str, ...] = ()
    mean: Array | None = None
    std: Array | None = None
    low: Array | None = None
    extent: Array | None = None
    unit: str = ""

    def values(self, outputs: Tensor) -> Tensor:
        """Convert outputs (examples, number) to a regression's values in the data's unit, or to probabilities.

        Outputs of kinds that answer each token are (texts, tokens, number).
        """
        outputs = widened(outputs)
        if self.kind in ("classification", *TOKEN_KINDS):
            return outputs.softmax(-1)
        if self.kind == "multilabel":
            return outputs.sigmoid()
        if self.mean is not None and self.std is not None:
            outputs = outputs * self.std.to(outputs.device) + self.mean.to(outputs.device)
        if self.low is not None and self.extent is not None:
            outputs = outputs * self.extent.to(outputs.device) + self.low.to(outputs.device)
        return outputs

    def label(self, number: int) -> str:
        """Return the name of a class, label or value; without one, its number, or "value"."""
        if self.names:
            return self.names[number]
        if self.kind == "lm":
            return "perplexity"
        return "value" if self.kind == "regression" and self.number == 1 else str(number)

    @property
    def answers(self) -> int:
        """Number of values, classes or labels in an answer: a language model's is the text's perplexity."""
        return 1 if self.kind == "lm" else self.number

    @property
    def called(self) -> str:
        """The kind, for people."""
        return {"lm": "language model", "token_classification": "token classification"}.get(self.kind, self.kind)

    @property
    def has_values(self) -> bool:
        """Return true if answers are values, which are no probabilities."""
        return self.kind in ("regression", "lm")

    def to_data(self) -> dict[str, Any]:
        """Convert to JSON values."""
        data: dict[str, Any] = _OUTPUTS.dump_python(self, mode="json")
        return {key: value for key, value in data.items() if value not in (None, "", [])}


_OUTPUTS = TypeAdapter(Outputs)


def outputs_from_data(data: Any) -> Outputs:
    """Read `Outputs.to_data`, from a file of unknown origin.

    Raises:
        ValueError: values of wrong types or sizes.
    """
    try:
        outputs = _OUTPUTS.validate_python(data)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the outputs are invalid: {error}") from error
    scales = [t for t in (outputs.mean, outputs.std, outputs.low, outputs.extent) if t is not None]
    if outputs.names and len(outputs.names) != outputs.number:
        raise ValueError(f"the outputs are invalid: {len(outputs.names)} names for {outputs.number} numbers")
    if any(tensor.shape != torch.Size((outputs.number,)) for tensor in scales):
        raise ValueError(f"the outputs are invalid: scales need the shape ({outputs.number},)")
    return outputs
