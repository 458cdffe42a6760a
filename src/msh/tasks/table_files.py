"""Read tables from CSV, Parquet and Excel files; errors name file and line."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from msh.errors import Problems, invalid, one_of
from msh.tasks.cells import CODE, DECIMAL_COMMA, MISSING, NUMBER, THOUSANDS, coded
from msh.tasks.checks import existing

DELIMITERS = (",", ";", "\t", "|")
"""The delimiters of most CSV files."""
PARQUET, EXCEL = (".parquet", ".pq"), (".xlsx", ".xlsm", ".xls")
SAMPLE = 200
"""Rows from which a CSV file's delimiter is found."""
LARGE = 2**27
"""Bytes of a CSV file from which it is parsed in chunks; for smaller files, of many columns, this is slower."""
NAMELESS = "Unnamed: "
"""Start of the name that pandas gives a column without one; its number follows."""


@dataclass(frozen=True)
class Table:
    """A table with a header.

    Attributes:
        path: of the file.
        frame: pandas DataFrame (rows, columns); its index numbers the rows from 0.
        csv: (encoding, delimiter) of a CSV file.
    """

    path: Path
    frame: Any
    csv: tuple[str, str] | None = None

    def column(self, key: str, name: str) -> Any:
        """Return a column.

        Raises:
            ValueError: there is no such column; `key` is the setting that names it.
        """
        if name not in self.frame.columns:
            names = list(map(str, self.frame.columns))
            shown = ", ".join(map(repr, names[:20])) + (f", ... {len(names)} in all" if len(names) > 20 else "")
            raise invalid(key, f"a column of {self.path} ({shown})", name, names)
        return self.frame[name]

    def row(self, row: int) -> str:
        """Name the file and the line on which a row ends, for errors."""
        label = int(self.frame.index[row])  # rows may have been dropped since
        if self.csv is None:
            unit = "line" if self.path.suffix.lower() in EXCEL else "row"
            return f"{self.path}, {unit} {label + 2 if unit == 'line' else label}"
        with _opened(self.path, self.csv[0]) as file:
            for _, line in itertools.islice(_rows(file, self.csv[1]), label + 1, label + 2):
                return f"{self.path}, line {line}"
        return f"{self.path}, row {label}"

    @property
    def reread(self) -> Callable[[Sequence[int]], Any]:
        """Return a function that reads rows again as written, and does not keep the table in memory."""
        return partial(written_rows, self.path, self.csv)

    def take(self, rows: Any) -> Table:
        """Select rows by position; `row` still finds their lines."""
        return replace(self, frame=self.frame.iloc[rows])


def read_table(
    path: str,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    decimal: str | None = None,
    texts: Collection[str] | None = (),
) -> Table:
    """Read a table with a header: CSV, or by suffix Parquet (.parquet, .pq) or Excel (.xlsx; the first sheet).

    Args:
        path: the file's path.
        encoding: of a CSV file; a byte order mark is recognized.
        delimiter: character between the cells of a CSV file; None: found from the first rows.
        decimal: "." or "," for decimal numbers in a CSV file; None: found from the cells.
        texts: columns whose cells are kept as written, so that 01 stays 01; None: all.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another encoding, no rows, uneven rows or repeated names, or a setting is invalid.
    """
    with Problems() as problems:
        if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"'):
            problems.add(invalid("source.delimiter", "one character, such as ; or a tab", delimiter))
        if decimal is not None:
            problems.check(one_of, "source.decimal", decimal, (".", ","))
    file = existing(path, "file")
    suffix = file.suffix.lower()
    if suffix in PARQUET + EXCEL:
        return Table(file, _read_typed(file, suffix))
    return _read_csv(file, encoding, delimiter, decimal, texts)


