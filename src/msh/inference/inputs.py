"""Read the raw inputs that a command line names: files, folders, patterns, tables, lines of text, or standard input."""

from __future__ import annotations

import glob
import json
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msh.errors import Problems, ProblemsError, invalid, one_of
from msh.tasks.cells import PLAIN, as_text
from msh.tasks.image_files import files_below
from msh.tasks.steps import ReadNamed, Steps
from msh.tasks.table_files import EXCEL, PARQUET, contents, encoding_of, read_table, suffix_of
from msh.tasks.text_files import read_text

STDIN = "-"
JSON = (".jsonl", ".ndjson", ".json")
START = 4096
"""Bytes of a file that tell JSON from CSV."""
OBJECTS = re.compile(r"\s*(\{\s*[\"}]|\[\s*[{\]])")
"""Beginning of JSON Lines, or of a list of objects; a CSV file's header may be [a],[b]."""


@dataclass(frozen=True)
class Inputs:
    """Raw inputs, and a name for each.

    Attributes:
        examples: a list, an array or a DataFrame, as the task's first step reads them; rows of a table that have
            different columns are dictionaries, so that each of them is checked.
        names: where each came from: a file, or a file and its row, from 1.
        kind: the first step that reads them.
    """

    examples: Any
    names: list[str]
    kind: str


@dataclass(frozen=True)
class Part:
    """The inputs of a file.

    Attributes:
        examples: as in `Inputs`.
        rows: number of each, from 1: its line in JSON Lines and plain text, else its place.
    """

    examples: Any
    rows: Sequence[int]

    @classmethod
    def of(cls, examples: Any) -> Part:
        """Count the inputs of a file."""
        return cls(examples, range(1, len(examples) + 1))


def read_inputs(
    tasks: Sequence[Steps], sources: Sequence[str], column: str | None = None, encoding: str = "utf-8"
) -> Inputs:
    """Read the inputs that sources name.

    Args:
        tasks: the task's steps, or those of all tasks among which the router chooses. Their first steps decide how
            sources are read; where these differ, the files' suffixes choose between them.
        sources: paths, patterns or "-" for standard input. Images: files and folders. Tables: CSV, TSV, JSONL, Parquet
            or Excel files. Texts: a text per line, or per file where training read files; JSON Lines of texts; or a
            file of a table with `column`; with a class per word, JSONL files of lists of words too. Arrays: NPY files
            of examples, or JSONL files of lists; by name: NPZ files, or JSONL files of objects.
        column: texts: the column with the texts, in a table.
        encoding: of CSV files, JSONL files and texts; a byte order mark is recognized.
    Raises:
        FileNotFoundError: a source does not exist, or a folder has no image.
        ValueError: a file cannot be read as its name says.
    """
    with Problems() as problems:
        found = [problems.check(_files, source) for source in sources]
    files = [file for paths in found if paths is not None for file in paths]
    firsts: list[Any] = [steps[0] for steps in tasks]
    kinds = sorted({first.step for first in firsts})
    kind = kinds[0] if len(kinds) == 1 else _kind_of(files, kinds, column)
    if kind == "images":
        return _images(files)
    columns = [one for first in firsts if first.step == "table" for one in first.columns]
    per_file = {first.files for first in firsts if first.step == kind == "tokenize"}
    if len(per_file) > 1:
        raise ValueError("--task: name the task, as some read a text per file, and others one per line")
    whole = [True in per_file and column is None and suffix_of(file) not in JSON for file in files]
    as_written = {c.name for c in columns if getattr(c, "form", None) != PLAIN}
    shares = {c.name for c in columns if getattr(c, "form", PLAIN).mark == "%"}
    readers: dict[str, Callable[[str], Part]] = {
        "table": lambda file: Part.of(_table(file, as_written, encoding, shares)),
        "tokenize": lambda file: _texts(file, column, True in per_file, encoding),
        "next_tokens": lambda file: _without_blank(_texts(file, column, False, encoding)),
        "tagged_words": lambda file: _words(file, column, encoding),
        "arrays": lambda file: _array(file, encoding),
        "named": lambda file: _named(firsts[0], file, encoding),
    }
    one_of("the task's first step", kind, readers)
    with Problems() as problems:
        parts = [problems.check(readers[kind], file) for file in files]
        for file, part in zip(files, parts, strict=True):
            if part is not None and not part.rows:
                problems.add(f"{file} has no inputs")
    read = [part for part in parts if part is not None]
    names = [
        file if is_whole else f"{file}:{row}"
        for file, part, is_whole in zip(files, read, whole, strict=True)
        for row in part.rows
    ]
    needed = {name for first in firsts if first.step == "table" for name in first.inputs}
    return Inputs(_joined([part.examples for part in read], needed), names, kind)


