"""Runs with trackers, ways to disturb them, and a real MLflow server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from disturbing import args
from running import command
from running import finish as finish_within
from wandb_file import assert_same_values, curves

START = 600
"""Seconds within which a server answers, also on a busy machine."""


def launch(*arguments, cwd, **variables):
    """Start train.py as the leader of a process group; None unsets a variable."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | variables
    return subprocess.Popen(
        command("train.py", *arguments),
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """(exit code, all it printed), also on a busy machine."""
    return finish_within(process, seconds=900)


def first(folder, loggers):
    """Arguments of a run in this folder."""
    return args(folder, f"[{','.join(loggers)}]")


def again(folder):
    """Arguments that resume it."""
    return ["+experiment=sequential", f"resume={folder}"]


def wait_until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.005)


def has_trained(folder):
    """Whether the first fit has made a checkpoint."""
    return any(folder.glob("checkpoints/*/epoch-00001.*.ckpt"))


def status_of(folder):
    return json.loads((folder / "results.json").read_text())["status"]


def tree(pid):
    """A process's descendants, youngest first, and itself."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [*(each for child in children for each in tree(child)), pid]


def services(pid):
    """Processes of W&B that a process has started."""
    return [each for each in tree(pid)[:-1] if "wandb" in Path(f"/proc/{each}/comm").read_text()]


def warnings_of(printed):
    """Lines of warnings, but Lightning's of the first run in an experiment of MLflow."""
    return [line for line in printed.splitlines() if re.search(r"\bWARNING\b(?!.*Creating it)", line)]


class MLflowServer:
    """An MLflow server on this machine, with its store in a folder; it can be stopped and started again."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/store.db"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *store],
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # or it starts eight processes
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=1):
                return True
        except OSError:
            return False

    def signal(self, signum):
        os.killpg(self.process.pid, signum)

    def stop(self):
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def run_of(self, folder):
        """(client, run) that a run folder is logged to."""
        from mlflow.tracking import MlflowClient

        client, run_id = MlflowClient(self.address), json.loads((folder / "results.json").read_text())["run_id"]
        experiment = client.get_experiment_by_name("sequential")
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`msh.run_id` = '{run_id}'")
        return client, run

    def assert_has_the_csv(self, folder):
        """What MLflow has are the curves of metrics.csv."""
        client, run = self.run_of(folder)
        logged = []
        for name in {name for _, name, _ in curves(folder)}:
            logged += [(p.step, name, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        assert_same_values(logged, curves(folder))
