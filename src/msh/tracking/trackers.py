"""TensorBoard and MLflow through Lightning's own loggers: they go on after a resume, and take tables and pictures."""

from __future__ import annotations

import csv
import io
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
from msh.tracking.pictures import Pictures

RUN_TAG = "msh.run_id"
STORE = "MLFLOW_TRACKING_URI"


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def one_by_one(pictures: Pictures) -> Iterator[tuple[str, Image.Image]]:
    """Each picture, and its name with its caption."""
    for name, by_caption in pictures.items():
        for caption, picture in by_caption.items():
            yield "/".join(filter(None, (name, caption))), picture


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger with one event file for each session; a resumed one hides what it will log again.

    Args:
        directory: the run folder; files go to its `tensorboard/`.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(save_dir=directory, name="tensorboard", version="", default_hp_metric=False)

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Hide what earlier sessions logged of steps past this one."""
        self.forget_from(step + 1)

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """Hide what earlier sessions logged of this step and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        cast(Any, self.experiment).file_writer.add_event(Event(session_log=start, step=step))

    @rank_zero_only
    def log_pictures(self, pictures: Pictures, step: int) -> None:
        """Log pictures."""
        for name, picture in one_by_one(pictures):
            self.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")

    @rank_zero_only
    def log_rows(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table as text."""
        lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
        self.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    @rank_zero_only
    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log what the run has come to."""
        self.log_metrics(numbers(values), step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: a run has many fits."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """Write what is waiting, and close the file."""
        super().finalize(status)


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger for one MLflow run a run folder; a resumed one passes over what MLflow has.

    Args:
        directory: the run folder.
        tracking_uri: of the store.
        experiment_name: in MLflow.
        run_name: in MLflow; it chooses when None.
        artifact_location: where pictures and tables go; when None, beside a store in the run folder (`mlflow/`),
            else where the store says.
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
        self._goes_on = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client of the store, once there is a run."""
        if self._initialized:
            return super().experiment
        if self._run_id is None:
            self._find_run()
        given = os.environ.get(STORE)
        # It sets the variable, which later runs in this process must not take for the user's.
        client = super().experiment
        if given is None:
            os.environ.pop(STORE, None)
        else:
            os.environ[STORE] = given
        return client

    def _find_run(self) -> None:
        """Go on with this run folder's run, if there is one, and see what it has."""
        client, run_id = self._mlflow_client, (self.tags or {})[RUN_TAG]
        experiment = client.get_experiment_by_name(self._experiment_name)
        runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'") if experiment else []
        if runs:
            self._run_id, self._goes_on = runs[0].info.run_id, True
            for name in runs[0].data.metrics:
                self._points |= {(point.step, name) for point in client.get_metric_history(self._run_id, name)}

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the settings, once: MLflow lets none change."""
        _ = self.experiment
        if not self._goes_on:
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values of a step of the run that MLflow does not have yet."""
        _ = self.experiment
        new = {name: value for name, value in metrics.items() if (step or 0, name) not in self._points}
        if new:
            super().log_metrics(new, step)

    @rank_zero_only
    def log_pictures(self, pictures: Pictures, step: int) -> None:
        """Keep pictures; newer ones replace them."""
        for name, picture in one_by_one(pictures):
            self.experiment.log_image(self.run_id, picture, f"{name}.png")

    @rank_zero_only
    def log_rows(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Keep a table as CSV; a newer one replaces it."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([columns, *rows])
        self.experiment.log_text(self.run_id, text.getvalue(), f"{name}.csv")

    @rank_zero_only
    def log_final(self, values: Mapping[str, Any], step: int) -> None:
        """Log what the run has come to."""
        self.log_metrics(numbers(values), step)
        for name, value in values.items():
            if isinstance(value, str):
                self.experiment.set_tag(self.run_id, name.replace("/", "."), value)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Nothing: a run has many fits."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """End the run in MLflow: "success", "failed" or "stopped"."""
        super().finalize({"stopped": "KILLED"}.get(status, status))
