"""Read cells of tables: numbers, dates and texts from typed or written values, each cell separately.

A column's cells are a NumPy array of numbers, booleans or objects (rows,), or a pandas Series of any other type: see
`column_cells`. For a few rows, most of the time would else pass in pandas.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import numpy as np

log = logging.getLogger(__name__)

V = TypeVar("V")

MISSING = frozenset(
    ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "NULL", "Null", "null", "None", "?", "-", "<NA>", "#N/A", "NaT")
)
"""Words that stand for a missing cell. Words such as "none" or "no" are values."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SIGNS = (
    *("AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HUF", "IDR", "ILS", "INR", "JPY", "KRW", "MXN"),
    *("NOK", "NZD", "PLN", "RON", "RUB", "SEK", "SGD", "THB", "TRY", "UAH", "USD", "VND", "ZAR", "A$", "C$", "HK$"),
    *("NZ$", "R$", "US$", "$", "kr", "kr.", "Kč", "zł", "Ft", "lei", "Fr.", "SFr.", "Rs", "Rs.", "%", "‰"),
)
"""Signs that stand before or behind the numbers of a whole column, besides Unicode's signs of currencies."""
SHARES = ("%", "‰")
"""Those that are no currencies."""
_SIGN = "|".join([*map(re.escape, sorted(SIGNS, key=len, reverse=True)), "[¢£¥฿₠-⃀]"])
AMOUNT = re.compile(
    rf"(?P<open>\()?(?P<plus>[+-])? ?(?P<before>{_SIGN})? ?(?P<opened>\()?(?P<sign>[+-])? ?"
    r"(?P<digits>[.,]?\d([\d.,' ]*[\d.,])?([eE][+-]?\d+)?) ?"
    rf"(?P<minus>--?)? ?(?P<closed>\))? ?(?P<behind>{_SIGN})? ?(?P<last>-)?(?P<close>\))?"
)
"""A number as people write it: -$1,234.50, (1.234,50 €), 1'234.50-, 12,- kr."""
ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2012\u2013\u2014", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
        **dict.fromkeys("\u2019\u02bc", "'"),
        **dict.fromkeys("\u200e\u200f", None),
    }
)
"""Minus signs, spaces and apostrophes that mean the same; marks of direction, which mean nothing here."""
GROUPS = {
    "": r"\d+",
    ",": r"\d+|[1-9]\d{0,2}(,\d{3})+|[1-9]\d?(,\d{2})+,\d{3}",  # the last: 12,34,567 in India
    **{mark: rf"\d+|[1-9]\d{{0,2}}({re.escape(mark)}\d{{3}})+" for mark in (".", "'", " ")},
}
"""Mark between thousands to whole numbers."""
SHOWN = 100
"""Letters of a cell that an error shows."""
SAMPLE = 200
"""Different cells that decide whether a column may hold numbers."""
CODE = re.compile(r"0\d+")
"""A number with a leading zero, as postal codes have, is a name."""
LEADING_ZERO = re.compile(r"[+-]?0\d")
WHOLE = re.compile(r"(-?\d+)(\.0*)?")
"""A whole number, as programs write it where a column has gaps, too: 1.0."""
LARGEST = float(np.finfo(np.float32).max)
TRUE, FALSE = ("true", "yes", "t", "y", "on", "1"), ("false", "no", "f", "n", "off", "0")
DATE_FORMATS = tuple(
    day + time
    for day in (
        *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d"),
        *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d. %m. %Y"),
        *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%a, %d %b %Y"),
    )
    for time in ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
)
DATE = re.compile(
    r"(\d{4}-\d{2}|\d{1,4}([-/.])\d{1,2}\2\d{1,4}|\d{1,2}\. ?\d{1,2}\. ?\d{4}"
    r"|([A-Z][a-z]{2}, )?\d{1,2}[ -][A-Z][a-z]{2,8}[ -]\d{2,4}|[A-Z][a-z]{2,8} \d{1,2},? \d{4})"
    r"([ T]\d{1,2}:\d{2}.*)?"
)
"""Texts that may be dates."""
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?([+-]\d\d:\d\d)?)?")
DIGITS = 10
"""Digits, at most, in the shortest text of a float32, with a zero in front; that of a float64 has mostly more."""
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
    [value] = cells.iloc[row : row + 1] if hasattr(cells, "iloc") else cells[row : row + 1]
    if are_nested([value]).any():
        text = str(value)
    else:
        text = value if isinstance(value, str) else str(value) if as_text(value, ()) is not None else ""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def are_nested(cells: Any) -> np.ndarray:
    """Find cells that are lists, bytes, tensors and the like, which no column can have: bool (rows,)."""
    return np.array([_is_nested(cell) for cell in cells], dtype=bool)


