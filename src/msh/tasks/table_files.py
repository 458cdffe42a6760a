"""Read tables from CSV, Parquet and Excel files; errors name file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from torch import Tensor

from msh.errors import Problems, invalid, one_of
from msh.tasks.cells import (
    CODE,
    MISSING,
    SAMPLE,
    NumberForm,
    as_text,
    coded,
    find_form,
    may_be_numbers,
    numbers_or_bad,
    shows_decimal,
)
from msh.tasks.checks import existing

log = logging.getLogger(__name__)

DELIMITERS = (",", ";", "\t", "|")
"""The delimiters of most CSV files."""
PARQUET, EXCEL = (".parquet", ".pq"), (".xlsx", ".xlsm", ".xls")
LARGE = 2**27
"""Bytes of a CSV file from which it is parsed in chunks; for smaller files, of many columns, this is slower."""
MAGIC = {
    b"PK\x03\x04": "a zip archive or an Excel file: unpack it, or name it .xlsx",
    b"\xd0\xcf\x11\xe0": "an Excel file of before 2007: name it .xls, or save it as .xlsx",
    b"PAR1": "a Parquet file: name it .parquet",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard: unpack it",
    b"%PDF": "a PDF file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"RDX": "a file of R: save it as CSV",
}
"""First bytes of files that are no texts, and what they are."""
BLOCK = 2**22
"""Bytes of a CSV file that are looked through at a time."""
LONGEST_CODE = 64
"""Digits, at most, of a code such as 01 that is sought in the bytes of a CSV file."""
LITERAL = re.compile(r'"[^"]*"|[\\_*].')
"""Parts of Excel's formats of numbers that are shown as they are, or not at all."""
NAMELESS = "Unnamed: "
"""Start of the name that pandas gives a column without one; its number follows."""


@dataclass(frozen=True)
class Table:
    """A table with a header.

    Attributes:
        path: of the file.
        frame: pandas DataFrame (rows, columns); its index numbers the rows from 0.
        csv: (encoding, delimiter) of a CSV file.
        decimal: "." or "," if the file's numbers or a setting decide which is the decimal mark.
        forms: ways in which columns of numbers were written; others are plain, or still texts.
        in_class_folders: the labels are the names of folders, each of which is a class.
    """

    path: Path
    frame: Any
    csv: tuple[str, str] | None = None
    decimal: str | None = None
    forms: Mapping[str, NumberForm] = field(default_factory=dict)
    in_class_folders: bool = False

    def column(self, key: str, name: str) -> Any:
        """Return a column.

        Raises:
            ValueError: there is no such column; `key` is the setting that names it.
        """
        if name not in self.frame.columns:
            names = list(map(str, self.frame.columns))
            shown = ", ".join(map(repr, names[:20])) + (f", ... {len(names)} in all" if len(names) > 20 else "")
            bound = f"a column of {self.path} ({shown})"
            above = self.frame.head(SAMPLE).map(lambda cell: isinstance(cell, str) and cell.strip() == name).any(axis=1)
            error = invalid(key, bound, name, names)
            if above.any():
                where = self.row(int(above.to_numpy().argmax()))
                raise ValueError(f"{error}; {where} has it: delete what stands above the header")
            raise error
        return self.frame[name]

    def row(self, row: int) -> str:
        """Name the file and the line on which a row ends, for errors; without lines the row, from 1."""
        label = int(self.frame.index[row])  # rows may have been dropped since
        if self.csv is None:
            below_header = self.path.suffix.lower() in EXCEL
            return f"{self.path}, {f'line {label + 2}' if below_header else f'row {label + 1}'}"
        with _opened(self.path, self.csv[0]) as file:
            for _, line in itertools.islice(_rows(file, self.csv[1]), label + 1, label + 2):
                return f"{self.path}, line {line}"
        return f"{self.path}, row {label + 1}"

    @property
    def reread(self) -> Callable[[Tensor], Any]:
        """Return a function that reads rows again as written, and does not keep the table in memory."""
        return partial(written_rows, self.path, self.csv)

    @property
    def shares(self) -> set[str]:
        """Columns of texts with percent signs."""
        texts = self.frame.select_dtypes(include=["object", "string"])
        return {name for name, cells in texts.items() if any("%" in text for text in coded(cells)[1])}

    def take(self, rows: Any) -> Table:
        """Select rows by position; `row` still finds their lines."""
        return replace(self, frame=self.frame.iloc[rows])


