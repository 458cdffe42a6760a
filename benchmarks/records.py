"""What was measured: records, their targets, and the file that they are kept in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.targets import TARGETS

FILE_NAME = "results.json"


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        id: the row's number and the case, such as "1-batch32"; other sections have a word in place of the number.
        what: was measured, on what, against what; or why it was not.
        value: the figure; lower is better where it has a target. None: it could not be measured.
        target: the value must not be above it. None: it is there to be known.
        met: whether it is not; None without a target. What could not be measured has not met its target.
        dense: the figure of the dense network (or of what else the value is a ratio to) in the same run, if any.
        unit: of the value; and, after "dense in", of the dense figure.
        threads: CPU threads.
        repeats: rounds that the medians are over.
    """

    id: str
    what: str
    value: float | None
    target: float | None = field(init=False)
    met: bool | None = field(init=False)
    dense: float | None
    unit: str
    threads: int
    repeats: int

    def __post_init__(self) -> None:
        target = TARGETS.get(self.id)
        met = None if target is None else self.value is not None and self.value <= target
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "met", met)


def row_of(id: str) -> str:
    """The part of a record's id that names its row."""
    return id.partition("-")[0]


def read(path: Path) -> list[dict]:
    """The records in a file, none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def merge(earlier: Iterable[dict], records: Iterable[Record], rows: Iterable[str]) -> list[dict]:
    """Records of the rows just measured in place of those of an earlier run; in the order of rows, then as measured.

    Args:
        earlier: records as a file has them.
        records: just measured.
        rows: that were measured; no earlier record of these stays.
    """
    measured = set(rows)
    kept = [record for record in earlier if row_of(record["id"]) not in measured]
    return sorted([*kept, *map(asdict, records)], key=lambda record: _place(row_of(record["id"])))


def _place(row: str) -> tuple[int, str]:
    return (int(row), "") if re.fullmatch(r"\d+", row) else (1000, row)


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