def _is_nested(cell: Any) -> bool:
    """Tell whether a cell holds several values, or has a text that is not its value's, as enumerations have."""
    if isinstance(cell, Enum):
        return str(cell) != str(cell.value)
    return not isinstance(cell, str) and (hasattr(type(cell), "__iter__") or hasattr(type(cell), "__len__"))


def check_flat(cells: Any, where: Where, name: str) -> None:
    """Raise if a column has cells that are lists, bytes and the like.

    Args:
        cells: of the column, (rows,).
        where: names the row.
        name: the column's.
    Raises:
        ValueError: naming the first such cell.
    """
    import pandas as pd

    if isinstance(cells.dtype, pd.StringDtype) or cells.dtype.kind in "biufM":
        return
    if isinstance(cells.dtype, pd.CategoricalDtype):
        nested = np.append(are_nested(cells.cat.categories), False)[cells.cat.codes.to_numpy()]  # code -1: missing
    elif len(cells) > FEW and pd.api.types.infer_dtype(cells, skipna=True) == "string":
        return
    else:
        nested = are_nested(as_objects(cells))
    if nested.any():
        problem = "is no text, number or date: make columns of lists, and texts of bytes and enumerations"
        raise cell_error(where, name, cells, nested, problem)


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


def number_as_text(text: str) -> str:
    """Write a text that is a number as `as_text` writes that number: 1.0 as 1; others, and codes such as 01, stay."""
    if not NUMBER.fullmatch(text) or LEADING_ZERO.match(text):
        return text
    if whole := WHOLE.fullmatch(text):
        return "0" if whole[1] == "-0" else whole[1]
    number = float(text)
    return (as_text(number, ()) or text) if np.isfinite(number) else text


def other_texts(cell: Any) -> list[str]:
    """List the texts, besides that of `as_text`, as which files have a boolean, a date or a float32; else none.

    Args:
        cell: a Python, NumPy or pandas value that is not missing.
    """
    import pandas as pd

    if isinstance(cell, bool | np.bool_):
        return [str(cell).lower(), str(cell).upper()]
    if isinstance(cell, np.floating) and cell.itemsize < 8:
        return [as_text(float(str(cell)), ()) or ""]
    if isinstance(cell, np.datetime64):
        cell = pd.Timestamp(cell)
    if not isinstance(cell, date):
        return []
    day = cell.isoformat()[:10]
    if not isinstance(cell, datetime):
        return [f"{day}T00:00:00", f"{day} 00:00:00"]
    is_midnight = cell.time() == time.min and cell.tzinfo is None
    exact = ["auto"] if cell.second or cell.microsecond else ["auto", "minutes"]
    return [day] * is_midnight + [cell.isoformat(mark, timespec) for timespec in exact for mark in ("T", " ")]


def spelling(text: str) -> str:
    """Return the way in which a text of a boolean, a date or a decimal number is written; "" for others."""
    if text.casefold() in ("true", "false"):
        return "true" if text.islower() else "TRUE" if text.isupper() else "True"
    if ISO_DATE.fullmatch(text):
        return re.sub(r"\d", "0", text)
    if NUMBER.fullmatch(text) and not WHOLE.fullmatch(text):
        return "0.0" if len(re.sub(r"\D", "", text)) <= DIGITS else "0.00000000"
    return ""


def coded_as(cells: Any, is_known: Callable[[str], bool]) -> tuple[np.ndarray, list[str]]:
    """Number a column's different texts as `coded` does, typed cells by known texts.

    A boolean, date or float32 whose text is unknown gets the first of its `other_texts` that is known.
    """
    codes, texts = coded(cells)
    if not _may_have_others(cells):
        return codes, texts
    unknown = np.array([not is_known(text) for text in texts] + [False])[codes]
    values = cells if isinstance(cells, np.ndarray) else cells.array
    if cells.dtype.kind == "f":
        values = np.asarray(cells.to_numpy(np.float32, na_value=np.nan)) if values is not cells else cells
    numbers = {text: number for number, text in enumerate(texts)}
    for row in np.flatnonzero(unknown):
        value = values[row]
        found = None if isinstance(value, str) else next(filter(is_known, other_texts(value)), None)
        if found is not None:
            codes[row] = numbers.setdefault(found, len(numbers))
    return codes, list(numbers)


