"""Read and write metrics.csv, a run's logged values."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from msh.files.atomic import write_text

STEP = re.compile("[0-9]{1,15}")
"""A cell with the number of a step."""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read metrics.csv: (column names, rows), without incomplete and too long lines; ([], []) if it is missing.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return [], []
    try:
        content = path.read_text(encoding="utf-8")
        whole = content[: content.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        names = list(reader.fieldnames or [])
        return names, [row for row in reader if None not in row and STEP.fullmatch(row.get("step") or "")]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_rows(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    """Write a metrics.csv, completely or not at all."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
