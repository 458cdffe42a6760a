"""Read the column to predict: classes, or numbers in float64."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from msh.errors import Problems, one_of
from msh.tasks.cells import (
    NUMBER,
    PLAIN,
    NumberForm,
    are_nested,
    cell_error,
    find_form,
    numbers_or_bad,
    read_numbers,
)
from msh.tasks.labels import (
    MISSING_LABELS,
    Classes,
    Labels,
    find_classes,
    missing_words,
    read_labels,
    shown_names,
    too_few,
)
from msh.tasks.options import Kind
from msh.tasks.table_files import Table

log = logging.getLogger(__name__)

MOST_NUMERIC_CLASSES = 20
"""More different numbers are taken for a regression's."""


@dataclass(frozen=True)
class Targets:
    """Read a column as targets; the test file has the training file's classes.

    Attributes:
        column: its name.
        kind: "classification" or "regression".
        threshold: classification: class 1 above it, else class 0; None: a class per value.
        classes: of the training file; None with a threshold and in regression.
        missing_labels: for rows without a label: "drop" drops and counts them, "error" raises.
        form: the way in which the training file writes numbers.
    """

    column: str
    kind: Kind
    threshold: float | None
    classes: Classes | None
    missing_labels: str
    form: NumberForm = PLAIN

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, or of the value: the column's."""
        if self.classes is not None:
            return self.classes.names
        return (self.column,) if self.threshold is None else (f"<= {self.threshold:g}", f"> {self.threshold:g}")

    @property
    def outputs(self) -> int:
        """The head's size."""
        return 1 if self.kind == "regression" else len(self.names) or 2

    def read(self, table: Table, key: str) -> tuple[Table, Tensor]:
        """Return the rows with a label; and a classification's targets, int64 (rows,), or float64 (rows, 1).

        Raises:
            ValueError: a cell is not a number, or not a class; or labels are missing.
        """
        cells = table.column(key, self.column)
        if self.classes is None:
            numbers = read_numbers(cells, table.row, self.column, self.form)
            numbers = numbers.copy()  # pandas' own memory is read-only
            missing = np.isnan(numbers)
            values = numbers[:, None] if self.threshold is None else (numbers > self.threshold).astype(np.int64)
        else:
            labels = read_labels(cells, self.classes, table.in_class_folders)
            values, missing = self.classes.number(labels), labels.missing
            unknown = (values < 0) & ~missing
            if unknown.any():
                extra = sorted({labels.texts[code] for code in labels.codes[unknown]})
                problem = f"is no class of the training file ({shown_names(self.names)})"
                others = f"; others: {shown_names(extra[1:])}" if len(extra) > 1 else ""
                raise cell_error(table.row, self.column, cells, unknown, problem + others)
        if missing.any():
            table, values = self._without(table, cells, missing), values[~missing]
        return table, torch.from_numpy(values)

    def _without(self, table: Table, cells: Any, missing: np.ndarray) -> Table:
        count = int(missing.sum())
        if self.missing_labels == "error" or count == len(cells):
            problem = "is no target; source.missing_labels=drop drops such rows"
            raise cell_error(table.row, self.column, cells, missing, problem if count < len(cells) else "is no target")
        words = missing_words(cells[missing].drop_duplicates())
        log.warning("%s: dropped %d rows without a target: %r is %s", table.path, count, self.column, words)
        return table.take(np.flatnonzero(~missing))


def find_targets(
    table: Table,
    key: str,
    column: str,
    kind: Kind | Literal["auto"],
    threshold: float | None,
    missing_labels: str = "drop",
) -> Targets:
    """Find the classes in the training file's column, in natural order; with kind "auto", find the kind first.

    Args:
        table: the training file.
        key: the setting that names the column.
        column: its name.
        kind, threshold, missing_labels: see `Targets`.
    Raises:
        ValueError: the column is missing, has one class, or a class for each of many numbers; or a setting is invalid.
    """
    with Problems() as problems:
        problems.check(one_of, "source.kind", kind, ("classification", "regression", "auto"))
        problems.check(one_of, "source.missing_labels", missing_labels, MISSING_LABELS)
        if threshold is not None and kind == "regression":
            problems.add(f"source.threshold = {threshold} needs source.kind=classification, not {kind}")
        cells: Any = problems.check(table.column, key, column)
    if cells.dtype == object and (nested := are_nested(cells)).any():
        raise cell_error(table.row, column, cells, nested, "is neither a label nor a number")
    origin, labels = f"{table.path}, column {column!r}", read_labels(cells, are_names=table.in_class_folders)
    form = table.forms.get(column, PLAIN)
    if form == PLAIN and (kind != "classification" or threshold is not None):
        form = find_form(cells, table.row, column, decimal=table.decimal)
    if threshold is not None:
        return Targets(column, "classification", threshold, None, missing_labels, form)
    if kind == "regression" or (kind == "auto" and _is_measured(origin, cells, labels, form)):
        return Targets(column, "regression", None, None, missing_labels, form)
    classes = find_classes(origin, labels)
    names = classes.names
    if len(names) == 1:
        raise too_few(origin, names[0], cells, labels.missing)
    if len(names) > MOST_NUMERIC_CLASSES and 2 * len(names) > len(cells) and all(map(NUMBER.fullmatch, names)):
        raise ValueError(
            f"{table.path}, column {column!r} has {len(names)} different numbers in {len(cells)} rows: "
            "source.kind=regression predicts numbers, source.threshold makes two classes"
        )
    if len(names) > MOST_NUMERIC_CLASSES and len(names) == int((~labels.missing).sum()):
        raise ValueError(
            f"{table.path}, column {column!r} has another value in each of {len(names)} rows, such as {names[0]!r}: "
            "classes need several rows, and regressions need numbers"
        )
    return Targets(column, "classification", None, classes, missing_labels)


def _is_measured(origin: str, cells: Any, labels: Labels, form: NumberForm) -> bool:
    """Tell whether a column has decimal numbers, amounts, or more than a few whole numbers; log the reason."""
    numbers, bad = numbers_or_bad(cells, (labels.codes, labels.texts), form)
    values = np.unique(numbers[~labels.missing])
    decimal = bool((values != np.round(values)).any())
    if not form.mark and (bad.any() or (len(values) <= MOST_NUMERIC_CLASSES and not decimal)):
        return False
    what = "decimal numbers" if decimal else f"{len(values)} different numbers"
    log.info("%s: a regression, because there are %s (source.kind=classification makes them classes)", origin, what)
    return True