def _may_have_others(cells: Any) -> bool:
    """Tell whether a column may have cells with `other_texts`: not so texts, integers and float64."""
    import pandas as pd

    if isinstance(cells.dtype, pd.CategoricalDtype):
        return bool(pd.api.types.infer_dtype(cells.cat.categories) != "string")
    if isinstance(cells.dtype, pd.StringDtype) or cells.dtype.kind in "iu":
        return False
    if cells.dtype.kind == "f":
        return bool(cells.dtype.itemsize < 8)
    return len(cells) <= FEW or pd.api.types.infer_dtype(cells, skipna=True) != "string"


def have_values(texts: Sequence[str]) -> bool:
    """Tell whether there are numbers among a column's different texts, and equal ones mean the same.

    Codes such as 01 are no numbers. 1 and 1.0 mean the same; of others, such as the versions 1.1 and 1.10, none are
    equal as numbers.
    """
    numbers = [text for text in texts if NUMBER.fullmatch(text) and not LEADING_ZERO.match(text)]
    spellings = Counter(map(number_as_text, numbers))
    return bool(numbers) and all(spellings[number_as_text(text)] == 1 or WHOLE.fullmatch(text) for text in numbers)


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
    if isinstance(cells.dtype, pd.CategoricalDtype) and pd.api.types.infer_dtype(cells.cat.categories) == "string":
        first, distinct = pd.factorize(cells.cat.codes.to_numpy())  # of numbers, -1 for missing cells
        texts = [None if code < 0 else as_text(cells.cat.categories[code], missing) for code in distinct]
    elif len(values := cells if strings else as_objects(cells)) > FEW and (
        strings or pd.api.types.infer_dtype(values, skipna=True) == "string"
    ):
        first, distinct = pd.factorize(values)  # for others, True, 1 and 1.0 would count as one value
        texts = [as_text(value, missing) for value in distinct]
    else:
        texts, first = [as_text(value, missing) for value in values], np.arange(len(values))
    numbers: dict[str, int] = {}
    codes = np.array([-1 if t is None else numbers.setdefault(t, len(numbers)) for t in texts] + [-1], dtype=np.int64)
    return codes[first], list(numbers)  # factorize numbers missing cells -1, the last code


def merged(codes: np.ndarray, texts: Sequence[str], value: Callable[[str], V]) -> tuple[np.ndarray, list[V]]:
    """Give texts of one value one code.

    Args:
        codes, texts: as `coded` returns them.
        value: of a text.
    Returns:
        (int64 (rows,) with -1 for missing cells, the different values in order of appearance).
    """
    numbers: dict[V, int] = {}
    found = np.array([numbers.setdefault(value(text), len(numbers)) for text in texts] + [-1], dtype=np.int64)
    return found[codes], list(numbers)


@dataclass(frozen=True)
class NumberForm:
    """The way in which the numbers of a column are written.

    Attributes:
        mark: a percent or currency sign that they may have; "" for none.
        decimal: "." or ",".
        thousands: the mark between thousands that they may have: "," or "." or "'" or " "; "" for none.
    """

    mark: str = ""
    decimal: str = "."
    thousands: str = ""

    @property
    def example(self) -> str:
        """Show the marks: 1.234,5."""
        return f"1{self.thousands}234{self.decimal}5"

    def number(self, text: str) -> float:
        """Read a number; infinity for a text that is none, or that may mean another."""
        if self.decimal == "." and NUMBER.fullmatch(text):
            return float(text)
        parts = _parts(text)
        if parts is None or parts[0] not in ("", self.mark):
            return np.inf
        _, sign, digits = parts
        if _digits(self.decimal, self.thousands).fullmatch(digits):
            return float(sign + digits.replace(self.thousands, "").replace(self.decimal, "."))
        is_open = "." in digits and _digits(",", ".").fullmatch(digits)  # 1.234 beside decimal commas
        return np.inf if is_open or not NUMBER.fullmatch(digits) else float(sign + digits)


PLAIN = NumberForm()
FORMS = [(decimal, mark) for decimal in (".", ",") for mark in GROUPS if mark != decimal]


