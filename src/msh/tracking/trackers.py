"""Log to TensorBoard and MLflow, also across resumes; with tables and bitmaps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning_fabric.loggers.logger import rank_zero_experiment
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from msh.runs.results import Results
from msh.runs.tables import Table
from msh.tracking.bitmaps import Bitmaps

RUN_TAG = "msh.run_id"
STORE = "MLFLOW_TRACKING_URI"


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Select the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def one_by_one(bitmaps: Bitmaps) -> Iterator[tuple[str, Image.Image]]:
    """Yield ("name/caption", bitmap)."""
    for name, by_caption in bitmaps.items():
        for caption, bitmap in by_caption.items():
            yield "/".join(filter(None, (name, caption))), bitmap


class RunTensorBoardLogger(TensorBoardLogger):
    """Log to TensorBoard, one event file for each session.

    Args:
        directory: the run folder; files go to its `tensorboard/`.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(save_dir=directory, name="tensorboard", version="", default_hp_metric=False)

    @rank_zero_only
    def rewind_to(self, step: int, evaluations: bool = True) -> None:
        """Hide earlier sessions' rows; see `RunLogger`. If evaluations are kept, batch `step` is kept too."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = Event(session_log=SessionLog(status=SessionLog.START), step=step + evaluations)
        cast(Any, self.experiment).file_writer.add_event(start)

    @rank_zero_only
    def log_bitmaps(self, bitmaps: Bitmaps, step: int) -> None:
        """Log bitmaps."""
        for name, bitmap in one_by_one(bitmaps):
            self.experiment.add_image(name, np.asarray(bitmap), step, dataformats="HWC")

    @rank_zero_only
    def log_rows(self, name: str, table: Table[Any], step: int) -> None:
        """Log a table as Markdown."""
        self.experiment.add_text(name, table.markdown(), step)

    @rank_zero_only
    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log the run's outcome."""
        self.log_metrics(numbers(values), step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: a run has many fits."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """Write buffered rows, and close the file."""
        super().finalize(status)


class RunMLFlowLogger(MLFlowLogger):
    """Log a run folder to one MLflow run; a resumed run skips the values that MLflow has.

    Args:
        directory: the run folder.
        tracking_uri: the store.
        experiment_name: in MLflow.
        run_name: in MLflow, which chooses one when None.
        artifact_location: for bitmaps and tables; when None, `mlflow/` if the store is in the run folder, else the
            store's own.
    """

    def __init__(
        self,
        directory: str,
        tracking_uri: str,
        experiment_name: str,
        run_name: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        if artifact_location is None and tracking_uri.startswith(f"sqlite:///{directory}/"):
            artifact_location = f"{directory}/mlflow"
        tags = {RUN_TAG: Results.load(Path(directory)).run_id}
        super().__init__(experiment_name, run_name, tracking_uri, tags, artifact_location=artifact_location)
        self._points: set[tuple[int, str]] = set()
        self._resumed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The store's client; starts the run."""
        if self._initialized:
            return super().experiment
        if self._run_id is None:
            self._find_run()
        users = os.environ.get(STORE)
        client = super().experiment  # sets the variable, which later runs in this process must not take for the user's
        if users is None:
            os.environ.pop(STORE, None)
        else:
            os.environ[STORE] = users
        return client

    def _find_run(self) -> None:
        """Continue this run folder's run, if the store has it, and read its values' steps."""
        client, run_id = self._mlflow_client, (self.tags or {})[RUN_TAG]
        experiment = client.get_experiment_by_name(self._experiment_name)
        runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'") if experiment else []
        if runs:
            self._run_id, self._resumed = runs[0].info.run_id, True
            for name in runs[0].data.metrics:
                self._points |= {(point.step, name) for point in client.get_metric_history(self._run_id, name)}

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the settings once: MLflow does not let them change."""
        _ = self.experiment
        if not self._resumed:
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the values that MLflow does not have yet."""
        _ = self.experiment
        new = {name: value for name, value in metrics.items() if (step or 0, name) not in self._points}
        if new:
            super().log_metrics(new, step)

    @rank_zero_only
    def log_bitmaps(self, bitmaps: Bitmaps, step: int) -> None:
        """Store bitmaps as PNG; newer ones replace them."""
        for name, bitmap in one_by_one(bitmaps):
            self.experiment.log_image(self.run_id, bitmap, f"{name}.png")

    @rank_zero_only
    def log_rows(self, name: str, table: Table[Any], step: int) -> None:
        """Store a table as CSV; a newer one replaces it."""
        self.experiment.log_text(self.run_id, table.csv(), f"{name}.csv")

    @rank_zero_only
    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log the run's outcome."""
        self.log_metrics(numbers(values), step)
        for name, value in values.items():
            if isinstance(value, str):
                self.experiment.set_tag(self.run_id, name.replace("/", "."), value)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Do nothing: a run has many fits."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """End the run in MLflow: "success", "failed" or "stopped"."""
        super().finalize({"stopped": "KILLED"}.get(status, status))
