"""Load tables of numbers from CSV files."""

from __future__ import annotations

from collections.abc import Sequence

from msh.errors import Problems, invalid
from msh.tasks.build import RawData
from msh.tasks.columns import find_targets, read_table, with_test_split
from msh.tasks.outputs import Kind
from msh.tasks.task import Split


def csv_table(
    path: str,
    target: str,
    features: Sequence[str] | None = None,
    kind: Kind = "classification",
    threshold: float | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    test_seed: int | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
) -> RawData:
    """Load a table from a CSV file with a header.

    Args:
        path: the training file.
        target: column to predict; a classification's has names or numbers, and classes in ascending order.
        features: numeric columns to predict it from; None: all others.
        kind: classification or regression.
        threshold: splits a numeric column into two classes: class 1 is above it.
        test_path: the test split's file.
        test_fraction: without one, the test split's share of the rows, .2 if None; the same for every seed.
        test_seed: draw the test split as Keras does for its copy of Boston housing (with 113): numpy's RandomState
            with this seed shuffles the rows, and the last ones are the test split. None: `hold_out`.
        encoding: the files' encoding.
        delimiter: character between cells.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a cell is not a number or class, or a setting is invalid.
    """
    table = read_table(path, encoding, delimiter)
    targets = find_targets(table, "source.target", target, kind, threshold)
    names = list(features) if features is not None else [name for name in table.cells if name != target]
    if not names or target in names:
        raise invalid("source.features", f"at least one column besides the target {target!r}", names)
    tables = [table] if test_path is None else [table, read_table(test_path, encoding, delimiter)]
    with Problems() as problems:
        inputs = [problems.check(t.numbers, "source.features", names) for t in tables]
        values = [problems.check(targets.read, t, "source.target") for t in tables]
    splits = [Split(x, y) for x, y in zip(inputs, values, strict=True) if x is not None and y is not None]
    return with_test_split(splits[0], splits[1] if test_path is not None else None, targets, test_fraction, test_seed)
