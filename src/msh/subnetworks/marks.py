"""Follow whole numbers from a module's attributes, and from tensors' sizes, to the sizes that its code asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Attribute:
    """A module's attribute that holds a whole number.

    Attributes:
        path: dotted name of the module.
        name: of the attribute.
        value: its value.
    """

    path: str
    name: str
    value: int


@dataclass(frozen=True, eq=False)
class Size:
    """A tensor's size along a dimension.

    Attributes:
        rows: the layers' rows in that tensor, see `row_units`.
        dim: the dimension.
    """

    rows: Tensor
    dim: int


Origin = Attribute | Size


class Marked(int):
    """A whole number that is the product of known numbers.

    Products of marked numbers are marked. Other arithmetic and comparisons give plain results, and are reported: they
    may come out otherwise once an attribute or a size has another value.

    Attributes:
        factors: where the factors come from; a plain factor is left out.
        report: called with each factor of a number that code computes with otherwise.
    """

    factors: tuple[Origin, ...]
    report: Callable[[Origin], None]

    def __new__(cls, value: int, factors: tuple[Origin, ...], report: Callable[[Origin], None]) -> Marked:
        """Mark a value."""
        marked = super().__new__(cls, value)
        marked.factors, marked.report = factors, report
        return marked

    def __mul__(self, other: Any) -> Any:
        """Return a marked product; a plain one with what is not a whole number."""
        product: Any = super().__mul__(other)
        if product is NotImplemented:
            self._reported()
            return product
        return Marked(product, self.factors + (other.factors if isinstance(other, Marked) else ()), self.report)

    __rmul__ = __mul__
    __hash__ = int.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and store it as a plain number."""
        return int, (int.__int__(self),)

    def _reported(self) -> None:
        for factor in self.factors:
            self.report(factor)


def _reporting(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def computed(number: Marked, *others: Any) -> Any:
        for each in (number, *others):
            if isinstance(each, Marked):
                each._reported()
        return plain(number, *others)

    return computed


for _name in (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__floordiv__", "__rfloordiv__", "__truediv__", "__rtruediv__"),
    *("__mod__", "__rmod__", "__divmod__", "__rdivmod__", "__pow__", "__rpow__", "__neg__", "__float__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(Marked, _name, _reporting(_name))


def is_torchs(module: nn.Module) -> bool:
    """Tell whether a module's class is one of torch.nn."""
    return type(module).__module__.startswith("torch.nn.")


@contextmanager
def marked_attributes(backbone: nn.Module, report: Callable[[Origin], None]) -> Iterator[None]:
    """Mark the whole numbers among the attributes of modules that are not torch's, inside the context."""
    for path, module in backbone.named_modules():
        for name, value in () if is_torchs(module) else vars(module).items():
            if type(value) is int:
                vars(module)[name] = Marked(value, (Attribute(path, name, value),), report)
    try:
        yield
    finally:
        for module in backbone.modules():
            for name, value in vars(module).items():
                if isinstance(value, Marked):
                    vars(module)[name] = int.__int__(value)
