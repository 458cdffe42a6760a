"""Protocols that a run's loggers may have besides Lightning's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from msh.runs.tables import Table
    from msh.tracking.bitmaps import Bitmaps


@runtime_checkable
class RunLogger(Protocol):
    """A logger that can forget rows which a resumed run logs again.

    Loggers that cannot (W&B, MLflow) skip the values that they already have.
    """

    def rewind_to(self, step: int, evaluations: bool = True) -> None:
        """Return to the state before the run's batch with index `step`; without later rows, do nothing.

        A batch is logged at its index, counted from 0; an evaluation at the number of batches before it. So batch
        `step` is forgotten, and every row with a larger step; evaluations after exactly `step` batches are kept.

        Args:
            step: the run's optimizer steps so far.
            evaluations: False: forget evaluations after exactly `step` batches too, as they are repeated.
        """


@runtime_checkable
class Tracker(Protocol):
    """A logger that takes more than curves."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values at a step."""

    def log_bitmaps(self, bitmaps: Bitmaps, step: int) -> None:
        """Log bitmaps."""

    def log_rows(self, name: str, table: Table[Any], step: int) -> None:
        """Log a table."""

    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log the run's outcome."""

    def close(self, status: str) -> None:
        """End the run in the tracker: "success", "failed" or "stopped"."""