def read_table(
    path: str,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    decimal: str | None = None,
    texts: Collection[str] | None = (),
    alone: bool = False,
    shares: Collection[str] = (),
) -> Table:
    """Read a table with a header: CSV, or by suffix Parquet (.parquet, .pq) or Excel (.xlsx; the first sheet).

    Args:
        path: the file's path.
        encoding: of a CSV file; a byte order mark is recognized.
        delimiter: character between the cells of a CSV file; None: found from the first rows.
        decimal: "." or "," for decimal numbers written as text; None: found from the cells.
        texts: columns whose cells are kept as written, so that 01 stays 01; None: all.
        alone: read each column's numbers as its own cells show, whatever other columns do. For files that are read as
            a training file was: that one decides, and additional columns must not.
        shares: columns in which that one has percent signs: .85 that Excel shows as 85% is 85.
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
        frame = _read_typed(file, suffix, shares)
        return _with_numbers(Table(file, frame, None, decimal), frame.columns if texts is None else texts, alone)
    return _read_csv(file, encoding, delimiter, decimal, texts, alone)


def written_rows(file: Path, csv_form: tuple[str, str] | None, rows: Tensor) -> Any:
    """Read a few rows of a table that has been read before, as a DataFrame of texts, as written.

    Args:
        file: the table's path.
        csv_form: (encoding, delimiter) of a CSV file.
        rows: int64 (rows,), their numbers, from 0.
    Raises:
        OSError: the file cannot be opened.
        ValueError: it has changed, so that it has no such rows, or is no table.
    """
    import pandas as pd

    wanted, last = rows.tolist(), int(rows.max()) if len(rows) else 0
    chosen = frozenset(wanted)
    if csv_form is None:
        frame: Any = _read_typed(file, file.suffix.lower())
        _check_long_enough(file, last, len(frame))
        return frame.iloc[wanted].astype(object).map(lambda cell: as_text(cell, ()) or "")
    try:
        names = _header(file, *csv_form, given=True)
        with _opened(file, csv_form[0]) as opened:
            below = enumerate(cells for cells, _ in itertools.islice(_rows(opened, csv_form[1]), 1, last + 2))
            found = {row: cells for row, cells in below if row in chosen}
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file ({error})") from error
    _check_long_enough(file, last, max(found, default=-1) + 1)
    return pd.DataFrame([found[row] for row in wanted], columns=names)


def _check_long_enough(file: Path, row: int, rows: int) -> None:
    if row >= rows:
        raise ValueError(f"{file} has changed: there is no row {row} any more")


def _read_typed(file: Path, suffix: str, shares: Collection[str] = ()) -> Any:
    """Read a file whose cells have types; `shares`: as in `read_table`."""
    import pandas as pd

    others = ""
    try:
        if suffix in PARQUET:
            frame = _with_index(pd.read_parquet(file))
            header = [str(name).strip() for name in frame.columns]
        else:
            header, cells, others = _first_sheet(file, shares)
            frame = cells.iloc[1:].reset_index(drop=True).infer_objects()
    except ImportError as error:
        raise ValueError(f"{file}: Parquet and Excel files need pip install 'msh[tables]' ({error})") from error
    except Exception as error:  # the libraries raise nearly anything on a damaged file
        raise ValueError(f"{file} cannot be read: damaged, or not what its suffix {suffix} says ({error})") from error
    if not len(frame):
        raise ValueError(f"{_empty(file)}{others and f'; only its first sheet is read, not {others}'}")
    if others:
        log.warning("%s: only the first sheet is read, not %s", file, others)
    frame.columns = pd.Index(_checked_names(file, header))
    return frame


def _with_index(frame: Any) -> Any:
    """Put the index of a DataFrame into columns before the others, as CSV files have it, and number the rows from 0.

    Left out are copies of columns, and whole numbers without a name: pandas numbers rows so, and keeps the numbers
    where it selects rows.
    """
    import pandas as pd

    levels = [frame.index.get_level_values(number) for number in range(frame.index.nlevels)]
    frame = frame.reset_index(drop=True)
    are_numbers = [level.name is None and pd.api.types.is_integer_dtype(level.dtype) for level in levels]
    are_copies = [level.name in frame and pd.Index(frame[level.name]).equals(level) for level in levels]
    kept = [level for level, *flags in zip(levels, are_numbers, are_copies, strict=True) if not any(flags)]
    for place, level in enumerate(kept):
        frame.insert(place, "" if level.name is None else level.name, level, allow_duplicates=True)
    return frame


def _first_sheet(file: Path, shares: Collection[str]) -> tuple[list[str], Any, str]:
    """Return the header and all cells of an Excel file's first sheet, and the names of the others."""
    import pandas as pd

    with pd.ExcelFile(file) as book:
        cells = pd.read_excel(book, header=None, dtype=object, keep_default_na=False, na_values=[""])
        header = ["" if pd.isna(name) else str(name).strip() for name in (cells.iloc[0] if len(cells) else [])]
        places = [place for place, name in enumerate(header) if name in shares]
        if places and book.engine == "openpyxl":
            _scale_shares(cells, book.book.worksheets[0], places)
        return header, cells, ", ".join(map(repr, book.sheet_names[1:]))


