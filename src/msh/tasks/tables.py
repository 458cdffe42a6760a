"""Load tables: CSV, Parquet and Excel files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, invalid
from msh.tasks.build import RawData, check_test_fraction
from msh.tasks.options import Kind
from msh.tasks.table_files import Table, read_table
from msh.tasks.table_leaks import leaking_columns
from msh.tasks.table_plan import Wishes, describe, plan_columns
from msh.tasks.table_splits import Rows, SplitBy, split_rows
from msh.tasks.table_step import CHUNK, ReadTable
from msh.tasks.targets import Targets, find_targets
from msh.tasks.task import RawInputs, Split

log = logging.getLogger(__name__)


def table(
    path: str,
    target: str,
    features: Sequence[str] | None = None,
    kind: Kind | Literal["auto"] = "classification",
    threshold: float | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    test_seed: int | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    decimal: str | None = None,
    val_path: str | None = None,
    split: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    exclude: Sequence[str] = (),
    missing_labels: str = "drop",
) -> RawData:
    """Load a table with a header, from CSV, Parquet or Excel, and log each column's role.

    Args:
        path: the training file.
        target: column to predict; a classification's has names or numbers, and classes in natural order.
        features: columns to predict it from, even if they look like an index; None: all others.
        kind: classification, regression, or auto: regression for decimal numbers, and for more than 20 whole ones.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path, val_path: files of the test and the validation split.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        test_seed: draw the test split as Keras draws Boston housing's (with 113): the last rows after numpy's
            RandomState with this seed has shuffled them. None: `hold_out`.
        encoding: a CSV file's encoding.
        delimiter: character between a CSV file's cells; None: found from the first rows.
        decimal: "," or "." in a CSV file's decimal numbers; None: found from the cells.
        split: one of {column: NAME}, whose cells are train, val or test; {group: NAME}, whose values stay in one
            split; {time: NAME}, whose latest rows are the test split.
        columns: roles by column: number, boolean, category, date (or "date %d.%m.%Y"), text, drop; `exclude`: to drop.
        missing_labels: for rows without a target: "drop" drops and counts them, "error" raises.
    Raises:
        ValueError: a column is missing, a cell fits neither its column's role nor the classes, or a setting is invalid.
    """
    by = _checked_split(split, test_fraction, test_seed, test_path, val_path, columns)
    roles = dict(columns or {})
    written = {*exclude, *(name for name, role in roles.items() if role != "number")}
    written |= {target} if kind == "classification" and threshold is None else set()
    reserved = {target: "target"}
    if by is not None and by.by != "time":
        written.add(by.name)
        reserved |= {} if by.name in {*roles, *(features or ())} else {by.name: f"split ({by.by})"}
    wishes = Wishes(reserved, features, roles, exclude)
    whole = read_table(path, encoding, delimiter, decimal, written)
    paths = {"val": val_path, "test": test_path}
    tables = {"train": whole, **_read_others(paths, whole, encoding, delimiter, decimal, written)}
    targets = find_targets(tables["train"], "source.target", target, kind, threshold, missing_labels)
    tables, values = _labelled(tables, targets, wishes)
    rows = split_rows(tables["train"], values["train"], targets.kind, by, test_fraction, test_seed, "test" in tables)
    step = plan_columns(tables["train"], wishes, rows.fitted)
    log.info("%s\n%s", path, describe(step))
    train, test, val = _splits(step, tables, values, rows)
    return RawData(targets.kind, train, test, targets.outputs, None, targets.names, (step,), val)


csv_table = table
"""The name of earlier releases."""


class Place(NamedTuple):
    """The rows of a split: the file's name among the settings, its table, and rows there, int64 (rows,)."""

    file: str
    table: Table
    rows: np.ndarray


def _checked_split(
    split: Mapping[str, str] | None,
    test_fraction: float | None,
    test_seed: int | None,
    test_path: str | None,
    val_path: str | None,
    roles: Mapping[str, str] | None,
) -> SplitBy | None:
    """Check the settings that choose the splits."""
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        if test_seed is not None and not 0 <= test_seed < 2**32:
            problems.add(invalid("source.test_seed", "in [0, 2**32)", test_seed))
        if test_seed is not None and test_path is not None:
            problems.add(f"source.test_seed = {test_seed} cannot be set beside source.test_path: remove one")
        others = {"test_path": test_path, "val_path": val_path, "test_seed": test_seed}
        return problems.check(SplitBy.parse, split, others, roles)


def _read_others(
    paths: Mapping[str, str | None],
    train: Table,
    encoding: str,
    delimiter: str | None,
    decimal: str | None,
    written: set[str],
) -> dict[str, Table]:
    """Read the files of other splits, whose numbers are read as the training file's."""
    written = written | train.forms.keys()
    found = {part: path for part, path in paths.items() if path is not None}
    shares = train.shares if found else set()
    return {p: read_table(path, encoding, delimiter, decimal, written, True, shares) for p, path in found.items()}


