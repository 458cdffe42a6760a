"""A real MLflow server: runs are recorded, resumed and completed there, and need it for nothing."""

import signal
import time

import pytest
from disturbing import args, assert_same_end
from running import run
from tracked import MLflowServer, again, finish, first, has_trained, launch, status_of, wait_until, warnings_of

pytest.importorskip("flask", reason="the MLflow server is not installed: pip install mlflow")

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

LOGGERS = ("csv", "mlflow")
BOUND = 240
"""Most seconds for the rest of a run and the wait for a server, on a busy machine: MLflow's own retries took longer."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A server, as it is between the tests."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def server(kept, monkeypatch):
    """The server, running."""
    if kept.process is None:
        kept.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept.address)
    return kept


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run("train.py", *args(folder), cwd=folder.parent)
    return folder


def test_a_run_has_values_settings_tables_and_figures(server, tmp_path):
    folder = tmp_path / "run"
    code, printed = finish(launch(*first(folder, LOGGERS), cwd=tmp_path))
    assert code == 0, printed
    server.assert_has_the_csv(folder)
    client, logged = server.run_of(folder)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["pruning/end"] == "0.7"
    assert not [name for name in logged.data.params if name.startswith("logger")]
    assert logged.data.tags["guarantee.verdict"].startswith("held")
    artifacts = {item.path for name in ("matrix", "scores") for item in client.list_artifacts(logged.info.run_id, name)}
    assert artifacts == {"matrix/heat_map.png", "matrix/table.csv", "scores/table.csv"}


def test_a_killed_run_resumes_into_the_same_run_with_no_value_twice(server, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = launch(*first(folder, LOGGERS), cwd=tmp_path)
    wait_until(lambda: has_trained(folder), process)
    process.kill()
    finish(process)
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert code == 0, printed
    assert_same_end(folder, undisturbed)
    server.assert_has_the_csv(folder)
    assert server.run_of(folder)[1].info.status == "FINISHED"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_server_a_run_finishes_and_a_resume_logs_the_rest(signum, server, undisturbed, tmp_path):
    """The server dies, or accepts connections and never answers."""
    folder = tmp_path / "run"
    process = launch(*first(folder, LOGGERS), cwd=tmp_path)
    wait_until(lambda: has_trained(folder), process)
    server.signal(signum)
    began = time.monotonic()
    code, printed = finish(process)
    waited = time.monotonic() - began
    server.stop()
    assert code == 0, printed
    (warning,) = warnings_of(printed)
    assert "mlflow is switched off: " in warning
    assert "metrics.csv has all values" in warning
    assert "Traceback" not in printed
    assert waited < BOUND
    assert_same_end(folder, undisturbed)
    server.start()
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert code == 0, printed
    assert "logged all values to mlflow" in printed
    server.assert_has_the_csv(folder)
    logged = server.run_of(folder)[1]
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["score/wine"] > 0
    assert_same_end(folder, undisturbed)
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert "logged all values" not in printed  # there is nothing left


def test_a_run_resumed_without_its_server_trains_on(server, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = launch(*first(folder, LOGGERS), cwd=tmp_path)
    wait_until(lambda: has_trained(folder), process)
    process.send_signal(signal.SIGTERM)
    code, printed = finish(process)
    assert (code, status_of(folder)) == (143, "stopped"), printed
    assert server.run_of(folder)[1].info.status == "KILLED"
    server.stop()
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert code == 0, printed
    assert "mlflow is switched off: " in printed
    assert_same_end(folder, undisturbed)
    server.start()
    finish(launch(*again(folder), cwd=tmp_path))
    server.assert_has_the_csv(folder)


def test_without_a_server_no_run_starts(server, tmp_path):
    server.stop()
    folder = tmp_path / "run"
    began = time.monotonic()
    code, printed = finish(launch(*first(folder, LOGGERS), cwd=tmp_path))
    assert code == 1
    assert "error: logger.mlflow cannot be used: " in printed
    assert "Connection refused" in printed
    assert "Traceback" not in printed
    assert time.monotonic() - began < BOUND
    assert not (folder / "results.json").exists()
    server.start()
    code, printed = finish(launch(*first(folder, LOGGERS), cwd=tmp_path))  # into the same folder
    assert code == 0, printed
