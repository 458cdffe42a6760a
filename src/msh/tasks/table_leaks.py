"""Find columns of a table that give the target away: copies of it, in other words, units or digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from msh.tasks.table_step import ReadTable

FEWEST_ROWS, FEWEST_NUMBERS = 20, 20
"""Rows, and different numbers of a regression's column, from which agreement is no coincidence."""


def leaking_columns(step: ReadTable, features: np.ndarray, targets: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of the columns from which the target can be read off in every row.

    In a classification, a column's values stand for one class each, and each class for one value. In a regression, a
    column of numbers rises, or falls, whenever the target does: the target in another unit, rounded, or its logarithm.
    Columns that decide a target only together, or with values that several classes share, are not found.

    Args:
        step: reads the table.
        features: float64 (rows, features), as the step reads them.
        targets: int64 (rows,) classes, or float64 (rows, 1).
    """
    if len(targets) < FEWEST_ROWS:
        return
    first = 0
    for column in step.columns:
        own = features[:, first : first + column.features]
        first += column.features
        if column.features and targets.ndim == 1 and _stands_for(own, targets):
            yield column.name, "each of its values stands for one class"
        elif column.role in ("number", "amount") and targets.ndim == 2 and _follows(own, targets[:, 0]):
            yield column.name, "the target can be computed from it"


def _stands_for(features: np.ndarray, classes: np.ndarray) -> bool:
    """Return True if equal rows (rows, features) mean equal classes (rows,), and the other way round."""
    import pandas as pd

    codes, values = pd.factorize(_hashed(features))
    pairs = codes * (int(classes.max()) + 1) + classes
    return len(values) == len(np.unique(classes)) == len(np.unique(pairs))


def _hashed(features: np.ndarray) -> np.ndarray:
    """Hash rows (rows, features) to int64 (rows,): equal rows have equal ones."""
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, features.shape[1], dtype=np.int64)
    hashed: np.ndarray = np.ascontiguousarray(features).view(np.int64) @ factors  # modulo 2^64
    return hashed


def _follows(features: np.ndarray, target: np.ndarray) -> bool:
    """Return True if numbers (rows, 1), or with a second feature where they are missing, never fall as a target rises.

    Or never rise. Both are in float64.
    """
    present = features[:, 1] == 0 if features.shape[1] > 1 else np.ones(len(target), dtype=bool)
    numbers, target = features[present, 0], target[present]
    if len(numbers) < FEWEST_ROWS or len(np.unique(numbers)) < FEWEST_NUMBERS:
        return False
    return any(bool((np.diff(signed[np.lexsort((signed, target))]) >= 0).all()) for signed in (numbers, -numbers))
