"""Log to a tracker each value once: first those in metrics.csv that it lacks, then the run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from msh.runs.metrics import read_rows

log = logging.getLogger(__name__)


class CatchesUp:
    """A logger that knows which values its tracker has.

    A tracker lacks values of a resumed run if an earlier session was killed before it sent them, if the tracker was
    switched off then, or if the run had no such tracker before.

    Attributes:
        title: the tracker's, for messages.
        folder: the run folder.
        resumed: the tracker has values of an earlier session.
        points: (step, name) of values that it has.
    """

    title: str
    folder: Path
    experiment: Any
    resumed: bool
    points: set[tuple[int, str]]
    _caught_up = False

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log values that the tracker does not have."""
        raise NotImplementedError

    def write_all(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Log values of several steps; a tracker with a request for many has its own."""
        for step, values in rows:
            self.write(values, step)

    def has(self, step: int, name: str, value: object) -> bool:
        """Return True for a value that the tracker has."""
        return (step, name) in self.points

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the values that the tracker lacks; before a session's first ones, those in metrics.csv."""
        _ = self.experiment  # reads what the tracker has
        step = step or 0
        if not self._caught_up:
            self._caught_up = True
            self._catch_up(step)
        new = self._new(metrics, step)
        if new:
            self.write(new, step)

    def _new(self, values: Mapping[str, Any], step: int) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not self.has(step, name, value)}

    def _catch_up(self, until: int) -> None:
        path = self.folder / "metrics.csv"
        if self.resumed and not path.is_file():
            log.warning(
                "%s may lack the last values before the run was stopped: %s, which has them, is missing",
                self.title,
                path,
            )
        rows = []
        for row in read_rows(path)[1]:
            step = int(row["step"])
            if step <= until:
                values = {name: float(cell) for name, cell in row.items() if cell and name != "step"}
                if new := self._new(values, step):
                    rows.append((step, new))
                    self.points |= {(step, name) for name in new}
        self.write_all(rows)
