"""Disturb runs that log to W&B and MLflow: none is lost, each ends as its signals say, and no secret is written."""

import json
import os
import random
import signal
import time

import pytest
from disturbing import args, assert_same_end
from tracked import MLflowServer, again, finish, first, launch, services, status_of, tree, wait_until, warnings_of
from wandb_file import assert_wandb_has_the_csv

pytest.importorskip("flask", reason="the MLflow server is not installed: pip install mlflow")

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

KILLS = 50
LOGGERS = ("csv", "wandb", "mlflow")
ADDRESS_PASSWORD = "planted-in-the-address"
SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "WANDB_API_KEY": "f1a7ed" * 6 + "f1a7",
    "WANDB__EXTRA_HTTP_HEADERS": '{"Authorization": "planted-header"}',
}
PLANTED = [ADDRESS_PASSWORD, "planted-header", *(value for value in SECRETS.values() if "{" not in value)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    kept = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    kept.start()
    yield kept
    kept.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(run folder, seconds from the first results.json to the end) of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = launch(*args(folder), cwd=folder.parent)
    wait_until((folder / "results.json").exists, process)
    began = time.monotonic()
    code, printed = finish(process)
    assert code == 0, printed
    return folder, time.monotonic() - began


def with_secrets(server):
    return SECRETS | {"MLFLOW_TRACKING_URI": server.address.replace("://", f"://me:{ADDRESS_PASSWORD}@")}


def assert_no_secret(folder, printed):
    """No planted secret is in a file of the folder, nor in the output."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for secret in PLANTED:
        assert secret not in printed
        assert not [path for path, content in contents.items() if secret.encode() in content]


def kill(process):
    """As a lack of memory does."""
    process.send_signal(signal.SIGKILL)


def interrupt_group(process):
    """As Ctrl-C does."""
    os.killpg(process.pid, signal.SIGINT)


def end_group(process):
    """As a supervisor does."""
    os.killpg(process.pid, signal.SIGTERM)


def end_all(process):
    """As `scancel` does: W&B's processes get the signal first."""
    for pid in tree(process.pid):
        os.kill(pid, signal.SIGTERM)


def kill_service(process):
    """W&B's service dies alone."""
    for pid in services(process.pid):
        os.kill(pid, signal.SIGKILL)


WAYS = {kill: -9, interrupt_group: 130, end_group: 143, end_all: 143, kill_service: 0}
"""Ways to disturb a run, to the exit code where it is still training then."""


@pytest.mark.parametrize("number", range(KILLS))
def test_a_disturbed_run_is_resumed_and_ends_bitwise_equal(number, server, undisturbed, tmp_path):
    whole, seconds = undisturbed
    folder, (disturb, expected) = tmp_path / "run", list(WAYS.items())[number % len(WAYS)]
    variables = with_secrets(server)
    process = launch(*first(folder, LOGGERS), cwd=tmp_path, **variables)
    wait_until(lambda: any(folder.glob("wandb/offline-run-*")) and (folder / "metrics.csv").exists(), process)
    moment = random.Random(number).uniform(number, number + 1) / KILLS
    time.sleep(moment * seconds)
    was_over = process.poll() is not None
    if not was_over:
        disturb(process)
    code, printed = finish(process)
    status = status_of(folder)
    outcomes = {(expected, {-9: "running", 0: "finished"}.get(expected, "stopped")), (0, "finished")}
    if status == "finished":  # the signal came after the last result, while the trackers were ending
        outcomes.add((expected, "finished"))
    assert (code, status) in outcomes, printed
    assert "Traceback" not in printed
    resumed_code, also = finish(launch(*again(folder), cwd=tmp_path, **variables))
    assert resumed_code == 0, also
    assert_same_end(folder, whole)
    assert json.loads((folder / "results.json").read_text())["incomplete_trackers"] == []
    assert_no_secret(tmp_path, printed + also)
    assert_wandb_has_the_csv(folder)
    server.assert_has_the_csv(folder)
    print(f"moment {moment:.2f}: {disturb.__name__}, exit code {code}, {status}")


def test_a_failed_start_shows_no_secret(server, tmp_path):
    variables = with_secrets(server) | {"MLFLOW_TRACKING_URI": f"http://me:{ADDRESS_PASSWORD}@127.0.0.1:9"}
    code, printed = finish(launch(*first(tmp_path / "run", LOGGERS), cwd=tmp_path, **variables))
    assert code == 1
    assert "Connection refused" in printed
    assert not (tmp_path / "run").exists()
    assert_no_secret(tmp_path, printed)


def test_a_report_and_all_trackers_have_no_secret(server, tmp_path):
    variables, folder = with_secrets(server), tmp_path / "run"
    loggers = [*LOGGERS, "tensorboard"]
    arguments = [argument for argument in first(folder, loggers) if argument != "report=false"]
    code, printed = finish(launch(*arguments, "owner_maps=1", cwd=tmp_path, **variables))
    assert code == 0, printed
    assert not warnings_of(printed)
    assert (folder / "report.html").is_file()
    assert_no_secret(tmp_path, printed)
    assert_no_secret(server.folder, "")
    logged = server.run_of(folder)[1]
    assert not [name for name in logged.data.params if name.startswith("logger")]


def test_a_password_in_the_config_is_refused_before_it_is_written(tmp_path):
    setting = f"logger.mlflow.tracking_uri=http://me:{ADDRESS_PASSWORD}@127.0.0.1:9"
    code, printed = finish(launch(*first(tmp_path / "run", LOGGERS), setting, cwd=tmp_path))
    assert code == 1
    assert "error: logger.mlflow.tracking_uri must be an address without a password" in printed
    assert "http://***@127.0.0.1:9" in printed
    assert ADDRESS_PASSWORD not in printed
    assert not (tmp_path / "run").exists()