@cache
def _digits(decimal: str, thousands: str) -> re.Pattern[str]:
    mark = re.escape(decimal)
    return re.compile(rf"(({GROUPS[thousands]})({mark}\d*)?|{mark}\d+)([eE][+-]?\d+)?")


def _parts(text: str) -> tuple[str, str, str] | None:
    """Cut a number into (percent or currency sign, "-" or "", digits with their marks); None if it is none."""
    found = AMOUNT.fullmatch(text.translate(ALIKE))
    if found is None or (found["before"] and found["behind"]):
        return None
    digits, minus, last = found["digits"], found["minus"], found["last"]
    if minus and digits[-1] in ".,":  # 12,- and 12.-- are prices without decimals
        minus = None
    brackets = [sum(map(bool, (found[a], found[b]))) for a, b in (("open", "opened"), ("close", "closed"))]
    if minus == "--" or brackets not in ([0, 0], [1, 1]):
        return None
    if brackets[0] + sum(map(bool, (found["plus"], found["sign"], minus, last))) > 1:
        return None
    is_negative = brackets[0] or minus or last or "-" in (found["plus"], found["sign"])
    return found["before"] or found["behind"] or "", "-" if is_negative else "", digits.rstrip(".,") or digits


def find_form(
    cells: Any, where: Where, name: str, texts: Sequence[str] | None = None, decimal: str | None = None
) -> NumberForm:
    """Find the way in which nearly all numbers of a column are written; PLAIN if most cells are no numbers.

    Args:
        cells: a pandas Series (rows,).
        where: names the row.
        name: the column's.
        texts: its different texts, if they are known already.
        decimal: "." or "," where the file or a setting decides; None: the column alone does.
    Raises:
        ValueError: commas or points may mark decimals or thousands.
    """
    import pandas as pd

    texts = () if pd.api.types.is_numeric_dtype(cells.dtype) else coded(cells)[1] if texts is None else texts
    if not may_be_numbers(texts):
        return PLAIN
    parts = [found for text in texts if (found := _parts(text)) is not None]
    [(mark, count), *_] = Counter(mark for mark, _, _ in parts).most_common() or [("", 0)]
    mark = mark if 5 * count >= 4 * len(texts) else ""
    numbers = [digits for sign, _, digits in parts if sign in ("", mark)]
    marks = {"", *"".join(numbers)}
    fitting = {
        NumberForm(mark, *form): sum(map(bool, map(_digits(*form).fullmatch, numbers)))
        for form in FORMS
        if form[1] in marks
    }
    most = max(fitting.values())
    if 5 * most < 4 * len(texts):
        return PLAIN
    forms = [form for form, count in fitting.items() if count == most]
    forms = [form for form in forms if form.decimal == decimal] or forms
    for text in texts if len(forms) > 1 else ():
        if len({number for form in forms if np.isfinite(number := form.number(text))}) > 1:
            if mark in ("", *SHARES) and "," not in marks:  # programs write decimal points
                return NumberForm(mark)
            codes, all_texts = coded(cells)
            sign = "comma" if "," in text else "point"
            problem = f"has a decimal {sign} or marks thousands: set source.decimal=',' or source.decimal='.'"
            raise cell_error(where, name, cells, codes == all_texts.index(text), problem)
    return forms[0]


def shows_decimal(text: str, decimal: str) -> bool:
    """Tell whether a number can only be read with this decimal mark: not so 5, and neither 1.234 nor 1,234."""
    parts = _parts(text)
    if parts is None or not ("," in text or "." in text):
        return False
    digits = parts[2].replace(" ", "").replace("'", "")
    return not _digits("," if decimal == "." else ".", decimal).fullmatch(digits)


def may_be_numbers(texts: Sequence[str]) -> bool:
    """Tell whether at least half of the first texts look like numbers."""
    first = texts[:SAMPLE]
    return 2 * sum(_parts(text) is not None for text in first) >= max(1, len(first))


def read_numbers(cells: Any, where: Where, name: str, form: NumberForm = PLAIN) -> np.ndarray:
    """Read a column as numbers, float64 (rows,), NaN where missing.

    Args:
        cells: of the column, (rows,).
        where: names the row.
        name: the column's.
        form: the way in which texts write numbers.
    Raises:
        ValueError: a cell is not a finite number.
    """
    values, bad = numbers_or_bad(cells, form=form)
    if bad.any():
        raise cell_error(where, name, cells, bad, f"is not a finite number{_hint(coded(cells[bad])[1], form)}")
    return values


