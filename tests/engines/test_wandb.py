"""W&B's service and server: a run ends as its signals say, whatever happens to them, and loses no value."""

import os
import signal
import time

import pytest
import wandb_file
from disturbing import args, assert_same_end
from running import run
from tracked import again, finish, first, has_trained, launch, services, status_of, tree, wait_until, warnings_of
from wandb_file import assert_wandb_has_the_csv, curves

from wandb_server import serving

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

LOGGERS = ("csv", "wandb")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run("train.py", *args(folder), cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Run folder of an undisturbed run with W&B."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, printed = finish(launch(*first(folder, LOGGERS), cwd=folder.parent))
    assert code == 0, printed
    return folder


def offline_file(folder):
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return path


def test_the_offline_file_has_the_curves_and_not_the_terminal(whole):
    assert_wandb_has_the_csv(whole)
    path = offline_file(whole)
    assert not [record for record in wandb_file.records(path) if record.HasField("output_raw")]
    assert not (path.parent / "files" / "output.log").exists()


def test_the_user_can_have_the_terminal_stored(tmp_path):
    folder = tmp_path / "run"
    code, printed = finish(launch(*first(folder, LOGGERS), cwd=tmp_path, WANDB_CONSOLE="wrap"))
    assert code == 0, printed
    assert [record for record in wandb_file.records(offline_file(folder)) if record.HasField("output_raw")]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["process group", "every process", "every process, the run a little later"])
def test_a_signal_to_all_processes_stops_the_run_with_a_checkpoint(to, signum, undisturbed, tmp_path):
    """Ctrl-C signals the process group, `scancel` every process of the job, W&B's service too."""
    folder = tmp_path / "run"
    process = launch(*first(folder, LOGGERS), cwd=tmp_path)
    wait_until(lambda: has_trained(folder), process)
    if to == "process group":
        os.killpg(process.pid, signum)
    else:
        pids = tree(process.pid)
        assert len(pids) > 1, "W&B's service does not run"
        for pid in pids[:-1]:
            os.kill(pid, signum)
        time.sleep(0.3 * to.endswith("later"))
        process.send_signal(signum)
    code, printed = finish(process)
    assert code == 128 + signum, printed
    assert status_of(folder) == "stopped"
    assert f"stopped by {signum.name}: resume={folder} continues the run" in printed
    assert "Traceback" not in printed
    assert len([line for line in warnings_of(printed) if "wandb is switched off" in line]) == (to != "process group")
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert code == 0, printed
    assert_same_end(folder, undisturbed)
    assert_wandb_has_the_csv(folder)


def test_without_its_service_a_run_finishes_and_a_resume_logs_the_rest(undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = launch(*first(folder, LOGGERS), cwd=tmp_path)
    wait_until(lambda: has_trained(folder), process)
    for pid in services(process.pid):
        os.kill(pid, signal.SIGKILL)
    code, printed = finish(process)
    assert code == 0, printed
    (warning,) = warnings_of(printed)
    assert "wandb is switched off: " in warning
    assert "Traceback" not in printed
    assert_same_end(folder, undisturbed)
    code, printed = finish(launch(*again(folder), cwd=tmp_path))
    assert "logged all values to wandb" in printed
    assert_wandb_has_the_csv(folder)
    assert wandb_file.summary(max((folder / "wandb").glob("offline-run-*/*.wandb")))["status"] == "finished"


def test_without_a_server_a_run_finishes_and_a_resume_uploads_the_rest(undisturbed, tmp_path):
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_FINISH_TIMEOUT": "5"}
    folder, arguments = tmp_path / "run", ["logger.wandb.artifacts=false", "logger.wandb.timeout=20"]
    with serving() as (address, _):
        process = launch(*first(folder, LOGGERS), *arguments, cwd=tmp_path, WANDB_BASE_URL=address, **online)
        wait_until(lambda: has_trained(folder), process)
    began = time.monotonic()
    code, printed = finish(process)
    assert code == 0, printed
    (warning,) = warnings_of(printed)
    assert "wandb is switched off: " in warning  # at the next table, or at the end
    assert "Traceback" not in printed
    assert time.monotonic() - began < 240  # on a busy machine
    assert_same_end(folder, undisturbed)
    with serving() as (address, rows):
        online["WANDB_FINISH_TIMEOUT"] = "60"
        code, printed = finish(launch(*again(folder), cwd=tmp_path, WANDB_BASE_URL=address, **online))
        assert code == 0, printed
        assert "logged all values to wandb" in printed, printed
        logged = [(row["trainer/global_step"], k, v) for row in rows() for k, v in row.items()]
    assert set(curves(folder)) <= {(step, key, value) for step, key, value in logged if isinstance(value, float | int)}


def test_without_a_server_no_run_starts_online(tmp_path):
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    folder = tmp_path / "run"
    code, printed = finish(launch(*first(folder, LOGGERS), "logger.wandb.timeout=2", cwd=tmp_path, **online))
    assert code == 1
    assert "error: logger.wandb.mode = 'online', but W&B cannot be reached within 2 s" in printed
    assert not (folder / "results.json").exists()