def _scale_shares(cells: Any, sheet: Any, places: Sequence[int]) -> None:
    """Replace numbers that Excel shows in percent by those that it shows: .85 by 85.

    Args:
        cells: DataFrame of the whole sheet, which changes.
        sheet: of openpyxl.
        places: columns to look through.
    """
    sheet.reset_dimensions()  # those in the file may be wrong
    for row, found in enumerate(sheet.rows):
        for place in (place for place in places if place < len(found)):
            cell = found[place]
            if cell.data_type == "n" and cell.value is not None and "%" in LITERAL.sub("", cell.number_format):
                cells.iat[row, place] = float(f"{100 * cell.value:.15g}")  # 7, not 7.000000000000001


def _empty(file: Path) -> ValueError:
    return ValueError(f"{file} has no rows: it needs a header and at least one row below it")


def _checked_names(file: Path, header: Sequence[str]) -> list[str]:
    """Return the header; columns without a name are named as pandas names them."""
    names = [name or f"{NAMELESS}{place}" for place, name in enumerate(header)]
    if len(set(names)) < len(names):
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(
            f"{file}: the header names {', '.join(map(repr, repeated))} more than once: name each column once"
        )
    return names


# ---- CSV


def _read_csv(
    file: Path, encoding: str, delimiter: str | None, decimal: str | None, texts: Collection[str] | None, alone: bool
) -> Table:
    import pandas as pd

    encoding = encoding_of(file, encoding)
    csv.field_size_limit(sys.maxsize)  # the default limit is too small for texts
    try:
        mark = delimiter or _found_delimiter(file, encoding)
        names = _header(file, encoding, mark, delimiter is not None)
        as_written = set(names if texts is None else texts) & set(names)
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
    as_written |= _restore_codes(frame, as_written, file, encoding, mark, names)
    table = _with_numbers(Table(file, frame, (encoding, mark), decimal), as_written, alone)
    return table if alone or table.decimal != "," else _with_points_between_thousands(table, names, as_written)


def _parsed(
    file: Path,
    encoding: str,
    delimiter: str,
    names: Sequence[str],
    texts: Collection[str],
    columns: Sequence[str] | None = None,
) -> Any:
    """Parse a CSV file; a large one in chunks, which takes much less memory than at once.

    Columns whose chunks differ in kind, such as numbers with a word far below, are parsed again, as texts.

    Args:
        file: its path.
        encoding: its encoding.
        delimiter: character between its cells.
        names: of all columns.
        texts: columns to keep as written.
        columns: those to read; None: all.
    """
    import pandas as pd

    words = sorted(MISSING)
    with file.open("rb") as opened:
        is_packed = opened.read(2) == b"\x1f\x8b"

    def parse(columns: Sequence[str] | None, written: Collection[str]) -> Any:
        return pd.read_csv(
            file,
            sep=delimiter,
            header=0,
            names=list(names),
            usecols=None if columns is None else list(columns),
            dtype=dict.fromkeys(written, str),
            keep_default_na=False,
            na_values={name: words for name in columns or names if name not in texts},
            encoding=encoding,
            compression="gzip" if is_packed else None,
            low_memory=file.stat().st_size > LARGE,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        frame = parse(columns, texts)
    objects = [name for name, dtype in frame.dtypes.items() if pd.api.types.is_object_dtype(dtype)]
    mixed = [name for name in objects if pd.api.types.infer_dtype(frame[name], skipna=True) != "boolean"]
    if mixed:
        again = parse(mixed, mixed)
        for name in mixed:
            frame[name] = again[name]
    return frame


def _surely_even(file: Path, encoding: str, delimiter: str, width: int, rows: int) -> bool:
    """Tell by the number of delimiters that no row is short, given that none is long; far faster than reading rows."""
    if is_wide(encoding) or not delimiter.isascii():
        return False
    with _opened(file, encoding) as opened:
        first, _ = next(_rows(opened, delimiter))
    mark, count, quoted = delimiter.encode(), 0, 0
    with contents(file) as content:
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
    with contents(file) as opened:
        start = opened.read(64)
    for mark, found in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
    ):
        if start.startswith(mark):
            return found
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if not is_wide(encoding) and b"\0" in start:
        likely = "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
        raise ValueError(
            f"{file} is not a text in {encoding}: it has bytes of 0; if it is one, set source.encoding (msh predict: "
            f"--encoding) to {likely}"
        )
    return encoding


