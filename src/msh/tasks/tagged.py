"""Load texts with a class per word: from JSON Lines, or from files with a word and its class on each line."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, invalid
from msh.tasks.build import RawData, check_test_fraction
from msh.tasks.checks import ListedProblems, existing
from msh.tasks.labels import Classes, find_classes, read_labels
from msh.tasks.outputs import IGNORED
from msh.tasks.steps import is_text
from msh.tasks.table_files import Table, suffix_of
from msh.tasks.table_splits import split_rows
from msh.tasks.text import checked_tokenizer, splits_of
from msh.tasks.text_files import JSON, NamedRows, read_text, read_texts
from msh.tasks.tokens import Texts, Unicode

DOCUMENT = "-DOCSTART-"
"""Word on a line that begins a document in the files of the CoNLL shared tasks; it is no text."""


def tagged_texts(
    path: str,
    tokens: str = "tokens",
    tags: str = "tags",
    test_path: str | None = None,
    val_path: str | None = None,
    test_fraction: float | None = None,
    encoding: str = "utf-8",
    vocabulary: int | None = None,
    length: int = 128,
    tokenizer: str | None = None,
    unicode: Unicode = "NFC",
) -> RawData:
    """Load texts whose words have a class each (named entities, parts of speech).

    Args:
        path: JSON Lines (.jsonl, .ndjson, .json) with a list of words and a list of classes per text; any other file
            has a word and, as the line's last part, its class on each line, and a blank line after each text.
        tokens: JSON Lines: the field with the words.
        tags: JSON Lines: the field with the classes, names or numbers, in natural order. Words whose class is missing
            (null or empty) are read, and count nowhere.
        test_path: the test split's file.
        val_path: the validation split's file.
        test_fraction: without a test file, the test split's share of the texts, .2 if None; the same for every seed.
        encoding: the files' encoding.
        vocabulary, length: number of token ids, and tokens per window; see `Texts`.
        tokenizer, unicode: as in `msh.tasks.text.texts`.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, or a text has not as many classes as words; or a setting is invalid.
    """
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        file = problems.check(checked_tokenizer, tokenizer, vocabulary, length, unicode)
    paths = {part: p for part, p in (("train", path), ("val", val_path), ("test", test_path)) if p is not None}
    with Problems() as problems:
        read = [problems.check(_read, p, tokens, tags, encoding) for p in paths.values()]
    tables = [table for table in read if table is not None]
    named = [chain.from_iterable(table.frame[tags]) for table in tables]
    labels = read_labels(list(named[0]), are_names=True)
    classes = find_classes(f"{tables[0].path}, {tags}", labels)
    with Problems() as problems:
        rows = [problems.check(_numbered, table, tags, classes) for table in tables]
    longest = max(len(row) for part in rows if part is not None for row in part)
    targets = [_padded(part, longest) for part in rows if part is not None]
    chosen = split_rows(tables[0], targets[0], "token_classification", None, test_fraction, None, test_path is not None)
    splits = splits_of(dict(zip(paths, targets, strict=True)), chosen)
    words = [tuple(cell) for table in tables for cell in table.frame[tokens]]
    both = Texts(words, vocabulary, length, file, unicode)
    return RawData(
        "token_classification",
        splits["train"],
        splits["test"],
        len(classes.names),
        both,
        classes.names,
        val=splits.get("val"),
    )


def _read(path: str, tokens: str, tags: str, encoding: str) -> Table:
    """Read texts and their classes: a table whose cells are lists of words, and of as many classes."""
    if suffix_of(path) not in JSON:
        return _read_lines(path, tokens, tags, encoding)
    table = read_texts(path, tokens, tags, encoding, None, ())
    with Problems() as problems:
        for key, name in (("source.tokens", tokens), ("source.tags", tags)):
            problems.check(table.column, key, name)
    with ListedProblems() as problems:
        for row, (words, names) in enumerate(zip(table.frame[tokens], table.frame[tags], strict=True)):
            where = f"{table.row(row)}: "
            if not isinstance(words, list) or not words or not all(is_text(word) and word.strip() for word in words):
                problems.add(where + f"{tokens!r} must be a list of words, got {_short(words)}")
            elif not isinstance(names, list) or len(names) != len(words):
                bound = f"a list of {len(words)} classes, one per word"
                problems.add(where + f"{tags!r} must be {bound}, got {_short(names)}")
            elif wrong := [name for name in names if isinstance(name, list | dict)]:
                problems.add(where + f"{tags!r} must have names or numbers, got {_short(wrong[0])}")
    return table


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _read_lines(path: str, tokens: str, tags: str, encoding: str) -> Table:
    """Read lines with a word first and its class last; blank lines part texts."""
    import pandas as pd

    file = existing(path, "file")
    texts: list[list[tuple[str, str]]] = [[]]
    lines = [1]
    with ListedProblems() as problems:
        for number, line in enumerate(read_text(file, encoding).split("\n"), 1):
            parts = line.split()
            if not parts or parts[0] == DOCUMENT:
                if texts[-1]:
                    texts.append([])
                    lines.append(number + 1)
                lines[-1] = number + 1
            elif len(parts) == 1:
                problems.add(f"{file}, line {number}: must be a word and its class, got {_short(line)}")
            else:
                texts[-1].append((parts[0], parts[-1]))
    if not texts[-1]:
        texts, lines = texts[:-1], lines[:-1]
    if not texts:
        raise ValueError(f"{file} has no texts: each line needs a word and its class, and a blank line ends a text")
    cells = {tokens: [[word for word, _ in text] for text in texts], tags: [[tag for _, tag in text] for text in texts]}
    return NamedRows(file, pd.DataFrame(cells, dtype=object), names=lines, unit="line")


def _numbered(table: Table, tags: str, classes: Classes) -> list[np.ndarray]:
    """Number the classes of each text, IGNORED where one is missing.

    Raises:
        ValueError: a class is not in the training file.
    """
    cells = table.frame[tags]
    labels = read_labels(list(chain.from_iterable(cells)), classes, are_names=True)
    numbers = classes.number(labels)
    if unknown := sorted({labels.texts[code] for code in labels.codes[(numbers < 0) & ~labels.missing]}):
        shown = ", ".join(map(repr, unknown[:8]))
        raise invalid(f"{table.path}, {tags}", f"classes of the training file ({', '.join(classes.names)})", shown)
    numbers = np.where(labels.missing, IGNORED, numbers)
    return np.split(numbers, np.cumsum([len(cell) for cell in cells])[:-1])


def _padded(rows: list[np.ndarray], longest: int) -> Tensor:
    """Fill rows with IGNORED: int64 (rows, longest)."""
    full = torch.full((len(rows), longest), IGNORED)
    for row, numbers in zip(full, rows, strict=True):
        row[: len(numbers)] = torch.from_numpy(numbers)
    return full
