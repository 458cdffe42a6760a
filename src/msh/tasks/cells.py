"""Read cells of tables: numbers, dates and texts from typed or written values, each cell separately.

A column's cells are a NumPy array of numbers, booleans or objects (rows,), or a pandas Series of any other type: see
`column_cells`. For a few rows, most of the time would else pass in pandas.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from datetime import date
from typing import Any

import numpy as np

MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "Null", "null", "None", "?", "-", "<NA>", "#N/A", "NaT")
)
"""Words that stand for a missing cell. Words such as "none" or "no" are values."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}([,.'_ \u00a0\u202f]\d{3})+([.,]\d+)?")
"""1,234 and the like: with a comma or a point it can also be a decimal number."""
MARKS = ("%", "$", "€", "£", "¥")
"""Signs that stand before or behind the numbers of a whole column."""
CODE = re.compile(r"0\d+")
"""A number with a leading zero, as postal codes have, is a name."""
LARGEST = float(np.finfo(np.float32).max)
TRUE, FALSE = ("true", "yes", "t", "y", "on", "1"), ("false", "no", "f", "n", "off", "0")
DATE_FORMATS = tuple(
    day + time
    for day in (
        "%d.%m.%Y",
        "%d/%m/%Y",
        "%m/%d/%Y",
        "%d-%m-%Y",
        "%m-%d-%Y",
        "%Y/%m/%d",
        "%d.%m.%y",
        "%d/%m/%y",
        "%m/%d/%y",
    )
    for time in ("", " %H:%M", " %H:%M:%S")
)
MICROSECONDS_PER_DAY = 86_400_000_000

FEW = 64
"""Cells of which a table of the different ones costs more than it saves."""

Where = Callable[[int], str]
"""Names a row in errors, such as "houses.csv, line 7"."""


def column_cells(column: Any) -> Any:
    """Return the cells of a DataFrame's column: as a NumPy array without a copy where it has such a type, else itself.

    Args:
        column: a pandas Series (rows,).
    """
    dtype = column.dtype
    return column.to_numpy() if isinstance(dtype, np.dtype) and dtype.kind in "Obiuf" else column


def as_objects(cells: Any) -> np.ndarray:
    """Convert a column's cells to Python objects, (rows,)."""
    found: np.ndarray = (
        cells.astype(object, copy=False) if isinstance(cells, np.ndarray) else cells.to_numpy(dtype=object)
    )
    return found


def row_number(row: int) -> str:
    """Name a row of inputs that come from no file."""
    return f"row {row}"


def cell_error(where: Where, name: str, cells: Any, bad: np.ndarray, problem: str) -> ValueError:
    """Build the error for the bad cells of a column: it shows the first, and their number.

    Args:
        where: names the row.
        name: the column's.
        cells: the column, (rows,).
        bad: bool (rows,) with at least one True.
        problem: as it reads after the cell.
    """
    row, count = int(bad.argmax()), int(bad.sum())
    more = f" (first of {count} such rows)" if count > 1 else ""
    return ValueError(f"{where(row)}, column {name!r}: {_shown(cells, row)} {problem}{more}")


def _shown(cells: Any, row: int) -> str:
    value = np.asarray(cells[row : row + 1], dtype=object)[0]
    return repr(str(value) if not isinstance(value, str) else value)


def as_text(cell: Any, missing: Collection[str] = MISSING) -> str | None:
    """Write a cell as text, stripped, whole numbers without a decimal point; None if it is missing.

    Args:
        cell: a Python, NumPy or pandas value.
        missing: words that stand for a missing cell.
    """
    import pandas as pd

    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float | np.floating) and cell != cell):
        return None
    if isinstance(cell, float | np.floating):
        cell = float(cell)
        text = str(int(cell)) if cell.is_integer() else repr(cell)
    elif isinstance(cell, date):  # and datetimes
        text = cell.isoformat()
    else:
        text = unicodedata.normalize("NFC", str(cell)).strip()
    return None if text in missing else text


def coded(cells: Any, missing: Collection[str] = MISSING) -> tuple[np.ndarray, list[str]]:
    """Number a column's different texts.

    Args:
        cells: of the column, (rows,).
        missing: words that stand for a missing cell.
    Returns:
        (int64 (rows,) with -1 for missing cells, the texts in order of appearance).
    """
    import pandas as pd

    strings = isinstance(cells.dtype, pd.StringDtype)
    values = cells if strings else as_objects(cells)
    if len(values) > FEW and (strings or pd.api.types.infer_dtype(values, skipna=True) == "string"):
        first, distinct = pd.factorize(values)  # for others, True, 1 and 1.0 would count as one value
        texts = [as_text(value, missing) for value in distinct]
    else:
        texts, first = [as_text(value, missing) for value in values], np.arange(len(values))
    numbers: dict[str, int] = {}
    codes = np.array([-1 if t is None else numbers.setdefault(t, len(numbers)) for t in texts] + [-1], dtype=np.int64)
    return codes[first], list(numbers)  # factorize numbers missing cells -1, the last code


def read_numbers(cells: Any, where: Where, name: str, mark: str = "") -> np.ndarray:
    """Read a column as numbers, float64 (rows,), NaN where missing.

    Args:
        cells: of the column, (rows,).
        where: names the row.
        name: the column's.
        mark: a sign that numbers may have.
    Raises:
        ValueError: a cell is not a finite number.
    """
    values, bad = numbers_or_bad(cells, mark=mark)
    if bad.any():
        raise cell_error(where, name, cells, bad, f"is not a finite number{_hint(coded(cells[bad])[1], mark)}")
    return values