def is_wide(encoding: str) -> bool:
    """Tell whether an encoding has two bytes or more for each letter."""
    return encoding.replace("_", "-").lower().startswith(("utf-16", "utf-32"))


def suffix_of(file: str | Path) -> str:
    """Return a file's suffix in lower case, without gzip's: ".csv" of NEW.CSV.gz."""
    return Path(str(file).lower().removesuffix(".gz")).suffix


def contents(file: Path) -> BinaryIO:
    """Open a file of text, unpacked if it is compressed with gzip.

    Raises:
        ValueError: its first bytes are those of another kind of file.
    """
    with file.open("rb") as opened:
        start = opened.read(8)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(file)  # type: ignore[return-value]
    for mark, kind in MAGIC.items():
        if start.startswith(mark):
            raise ValueError(f"{file} is no text, but {kind}")
    return file.open("rb")


def _opened(file: Path, encoding: str) -> TextIO:
    return io.TextIOWrapper(contents(file), encoding=encoding, newline="")


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


def _restore_codes(
    frame: Any, as_written: Collection[str], file: Path, encoding: str, delimiter: str, names: Sequence[str]
) -> set[str]:
    """Read columns of numbers again, as texts, where any cell is a code such as 01; return their names.

    Args:
        frame: the parsed file, which changes.
        as_written: columns that are texts already.
        file, encoding, delimiter, names: see `_parsed`.
    """
    numbers = frame.select_dtypes("number")
    whole = [name for name, values in numbers.items() if name not in as_written and (values == np.floor(values)).any()]
    if not whole or not _may_have_codes(file, encoding, delimiter):
        return set()
    columns, codes = {names.index(name): name for name in whole}, []
    with _opened(file, encoding) as opened:
        for cells in itertools.islice(csv.reader(opened, delimiter=delimiter), 1, None):  # as lenient as pandas
            if len(cells) == len(names):
                zeros = [at for at in columns if cells[at].lstrip()[:1] == "0"]
                codes += [columns.pop(at) for at in zeros if CODE.fullmatch(cells[at].strip())]
    if codes:
        again = _parsed(file, encoding, delimiter, names, codes, codes)
        for name in codes:
            frame[name] = again[name]
    return set(codes)


def _may_have_codes(file: Path, encoding: str, delimiter: str) -> bool:
    """Tell by a file's bytes whether cells may be codes such as 01; far faster than reading rows."""
    if is_wide(encoding) or not delimiter.isascii():
        return True
    is_edge = np.zeros(256, dtype=bool)
    is_edge[list(b'\r\n\t "' + delimiter.encode())] = True
    rest = b"\n"
    with contents(file) as content:
        for block in itertools.chain(iter(partial(content.read, BLOCK), b""), [b"\n"]):
            characters = np.frombuffer(rest + block, dtype=np.uint8)
            is_digit = characters - np.uint8(ord("0")) <= 9  # characters below 0 become large
            is_start = (characters[1:-1] == ord("0")) & is_digit[2:] & ~is_digit[:-2]
            zeros = np.flatnonzero(is_start) + 1
            ends = zeros[is_edge[characters[zeros - 1]]] + 1
            while len(ends := ends[ends < len(characters)]):
                if is_edge[characters[ends]].any():
                    return True
                ends = ends[is_digit[ends]] + 1
            rest = characters[-LONGEST_CODE:].tobytes()
    return False


