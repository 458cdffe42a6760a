"""Load the data sets that ship with scikit-learn: nothing is downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, one_of
from msh.tasks.build import RawData, check_test_fraction, hold_out
from msh.tasks.columns import Number
from msh.tasks.image_step import ReadImages
from msh.tasks.options import Kind
from msh.tasks.preprocessing import prepare
from msh.tasks.steps import Scale, Steps
from msh.tasks.table_step import ReadTable
from msh.tasks.task import RawInputs, Split

DATA_SETS: dict[str, Kind] = {
    "digits": "classification",
    "breast_cancer": "classification",
    "wine": "classification",
    "iris": "classification",
    "diabetes": "regression",
}


def bundled(name: str, test_fraction: float = 0.3) -> RawData:
    """Load one of scikit-learn's data sets.

    Args:
        name: digits (8x8 images, 10 classes), breast_cancer, wine, iris (tables) or diabetes (table, regression).
        test_fraction: share of the examples in the test split, in (0, 1); the split is the same for every seed.
    Raises:
        ValueError: the name or the fraction is invalid.
    """
    from sklearn import datasets  # slow to import, and only these tasks need it

    with Problems() as problems:
        problems.check(one_of, "source.name", name, DATA_SETS)
        problems.check(check_test_fraction, test_fraction)
    kind = DATA_SETS[name]
    loaded = getattr(datasets, f"load_{name}")()
    if kind == "classification":
        targets = torch.as_tensor(loaded.target, dtype=torch.int64)
        classes = tuple(map(str, loaded.target_names))
        outputs = len(classes)
    else:
        targets = torch.as_tensor(loaded.target, dtype=torch.float32)[:, None]
        classes, outputs = (), 1
    halves = hold_out(Split(torch.arange(len(targets)), targets), test_fraction, kind)
    rows = [cast(Tensor, half.inputs) for half in halves]
    steps = _digits_steps() if name == "digits" else (_reading(loaded, rows[0]),)
    inputs = prepare(steps, loaded.images if name == "digits" else loaded.data)
    read = None if name == "digits" else partial(_rows, name)
    train, test = (Split(inputs[r], targets[r], None if read is None else RawInputs(read, r)) for r in rows)
    return RawData(kind, train, test, outputs, classes=classes, steps=steps)


def _rows(name: str, rows: Tensor) -> Any:
    """Read rows of a table, int64 (rows,), as a DataFrame of texts."""
    import pandas as pd
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    return pd.DataFrame(loaded.data[rows.numpy()], columns=list(map(str, loaded.feature_names))).map(str)


def _digits_steps() -> Steps:
    """Read grey images of 8x8 pixels, 0 (black) to 16 (white) in scikit-learn's arrays, as numbers from 0 to 16."""
    return ReadImages("L", (8, 8), range=(0, 16), profiles=True), Scale(torch.zeros(()), torch.tensor(1 / 16))


def _reading(loaded: Any, train: Tensor) -> ReadTable:
    """Return the step that reads rows of a table; medians of the training rows replace missing numbers."""
    medians = np.median(loaded.data[train.numpy()], axis=0).tolist()
    return ReadTable(tuple(map(Number, map(str, loaded.feature_names), medians)), "float32")
