"""Steps of preprocessing: small functions whose settings and fitted values are data."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, get_args

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from msh.errors import invalid

CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="forbid", strict=False)
Dtype = Literal["float32", "float64", "int64"]
PartDtype = Literal["float32", "int64", "bool"]


def tensor_from_data(value: Any) -> Any:
    """Decode a tensor from a file: {"dtype", "shape", "data" in base64}; others pass."""
    if not isinstance(value, Mapping):
        return value
    if value["dtype"] not in get_args(Dtype):
        raise ValueError(f"tensors of the type {value['dtype']}")
    content = base64.b64decode(value["data"], validate=True)
    array = np.frombuffer(content, dtype=np.dtype(value["dtype"]).newbyteorder("<"))
    return torch.from_numpy(array.astype(value["dtype"]).reshape(value["shape"]))


def _to_data(tensor: Tensor) -> dict[str, Any]:
    array = tensor.contiguous().numpy()
    content = base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": content.decode()}


Array = Annotated[Tensor, BeforeValidator(tensor_from_data), PlainSerializer(_to_data)]
"""A tensor field, which files hold as base64."""


class Step(Protocol):
    """One step: raw inputs, or the step before's tensor (examples, ...), to a tensor (examples, ...).

    Each example is prepared separately, whatever the others are.
    """

    @property
    def step(self) -> str:
        """Its name in files."""
        ...

    def __call__(self, inputs: Any, /) -> Tensor:
        """Prepare examples."""
        ...


class Reader(Step, Protocol):
    """A first step: it reads raw inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example that it returns."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Type of the numbers that it returns."""
        ...


Steps = tuple[Step, ...]
"""The first one is a `Reader`."""


@dataclass(frozen=True, config=CONFIG)
class ReadArrays:
    """Read arrays of one shape, as numbers.

    Attributes:
        shape: one example's.
        dtype: of the numbers.
    """

    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    step: Literal["arrays"] = "arrays"

    def __call__(self, inputs: Any) -> Tensor:
        """Convert arrays or tensors (examples, *shape), or a sequence of examples.

        Raises:
            ValueError: another shape, or values that are no finite numbers, or for int64, no whole ones.
        """
        given = type(inputs).__name__
        try:
            if not isinstance(inputs, Tensor | np.ndarray):
                inputs = np.stack([unmasked("inputs", example) for example in inputs])
            tensor = torch.as_tensor(inputs if isinstance(inputs, Tensor) else unmasked("inputs", inputs))
        except (TypeError, ValueError) as error:
            raise invalid("inputs", f"numbers of the shape (examples, {self._sides})", given) from error
        if tuple(tensor.shape[1:]) != self.shape:
            raise invalid("inputs: the shape", f"(examples, {self._sides})", tuple(tensor.shape))
        if tensor.is_complex():
            raise invalid("inputs: the type", "real numbers", str(tensor.dtype).removeprefix("torch."))
        found = tensor.to(getattr(torch, self.dtype))
        if tensor.is_floating_point():
            _check_numbers("inputs", tensor, found, self.dtype)
        return found

    @property
    def _sides(self) -> str:
        return ", ".join(map(str, self.shape))


def unmasked(key: str, value: Any) -> np.ndarray:
    """Convert to an array.

    Raises:
        ValueError: some of its values are masked, and so unknown.
    """
    if np.ma.is_masked(value):
        raise invalid(key, "without masked values", type(value).__name__)
    return np.asarray(value)


def _check_numbers(key: str, given: Any, read: Any, dtype: str) -> None:
    """Raise unless numbers are finite in the type that the network gets, and whole where this is int64.

    Args:
        key: of the numbers, for the message.
        given: real numbers, an array or tensor.
        read: the same ones as read.
        dtype: that the network gets.
    """
    good = given == read if dtype == "int64" else abs(read) < math.inf
    if not good.all():
        value = given[~good][0].item()
        finite = f"finite in {dtype}" if math.isfinite(value) else "finite"
        raise invalid(f"{key}: each number", "a whole number" if dtype == "int64" else finite, value)


@dataclass(frozen=True, config=CONFIG)
class NamedInput:
    """One of several inputs of an example.

    Attributes:
        shape: one example's.
        dtype: type that the backbone gets.
        below: whole numbers: one more than the largest one in the training data.
    """

    shape: tuple[int, ...]
    dtype: PartDtype = "float32"
    below: int = 1


EXACT = 2**24
"""Whole numbers up to this one are exact in float32."""