def _header(file: Path, encoding: str, delimiter: str, given: bool) -> list[str]:
    """Return the columns' names; R's header misses the name of the first column."""
    with _opened(file, encoding) as opened:
        try:
            rows = [cells for cells, _ in itertools.islice(_rows(opened, delimiter), SAMPLE)]
        except csv.Error:
            _check_rows(file, encoding, delimiter, 0)
            raise
    if len(rows) < 2:
        raise _empty(file)
    header = [name.strip() for name in rows[0]]
    if header[0].lower().startswith("sep="):
        raise ValueError(f"{file}, line 1: {delimiter.join(header)!r} names the delimiter for Excel: delete this line")
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
    return _checked_names(file, header)


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
    with contents(file) as opened:
        cause, content = "", opened.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as exact:  # pandas' error counts from the start of a block
        line = content.count(b"\n", 0, exact.start) + 1
        cause = f": byte {exact.start} (line {line}) is 0x{content[exact.start]:02x}"
    except UnicodeError as exact:
        cause = f": {exact}"
    return ValueError(
        f"{file} is not in {encoding}{cause}; set source.encoding (msh predict: --encoding) to its encoding, such as "
        "latin-1 or utf-16"
    )


def _with_numbers(table: Table, as_written: Collection[str], alone: bool) -> Table:
    """Read the columns of texts all of which are numbers, written in one way; find the file's decimal mark.

    Columns where commas or points may mark decimals or thousands are read as the others show, or stay texts; `alone`:
    they stay texts.
    """
    import pandas as pd

    forms, open_columns = {}, []
    for name in table.frame.select_dtypes(include=["object", "string"]).columns:
        cells = table.frame[name]
        if name in as_written or not may_be_numbers(coded(cells[cells.notna()].head(SAMPLE))[1]):
            continue
        if pd.api.types.infer_dtype(cells, skipna=True) != "string":
            continue
        try:
            forms[name] = find_form(cells, str, name, decimal=table.decimal)
        except ValueError:
            open_columns.append(name)
    decimal = table.decimal or (None if alone else _decimal_of(table, forms, bool(open_columns)))
    for name in open_columns if decimal is not None else ():
        forms[name] = find_form(table.frame[name], str, name, decimal=decimal)
    read = {}
    for name, form in forms.items():
        codes, texts = coded(table.frame[name])
        values, bad = numbers_or_bad(table.frame[name], (codes, texts), form)
        if form.mark or form == NumberForm() or bad.any() or any(map(CODE.fullmatch, texts)):
            continue
        table.frame[name], read[name] = values, form
    if decimal == ",":
        read |= {name: NumberForm(decimal=",") for name in table.frame.select_dtypes("integer").columns}
    return replace(table, decimal=decimal, forms=read)


def _decimal_of(table: Table, forms: Mapping[str, NumberForm], thoroughly: bool) -> str | None:
    """Return the decimal mark that some columns of texts show, a comma first; None if none does.

    Args:
        table: with these columns.
        forms: the ways in which their numbers are written.
        thoroughly: look at columns of numbers in a CSV file, too: their first rows are read again.
    """
    import pandas as pd

    shown = {
        form.decimal
        for name, form in forms.items()
        if any(shows_decimal(text, form.decimal) for text in coded(table.frame[name])[1])
    }
    if "," in shown or not (thoroughly and table.csv and "." not in shown):
        return min(shown, default=None)
    names = [pd.api.types.is_float_dtype(dtype) for dtype in table.frame.dtypes]
    with _opened(table.path, table.csv[0]) as opened:
        rows = itertools.islice(_rows(opened, table.csv[1]), 1, SAMPLE)
        cells = (cell.strip() for cells, _ in rows for cell in itertools.compress(cells, names))
        return "." if any(shows_decimal(cell, ".") for cell in cells) else None


def _with_points_between_thousands(table: Table, names: Sequence[str], as_written: Collection[str]) -> Table:
    """Read columns again in which pandas took points between thousands for decimal points: 1.234 beside 1,5."""
    assert table.csv is not None
    floats = [n for n in table.frame.select_dtypes("floating").columns if n not in {*as_written, *table.forms}]
    again = _parsed(table.path, *table.csv, names, floats, floats) if floats else {}
    forms = dict(table.forms)
    for name in floats:
        form = find_form(again[name], str, name, decimal=",")
        values, bad = numbers_or_bad(again[name], form=form)
        if form.decimal == "," and not bad.any():
            table.frame[name], forms[name] = values, form
    return replace(table, forms=forms)
