"""Two processes share one search, its study in a file or in PostgreSQL: each trial is done once, and none is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from disturbing import is_link_to
from running import SMALL, finish, run, start

from msh.files.yaml_files import read_config

optuna = pytest.importorskip("optuna", reason="needs Optuna: `pip install 'msh[search]'`")

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

TRIALS = 3
PASSWORD = "not-to-be-stored"
SEARCH = [
    *("+experiment=sequential", "tasks=[wine,iris]", "trainer.max_epochs=3", "checkpoint.min_seconds=0"),
    *("logger=none", *SMALL, "hparams_search=tpe", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweep.dir=jobs"),
]


@pytest.fixture(scope="module")
def server():
    """Address of a database on this machine."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("needs PostgreSQL: `make test-engines` installs it on Debian")
    pytest.importorskip("psycopg", reason="needs psycopg: `make test-engines` installs it")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    (folder / "password").write_text(PASSWORD)
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data = folder / "data"
    settings = [f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--username=searcher", "--no-sync"]
    subprocess.run([*as_user, programs[-1], f"--pgdata={data}", *settings], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*as_user, programs[-1].with_name("postgres"), *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while "ready to accept connections" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql+psycopg://searcher:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # ends its connections, and itself
        process.wait(60)
        shutil.rmtree(folder)


@pytest.fixture(params=["file", "PostgreSQL"])
def storage(request, monkeypatch):
    """Overrides that say where the study is, and a function from the sweep's folder to the study."""
    if request.param == "file":
        journal = optuna.storages.journal.JournalFileBackend
        return [], lambda jobs: optuna.load_study(
            study_name="search", storage=optuna.storages.JournalStorage(journal(str(jobs / "study.log")))
        )
    address = request.getfixturevalue("server")
    monkeypatch.setenv("STUDY_ADDRESS", address)

    def study_in(jobs):
        opened = optuna.storages.RDBStorage(address)
        study = SimpleNamespace(trials=optuna.load_study(study_name=str(jobs), storage=opened).trials)
        opened.remove_session()
        opened.engine.dispose()
        return study

    return ["hydra.sweeper.storage=${oc.env:STUDY_ADDRESS}"], study_in


def folder_of(process, jobs):
    """The run folder in which a process works, if it has written a checkpoint there; or None."""
    links = list(Path(f"/proc/{process.pid}/fd").glob("*"))
    for folder in (path for path in jobs.glob("*") if path.name.isdigit()):
        if any(folder.glob("checkpoints/*/*.*.ckpt")) and any(is_link_to(fd, folder / ".lock") for fd in links):
            return folder
    return None


def wait_until_working(process, jobs):
    while (folder := folder_of(process, jobs)) is None:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    return folder


def finished_folders(jobs):
    paths = [path for path in jobs.glob("*/results.json") if json.loads(path.read_text())["status"] == "finished"]
    return [path.parent for path in paths]


def test_two_processes_share_a_search_and_one_that_is_killed_loses_no_trial(storage, tmp_path):
    where, study_in = storage
    jobs = tmp_path / "jobs"
    first = start("train.py", *SEARCH, *where, cwd=tmp_path)
    cut = wait_until_working(first, jobs)
    first.send_signal(signal.SIGSTOP)  # it keeps its trial
    second = start("train.py", *SEARCH, *where, cwd=tmp_path)
    assert wait_until_working(second, jobs) != cut
    first.send_signal(signal.SIGKILL)
    finish(first)
    code, printed = finish(second, 1200)
    assert code == 0, printed
    assert "resuming sequential" in printed
    assert cut in finished_folders(jobs)
    trials = study_in(jobs).trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * TRIALS
    done = finished_folders(jobs)
    rates = sorted(read_config(folder / ".hydra" / "config.yaml").optimizer.lr for folder in done)
    assert rates == sorted(trial.params["optimizer.lr"] for trial in trials)  # each once
    printed = run("train.py", *SEARCH, *where, cwd=tmp_path)
    assert "Launching" not in printed
    assert len(study_in(jobs).trials) == TRIALS
    secrets = [path for path in jobs.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert secrets == []


def test_a_search_without_its_process_continues_with_the_trials_that_are_left(storage, tmp_path):
    where, study_in = storage
    jobs = tmp_path / "jobs"
    process = start("train.py", *SEARCH, *where, cwd=tmp_path)
    wait_until_working(process, jobs)
    process.send_signal(signal.SIGKILL)
    finish(process)
    run("train.py", *SEARCH, *where, "hydra.sweeper.n_trials=2", cwd=tmp_path)
    assert [trial.state for trial in study_in(jobs).trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert len(finished_folders(jobs)) == 2


def test_a_database_that_is_not_there_is_named_without_the_password(server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_ADDRESS", server.replace(PASSWORD, "wrong-" + PASSWORD))
    code, printed = finish(start("train.py", *SEARCH, "hydra.sweeper.storage=${oc.env:STUDY_ADDRESS}", cwd=tmp_path))
    assert code == 1
    assert "error: the database of hydra.sweeper.storage cannot be reached: " in printed
    assert PASSWORD not in printed