@dataclass(frozen=True, config=CONFIG)
class ReadNamed:
    """Read several arrays per example into one row of numbers, of which the backbone makes its inputs again.

    Attributes:
        parts: name of an input, or its position ("0", "1", ...), to its form.
    """

    parts: dict[str, NamedInput]
    step: Literal["named"] = "named"

    @property
    def shape(self) -> tuple[int]:
        """Shape of one row: all inputs' numbers."""
        return (sum(math.prod(part.shape) for part in self.parts.values()),)

    @property
    def dtype(self) -> Dtype:
        """Type of a row."""
        return "float32"

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ReadNamed:
        """Describe training inputs: name to array (examples, *shape)."""
        parts = {}
        for name, array in arrays.items():
            whole = array.dtype.kind in "ui"
            dtype: PartDtype = "bool" if array.dtype.kind == "b" else "int64" if whole else "float32"
            parts[name] = NamedInput(tuple(array.shape[1:]), dtype, int(array.max(initial=0)) + 1 if whole else 1)
        return cls(parts)

    def examples(self, inputs: Any) -> list[Any]:
        """List the examples of one or several: arrays of all by name, or an example after the other."""
        if isinstance(inputs, tuple) and len(inputs) == len(self.parts) and not isinstance(inputs[0], Mapping | tuple):
            inputs = dict(zip(self.parts, inputs, strict=True))
        if not isinstance(inputs, Mapping):
            return list(inputs)
        self._check_names(inputs)
        arrays = {name: unmasked(f"inputs.{name}", inputs[name]) for name in self.parts}
        if all(array.ndim == len(self.parts[name].shape) for name, array in arrays.items()):
            return [arrays]
        if len({len(array) if array.ndim else -1 for array in arrays.values()}) > 1:
            raise invalid("inputs: the number of examples", "the same for each name", self._shapes(arrays))
        return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]

    def __call__(self, inputs: Any) -> Tensor:
        """Pack arrays by name (examples, *shape), or a sequence of examples: float32, (examples, numbers).

        Raises:
            ValueError: other names or shapes, or values that are no finite numbers or too large to be exact.
        """
        if not isinstance(inputs, Mapping):
            rows = [dict(zip(self.parts, one, strict=False)) if isinstance(one, tuple) else one for one in inputs]
            for row in rows:
                self._check_names(row)
            inputs = {name: _stacked(name, [row[name] for row in rows]) for name in self.parts}
        self._check_names(inputs)
        packed = []
        for name, part in self.parts.items():
            array = unmasked(f"inputs.{name}", inputs[name])
            if array.dtype.kind not in "buif" or tuple(array.shape[1:]) != part.shape:
                bound = f"numbers of the shape (examples, {', '.join(map(str, part.shape))})"
                raise invalid(f"inputs.{name}", bound, f"{array.dtype} of shape {array.shape}")
            if part.dtype == "int64" and array.size and not (np.abs(array).max() < EXACT):
                raise invalid(f"inputs.{name}", f"whole numbers below {EXACT}", array.max().item())
            with np.errstate(over="ignore"):  # refused below
                read = np.ascontiguousarray(array, dtype=np.float32)
            if array.dtype.kind == "f":
                _check_numbers(f"inputs.{name}", array, np.floor(array) if part.dtype == "int64" else read, part.dtype)
            packed.append(torch.as_tensor(read).flatten(1))
        return torch.cat(packed, 1)

    def _check_names(self, inputs: Any) -> None:
        if not isinstance(inputs, Mapping) or inputs.keys() != self.parts.keys():
            found = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise invalid("inputs", f"arrays by name: {', '.join(self.parts)}", found)

    @staticmethod
    def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
        return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())


def _stacked(name: str, values: Sequence[Any]) -> np.ndarray:
    try:
        return np.stack([unmasked(f"inputs.{name}", value) for value in values])
    except ValueError as error:
        raise invalid(f"inputs.{name}", "arrays of one shape", str(error)) from error


@dataclass(frozen=True, config=CONFIG)
class Scale:
    """Shift and scale numbers: (inputs - shift) / scale, in the inputs' precision; float64 becomes float32 after it.

    Attributes:
        shift: broadcast to one example's shape.
        scale: likewise; nowhere 0.
    """

    shift: Array
    scale: Array
    step: Literal["scale"] = "scale"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return float32 (examples, *shape)."""
        scaled = (inputs - self.shift) / self.scale
        return scaled.float() if scaled.dtype == torch.float64 else scaled

    def undo(self, scaled: Tensor) -> Tensor:
        """Return what was scaled, within rounding: (examples, *shape)."""
        return scaled * self.scale + self.shift


@dataclass(frozen=True, config=CONFIG)
class Quantiles:
    """Map each feature to a normal distribution by its quantiles in the training split.

    Attributes:
        quantiles: float64 (quantiles, features), ascending.
    """

    quantiles: Array
    step: Literal["quantiles"] = "quantiles"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return float32 of the inputs' shape (examples, *shape)."""
        flat = inputs.flatten(1).double().numpy()
        return torch.from_numpy(self._transformer.transform(flat)).float().view(inputs.shape)

    def undo(self, mapped: Tensor) -> Tensor:
        """Return what was mapped, within rounding and the range of the quantiles: float64 (examples, *shape)."""
        flat = mapped.flatten(1).double().numpy()
        return torch.from_numpy(self._transformer.inverse_transform(flat)).view(mapped.shape)

    @cached_property
    def _transformer(self) -> Any:
        from sklearn.preprocessing import QuantileTransformer  # slow to import

        number, features = self.quantiles.shape
        transformer = QuantileTransformer(n_quantiles=number, output_distribution="normal")
        transformer.quantiles_, transformer.n_features_in_ = self.quantiles.numpy(), features
        transformer.n_quantiles_, transformer.references_ = number, np.linspace(0, 1, number)
        return transformer


