"""Turn columns of a table into features, by values fitted on training rows, as data that files carry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from msh.tasks.cells import (
    MICROSECONDS_PER_DAY,
    NO_DATE,
    SIGNS,
    NumberForm,
    Where,
    check_flat,
    coded,
    coded_as,
    number_as_text,
    read_booleans,
    read_dates,
    read_numbers,
    report_short_years,
    row_number,
    spelling,
)
from msh.tasks.steps import CONFIG

log = logging.getLogger(__name__)

FEWEST_CELLS = 10
"""Cells of a column, at least, most of which are rare or unknown by no coincidence."""
SHOWN = 5
"""Values that a warning shows."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Buckets = Annotated[int, Field(ge=1, le=2**16)]


class Column(Protocol):
    """A column of a table: its name, role and features."""

    @property
    def name(self) -> str:
        """Its name in the header."""
        ...

    @property
    def role(self) -> str:
        """Its kind of values."""
        ...

    @property
    def note(self) -> str:
        """Explanation for the plan."""
        ...

    @property
    def features(self) -> int:
        """Number of features."""
        ...

    def read(self, cells: Any, where: Where, /) -> np.ndarray:
        """Turn a column's cells (rows,) into features, float64 (rows, features)."""
        ...


@dataclass(frozen=True, config=CONFIG)
class Dropped:
    """A column that gives no features: the reason is "target", "identifier", "constant" and the like."""

    name: str
    note: str
    role: Literal["dropped"] = "dropped"

    @property
    def features(self) -> int:
        """None."""
        return 0

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return no features."""
        return np.empty((len(cells), 0))


@dataclass(frozen=True, config=CONFIG)
class Filled:
    """A column whose values are a feature, and whose missing cells are filled.

    Attributes:
        name: in the header.
        fill: replaces missing values: the median of the training rows.
        missing: add a feature that is 1 where the value is missing.
    """

    name: str
    fill: Finite
    missing: bool = False

    @property
    def features(self) -> int:
        """One, and one for missing cells."""
        return 1 + self.missing

    @property
    def note(self) -> str:
        """Say how missing cells are filled."""
        return f"missing: {self.fill:g}, with a feature" if self.missing else ""


@dataclass(frozen=True, config=CONFIG)
class Written(Filled):
    """A column of numbers; texts among them are read as the training file writes numbers.

    Attributes:
        decimal: the decimal mark.
        thousands: the mark that may stand between thousands.
        mark: a sign that they may have.
    """

    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", "'", " "] = ""
    mark: str = ""

    @property
    def form(self) -> NumberForm:
        """The way in which texts write numbers."""
        return NumberForm(self.mark, self.decimal, self.thousands)

    @property
    def note(self) -> str:
        """Say how numbers are written, and how missing cells are filled."""
        sign = f"in {self.mark}" if self.mark else ""
        written = "" if (self.decimal, self.thousands) == (".", "") else f"written as {self.form.example}"
        return "; ".join(filter(None, (sign, written, super().note)))

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return the numbers."""
        return _filled(read_numbers(cells, where, self.name, self.form), self.fill, self.missing)


@dataclass(frozen=True, config=CONFIG)
class Number(Written):
    """A column of numbers without a sign."""

    mark: Literal[""] = ""
    role: Literal["number"] = "number"


@dataclass(frozen=True, config=CONFIG)
class Amount(Written):
    """A column of numbers with a sign: 12 % or $ 3.50."""

    mark: str = Field(default=SIGNS[-2], min_length=1, max_length=4)
    role: Literal["amount"] = "amount"


@dataclass(frozen=True, config=CONFIG)
class Boolean(Filled):
    """A column of words such as true and false, or yes and no: 1 and 0."""

    role: Literal["boolean"] = "boolean"

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return 1 and 0."""
        return _filled(read_booleans(cells, where, self.name), self.fill, self.missing)


def _filled(values: np.ndarray, fill: float, missing: bool) -> np.ndarray:
    """Fill NaN in (rows,); return (rows, 1), or (rows, 2) with a feature for the missing."""
    absent = np.isnan(values)
    values = np.where(absent, fill, values) if absent.any() else values
    return np.stack([values, absent], 1) if missing else values[:, None]


@dataclass(frozen=True, config=CONFIG)
class Category:
    """A column with few values: a feature for each. Booleans, dates and float32 have a value as any file writes them.

    Attributes:
        name: in the header.
        values: those with a feature, frequent in the training rows.
        other: add a feature for rare values; it also stands for unknown ones, whose features are else all 0.
        missing: add a feature for missing cells, whose features are else all 0.
        by_value: texts that are equal as numbers are one value: see `number_as_text`. False in earlier releases' files.
    """

    name: str
    values: tuple[str, ...]
    other: bool = False
    missing: bool = False
    by_value: bool = False
    role: Literal["category"] = "category"

    @property
    def features(self) -> int:
        """One per value."""
        return len(self.values) + self.other + self.missing

    @property
    def note(self) -> str:
        """List the values."""
        rest = ["(other)"] * self.other + ["(missing)"] * self.missing
        return ", ".join([*self.values, *rest])

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return 1 for the cell's value, 0 for the others."""
        check_flat(cells, where, self.name)
        codes, texts = coded_as(cells, lambda text: self._place(text) is not None)
        features = np.zeros((len(texts) + 1, self.features))  # the last row: missing
        for code, text in enumerate(texts):
            place = self._place(text)
            if place is None and self.other:
                place = len(self.values)
            if place is not None:
                features[code, place] = 1
        if self.missing:
            features[-1, -1] = 1
        return np.asarray(features[codes])

    def report(self, cells: Any, features: np.ndarray) -> None:
        """Warn if most of the cells (rows,) that are not missing have none of the values.

        Args:
            cells: of the column, (rows,).
            features: as `read` returns them, (rows, features).
        """
        known = np.asarray(features[:, : len(self.values)].any(1))
        count = int(known.sum())
        if len(known) < FEWEST_CELLS or 2 * count >= len(known):
            return
        codes, texts = coded(cells[~known])
        unknown = int((codes >= 0).sum())
        if count + unknown >= FEWEST_CELLS and unknown > count:
            log.warning(
                "column %r: %d of %d cells are none of the values that are frequent in the training rows (%s): %s",
                *(self.name, unknown, count + unknown, _some(self.values), _some(texts)),
            )

    def _place(self, text: str) -> int | None:
        return self._places.get(number_as_text(text) if self.by_value else text)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: place for place, value in enumerate(self.values)}


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:SHOWN])) + ", ..." * (len(texts) > SHOWN)


