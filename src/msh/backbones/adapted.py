"""Adapt any module to a backbone: find the number of its features, and pool outputs that are no feature vectors."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from msh.draws import drawing_apart
from msh.errors import Problems, at_least, invalid, one_of

log = logging.getLogger(__name__)

POOLS = ("mean", "cls", "last", "none", "tokens")
ATTENDED = "attention_mask"
"""Name of an input that marks the tokens that are no padding."""
HIDDEN = "last_hidden_state"
"""Name of the outputs that transformers' models pass on; of others with names, the first is taken."""


class Adapted(nn.Module):
    """A module as a backbone: it maps inputs of a fixed shape to feature vectors.

    Of outputs in a tuple, list, mapping or dataclass, the first is taken, or the one named `last_hidden_state`.

    Args:
        model: any module; its forward pass takes a batch of inputs, and an `attention_mask` if it wants one.
        input_shape: shape of one example.
        pool: makes a vector of outputs (batch, tokens, width) or (batch, channels, *positions). "mean": over tokens
            that are no padding, or over positions; "cls": the first token; "last": the last token that is no padding;
            "none": all of them, flattened; "tokens": features are (batch, tokens, width). Outputs (batch, features)
            stay as they are; None: they have this form.
        vocabulary: number of token ids, if the inputs are tokens.
        padding: id of the token that fills short texts.
        features: number of features; None: found by a forward pass, and parameters that have no part in it are frozen.
        parts: name of an input to its `shape`, `dtype` and `below` (as of `NamedInput`), for a module that takes
            several: a row of numbers (batch, *input_shape) holds them in this order. Names that are numbers are
            positions.
        left_padded: some texts are padded on the left: their tokens are moved there, for models that count positions
            from the first one, whatever it is.
    Raises:
        ValueError: a setting is invalid, or the model's outputs are none of the above; the message says what they are.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        pool: str | None = "mean",
        vocabulary: int | None = None,
        padding: int = 0,
        features: int | None = None,
        left_padded: bool = False,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        with Problems() as problems:
            if pool is not None:
                problems.check(one_of, "backbone.pool", pool, POOLS)
            for size in input_shape:
                problems.check(at_least, "backbone.input_shape", 1, size)
        self.model, self.input_shape, self.pool, self.padding = model, tuple(input_shape), pool, padding
        self.left_padded, self.parts = left_padded, {name: dict(part) for name, part in (parts or {}).items()}
        if vocabulary is not None:
            self.vocabulary = vocabulary
        parameters = inspect.signature(model.forward).parameters
        self.takes_mask = vocabulary is not None and "attention_mask" in parameters
        self.features = self._probe() if features is None else features

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (batch, *input_shape) to features (batch, features), or (batch, tokens, features)."""
        if self.pool is None and not self.takes_mask:  # as it is: exporters and tracers follow it
            vectors: Tensor = self._outputs(inputs)
            return vectors
        if self.left_padded:
            inputs = inputs.gather(1, (inputs == self.padding).int().argsort(dim=1, stable=True))
        if self.takes_mask:
            return self._pooled(_tensor_in(self.model(inputs, attention_mask=self._seen(inputs).long())), inputs)
        return self._pooled(_tensor_in(self._outputs(inputs)), inputs)

    def _outputs(self, inputs: Tensor) -> Any:
        if not self.parts:
            return self.model(inputs)
        named = self._named(inputs)
        in_order = [named.pop(name) for name in self.parts if name.isdigit()]
        return self.model(*in_order, **named)

    def _named(self, rows: Tensor) -> dict[str, Tensor]:
        """Make a module's inputs of rows of numbers: name to (batch, *shape)."""
        sizes = [math.prod(part["shape"]) for part in self.parts.values()]
        named = {}
        for (name, part), piece in zip(self.parts.items(), rows.split(sizes, 1), strict=True):
            values = piece if part["dtype"] == "float32" else piece.to(getattr(torch, part["dtype"]))
            named[name] = values.unflatten(1, tuple(part["shape"])) if part["shape"] else values.squeeze(1)
        return named

    def _seen(self, tokens: Tensor) -> Tensor:
        """Mark the tokens that are no padding, bool (batch, tokens); the first one of a text without any."""
        seen = tokens != self.padding
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        return seen | (first & ~seen.any(1, keepdim=True))

    def _pooled(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        if self.pool == "tokens":
            if outputs.dim() != 3 or outputs.shape[1] != inputs.shape[1]:
                bound = f"(batch, {inputs.shape[1]} tokens, width)"
                raise invalid("the backbone's outputs with backbone.pool=tokens", bound, tuple(outputs.shape))
            return outputs
        if outputs.dim() == 2 or self.pool is None:
            return outputs
        if outputs.dim() < 2 or (outputs.dim() > 3 and self.pool in ("cls", "last")):
            bound = "(batch, features), (batch, tokens, width)"
            if self.pool in ("mean", "none"):
                bound += " or (batch, channels, *positions)"
            raise invalid(f"the backbone's outputs with backbone.pool={self.pool}", bound, tuple(outputs.shape))
        if self.pool == "none":
            return outputs.flatten(1)
        if outputs.dim() > 3:
            return outputs.flatten(2).mean(2)
        if self.pool == "cls":
            return outputs[:, 0]
        seen: Tensor | None = None  # (batch, tokens)
        if hasattr(self, "vocabulary"):
            seen = self._seen(inputs)
        elif ATTENDED in self.parts:
            seen = self._named(inputs)[ATTENDED].bool()
        if seen is None or outputs.shape[1:2] != seen.shape[1:]:
            return outputs[:, -1] if self.pool == "last" else outputs.mean(1)
        if self.pool == "last":
            places = torch.arange(seen.shape[1], device=seen.device)
            last = torch.where(seen, places, -1).amax(1)  # (batch,)
            return outputs.gather(1, last[:, None, None].expand(-1, 1, outputs.shape[2])).squeeze(1)
        weights = seen.to(outputs.dtype)[..., None]  # (batch, tokens, 1)
        return (outputs * weights).sum(1) / weights.sum(1)

    def _probe(self) -> int:
        """Run a forward and a backward pass on two examples; return the number of features.

        A copy computes, which shares only the parameters: the model stays as it was, but for parameters without a
        gradient, which are frozen.
        """
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if is_lazy(tensor):
                kind = type(self.model).__name__
                raise ValueError(
                    f"backbone {kind}: {name!r} has no shape yet, and a file is rebuilt without an input: use layers "
                    "with their sizes, such as nn.Linear(in_features, out_features) for nn.LazyLinear(out_features)"
                )
        with drawing_apart(0), torch.enable_grad(), _copied(self):
            inputs = self._example()
            try:
                features = self(inputs)
                alone = self(inputs[1:])
            except Exception as error:  # a model may raise any type
                raise ValueError(
                    f"backbone {type(self.model).__name__} cannot compute inputs of the shape {list(self.input_shape)} "
                    f"(backbone.input_shape sets another): {error}"
                ) from error
            near = 1e-4 * float(features.detach().abs().nan_to_num().amax())
            if len(features) != 2 or not torch.allclose(features[1:], alone, 1e-3, near, equal_nan=True):
                raise ValueError(
                    f"backbone {type(self.model).__name__}: an example's outputs depend on the other examples of its "
                    f"batch, or have no batch dimension (outputs {list(features.shape)} for two examples): the first "
                    "dimension must be the batch (batch_first=True in torch's recurrent and transformer layers)"
                )
            self._freeze_unused(features)
            with torch.no_grad():
                alone = None if self.takes_mask else self._outputs(inputs[:1])
            if isinstance(alone, Tensor) and alone.dim() == 2:
                self.pool = None
        return int(features.shape[-1])

    def _example(self) -> Tensor:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))
        if self.parts:
            rows = [_examples_of(part) for part in self.parts.values()]
            return torch.cat(rows, 1).to(weight)
        if hasattr(self, "vocabulary"):
            ids = torch.randint(1, max(2, self.vocabulary), (2, *self.input_shape), device=weight.device)
            return torch.where(ids == self.padding, (self.padding + 1) % max(2, self.vocabulary), ids)
        return torch.randn(2, *self.input_shape, dtype=weight.dtype, device=weight.device)

    def _freeze_unused(self, features: Tensor) -> None:
        """Freeze the parameters that have no part in the features in evaluation; training alone may read them."""
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not features.requires_grad or not trained:
            return
        gradients = torch.autograd.grad(features.sum(), [p for _, p in trained], allow_unused=True)
        unused = [(name, p) for (name, p), g in zip(trained, gradients, strict=True) if g is None]
        for _, parameter in unused:
            parameter.requires_grad_(False)
        if unused:
            names = [name for name, _ in unused]
            some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            log.info(
                "the backbone's answers do not depend on %s: they stay as they are, and tasks get none of them", some
            )


