"""The CSV logger, which goes on where a killed run stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from msh.compat import csv_writer
from msh.runs.metrics import read_rows, write_rows


class _GoingOnWriter(csv_writer()):  # type: ignore[misc]
    """Lightning's writer, but it keeps the rows that are there and never leaves a file half written."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self.metrics_keys, rows = read_rows(path)
        if path.is_file() and not path.read_bytes().endswith(b"\n"):  # the last line was cut short
            write_rows(path, self.metrics_keys, rows)

    def _check_log_dir_exists(self) -> None:
        """Lightning's would delete the rows of the run so far."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, fieldnames, read_rows(path)[1])


class RunCSVLogger(CSVLogger):
    """Writes metrics.csv into the run folder, each row as soon as it is logged.

    Args:
        directory: the run folder.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(save_dir=directory, name="", version="", flush_logs_every_n_steps=1)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self.save_dir

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            os.makedirs(self.save_dir, exist_ok=True)
            self._experiment = _GoingOnWriter(log_dir=self.save_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the composed config is in the run folder already."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are waiting."""
        writer: Any = self.experiment
        writer.save()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop the rows that the resumed run logs again: those of later steps, and of the next batch.

        Args:
            step: number of batches done. What is measured after them is logged at this step; so is the batch that comes
                next, as batches count from 0.
        """
        names = read_rows(self._path)[0]
        of_batches = [name for name in names if "/train/" in name]
        self._keep(lambda row: int(row["step"]) + any(row[name] for name in of_batches) <= step)

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Drop the rows of a step and of later ones.

        Args:
            step: number of batches done. The last of them was logged one step earlier; at this step stands what was
                measured after it, which is measured again.
        """
        self._keep(lambda row: int(row["step"]) < step)

    @property
    def _path(self) -> Path:
        return Path(self.save_dir) / "metrics.csv"

    def _keep(self, wanted: Callable[[dict[str, str]], bool]) -> None:
        names, rows = read_rows(self._path)
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            write_rows(self._path, names, kept)
