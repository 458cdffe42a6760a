"""TensorBoard and MLflow: their records can be read back, and a resumed run continues them."""

import os
import shutil
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from threading import Thread

import pytest
from PIL import Image

from msh.runs.results import Results
from msh.runs.tables import Column, Table

BITMAPS = {
    "matrix/heat_map": {"": Image.new("RGB", (4, 3), "#ff0000")},
    "owner_maps": {"0.weight": Image.new("RGB", (2, 2))},
}
SCORES = Table(
    "scores",
    [Column("task", itemgetter(0), words=True), Column("test", itemgetter(1), ".4f")],
    [("a", 0.5), ("b", None)],
)
OUTCOME = {"score/a": 0.5, "guarantee/verdict": "held", "forgetting": 0.0}
CONFIG = {"seed": 0, "pruning": {"density": 0.1}}


@pytest.fixture
def folder(tmp_path):
    Results("toy", 0, [], {}, run_id="0a1b2c3d").save(tmp_path)
    return tmp_path


def session(logger, steps):
    """Log as a run does; for a resumed run, after `rewind_to` if the logger has it."""
    logger.log_hyperparams(CONFIG)
    for step in steps:
        logger.log_metrics({"a/val/loss": step / 8}, step)
        logger.finalize("success")  # a fit has ended
    last = steps[-1]
    logger.log_bitmaps(BITMAPS, last)
    logger.log_rows("scores/table", SCORES, last)
    logger.log_final(OUTCOME, last)
    logger.close("success")


# ---- TensorBoard


def read_tensorboard(folder):
    """The folder as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture
def tensorboard(folder):
    pytest.importorskip("tensorboard")
    from msh.tracking.trackers import RunTensorBoardLogger

    return lambda: RunTensorBoardLogger(str(folder))


def test_tensorboard_has_curves_scores_bitmaps_tables_and_settings(tensorboard, folder):
    session(tensorboard(), range(3))
    found = read_tensorboard(folder)
    assert [(e.step, e.value) for e in found.Scalars("a/val/loss")] == [(0, 0.0), (1, 0.125), (2, 0.25)]
    assert [(e.step, e.value) for e in found.Scalars("score/a")] == [(2, 0.5)]
    assert (found.Images("matrix/heat_map")[0].width, found.Images("matrix/heat_map")[0].height) == (4, 3)
    assert set(found.Tags()["images"]) == {"matrix/heat_map", "owner_maps/0.weight"}
    text = found.Tensors("scores/table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| a | 0.5000 |" in text
    assert "density: 0.1" in (folder / "tensorboard" / "hparams.yaml").read_text()
    assert len(list((folder / "tensorboard").glob("events.*"))) == 1


def test_a_resumed_run_replaces_tensorboards_later_steps(tensorboard, folder):
    session(tensorboard(), range(4))
    resumed = tensorboard()
    resumed.rewind_to(1)
    session(resumed, range(2, 6))
    assert [e.step for e in read_tensorboard(folder).Scalars("a/val/loss")] == list(range(6))


def test_tensorboard_shows_a_repeated_evaluation_once(tensorboard, folder):
    session(tensorboard(), range(4))
    resumed = tensorboard()
    resumed.rewind_to(3, evaluations=False)
    session(resumed, range(3, 6))
    assert [e.step for e in read_tensorboard(folder).Scalars("a/val/loss")] == list(range(6))


def write_csv(folder, steps):
    rows = "".join(f"{step},{step / 8}\n" for step in steps)
    (folder / "metrics.csv").write_text(f"step,a/val/loss\n{rows}")


def test_tensorboard_gets_the_values_that_earlier_sessions_did_not_log(tensorboard, folder):
    session(tensorboard(), range(2))
    write_csv(folder, range(6))
    resumed = tensorboard()
    resumed.rewind_to(4)
    session(resumed, range(5, 7))
    found = read_tensorboard(folder).Scalars("a/val/loss")
    assert sorted((e.step, e.value) for e in found) == [(step, step / 8) for step in range(7)]


# ---- MLflow


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database that MLflow has just made, which takes it seconds."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow(folder, empty_store):
    from msh.tracking.trackers import RunMLFlowLogger

    shutil.copy(empty_store, folder)
    return lambda: RunMLFlowLogger(str(folder), f"sqlite:///{folder}/mlflow.db", "toy")


def test_later_runs_of_the_process_do_not_inherit_the_store(mlflow, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow().run_id
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///the-users.db")
    assert mlflow().run_id
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///the-users.db"


def test_mlflow_has_one_run_with_curves_scores_bitmaps_tables_and_settings(mlflow, folder):
    session(mlflow(), range(4))
    session(mlflow(), range(2, 6))  # resumed from step 1: it logs steps 2 and 3 again
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "a/val/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, step / 8) for step in range(6)]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "pruning/density": "0.1"}
    assert run.data.metrics["score/a"] == 0.5
    assert run.data.tags["guarantee.verdict"] == "held"
    kept = folder / "mlflow" / run.info.run_id / "artifacts"
    with Image.open(kept / "matrix" / "heat_map.png") as picture:
        assert picture.size == (4, 3)
    assert (kept / "owner_maps" / "0.weight.png").is_file()
    assert (kept / "scores" / "table.csv").read_text().splitlines() == ["task,test", "a,0.5", "b,"]


def test_mlflow_gets_the_values_that_earlier_sessions_did_not_log(mlflow, folder):
    session(mlflow(), range(2))
    write_csv(folder, range(6))
    session(mlflow(), range(5, 7))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    points = client.get_metric_history(run.info.run_id, "a/val/loss")
    assert sorted((point.step, point.value) for point in points) == [(step, step / 8) for step in range(7)]


def test_a_login_in_the_address_is_sent_and_is_not_in_the_address(folder, monkeypatch):
    """The server refuses, and the message is all it says."""
    pytest.importorskip("mlflow")
    from msh.tracking.trackers import BOUNDS, RunMLFlowLogger

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI", *BOUNDS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        logger = RunMLFlowLogger(str(folder), f"http://me:p%40ss@127.0.0.1:{server.server_port}", "toy")
        with pytest.raises(Exception, match="403") as caught:
            logger.log_metrics({"a/val/loss": 0.0}, 0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert set(seen) == {"Basic " + b64encode(b"me:p@ss").decode()}
    assert "p%40ss" not in str(caught.value)
    assert {name: os.environ[name] for name in BOUNDS} == BOUNDS