def written_rows(file: Path, csv: tuple[str, str] | None, rows: Sequence[int]) -> Any:
    """Read a few rows of a table that has been read before, as a DataFrame of texts, as written.

    Args:
        file: the table's path.
        csv: (encoding, delimiter) of a CSV file.
        rows: their numbers, from 0, ascending.
    """
    import pandas as pd

    if csv is None:
        frame: Any = _read_typed(file, file.suffix.lower()).iloc[list(rows)].astype(object)
        return frame.where(frame.notna(), "").map(str)
    names, _ = _header(file, *csv, given=True)
    wanted = set(rows)
    with _opened(file, csv[0]) as opened:
        below = itertools.islice(_rows(opened, csv[1]), 1, max(rows, default=0) + 2)
        cells = [line for row, (line, _) in enumerate(below) if row in wanted]
    return pd.DataFrame(cells, columns=names)


def _read_typed(file: Path, suffix: str) -> Any:
    """Read a file whose cells have types."""
    import pandas as pd

    try:
        if suffix in PARQUET:
            frame = pd.read_parquet(file).reset_index(drop=True)
            header = [str(name).strip() for name in frame.columns]
        else:
            cells = pd.read_excel(file, header=None, dtype=object, keep_default_na=False, na_values=[""])
            header = ["" if pd.isna(name) else str(name).strip() for name in (cells.iloc[0] if len(cells) else [])]
            frame = cells.iloc[1:].reset_index(drop=True).infer_objects()
    except ImportError as error:
        raise ValueError(f"{file}: Parquet and Excel files need pip install 'msh[tables]' ({error})") from error
    except Exception as error:  # the libraries raise nearly anything on a damaged file
        raise ValueError(f"{file} cannot be read: damaged, or not what its suffix {suffix} says ({error})") from error
    if not len(frame):
        raise _empty(file)
    frame.columns = pd.Index(_checked_names(file, header))
    return frame


def _empty(file: Path) -> ValueError:
    return ValueError(f"{file} has no rows: it needs a header and at least one row below it")


def _checked_names(file: Path, header: Sequence[str]) -> list[str]:
    """Return the header; columns without a name are named as pandas names them."""
    names = [name or f"{NAMELESS}{place}" for place, name in enumerate(header)]
    if len(set(names)) < len(names):
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{file}: the header names {', '.join(map(repr, repeated))} more than once")
    return names


# ---- CSV


def _read_csv(
    file: Path, encoding: str, delimiter: str | None, decimal: str | None, texts: Collection[str] | None
) -> Table:
    import pandas as pd

    encoding = encoding_of(file, encoding)
    csv.field_size_limit(max(csv.field_size_limit(), file.stat().st_size))  # the default limit is too small for texts
    try:
        mark = delimiter or _found_delimiter(file, encoding)
        names, codes = _header(file, encoding, mark, delimiter is not None)
        as_written = codes | (set(names if texts is None else texts) & set(names))
        frame = _parsed(file, encoding, mark, names, as_written)
    except UnicodeError as error:
        raise wrong_encoding(file, encoding, error) from error
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file ({error})") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        _check_rows(file, encoding, mark, len(names))
        raise ValueError(f"{file}: not a CSV file ({str(error).strip()})") from error
    last = frame.iloc[:, -1]
    may_be_short = last.isna().any() or last.isin([""]).any()  # pandas fills short rows, and moves the first long one
    if not isinstance(frame.index, pd.RangeIndex) or (
        may_be_short and not _surely_even(file, encoding, mark, len(names), len(frame))
    ):
        _check_rows(file, encoding, mark, len(names))
    if not len(frame):
        raise _empty(file)
    return Table(file, _with_decimal_points(file, frame, decimal, as_written), (encoding, mark))