def _kind_of(files: Sequence[str], kinds: Sequence[str], column: str | None) -> str:
    """Choose between kinds of input by the files' suffixes.

    Raises:
        ValueError: the suffixes leave it open, or no task reads such files.
    """
    tables = ".csv", ".tsv", *PARQUET, *EXCEL
    by_suffix = dict.fromkeys(tables, "table" if column is None else "tokenize")
    by_suffix |= {".npy": "arrays", ".npz": "named", ".txt": "tokenize", STDIN: "", **dict.fromkeys(JSON, "")}
    found = {by_suffix.get(file if file == STDIN else suffix_of(file), "images") for file in files}
    if len(found) != 1 or not found <= set(kinds):
        raise ValueError(
            f"--task: name the task, as its tasks read {', '.join(kinds)}, and the files' names do not say which"
        )
    return found.pop()


def _files(source: str) -> list[str]:
    """Find the files of a source; a pattern or a folder may name several."""
    if source == STDIN:
        return [source]
    path = Path(source).expanduser()
    if not path.exists() and glob.has_magic(source):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise FileNotFoundError(f"no file matches {source!r}")
        return [file for match in found for file in ([match] if Path(match).is_file() else _files(match))]
    if not path.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if path.is_dir():
        files = sorted(map(str, files_below(path)))
        if not files:
            raise FileNotFoundError(f"the folder {source} has no files")
        return files
    return [str(path)]


def _images(files: Sequence[str]) -> Inputs:
    examples = [sys.stdin.buffer.read() if file == STDIN else Path(file) for file in files]
    return Inputs(examples, list(files), "images")


