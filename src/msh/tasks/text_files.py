"""Read texts and their labels from tables, JSON Lines, and folders with a file per text."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msh.errors import invalid
from msh.tasks.cells import as_text, cell_error
from msh.tasks.checks import ListedProblems, existing
from msh.tasks.image_files import class_folders, files_below, is_litter
from msh.tasks.steps import is_text
from msh.tasks.table_files import Table, contents, encoding_of, read_table, suffix_of, wrong_encoding

log = logging.getLogger(__name__)

JSON = (".jsonl", ".ndjson", ".json")
PLAIN = (".txt", ".text", ".md")
UNITS = ("line", "paragraph", "file")
"""Parts of a plain text file that are a text each; paragraphs are parted by blank lines."""


@dataclass(frozen=True)
class NamedRows(Table):
    """A table whose rows have names.

    Attributes:
        names: of the rows before any were dropped: a file each, or a number.
        unit: that the numbers count.
    """

    names: Sequence[Path | int] = ()
    unit: str = "line"

    def row(self, row: int) -> str:
        """Name the file, or the file and the line."""
        name = self.names[int(self.frame.index[row])]
        return f"{self.path}, {self.unit} {name}" if isinstance(name, int) else str(name)


def read_texts(
    path: str,
    text: str,
    label: str,
    encoding: str,
    delimiter: str | None,
    as_written: Collection[str],
    alone: bool = False,
    shares: Collection[str] = (),
) -> Table:
    """Read texts: by suffix a table or JSON Lines (.jsonl, .ndjson, .json), or a folder with a folder per class.

    Args:
        path: of the file or folder.
        text: column with the texts; a folder's get this name.
        label: column with the labels; a folder's get this name.
        encoding: of a CSV file, of JSON, or of all files in a folder; a byte order mark is recognized.
        delimiter, alone, shares: as in `read_table`.
        as_written: likewise, its `texts`.
    Raises:
        FileNotFoundError: there is no such file or folder, or no class folder.
        ValueError: a file is damaged, or has another encoding.
    """
    if Path(path).expanduser().is_dir():
        return _read_folder(existing(path, "folder"), text, label, encoding)
    if suffix_of(path) in JSON:
        return _read_json(existing(path, "file"), encoding)
    return read_table(path, encoding, delimiter, texts=as_written, alone=alone, shares=shares)


def read_documents(path: str, text: str, unit: str | None, encoding: str, delimiter: str | None) -> Table:
    """Read texts without labels: a plain text file, a folder of them, a table or JSON Lines.

    Args:
        path: of the file or folder.
        text: column with the texts; those of plain text files get this name.
        unit: in which plain text files are parted; see `UNITS`. None: a folder's files are a text each, and a single
            file's paragraphs, or its lines if no line is blank.
        encoding, delimiter: as in `read_texts`.
    Raises:
        FileNotFoundError: there is no such file or folder, or the folder is empty.
        ValueError: a file is damaged, or has another encoding.
    """
    import pandas as pd

    whole = Path(path).expanduser()
    if not whole.is_dir() and suffix_of(whole) not in PLAIN:
        if unit is not None:
            raise invalid("source.unit", "left out, as only plain text files and folders have units", unit)
        return read_texts(path, text, text, encoding, delimiter, {text})
    if whole.is_dir():
        files = list(files_below(existing(path, "folder")))
        if not files:
            raise FileNotFoundError(f"the folder {path} has no files")
        unit = unit or "file"
    else:
        files = [existing(path, "file")]
    with ListedProblems() as problems:
        contents = [problems.check(read_text, file, encoding) or "" for file in files]
    if unit is None:
        unit = "paragraph" if len(_parts(contents[0], "paragraph")) > 1 else "line"
        log.info("%s: a text per %s (source.unit)", path, unit)
    rows = [(file, part) for file, content in zip(files, contents, strict=True) for part in _parts(content, unit)]
    names: list[Path | int] = [file for file, _ in rows] if unit == "file" else list(range(1, len(rows) + 1))
    frame = pd.DataFrame({text: [part for _, part in rows]}, dtype=object)
    return NamedRows(Path(path), frame, names=names, unit=unit)


def _parts(content: str, unit: str) -> list[str]:
    """Part a text; blank parts are left out, except a whole file."""
    if unit == "file":
        return [content]
    parts = re.split(r"\n\s*\n", content) if unit == "paragraph" else content.split("\n")
    return [part for part in parts if part.strip()]


def _read_folder(folder: Path, text: str, label: str, encoding: str) -> Table:
    import pandas as pd

    found = class_folders(folder, "texts")
    if empty := [name for name, files in found.items() if not files]:
        raise FileNotFoundError(
            f"{folder}: the class folders {', '.join(map(repr, empty))} have no texts: add some, or delete the folders"
        )
    if others := [file for file in folder.iterdir() if file.is_file() and not is_litter(file.name)]:
        log.warning("%s: %d files are in no class folder, and ignored, such as %s", folder, len(others), others[0])
    files = [file for group in found.values() for file in group]
    with ListedProblems() as problems:
        texts = [problems.check(read_text, file, encoding) for file in files]
    labels = [name for name, group in found.items() for _ in group]
    frame = pd.DataFrame({text: texts, label: labels}, dtype=object)
    return NamedRows(folder, frame, in_class_folders=True, names=files)


def read_text(file: Path, encoding: str) -> str:
    """Read a text file; line ends become newlines."""
    encoding = encoding_of(file, encoding)
    try:
        with io.TextIOWrapper(contents(file), encoding=encoding) as opened:
            content = opened.read()
    except UnicodeError as error:
        raise wrong_encoding(file, encoding, error) from error
    if "\0" in content:
        raise ValueError(f"{file} is not a text: it has bytes of 0; move files of other kinds out of the class folders")
    return content


def _read_json(file: Path, encoding: str) -> Table:
    """Read a table from JSON Lines, or from a list of objects."""
    import pandas as pd

    content = read_text(file, encoding)
    with ListedProblems() as problems:
        if content.lstrip()[:1] == "[":
            unit, values = "item", list(enumerate(_parsed(file, content), 1))
        else:
            lines = enumerate(content.split("\n"), 1)  # splitlines splits at more characters
            read = [problems.check(_line, file, number, line) for number, line in lines if line.strip()]
            unit, values = "line", [pair for pair in read if pair is not None]
        for number, value in values:
            if not isinstance(value, dict):
                problems.add(f"{file}, {unit} {number}: must be an object with the columns, {{...}}")
    if not values:
        raise ValueError(f"{file} has no rows: it needs an object with the columns on each line")
    frame = pd.DataFrame([value for _, value in values], dtype=object)
    return NamedRows(file, frame, names=[number for number, _ in values], unit=unit)


def _parsed(place: Path | str, content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from error


def _line(file: Path, number: int, content: str) -> tuple[int, Any]:
    return number, _parsed(f"{file}, line {number}", content)


def texts_of(table: Table, key: str, column: str, empty: str) -> Table:
    """Replace a column's cells by texts, as written; missing ones are empty.

    Args:
        table: with any cells.
        key: the setting that names the column.
        column: its name.
        empty: for rows without text: "error" raises, "drop" drops them and logs their number.
    Raises:
        ValueError: there is no such column, a cell is no text, or texts are empty.
    """
    cells = table.column(key, column)
    texts = np.array([cell if isinstance(cell, str) else _written(cell) for cell in cells] + [None], dtype=object)[:-1]
    wrong = np.array([not is_text(text) for text in texts])
    if wrong.any():
        raise cell_error(table.row, column, cells, wrong, "is no text")
    blank = np.array([not text.strip() for text in texts])
    table = replace(table, frame=table.frame.assign(**{column: texts}))
    if not blank.any():
        return table
    if empty == "error" or blank.all():
        raise cell_error(table.row, column, cells, blank, "is an empty text; source.empty=drop drops such rows")
    log.warning("%s: dropped %d rows, their text is empty", table.path, int(blank.sum()))
    return table.take(np.flatnonzero(~blank))


def _written(cell: Any) -> str | None:
    """Write a number or a date as text; a missing cell is empty; None for lists, bytes and the like."""
    import pandas as pd

    if pd.api.types.is_scalar(cell) and not isinstance(cell, bytes):  # None, too
        return as_text(cell, ()) or ""
    return None