def fit_quantiles(inputs: Tensor) -> Quantiles:
    """Fit `Quantiles` to a training split's inputs (examples, *shape): 1000 quantiles, or one per example."""
    from sklearn.preprocessing import QuantileTransformer  # slow to import

    transformer = QuantileTransformer(n_quantiles=min(1000, len(inputs)), random_state=0)
    transformer.fit(inputs.flatten(1).double().numpy())
    return Quantiles(torch.from_numpy(transformer.quantiles_))


@dataclass(frozen=True, config=CONFIG)
class Permute:
    """Permute pixels, each channel equally, or features.

    Attributes:
        order: int64 (pixels of a channel,) or (features,).
    """

    order: Array
    step: Literal["permute"] = "permute"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Permute images (examples, channels, height, width), or rows (examples, features)."""
        flat = inputs.flatten(2 if inputs.dim() == 4 else 1)
        indices = self.order.expand_as(flat)
        return flat.gather(-1, indices).view(inputs.shape)  # several times as fast as an index_select here


@dataclass(frozen=True, config=CONFIG)
class Rotate:
    """Rotate images counter-clockwise about their centre, by bilinear interpolation; corners are filled with 0.

    Attributes:
        degrees: the angle.
    """

    degrees: float
    step: Literal["rotate"] = "rotate"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Rotate images (examples, channels, height, width)."""
        from torchvision.transforms import functional  # slow to import, and only these tasks need it

        if self.degrees % 360 == 0:
            return inputs
        rotated: Tensor = functional.rotate(inputs, self.degrees, functional.InterpolationMode.BILINEAR)
        return rotated


@dataclass(frozen=True, config=CONFIG)
class RepeatChannels:
    """Repeat the channel of grey images.

    Attributes:
        number: of channels after it.
    """

    number: Annotated[int, Field(ge=1)]
    step: Literal["repeat_channels"] = "repeat_channels"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return a view (examples, number, height, width) of images with one channel."""
        return inputs.expand(-1, self.number, -1, -1)


def is_text(value: Any) -> bool:
    """Tell whether a value is a text, without halves of surrogate pairs, as JSON that has been cut may have."""
    if not isinstance(value, str) or value.isascii():
        return isinstance(value, str)
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, config=CONFIG)
class Resize:
    """Resize images.

    Attributes:
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic", both with antialiasing where images become smaller.
    """

    size: tuple[Annotated[int, Field(ge=1, le=2**14)], Annotated[int, Field(ge=1, le=2**14)]]
    mode: Literal["bilinear", "bicubic"] = "bilinear"
    step: Literal["resize"] = "resize"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Resize images (examples, channels, height, width)."""
        smaller = any(new < old for new, old in zip(self.size, inputs.shape[2:], strict=True))
        return functional.interpolate(inputs, self.size, mode=self.mode, antialias=smaller)


@dataclass(frozen=True, config=CONFIG)
class Tokenize:
    """Turn texts into token ids.

    Attributes:
        tokenizer: a fitted `tokenizers.Tokenizer`, which pads and truncates to a fixed length, as JSON.
        files: training read a text per file, and so does `msh predict`; else a text per line.
    """

    tokenizer: str
    files: bool = False
    step: Literal["tokenize"] = "tokenize"

    @property
    def shape(self) -> tuple[int]:
        """Shape of one text: its tokens."""
        return (self._built.padding["length"],)

    @property
    def padding(self) -> int:
        """The token id that fills short texts."""
        return int(self._built.padding["pad_id"])

    @property
    def pads_left(self) -> bool:
        """Return true if padding comes before a text."""
        return bool(self._built.padding["direction"] == "left")

    @property
    def dtype(self) -> Dtype:
        """Type of the token ids."""
        return "int64"

    def __call__(self, inputs: Sequence[str]) -> Tensor:
        """Return the token ids of texts, int64 (texts, length).

        Raises:
            ValueError: an input is not a text.
        """
        if wrong := [text for text in inputs if not is_text(text)]:
            raise invalid("inputs", "texts", wrong[0])
        encoded = self._built.encode_batch(list(inputs))
        return torch.tensor([text.ids for text in encoded])

    def names(self, tokens: Tensor) -> list[str]:
        """Return the tokens of a text, int64 (length,), without padding."""
        return [self._built.id_to_token(token) for token in tokens.tolist() if token != self.padding]

    @cached_property
    def _built(self) -> Any:
        from tokenizers import Tokenizer  # slow to import, and only texts need it

        try:
            return Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises no other type
            raise ValueError(f"the tokenizer cannot be read: {error}") from error