@contextmanager
def _as_file(file: str) -> Iterator[Path]:
    """Yield a file, or a copy of standard input, which errors call by its name."""
    if file != STDIN:
        yield Path(file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.csv"
        path.write_bytes(sys.stdin.buffer.read())
        try:
            yield path
        except ValueError as error:
            problems = error.problems if isinstance(error, ProblemsError) else [str(error)]
            raise ProblemsError([problem.replace(str(path), "standard input") for problem in problems]) from error


def text_of(file: str, encoding: str) -> str:
    """Read a text file, or standard input: "-"."""
    with _as_file(file) as path:
        return read_text(path, encoding)


def _lines(file: str, content: str) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a JSONL file's content."""
    for number, line in enumerate(content.split("\n"), 1):  # splitlines splits at more characters
        if line.strip():
            yield number, _json(line, f"{file}, line {number}")


def _values(file: str, encoding: str) -> Part:
    """Read the values of a JSONL file."""
    found = list(_lines(file, text_of(file, encoding)))
    return Part([value for _, value in found], [number for number, _ in found])


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def _table(file: str, as_written: Collection[str] | None, encoding: str, shares: Collection[str] = ()) -> Any:
    """Read rows of a table as training reads them: a DataFrame, or dictionaries where rows have different columns.

    Args:
        file: its path, or "-".
        as_written: columns that are no plain numbers; None: all.
        encoding: of text.
        shares: columns with percent signs; see `read_table`.
    """
    import pandas as pd  # slow to import

    with _as_file(file) as path:
        suffix = suffix_of(file)
        if suffix in PARQUET + EXCEL or (suffix not in JSON and not _is_json(path, encoding)):
            return read_table(str(path), encoding, texts=as_written, alone=True, shares=shares).frame
        content = read_text(path, encoding)
    rows = _json(content, file) if content.lstrip()[:1] == "[" else [row for _, row in _lines(file, content)]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a table needs an object with the columns per row")
    return pd.DataFrame(rows) if all(row.keys() == rows[0].keys() for row in rows) else rows


def _is_json(path: Path, encoding: str) -> bool:
    """Tell from the beginning of a file whether it holds objects in JSON, no CSV."""
    with contents(path) as opened:
        start = opened.read(START).decode(encoding_of(path, encoding), errors="ignore")
    return OBJECTS.match(start) is not None


def _texts(file: str, column: str | None, per_file: bool, encoding: str) -> Part:
    """Read a text per line, of which only the last ones may be blank; or per file; or from a column or JSON Lines."""
    if column is not None:
        rows = _table(file, None, encoding)
        is_list = isinstance(rows, list)
        one_of("--column", column, dict.fromkeys(name for row in rows for name in row) if is_list else rows.columns)
        cells = [row.get(column) for row in rows] if is_list else rows[column]
        return Part.of([cell if isinstance(cell, str) else as_text(cell, ()) for cell in cells])  # None: refused later
    if suffix_of(file) in (".csv", ".tsv", *PARQUET, *EXCEL):
        raise invalid("--column", f"a column of {file}", None)
    if suffix_of(file) in JSON:
        return _values(file, encoding)
    lines = [text_of(file, encoding)] if per_file else text_of(file, encoding).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return Part.of(lines)


def _without_blank(part: Part) -> Part:
    """Leave out blank texts, from which no next word follows."""
    rows = [
        row for row, text in zip(part.rows, part.examples, strict=True) if not isinstance(text, str) or text.strip()
    ]
    kept = set(rows)
    return Part([text for row, text in zip(part.rows, part.examples, strict=True) if row in kept], rows)


def _words(file: str, column: str | None, encoding: str) -> Part:
    """Read a text per line, or JSON: a text or a list of words, alone or in an object."""
    if suffix_of(file) not in JSON:
        return _texts(file, column, False, encoding)
    part = _values(file, encoding)
    key = column or "tokens"
    return Part([row.get(key) if isinstance(row, dict) else row for row in part.examples], part.rows)


def _array(file: str, encoding: str) -> Part:
    if suffix_of(file) == ".npy":
        try:
            return Part.of(np.load(file, allow_pickle=False))
        except (OSError, TypeError, ValueError) as error:  # an array of one number has no length
            raise ValueError(f"{file} is not an array of numbers: {error}") from error
    part = _values(file, encoding)
    try:
        return Part(np.asarray(part.examples, dtype=np.float64), part.rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} is not an array of numbers, one example per line in JSON: {error}") from error


def _named(step: ReadNamed, file: str, encoding: str) -> Part:
    """Read inputs by name: an NPZ file of arrays (examples, ...), or an object per line in JSON."""
    if suffix_of(file) != ".npz":
        return _values(file, encoding)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Part.of(step.examples({name: arrays[name] for name in arrays.files}))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} has no arrays by name: {error}") from error


def _joined(parts: Sequence[Any], needed: Collection[str]) -> Any:
    """Put the examples of several files into one sequence, array or DataFrame.

    Args:
        parts: of each file.
        needed: columns that a task reads; rows of a file that lacks some stay apart, since joining would fill them.
    """
    if len(parts) == 1:
        return parts[0]
    frames = [part for part in parts if hasattr(part, "iloc")]
    columns = {frozenset(name for name in frame.columns if str(name).strip() in needed) for frame in frames}
    if len(frames) == len(parts) and len(columns) == 1:
        import pandas as pd

        return pd.concat(frames, ignore_index=True)
    if isinstance(parts[0], np.ndarray) and len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return [row for part in parts for row in (part.to_dict("records") if hasattr(part, "iloc") else part)]
