"""The W&B run: names, modes, resumes, artifacts and missing networks; it never asks the user anything."""

import logging
import subprocess
import sys
import time

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from msh.runs.results import Results
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.wandb_file import STEP, read_offline, records
from msh.tracking.wandb_run import new_run_id, wandb_logger
from wandb_server import serving

KEY = "0" * 40
NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder, in a home where nobody is logged in; any question is an error."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    Results("toy", 3, [], {}, run_id="0a1b2c3d").save(tmp_path)
    return tmp_path


def settings_of(folder, **arguments):
    return wandb_logger(str(folder), **({"project": "msh"} | arguments))._wandb_init


def mode_of(folder, **arguments):
    return settings_of(folder, **arguments)["mode"]


def log_in(folder, host="api.wandb.ai"):
    (folder / "home" / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    (folder / "home" / ".netrc").chmod(0o600)


# ---- mode


def test_without_a_login_a_run_is_offline(run):
    assert mode_of(run) == "offline"


def test_a_key_in_the_environment_is_a_login(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode_of(run) == "online"


def test_a_login_in_the_home_is_found(run):
    log_in(run)
    assert mode_of(run) == "online"


def test_a_login_to_another_host_is_none(run, monkeypatch):
    log_in(run, "elsewhere.example")
    assert mode_of(run) == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example/wandb")
    assert mode_of(run) == "online"


def test_a_damaged_login_file_is_none(run):
    (run / "home" / ".netrc").write_text("machine")
    assert mode_of(run) == "offline"


def test_the_setting_wins_over_the_environment_and_that_over_a_login(run, monkeypatch):
    log_in(run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode_of(run) == "offline"
    assert mode_of(run, mode="disabled") == "disabled"


WRONG = {
    r"logger.wandb.mode must be one of .*, got 'ofline'; did you mean 'offline'": {"mode": "ofline"},
    r"logger.wandb.fallback must be one of offline.*, got 'online'": {"fallback": "online"},
    r"logger.wandb.mode = 'online' needs a login": {"mode": "online"},
    r"logger.wandb.project names no project": {"project": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_invalid_settings_are_refused(message, run):
    with pytest.raises(ValueError, match=message):
        settings_of(run, **WRONG[message])


# ---- names


def test_the_runs_id_is_that_of_results_json_so_that_it_continues(run):
    settings = settings_of(run)
    assert (settings["id"], settings["resume"]) == ("0a1b2c3d", "allow")


def test_the_id_that_a_sweeps_agent_has_chosen_is_taken(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "chosen00")
    assert new_run_id() != "chosen00"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert new_run_id() == "chosen00"


def test_group_job_type_and_tags_name_experiment_seed_and_multirun_unless_the_user_sets_them(run, monkeypatch):
    settings = settings_of(run, tags=["mine"])
    assert (settings["group"], settings["job_type"]) == ("toy", "train")
    assert settings["tags"] == ["toy", "seed-3", "mine"]
    job = type("Job", (), {"mode": RunMode.MULTIRUN, "sweep": type("Sweep", (), {"dir": "outputs/toy/monday"})})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    settings = settings_of(run)
    assert (settings["group"], settings["job_type"]) == ("toy/monday", "multirun")
    settings = settings_of(run, group="mine", job_type="ablation")
    assert (settings["group"], settings["job_type"]) == ("mine", "ablation")


# ---- console


def test_one_line_names_the_command_that_uploads_an_offline_run(run, caplog, capfd):
    logger = wandb_logger(str(run), project="msh", mode="offline")
    with caplog.at_level(logging.INFO):
        logger.log_metrics({"a/val/loss": 0.0}, 0)
    end(logger, run)
    (message,) = [record.message for record in caplog.records if record.name.startswith("msh")]
    assert f"wandb sync {run / 'wandb'}/offline-run-" in message
    assert capfd.readouterr().out == ""


# ---- resumes


def end(logger, folder):
    """End a session; W&B names its folder by the second, in which a test has several."""
    logger.close("success")
    new = next((folder / "wandb").glob("offline-run-2*"))
    while not any(record.HasField("exit") for record in records(new / "run-0a1b2c3d.wandb")):
        time.sleep(0.01)  # W&B's own process writes it
    new.rename(new.with_name(f"offline-run-1{len(list((folder / 'wandb').iterdir())):03}-0a1b2c3d"))


def session(folder, steps):
    """Log steps to CSV and W&B, as a run does."""
    csv_logger, logger = RunCSVLogger(str(folder)), wandb_logger(str(folder), project="msh", mode="offline")
    for step in steps:
        for each in (csv_logger, logger):
            each.log_metrics({"a/val/loss": step / 8}, step)
            each.save()
    end(logger, folder)


def points(folder):
    """(step, value) of all that W&B has, in the order in which the sessions' files are uploaded."""
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(path):
            row = {item.nested_key[0]: item.value_json for item in record.history.item}
            if "a/val/loss" in row:
                found.append((int(row[STEP]), float(row["a/val/loss"]), record.history.step.num))
    return found


def files(folder):
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def expected(steps):
    return [(step, step / 8) for step in steps]


def test_a_resumed_run_continues_and_logs_no_step_twice(run):
    session(run, range(4))
    RunCSVLogger(str(run)).rewind_to(1)  # it resumes from an earlier checkpoint
    session(run, range(2, 6))
    found = points(run)
    assert [point[:2] for point in found] == expected(range(6))
    assert [point[2] for point in found] == sorted({point[2] for point in found}), "W&B drops rows that do not go up"
    assert len(files(run)) == 2


def test_values_that_a_killed_session_lost_are_taken_from_the_csv(run):
    session(run, range(4))
    path = files(run)[0]
    while len(points(run)) > 2:
        path.write_bytes(path.read_bytes()[:-100])
    assert len(points(run)) == 2
    session(run, range(4, 6))
    assert [point[:2] for point in points(run)] == expected(range(6))


def test_a_session_that_lost_everything_does_not_stop_the_upload(run):
    session(run, range(3))
    lost = files(run)[0]
    lost.write_bytes(lost.read_bytes()[:7])  # as W&B leaves it when it is killed early
    session(run, range(3, 5))
    assert [point[:2] for point in points(run)] == expected(range(5))
    assert [path.parent.name for path in (run / "wandb").glob("*/*.wandb") if "lost-offline" in str(path)]


def test_without_a_csv_a_warning_names_the_gap(run, caplog):
    session(run, range(2))
    (run / "metrics.csv").unlink()
    logger = wandb_logger(str(run), project="msh", mode="offline")
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"a/val/loss": 0.25}, 2)
    end(logger, run)
    assert "W&B may lack the last values" in caplog.text
    assert [point[:2] for point in points(run)] == expected(range(3))


def test_a_file_is_recorded_once_for_each_alias(run):
    path = run / "wine.safetensors"
    path.write_bytes(b"weights")
    for aliases in (["stage-0"], ["stage-0", "final"]):
        logger = wandb_logger(str(run), project="msh", mode="offline")
        logger.log_metrics({"a/val/loss": 0.0}, 0)
        logger.log_file(path, "subnetwork-of a/b", "subnetwork", aliases, {"density": 0.1})
        end(logger, run)
    found = [r.artifact for path in files(run) for r in records(path) if r.HasField("artifact")]
    assert [(a.name, sorted(a.aliases)) for a in found] == [
        ("subnetwork-of-a-b", ["latest", "stage-0"]),
        ("subnetwork-of-a-b", ["final", "latest"]),
    ]
    assert read_offline(run / "wandb").artifacts >= {("subnetwork-of-a-b", "final"), ("subnetwork-of-a-b", "stage-0")}


def test_without_artifacts_no_file_is_recorded(run):
    logger = wandb_logger(str(run), project="msh", mode="offline", artifacts=False)
    logger.log_metrics({"a/val/loss": 0.0}, 0)
    logger.use_data("wine", {"examples": 3})
    logger.log_file(run / "results.json", "x", "network", ["final"], {})
    end(logger, run)
    assert not [r for path in files(run) for r in records(path) if r.HasField("artifact")]


# ---- no network


@pytest.fixture
def nowhere(run, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    wandb.teardown()  # it reads the environment once
    yield run
    wandb.teardown()


def test_without_a_network_an_online_run_fails_with_a_solution(nowhere):
    logger = wandb_logger(str(nowhere), project="msh", mode="online", timeout=1)
    with pytest.raises(ConnectionError, match=r"cannot be reached within 1 s: .*logger\.wandb\.mode=offline logs into"):
        logger.log_hyperparams({"seed": 3})


def test_a_run_with_a_fallback_logs_offline_with_a_warning(nowhere, caplog):
    logger = wandb_logger(str(nowhere), project="msh", mode="online", timeout=1, fallback="offline")
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"a/val/loss": 0.0}, 0)
    end(logger, nowhere)
    assert "W&B cannot be reached" in caplog.text
    assert f"wandb sync {nowhere / 'wandb'}" in caplog.text
    assert [point[:2] for point in points(nowhere)] == [(0, 0.0)]


# ---- a network, and W&B at its other end


@pytest.fixture
def server(run, monkeypatch):
    """Rows of the run that a W&B server has, which this folder's run is logged to."""
    import wandb

    with serving() as (address, rows):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb.teardown()
        yield lambda: [(row[STEP], row["a/val/loss"]) for row in rows() if "a/val/loss" in row]
        wandb.teardown()


def test_online_a_resumed_run_continues_and_logs_no_step_twice(run, server):
    for steps in (range(4), range(2, 6)):
        RunCSVLogger(str(run)).rewind_to(1)
        logger = wandb_logger(str(run), project="msh", timeout=20)
        for step in steps:
            logger.log_metrics({"a/val/loss": step / 8}, step)
        logger.close("success")
    assert server() == expected(range(6))


def test_wandb_sync_appends_the_sessions_of_a_resumed_run(run, server):
    session(run, range(4))
    RunCSVLogger(str(run)).rewind_to(1)
    session(run, range(2, 6))
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", run / "wandb"], cwd=run, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert server() == expected(range(6))
    assert len(list((run / "wandb").glob("*/*.synced"))) == 2


def test_a_run_that_goes_online_uploads_its_offline_values(run, server):
    session(run, range(4))
    logger = wandb_logger(str(run), project="msh", timeout=20)
    logger.log_metrics({"a/val/loss": 0.5}, 4)
    logger.close("success")
    assert server() == expected(range(5))
    assert [path.parent.name for path in (run / "wandb").glob("replaced-*/*.wandb")]