def numbers_or_bad(
    cells: Any, known: tuple[np.ndarray, list[str]] | None = None, form: NumberForm = PLAIN
) -> tuple[np.ndarray, np.ndarray]:
    """Read a column as numbers.

    Args:
        cells: of the column, (rows,).
        known: `coded(cells)`, if it is known already.
        form: the way in which texts write numbers.
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
    if form.decimal == "," and pd.api.types.is_object_dtype(cells.dtype):
        typed = np.array([isinstance(cell, int | float | np.number) for cell in cells])
        if typed.any():  # the number 1.234 is no text that could mean 1234
            values, bad = numbers_or_bad(cells, (codes, texts))
            values[~typed], bad[~typed] = numbers_or_bad(cells[~typed].astype("str"), form=form)
            return values, bad
    numbers = np.array([*map(form.number, texts), np.nan])
    wrong = np.abs(numbers) > LARGEST
    values = np.where(wrong, np.nan, numbers)[codes]
    return values, np.asarray(wrong[codes])


def _hint(texts: list[str], form: NumberForm) -> str:
    parts = [found for text in texts if (found := _parts(text)) is not None and found[0] in ("", form.mark)]
    if form.decimal == "," and parts:
        return f": write it as other numbers of this column, {form.example}"
    if any(text.lstrip("+-").casefold() in ("inf", "infinity") for text in texts):
        return f": infinite, or beyond {LARGEST:.2g}, the largest that networks compute with; leave unknown cells empty"
    if any(map(DATE.fullmatch, texts)):
        return ": a date, of which numbers can be made, such as the days since another"
    if any(NUMBER.fullmatch(digits) for _, _, digits in parts):
        return f": it is beyond {LARGEST:.2g}, the largest that networks compute with"
    if any(_digits(",", "").fullmatch(digits) and not _digits(".", ",").fullmatch(digits) for _, _, digits in parts):
        return ": write a decimal point; source.decimal=',' reads decimal commas"
    if parts:
        return ": write it without thousands marks; source.decimal=',' reads decimal commas"
    return ""


def read_booleans(cells: Any, where: Where, name: str) -> np.ndarray:
    """Read a column as 0 and 1, float64 (rows,), NaN where missing.

    Raises:
        ValueError: a cell is neither true, yes, t, y, on, 1 nor false, no, f, n, off, 0.
    """
    codes, texts = coded(cells)
    words = [number_as_text(text).casefold() for text in texts]  # 1.0 where a column of 1 and 0 has gaps
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
MOMENTS = ("now", "today")
"""Words for which pandas takes the time at which it reads them, whatever the format."""


def parse_dates(texts: list[str], format: str) -> np.ndarray:
    """Parse dates to microseconds since 1970 in UTC, int64 (texts,); NO_DATE for texts that are no dates."""
    import pandas as pd

    texts = ["" if text in MOMENTS else text for text in texts]
    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if format:
        times = pd.Series(pd.to_datetime(texts, format=format, errors="coerce", utc=True)).fillna(pd.Series(times))
    stamps: np.ndarray = pd.DatetimeIndex(times).as_unit("us").asi8
    return stamps


def report_short_years(cells: Any, times: np.ndarray, format: str, name: str, in_training: bool = True) -> None:
    """Warn if a column's years have two digits, and dates are in the future; in training, log how they are read.

    Python reads 69 to 99 as 1969 to 1999, and 00 to 68 as 2000 to 2068.

    Args:
        cells: of the column, (rows,).
        times: as `read_dates` returns them.
        format: of `datetime.strptime`.
        name: the column's.
        in_training: rather than in a prediction.
    """
    present = times[times != NO_DATE]
    if "%y" not in format or not len(present):
        return
    first, last = np.array([present.min(), present.max()]).astype("datetime64[us]").astype("datetime64[D]")
    if last > np.datetime64("today"):
        codes, texts = coded(cells)
        log.warning(
            "column %r: %r is read as %s, which is in the future: if an earlier year is meant, write years with four "
            "digits, or drop the column with source.columns={%s: drop}",
            *(name, texts[codes[times.argmax()]], last, name),
        )
    elif in_training:
        log.info("column %r: years have two digits, and are read as from %s to %s", name, first, last)


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
