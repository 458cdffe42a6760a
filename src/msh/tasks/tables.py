"""Load tables: CSV, Parquet and Excel files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, invalid
from msh.tasks.build import RawData, check_test_fraction
from msh.tasks.outputs import Kind
from msh.tasks.table_files import Table, read_table
from msh.tasks.table_plan import Wishes, describe, plan_columns
from msh.tasks.table_splits import Rows, SplitBy, split_rows
from msh.tasks.table_step import ReadTable
from msh.tasks.targets import Targets, find_targets
from msh.tasks.task import Split

log = logging.getLogger(__name__)


def table(
    path: str,
    target: str,
    features: Sequence[str] | None = None,
    kind: Kind = "classification",
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
        kind: classification or regression.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path: the test split's file.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        test_seed: draw the test split as Keras draws Boston housing's (with 113): the last rows after numpy's
            RandomState with this seed has shuffled them. None: `hold_out`.
        encoding: a CSV file's encoding.
        delimiter: character between a CSV file's cells; None: found from the first rows.
        decimal: "," or "." in a CSV file's decimal numbers; None: found from the cells.
        val_path: the validation split's file.
        split: one of {column: NAME}, whose cells are train, val or test; {group: NAME}, whose values stay in one
            split; {time: NAME}, whose latest rows are the test split.
        columns: roles by column: number, boolean, category, date (or "date %d.%m.%Y"), text, drop.
        exclude: columns to drop.
        missing_labels: for rows without a target: "drop" drops and counts them, "error" raises.
    Raises:
        ValueError: a column is missing, a cell fits neither its column's role nor the classes, or a setting is invalid.
    """
    by = _checked_split(split, test_fraction, test_seed, test_path, val_path)
    roles = dict(columns or {})
    files = {"train": path, "val": val_path, "test": test_path}
    written = {name for name, role in roles.items() if role not in ("number", "drop")}
    written |= {target} if kind == "classification" and threshold is None else set()
    reserved = {target: "target"}
    if by is not None and by.by != "time":
        written.add(by.name)
        reserved |= {} if by.name in {*roles, *(features or ())} else {by.name: f"split ({by.by})"}
    wishes = Wishes(reserved, features, roles, exclude)
    tables = {part: read_table(f, encoding, delimiter, decimal, written) for part, f in files.items() if f is not None}
    targets = find_targets(tables["train"], "source.target", target, kind, threshold, missing_labels)
    tables, values = _labelled(tables, targets, wishes)
    rows = split_rows(tables["train"], values["train"], kind, by, test_fraction, test_seed, test_path is not None)
    step = plan_columns(tables["train"].take(rows.fitted), wishes)
    log.info("%s\n%s", path, describe(step))
    train, test, val = _splits(step, tables, values, rows)
    return RawData(kind, train, test, targets.outputs, None, targets.names, (step,), val, tables["train"].reread)


csv_table = table
"""The name of earlier releases."""


Places = tuple[Table, np.ndarray]
"""A split's table, and its rows there."""


def _checked_split(
    split: Mapping[str, str] | None,
    test_fraction: float | None,
    test_seed: int | None,
    test_path: str | None,
    val_path: str | None,
) -> SplitBy | None:
    """Check the settings that choose the splits."""
    with Problems() as problems:
        problems.check(check_test_fraction, test_fraction, test_path is not None)
        if test_seed is not None and not 0 <= test_seed < 2**32:
            problems.add(invalid("source.test_seed", "in [0, 2**32)", test_seed))
        if test_seed is not None and test_path is not None:
            problems.add(f"source.test_seed = {test_seed} cannot be set beside source.test_path: remove one")
        others = {"test_path": test_path, "val_path": val_path, "test_seed": test_seed}
        return problems.check(SplitBy.parse, split, others)


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
    with Problems() as problems:
        inputs = {part: problems.check(step.read, t.frame, t.row) for part, t in tables.items()}
    labels = {"train": torch.tensor(tables["train"].frame.index.to_numpy())}
    whole = {part: Split(x, values[part], labels.get(part)) for part, x in inputs.items() if x is not None}
    splits: dict[str, Split] = {}
    places: dict[str, Places] = {}
    for part, chosen in (("train", rows.train), ("val", rows.val), ("test", rows.test)):
        if part != "train" and part in whole:
            splits[part], places[part] = whole[part], (tables[part], np.arange(len(whole[part])))
        elif chosen is not None:
            splits[part], places[part] = whole["train"].take(torch.from_numpy(chosen)), (tables["train"], chosen)
    _report_duplicates(splits, places)
    return splits["train"], splits["test"], splits.get("val")


def _report_duplicates(splits: Mapping[str, Split], places: Mapping[str, Places]) -> None:
    """Warn of rows outside the training split that are also in it."""
    contents = {part: _contents(split) for part, split in splits.items()}
    keys = {part: _keys(content) for part, content in contents.items()}
    for part in sorted(splits.keys() - {"train"}):
        twins: dict[bytes, int] = {}
        for row in np.flatnonzero(np.isin(keys["train"], keys[part])):
            twins.setdefault(contents["train"][row].tobytes(), int(row))
        suspects = np.flatnonzero(np.isin(keys[part], keys["train"]))
        pairs = [(row, twins[key]) for row in suspects if (key := contents[part][row].tobytes()) in twins]
        if pairs:
            (table, rows), (train, train_rows) = places[part], places["train"]
            first, second = table.row(int(rows[pairs[0][0]])), train.row(int(train_rows[pairs[0][1]]))
            example = f"{first} is {second.removeprefix(f'{table.path}, ')}"
            log.warning(
                "%d of %d rows of the %s split are also training rows: %s", len(pairs), len(rows), part, example
            )


def _contents(split: Split) -> np.ndarray:
    """Return the features and targets of each row, float64 (rows, columns)."""
    assert isinstance(split.inputs, Tensor)
    return torch.cat([split.inputs, split.targets.view(len(split), -1).double()], 1).numpy()


def _keys(contents: np.ndarray) -> np.ndarray:
    """Hash each row to a number, int64 (rows,): equal rows have equal ones."""
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, contents.shape[1], dtype=np.int64)
    keys: np.ndarray = contents.view(np.int64) @ factors  # modulo 2^64
    return keys