def _labelled(
    tables: Mapping[str, Table], targets: Targets, wishes: Wishes
) -> tuple[dict[str, Table], dict[str, Tensor]]:
    """Return the tables' rows that have a target, and the targets; check columns and their names too."""
    with Problems() as problems:
        problems.check(wishes.check, tables["train"])
        read = {part: problems.check(targets.read, t, "source.target") for part, t in tables.items()}
        if problems.problems:  # the columns' problems are reported with them
            problems.check(plan_columns, tables["train"], wishes)
    kept = {part: pair for part, pair in read.items() if pair is not None}
    return {part: pair[0] for part, pair in kept.items()}, {part: pair[1] for part, pair in kept.items()}


def _splits(
    step: ReadTable, tables: Mapping[str, Table], values: Mapping[str, Tensor], rows: Rows
) -> tuple[Split, Split, Split | None]:
    """Read the features; take train, test and val from the training file, or whole from files of their own."""
    places = {"train": Place("train", tables["train"], rows.train)}
    for part, chosen in (("val", rows.val), ("test", rows.test)):
        if part in tables:
            places[part] = Place(part, tables[part], np.arange(len(values[part])))
        elif chosen is not None:
            places[part] = Place("train", tables["train"], chosen)
    inputs: dict[str, Tensor] = {}
    with Problems() as problems:
        for file, table in tables.items():
            there = {part: place.rows for part, place in places.items() if place.file == file}
            read = problems.check(step.read_parts, table.frame, table.row, list(there.values()))
            inputs |= dict(zip(there, read or [], strict=bool(read)))
    splits: dict[str, Split] = {}
    for part, place in places.items():
        raw = RawInputs(place.table.reread, torch.from_numpy(place.table.frame.index.to_numpy()[place.rows]))
        splits[part] = Split(inputs[part], values[place.file][torch.from_numpy(place.rows)], raw)
    _report_duplicates(splits, places)
    _report_leaks(step, splits["train"], tables["train"].path)
    return splits["train"], splits["test"], splits.get("val")


def _report_duplicates(splits: Mapping[str, Split], places: Mapping[str, Place]) -> None:
    """Warn of rows outside the training split that are also in it."""
    keys = {part: _keys(split) for part, split in splits.items()}
    for part in sorted(splits.keys() - {"train"}):
        rows, twins = _twins(splits, keys, part)
        if len(rows):
            place, train = places[part], places["train"]
            first, second = place.table.row(int(place.rows[rows[0]])), train.table.row(int(train.rows[twins[0]]))
            example = f"{first} is {second.removeprefix(f'{place.table.path}, ')}"
            log.warning(
                "%d of %d rows of the %s split are also training rows: %s", len(rows), len(place.rows), part, example
            )


def _report_leaks(step: ReadTable, train: Split, path: Path) -> None:
    """Warn of columns that give the target away in every training row."""
    for name, reason in leaking_columns(step, train.inputs[:].numpy(), train.targets.numpy()):
        log.warning(
            "%s: column %r gives the target away: %s; if you will not know it when you predict, drop it with "
            "source.exclude=[%s]",
            *(path, name, reason, name),
        )


def _twins(splits: Mapping[str, Split], keys: Mapping[str, np.ndarray], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows of a split that are also training rows, for each the first such row), int64 (rows,) both."""
    import pandas as pd

    suspects = np.flatnonzero(pd.Series(keys["train"]).isin(keys[part]))
    first = pd.Series(suspects, index=keys["train"][suspects])
    first = first[~first.index.duplicated()]
    rows = np.flatnonzero(pd.Series(keys[part]).isin(first.index))
    twins = first.loc[keys[part][rows]].to_numpy(copy=True)
    same = [np.zeros(0, dtype=bool)]
    for start in range(0, len(rows), CHUNK):
        some, others = (torch.from_numpy(indices[start : start + CHUNK]) for indices in (rows, twins))
        a, b = splits[part].take(some), splits["train"].take(others)
        equal = (a.inputs[:] == b.inputs[:]).all(1) & (a.targets == b.targets).view(len(some), -1).all(1)
        same.append(equal.numpy())
    certain = np.concatenate(same)
    return rows[certain], twins[certain]


def _keys(split: Split) -> np.ndarray:
    """Hash each row's features and targets to a number, int64 (rows,): equal rows have equal ones."""
    contents = split.inputs[:], split.targets.view(len(split), -1).double()
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, sum(c.shape[1] for c in contents), dtype=np.int64)
    inputs, targets = (content.numpy().view(np.int64) for content in contents)  # of the same bits
    keys: np.ndarray = inputs @ factors[: inputs.shape[1]]  # modulo 2^64
    keys += targets @ factors[inputs.shape[1] :]
    return keys