@dataclass(frozen=True, config=CONFIG)
class Hashed:
    """A column with many values: each adds +1 or -1 to one of the features, chosen by its hash.

    Attributes:
        name: in the header.
        buckets: number of features.
        missing: add a feature for missing cells, whose features are else all 0.
        by_value: as in `Category`.
        spellings: ways in which the training file writes booleans, dates and decimal numbers: see `spelling`. Cells of
            these types are hashed as if written so; empty in earlier releases' files.
    Source: Weinberger et al. 2009, Feature hashing for large scale multitask learning.
    """

    name: str
    buckets: Buckets
    missing: bool = False
    by_value: bool = False
    spellings: tuple[str, ...] = ()
    role: Literal["hashed"] = "hashed"

    @property
    def features(self) -> int:
        """The buckets, and one for missing cells."""
        return self.buckets + self.missing

    @property
    def note(self) -> str:
        """Say that values are hashed."""
        return f"many values, hashed to {self.buckets} features"

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return the hashed values."""
        check_flat(cells, where, self.name)
        codes, texts = coded_as(cells, lambda text: spelling(text) in self.spellings)
        hashed = np.zeros((len(texts) + 1, self.features))
        texts = list(map(number_as_text, texts)) if self.by_value else texts
        if texts:
            hashed[:-1, : self.buckets] = self._hasher.transform([[text] for text in texts]).toarray()
        if self.missing:
            hashed[-1, -1] = 1
        return np.asarray(hashed[codes])

    @cached_property
    def _hasher(self) -> Any:
        from sklearn.feature_extraction import FeatureHasher  # slow to import

        return FeatureHasher(n_features=self.buckets, input_type="string")


@dataclass(frozen=True, config=CONFIG)
class Date:
    """A column of dates: days since the first, and the position in the year, week and day as sine and cosine.

    Attributes:
        name: in the header.
        start: microseconds from 1970 to the first date of the training rows, in UTC.
        fill: replaces missing dates: the median of the training rows, likewise.
        format: of `datetime.strptime`; "" for ISO 8601.
        times: the dates have times of day.
        missing: add a feature that is 1 where the date is missing.
    """

    name: str
    start: int
    fill: int
    format: str = ""
    times: bool = False
    missing: bool = False
    role: Literal["date"] = "date"

    @property
    def features(self) -> int:
        """Days, month (2), weekday (2), hour (2) and missing."""
        return 5 + 2 * self.times + self.missing

    @property
    def note(self) -> str:
        """List the features."""
        return "days, month, weekday" + ", hour" * self.times + (f"; format {self.format}" if self.format else "")

    def report(self, cells: Any, features: np.ndarray) -> None:
        """Warn if years of two digits are read as in the future.

        Args:
            cells: of the column, (rows,).
            features: as `read` returns them, (rows, features).
        """
        if "%y" in self.format:
            times = read_dates(cells, self.format, row_number, self.name)
            report_short_years(cells, times, self.format, self.name, in_training=False)

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return the dates' features."""
        import pandas as pd

        stamps = read_dates(cells, self.format, where, self.name)
        absent = stamps == NO_DATE
        stamps = np.where(absent, self.fill, stamps)
        times = pd.DatetimeIndex(stamps.astype("datetime64[us]"))
        parts = [(times.month.to_numpy() - 1) / 12, times.day_of_week.to_numpy() / 7]
        if self.times:
            parts.append((times.hour.to_numpy() + times.minute.to_numpy() / 60) / 24)
        features = [(stamps.astype(np.float64) - self.start) / MICROSECONDS_PER_DAY]
        features += [wave(2 * np.pi * part) for part in parts for wave in (np.sin, np.cos)]
        return np.stack(features + [absent] * self.missing, 1)


@dataclass(frozen=True, config=CONFIG)
class Text:
    """A column of texts: counts of hashed words, scaled to length 1.

    Attributes:
        name: in the header.
        buckets: number of features.
    """

    name: str
    buckets: Buckets
    role: Literal["text"] = "text"

    @property
    def features(self) -> int:
        """The buckets."""
        return self.buckets

    @property
    def note(self) -> str:
        """Say that words are hashed."""
        return f"words, hashed to {self.buckets} features"

    def read(self, cells: Any, where: Where) -> np.ndarray:
        """Return the hashed words."""
        check_flat(cells, where, self.name)
        codes, texts = coded(cells)
        words = np.zeros((len(texts) + 1, self.buckets))  # the last row: missing
        if texts:
            words[:-1] = self._vectorizer.transform(texts).toarray()
        return np.asarray(words[codes])

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer  # slow to import

        return HashingVectorizer(n_features=self.buckets)


AnyColumn = Annotated[
    Dropped | Number | Amount | Boolean | Category | Hashed | Date | Text, Field(discriminator="role")
]
