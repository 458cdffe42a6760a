"""Tables of numbers in CSV files."""

from __future__ import annotations

from collections.abc import Sequence

from msh.tasks.build import RawData
from msh.tasks.columns import find_targets, read_table, with_test_split
from msh.tasks.task import Kind, Split


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
        path: of the file to learn from.
        target: column to predict; of a classification, names or numbers, classes in rising order.
        features: columns of numbers to predict it from; all others when None.
        kind: classification or regression.
        threshold: makes two classes of a column of numbers: class 1 is above it.
        test_path: file with the test split.
        test_fraction: without one, share of the rows that become the test split, .2 when None; the same for every seed.
        test_seed: draw the test split as Keras does for its copy of Boston housing (with 113): numpy's RandomState of
            this seed shuffles the rows, and the last of them are the test split. None: a draw of this library's own.
        encoding: of the files.
        delimiter: character between cells.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a cell is not what belongs there, or a setting is not allowed.
    """
    table = read_table(path, encoding, delimiter)
    targets = find_targets(table, "source.target", target, kind, threshold)
    names = list(features) if features is not None else [name for name in table.cells if name != target]
    if not names or target in names:
        raise ValueError(f"source.features = {names} is not allowed: at least one column is, and not the target")
    tables = [table] if test_path is None else [table, read_table(test_path, encoding, delimiter)]
    splits = [Split(t.numbers("source.features", names), targets.read(t, "source.target")) for t in tables]
    return with_test_split(splits[0], splits[1] if test_path is not None else None, targets, test_fraction, test_seed)
