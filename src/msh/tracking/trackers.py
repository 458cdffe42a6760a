"""Log to TensorBoard and MLflow, also across resumes; with tables and bitmaps."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
from lightning_fabric.loggers.logger import rank_zero_experiment
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from msh.runs.results import Results
from msh.runs.tables import Table
from msh.tracking.bitmaps import Bitmaps
from msh.tracking.catching_up import CatchesUp

log = logging.getLogger(__name__)

RUN_TAG = "msh.run_id"
STORE = "MLFLOW_TRACKING_URI"
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""MLflow's variables, unless the user sets them: training waits seconds for a server that is gone, not minutes."""

BATCH = 1000
"""Most metrics in a request to MLflow."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Select the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def one_by_one(bitmaps: Bitmaps) -> Iterator[tuple[str, Image.Image]]:
    """Yield ("name/caption", bitmap)."""
    for name, by_caption in bitmaps.items():
        for caption, bitmap in by_caption.items():
            yield "/".join(filter(None, (name, caption))), bitmap


class RunTensorBoardLogger(CatchesUp, TensorBoardLogger):
    """Log to TensorBoard, one event file for each session; a resumed run skips the values in earlier ones.

    Args:
        directory: the run folder; files go to its `tensorboard/`.
    """

    title = "TensorBoard"

    def __init__(self, directory: str) -> None:
        super().__init__(save_dir=directory, name="tensorboard", version="", default_hp_metric=False)
        self.folder = Path(directory)
        self.resumed, self.points = False, set()
        if threading.excepthook is not hide_writer_error:
            others.append(threading.excepthook)
            threading.excepthook = hide_writer_error
        if any(Path(self.log_dir).glob("events.*")):
            self.resumed, self.points = True, _scalars(self.log_dir)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log scalars."""
        for name, value in values.items():
            self.experiment.add_scalar(name, value, step)

    @rank_zero_only
    def rewind_to(self, step: int, evaluations: bool = True) -> None:
        """Hide earlier sessions' rows; see `RunLogger`. If evaluations are kept, batch `step` is kept too."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        first = step + evaluations
        start = Event(session_log=SessionLog(status=SessionLog.START), step=first)
        cast(Any, self.experiment).file_writer.add_event(start)
        self.points = {point for point in self.points if point[0] < first}

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


others: list[Callable[[threading.ExceptHookArgs], object]] = []
"""The hooks for errors in threads that were set before `hide_writer_error`."""


def hide_writer_error(error: threading.ExceptHookArgs) -> None:
    """Print no traceback for TensorBoard's thread, as on a full disk: the next value to be logged raises its error."""
    if type(error.thread).__module__.startswith("tensorboard."):
        log.debug("TensorBoard's writer has stopped: %s", error.exc_value)
    else:
        others[-1](error)


def _scalars(folder: str) -> set[tuple[int, str]]:
    """Read (step, name) of the scalars that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(folder, size_guidance={"scalars": 0})
    shown.Reload()
    return {(event.step, name) for name in shown.Tags()["scalars"] for event in shown.Scalars(name)}


class RunMLFlowLogger(CatchesUp, MLFlowLogger):
    """Log a run folder to one MLflow run; a resumed run skips the values that MLflow has.

    A user name and a password in the address are sent as MLflow's own variables send them, and shown nowhere.

    Args:
        directory: the run folder.
        tracking_uri: the store.
        experiment_name: in MLflow.
        run_name: in MLflow, which chooses one when None.
        artifact_location: for bitmaps and tables; when None, `mlflow/` if the store is in the run folder, else the
            store's own.
    """

    title = "MLflow"

    def __init__(
        self,
        directory: str,
        tracking_uri: str,
        experiment_name: str,
        run_name: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each attempt
        tracking_uri = _without_login(tracking_uri)
        if artifact_location is None and tracking_uri.startswith(f"sqlite:///{directory}/"):
            artifact_location = f"{directory}/mlflow"
        tags = {RUN_TAG: Results.load(Path(directory)).run_id}
        super().__init__(experiment_name, run_name, tracking_uri, tags, artifact_location=artifact_location)
        self.folder = Path(directory)
        self.resumed, self.points = False, set()

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
            self._run_id, self.resumed = runs[0].info.run_id, True
            for name in runs[0].data.metrics:
                self.points |= {(point.step, name) for point in client.get_metric_history(self._run_id, name)}

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the settings once: MLflow does not let them change."""
        _ = self.experiment
        if not self.resumed:
            super().log_hyperparams(params)

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Log metrics."""
        MLFlowLogger.log_metrics(self, values, step)

    def write_all(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Log metrics of several steps, as many in a request as MLflow takes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)  # milliseconds
        metrics = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(metrics), BATCH):
            self.experiment.log_batch(self.run_id, metrics=metrics[start : start + BATCH])

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


def _without_login(uri: str) -> str:
    """Move user name and password from a server's address to the variables that MLflow reads.

    MLflow would show the address with them in its errors. Databases need theirs in the address.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    for name, value in zip(LOGIN, (parts.username, parts.password or ""), strict=True):
        os.environ.setdefault(name, unquote(value))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