def _examples_of(part: Mapping[str, Any]) -> Tensor:
    """Draw two examples of an input, (2, numbers): any that the training data may have."""
    shape = (2, math.prod(part["shape"]))
    if part["dtype"] == "bool":
        return torch.ones(shape)
    return torch.randint(part["below"], shape).float() if part["dtype"] == "int64" else torch.randn(shape)


@contextmanager
def _copied(adapted: Adapted) -> Iterator[None]:
    """Replace the model inside the context by a copy in evaluation mode, which has the same parameters."""
    model = adapted.model
    try:
        adapted.model = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
    except Exception as error:  # an attribute may raise any type
        raise ValueError(
            f"backbone {type(model).__name__} cannot be copied, and each task needs a copy of its structure: {error}"
        ) from error
    try:
        yield
    finally:
        adapted.model = model


def _tensor_in(outputs: Any) -> Tensor:
    """Take the tensor of features from a model's outputs: see `Adapted`.

    Raises:
        ValueError: there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        chosen = outputs.get(HIDDEN, next(iter(outputs.values()), None))
    elif isinstance(outputs, tuple | list):
        chosen = outputs[0] if outputs else None
    elif hasattr(outputs, "__dataclass_fields__"):
        fields = list(outputs.__dataclass_fields__)
        chosen = getattr(outputs, HIDDEN if HIDDEN in fields else fields[0], None)
    else:
        chosen = None
    if not isinstance(chosen, Tensor):
        bound = "a tensor, or a tuple, list, mapping or dataclass that begins with one"
        raise invalid("the backbone's outputs", bound, _described(outputs))
    return chosen


def _described(outputs: Any) -> str:
    """Name the type of outputs, and of their parts."""
    kind = type(outputs).__name__
    if isinstance(outputs, tuple | list):
        return f"{kind} of ({', '.join(type(part).__name__ for part in outputs[:4])})"
    return f"{kind} with {', '.join(map(str, list(outputs)[:4]))}" if isinstance(outputs, Mapping) else kind
