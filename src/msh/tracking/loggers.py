"""Log to metrics.csv, also across resumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from msh.compat import csv_writer
from msh.runs.metrics import read_rows, write_rows


class _AppendingWriter(csv_writer()):  # type: ignore[misc]
    """Append to the file's rows; never leave it half written."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self.metrics_keys, rows = read_rows(path)
        if path.is_file() and not path.read_bytes().endswith(b"\n"):  # the last line was cut short
            write_rows(path, self.metrics_keys, rows)

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning's writer would delete earlier rows."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, fieldnames, read_rows(path)[1])


class RunCSVLogger(CSVLogger):
    """Write metrics.csv into the run folder, each row as soon as it is logged.

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
            self._experiment = _AppendingWriter(log_dir=self.save_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the composed config is in the run folder already."""

    @rank_zero_only
    def save(self) -> None:
        """Write the buffered rows."""
        writer: Any = self.experiment
        writer.save()

    @rank_zero_only
    def rewind_to(self, step: int, evaluations: bool = True) -> None:
        """Forget rows that are logged again; see `RunLogger`."""
        path = Path(self.save_dir) / "metrics.csv"
        names, rows = read_rows(path)
        of_batches = [name for name in names if "/train/" in name]

        def stays(row: dict[str, str]) -> bool:
            batches = int(row["step"]) + any(row[name] for name in of_batches)  # done when the row was logged
            return batches <= step if evaluations else int(row["step"]) < step

        earlier = [row for row in rows if stays(row)]
        if len(earlier) < len(rows):
            write_rows(path, names, earlier)
