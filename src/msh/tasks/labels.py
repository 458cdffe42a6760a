"""Read labels: one class per value however it is spelled, and no class for words that stand for a missing label."""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from msh.tasks.cells import MISSING, NUMBER, as_text, coded

log = logging.getLogger(__name__)

SHOWN = 30
"""Classes that the log lists; the rest is counted."""
MISSING_LABELS = ("drop", "error")
"""Settings for rows without a label."""


@dataclass(frozen=True)
class Labels:
    """A column of labels.

    Attributes:
        codes: int64 (rows,), index in `texts`; -1 where the label is missing.
        texts: the different labels as written, stripped, in order of appearance.
        are_names: each text is a class; else texts that are equal as numbers are one.
    """

    codes: np.ndarray
    texts: list[str]
    are_names: bool = False

    @property
    def missing(self) -> np.ndarray:
        """Bool (rows,), True where the label is missing."""
        return self.codes < 0


@dataclass(frozen=True)
class Classes:
    """The classes of a training column.

    Attributes:
        names: their shortest spellings, in natural order: 2 before 10.
        counts: rows of each.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def number(self, labels: Labels) -> np.ndarray:
        """Number labels by their class, int64 (rows,); -1 where the class is unknown or the label missing."""
        written = {name: number for number, name in enumerate(self.names)}
        numbers = {value_of(name): written[name] for name in sorted(self.names, key=len, reverse=True)}
        found = [written.get(text, numbers.get(value_of(text), -1)) for text in labels.texts]
        known = np.array([*found, -1], dtype=np.int64)
        return np.asarray(known[labels.codes])


def read_labels(cells: Any, classes: Classes | None = None, are_names: bool = False) -> Labels:
    """Read a column of labels.

    Args:
        cells: (rows,), a pandas Series or a sequence.
        classes: of the training column; None: this is it.
        are_names: cells are names of classes, such as folders: only None and empty ones are missing, no words are.
    Returns:
        Labels; "-" is one only if "+" is another in the training column, or if cells are names.
    """
    import pandas as pd

    series = cells if isinstance(cells, pd.Series) else pd.Series(list(cells), dtype=object)
    if are_names:
        return Labels(*coded(series, ("",)), are_names=True)
    codes, texts = coded(series, MISSING - {"-"})
    signs = texts if classes is None else classes.names
    if "-" in texts and "+" not in signs:
        codes = np.where(codes == texts.index("-"), -1, codes)
    return Labels(codes, texts)


def find_classes(origin: str, labels: Labels) -> Classes:
    """Find the classes of a training column, and log them with their counts.

    Labels that are equal as numbers, such as 1, 1.0 and 01, are one class, unless they are names. Warns of names that
    differ only in case, blanks or punctuation, and of classes with one row.

    Args:
        origin: names the column in the log.
        labels: of the training rows.
    """
    rows = np.bincount(labels.codes[~labels.missing], minlength=len(labels.texts)).tolist()
    spellings: dict[Any, list[str]] = defaultdict(list)
    counts: dict[Any, int] = defaultdict(int)
    for text, count in zip(labels.texts, rows, strict=True):
        if count:
            value = text if labels.are_names else value_of(text)
            spellings[value].append(text)
            counts[value] += count
    values = sorted(spellings, key=lambda value: _natural(value_of(spellings[value][0])))
    names = [min(spellings[value], key=lambda text: (len(text), text)) for value in values]
    classes = Classes(tuple(names), tuple(counts[value] for value in values))
    _report(origin, classes)
    return classes


def too_few(origin: str, name: str, cells: Sequence[Any], missing: np.ndarray) -> ValueError:
    """Build the error for a training column with one class: it names the words that were read as missing labels.

    Args:
        origin: names the column.
        name: of its one class.
        cells: of the column, (rows,).
        missing: bool (rows,), True where the label is missing.
    """
    if not missing.any():
        return ValueError(f"{origin}: every row has {name!r}; needs at least two classes")
    words = missing_words(itertools.compress(cells, missing))
    cure = "" if words == "''" else "; if these are classes, give them other names, such as 'none'"
    return ValueError(
        f"{origin}: every row with a label has {name!r}; needs at least two classes; {int(missing.sum())} of "
        f"{len(missing)} rows have none, but {words}, for missing labels{cure}"
    )


def missing_words(cells: Iterable[Any]) -> str:
    """List the different words of missing cells, as they are written."""
    return ", ".join(sorted({repr(as_text(cell, ()) or "") for cell in cells}))


def value_of(text: str) -> Decimal | str:
    """Return the number that a label or the name of a group is, 7 for 7, 7.0 and 07, else the text."""
    try:
        return Decimal(text) if NUMBER.fullmatch(text) else text
    except ArithmeticError:  # an exponent beyond decimal's limits
        return text


def _natural(value: Decimal | str) -> tuple[int, Decimal, list[tuple[int, str]]]:
    """Sort numbers first; texts by letter, the numbers in them by value."""
    if isinstance(value, Decimal):
        return 0, value, []
    parts = re.split(r"([0-9]+)", value)
    return 1, Decimal(0), [(int(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def _report(origin: str, classes: Classes) -> None:
    listed = [f"{name} ({count})" for name, count in zip(classes.names, classes.counts, strict=True)]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    log.info("%s: %d classes: %s%s", origin, len(listed), ", ".join(listed[:SHOWN]), more)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes.names:
        if not NUMBER.fullmatch(name):
            alike[re.sub(r"[\W_]+", "", name.casefold()) or name].append(name)
    if pairs := [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]:
        log.warning("%s: are these one class? %s; give them one spelling if so", origin, "; ".join(pairs[:SHOWN]))
    if single := [name for name, count in zip(classes.names, classes.counts, strict=True) if count == 1]:
        shown = ", ".join(map(repr, single[:SHOWN])) + (f" and {len(single) - SHOWN} more" * (len(single) > SHOWN))
        log.warning("%s: only one row has the class %s: it cannot be both learned and tested", origin, shown)


def shown_names(names: Sequence[str]) -> str:
    """List class names in an error, the first ones if there are many."""
    return ", ".join(names[:SHOWN]) + (f", ... {len(names)} in all" if len(names) > SHOWN else "")