def _parsed(file: Path, encoding: str, delimiter: str, names: Sequence[str], texts: Collection[str]) -> Any:
    """Parse a CSV file; a large one in chunks, which takes much less memory than at once.

    Columns whose chunks differ in kind, such as numbers with a word far below, are parsed again, as texts.
    """
    import pandas as pd

    words = sorted(MISSING)

    def parse(columns: Sequence[str], written: Collection[str]) -> Any:
        return pd.read_csv(
            file,
            sep=delimiter,
            header=0,
            names=list(names),
            usecols=None if columns is names else list(columns),
            dtype=dict.fromkeys(written, str),
            keep_default_na=False,
            na_values={name: words for name in columns if name not in texts},
            encoding=encoding,
            low_memory=file.stat().st_size > LARGE,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        frame = parse(names, texts)
    objects = [name for name, dtype in frame.dtypes.items() if pd.api.types.is_object_dtype(dtype)]
    mixed = [name for name in objects if pd.api.types.infer_dtype(frame[name], skipna=True) != "boolean"]
    if mixed:
        again = parse(mixed, mixed)
        for name in mixed:
            frame[name] = again[name]
    return frame


def _surely_even(file: Path, encoding: str, delimiter: str, width: int, rows: int) -> bool:
    """Tell by the number of delimiters that no row is short, given that none is long; far faster than reading rows."""
    if encoding.replace("_", "-").lower().startswith("utf-16") or not delimiter.isascii():
        return False
    with _opened(file, encoding) as opened:
        first, _ = next(_rows(opened, delimiter))
    mark, count, quoted = delimiter.encode(), 0, 0
    with file.open("rb") as content:
        while block := content.read(2**22):
            if b'"' not in block and not quoted:
                count += block.count(mark)
                continue
            characters = np.frombuffer(block, dtype=np.uint8)
            inside = (quoted + np.cumsum(characters == ord('"'))) % 2
            count += int(((characters == ord(mark)) & (inside == 0)).sum())
            quoted = int(inside[-1])
    return count == len(first) - 1 + rows * (width - 1)


def encoding_of(file: Path, encoding: str) -> str:
    """Return a file's encoding: the one passed, unless a byte order mark decides between kinds of Unicode."""
    try:
        "".encode(encoding)
    except LookupError as error:
        bound = "an encoding that Python knows, such as utf-8 or latin-1"
        raise invalid("source.encoding", bound, encoding) from error
    with file.open("rb") as opened:
        start = opened.read(3)
    if start == b"\xef\xbb\xbf":
        return "utf-8-sig"
    return "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else encoding


def _opened(file: Path, encoding: str) -> TextIO:
    return file.open(encoding=encoding, newline="")


def _rows(file: TextIO, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Iterate over (cells, number of the line on which they end), from the header on, without blank lines."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for cells in reader:
        if len(cells) > 1 or (cells and cells[0].strip()):
            yield cells, reader.line_num


def _found_delimiter(file: Path, encoding: str) -> str:
    """Return the first delimiter that cuts the first rows evenly, else the one that cuts the header most."""
    widths = {}
    for mark in DELIMITERS:
        with _opened(file, encoding) as opened:
            sizes = []
            try:
                sizes += [len(cells) for cells, _ in itertools.islice(_rows(opened, mark), SAMPLE)]
            except csv.Error:  # quotes that make no sense with this delimiter, or are wrong
                opened.seek(0)
                sizes = [len(opened.readline().split(mark))]
        widths[mark] = sizes[0] if sizes else 1
        if widths[mark] > 1 and len(set(sizes[1:])) == 1 and sizes[1] - sizes[0] in (0, 1):
            return mark
    return max(widths, key=lambda mark: widths[mark])


def _header(file: Path, encoding: str, delimiter: str, given: bool) -> tuple[list[str], set[str]]:
    """Return the columns' names, and those with codes such as 01; R's header misses the name of the first column."""
    with _opened(file, encoding) as opened:
        try:
            rows = [cells for cells, _ in itertools.islice(_rows(opened, delimiter), SAMPLE)]
        except csv.Error:
            _check_rows(file, encoding, delimiter, 0)
            raise
    if len(rows) < 2:
        raise _empty(file)
    header = [name.strip() for name in rows[0]]
    if given and len(header) == 1 and (others := [m for m in DELIMITERS if m != delimiter and m in header[0]]):
        raise ValueError(
            f"{file}: with source.delimiter = {delimiter!r} the whole header, {header[0]!r}, is one column; "
            f"try source.delimiter={others[0]!r}"
        )
    longer = {len(cells) - len(header) for cells in rows[1:]} == {1}
    if longer and any(cells[-1].strip() for cells in rows[1:]):
        header.insert(0, "")
    if any(len(cells) != len(header) for cells in rows[1:]):
        _check_rows(file, encoding, delimiter, len(header))
    names = _checked_names(file, header)
    zeros = ((at, cell.strip()) for cells in rows[1:] for at, cell in enumerate(cells) if cell.lstrip()[:1] == "0")
    return names, {names[at] for at, cell in zeros if CODE.fullmatch(cell)}


def _check_rows(file: Path, encoding: str, delimiter: str, width: int) -> None:
    """Raise if rows have more or fewer cells than the header, or quotes are wrong."""
    uneven, line = [], 0
    with _opened(file, encoding) as opened:
        try:
            for cells, line in _rows(opened, delimiter):
                width = width or len(cells)
                if line > 1 and len(cells) != width:
                    uneven.append((line, len(cells)))
        except csv.Error as error:
            raise ValueError(f"{file}, line {line + 1}: not a CSV file ({error})") from error
    if uneven:
        more = f" (first of {len(uneven)} such lines)" if len(uneven) > 1 else ""
        line, cells_there = uneven[0]
        raise ValueError(f"{file}, line {line}: {cells_there} cells, but the header names {width} columns{more}")


def wrong_encoding(file: Path, encoding: str, error: UnicodeError) -> ValueError:
    """Build the error for a file in another encoding: it names the first wrong byte, and its line."""
    cause, content = "", file.read_bytes()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as exact:  # pandas' error counts from the start of a block
        line = content.count(b"\n", 0, exact.start) + 1
        cause = f": byte {exact.start} (line {line}) is 0x{content[exact.start]:02x}"
    except UnicodeError as exact:
        cause = f": {exact}"
    return ValueError(
        f"{file} is not in {encoding}{cause}; set source.encoding to its encoding, such as latin-1 or utf-16"
    )


def _with_decimal_points(file: Path, frame: Any, decimal: str | None, as_written: Collection[str]) -> Any:
    """Replace decimal commas by points in columns of numbers.

    Raises:
        ValueError: it is open whether commas mark decimals or thousands.
    """
    import pandas as pd

    certain, doubtful = [], []
    for name in [] if decimal == "." else frame.select_dtypes(exclude=["number", "bool"]).columns:
        if name in as_written:
            continue
        if not all(map(DECIMAL_COMMA.fullmatch, coded(frame[name].head(SAMPLE))[1])):
            continue
        texts = coded(frame[name])[1]
        if not texts or not all(map(DECIMAL_COMMA.fullmatch, texts)):
            continue
        with_comma = [text for text in texts if "," in text]
        if decimal == "," or not all(map(THOUSANDS.fullmatch, with_comma)):
            certain.append(name)
        elif with_comma:
            doubtful.append((name, with_comma[0]))
    if doubtful and not certain:
        (name, cell), more = doubtful[0], f" (and in {len(doubtful) - 1} other columns)" * (len(doubtful) > 1)
        raise ValueError(
            f"{file}, column {name!r}: {cell!r} has a decimal comma or marks thousands{more}: set source.decimal=',' "
            "for decimal commas, or write numbers without thousands marks"
        )
    for name in certain + [name for name, _ in doubtful]:
        codes, texts = coded(frame[name])
        numbers = [text.replace(",", ".") for text in texts]
        assert all(map(NUMBER.fullmatch, numbers))
        frame[name] = pd.Series([*map(float, numbers), float("nan")])[codes].to_numpy()
    return frame