def unmarked(text: str, mark: str) -> str:
    """Remove a sign before or behind a number, after a minus if there is one."""
    before, found, behind = text.partition(mark) if mark else (text, "", "")
    if not found or (before.strip() not in ("", "+", "-") and behind.strip()):
        return text
    return before.strip() + behind.strip()


def find_mark(cells: Any, texts: Sequence[str] | None = None) -> str:
    """Return the percent or currency sign that nearly all numbers of a column have, "" if there is none.

    Args:
        cells: of the column, (rows,).
        texts: its different texts, if they are known already.
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells.dtype):
        return ""
    texts = coded(cells)[1] if texts is None else texts
    for mark in MARKS:
        if any(mark in text for text in texts[:20]):
            numbers = [number for text in texts if (number := unmarked(text, mark)) != text]
            written = sum(any(kind.fullmatch(n) for kind in (NUMBER, THOUSANDS, DECIMAL_COMMA)) for n in numbers)
            if 5 * written >= 4 * len(texts):
                return mark
    return ""


def numbers_or_bad(
    cells: Any, known: tuple[np.ndarray, list[str]] | None = None, mark: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Read a column as numbers.

    Args:
        cells: of the column, (rows,).
        known: `coded(cells)`, if it is known already.
        mark: a sign that numbers may have.
    Returns:
        (float64 (rows,), NaN where missing; bool (rows,), True where a cell is no finite number).
    """
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_complex_dtype(cells.dtype):
        if isinstance(cells.dtype, np.dtype):  # NaN stands for missing cells already
            values = np.asarray(cells).astype(np.float64, copy=False)
        else:
            values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.fmax.reduce(values, initial=0) <= LARGEST and np.fmin.reduce(values, initial=0) >= -LARGEST:
            return values, np.zeros(len(values), dtype=bool)
        bad = np.abs(values) > LARGEST
        return np.where(bad, np.nan, values), bad
    codes, texts = known or coded(cells)
    texts = [unmarked(text, mark) for text in texts] if mark else texts
    numbers = np.array([float(text) if NUMBER.fullmatch(text) else np.inf for text in texts] + [np.nan])
    wrong = np.abs(numbers) > LARGEST
    values = np.where(wrong, np.nan, numbers)[codes]
    return values, np.asarray(wrong[codes])


def _hint(texts: list[str], mark: str = "") -> str:
    texts = [unmarked(text, mark) for text in texts]
    if any(THOUSANDS.fullmatch(text) for text in texts):
        return ": write it without thousands marks; source.decimal=',' reads decimal commas"
    if any(NUMBER.fullmatch(text) for text in texts):
        return f": it is beyond {LARGEST:.2g}, the largest that networks compute with"
    if any(DECIMAL_COMMA.fullmatch(text) for text in texts):
        return ": write a decimal point; source.decimal=',' reads decimal commas"
    return ""


def read_booleans(cells: Any, where: Where, name: str) -> np.ndarray:
    """Read a column as 0 and 1, float64 (rows,), NaN where missing.

    Raises:
        ValueError: a cell is neither true, yes, t, y, on, 1 nor false, no, f, n, off, 0.
    """
    codes, texts = coded(cells)
    words = [text.casefold() for text in texts]
    distinct = np.array([1.0 if w in TRUE else 0.0 if w in FALSE else np.inf for w in words] + [np.nan])
    values: np.ndarray = distinct[codes]
    if np.isinf(values).any():
        raise cell_error(where, name, cells, np.isinf(values), "is neither true, yes, t, y, on, 1 nor false, no, ...")
    return values


def read_dates(cells: Any, format: str, where: Where, name: str) -> np.ndarray:
    """Read a column as microseconds since 1970 in UTC, int64 (rows,), the lowest int64 where missing.

    Args:
        cells: of the column, (rows,).
        format: as in `datetime.strptime`; "" for ISO 8601, which is accepted with every format.
        where: names the row.
        name: the column's.
    Raises:
        ValueError: a cell is not such a date.
    """
    codes, texts = coded(cells)
    times = parse_dates(texts, format)
    bad = np.append(times == NO_DATE, False)[codes]
    if bad.any():
        wanted = "a date as 2026-01-31" + (f" or of the format {format}" if format else "")
        raise cell_error(where, name, cells, bad, f"is not {wanted}")
    stamps: np.ndarray = np.append(times, NO_DATE)[codes]
    return stamps


NO_DATE = np.iinfo(np.int64).min


def parse_dates(texts: list[str], format: str) -> np.ndarray:
    """Parse dates to microseconds since 1970 in UTC, int64 (texts,); NO_DATE for texts that are no dates."""
    import pandas as pd

    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if format:
        times = pd.Series(pd.to_datetime(texts, format=format, errors="coerce", utc=True)).fillna(pd.Series(times))
    stamps: np.ndarray = pd.DatetimeIndex(times).as_unit("us").asi8
    return stamps


def find_date_format(name: str, texts: list[str]) -> str | None:
    """Return the format that fits all texts, "" for ISO 8601, None if none does.

    Raises:
        ValueError: both day first and month first fit.
    """
    if _fits(texts, ""):
        return ""
    formats = [format for format in DATE_FORMATS if _fits(texts, format)]
    if len(formats) > 1:
        choice = " or ".join(f"{{{name}: date {format}}}" for format in formats)
        raise ValueError(f"column {name!r}: {texts[0]!r} may have several meanings: set source.columns={choice}")
    return formats[0] if formats else None


def _fits(texts: list[str], format: str) -> bool:
    """Tell whether all texts are dates of a format; the first few rule most formats out."""
    return all((parse_dates(part, format) != NO_DATE).all() for part in (texts[:20], texts))
