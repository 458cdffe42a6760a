"""A tracker's error switches it off, with one warning, and nothing else changes."""

import logging
import subprocess
import sys

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from msh.runs.results import Results
from msh.tracking.guard import LENGTH, Guard, cause_of
from msh.tracking.tracking import Tracking
from msh.training.preemption import PreemptedError


class Fake(DummyLogger):
    """Records calls; those named in `failing` raise."""

    def __init__(self, failing=(), error=None):
        super().__init__()
        self.calls, self.failing, self.error = [], set(failing), error or RuntimeError("gone")

    def _call(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise self.error

    def log_hyperparams(self, params):
        self._call("log_hyperparams")
        self.params = params

    def log_metrics(self, metrics, step=None):
        self._call("log_metrics")

    def log_final(self, values, step):
        self.log_metrics(values, step)
        self.calls.append("after log_metrics")

    def finalize(self, status):
        self._call("finalize")

    def close(self, status):
        self._call(f"close {status}")

    def abandon(self):
        self.calls.append("abandon")
        raise SystemExit(1)


def test_the_first_error_switches_a_tracker_off_with_one_warning(caplog):
    guard = Guard("mine", Fake({"log_metrics"}))
    for step in range(3):
        guard.logger.log_metrics({"a": 1.0}, step)
    assert not guard.on
    assert guard.logger.calls == ["log_metrics"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("mine is switched off: gone. The run is not affected")


def test_a_method_fails_as_a_whole():
    logger = Guard("mine", Fake({"log_metrics"})).logger
    logger.log_final({"a": 1.0}, 0)
    assert logger.calls == ["log_metrics"]


def test_a_tracker_without_errors_is_as_before():
    guard = Guard("mine", Fake())
    guard.logger.log_final({"a": 1.0}, 0)
    guard.close("success")
    assert guard.logger.calls == ["log_metrics", "after log_metrics", "finalize", "close success"]
    assert guard.on


@pytest.mark.parametrize("failing", ["finalize", "close stopped"])
def test_an_error_at_the_end_passes_neither_and_what_was_started_is_freed(failing):
    guard = Guard("mine", Fake({failing}))
    guard.close("stopped")
    assert not guard.on
    assert guard.logger.calls[-1] == "abandon"


def test_signals_pass():
    guard = Guard("mine", Fake({"log_metrics"}, PreemptedError(15)))
    with pytest.raises(PreemptedError):
        guard.logger.log_metrics({})
    assert guard.on


def test_causes_name_the_first_error_and_no_secret_and_are_short():
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as first:
            raise RuntimeError(f"no answer from http://me:hidden@host/{'x' * 500}\nmore") from first
    except RuntimeError as error:
        cause = cause_of(error)
    assert cause.startswith("no answer from http://***@host/xxx")
    assert cause.endswith("x... ([Errno 111] Connection refused)")
    assert len(cause) < 2 * LENGTH


def test_a_cause_is_not_the_signal_that_ends_the_run(caplog):
    guard = Guard("mine", Fake({"finalize"}))
    try:
        raise PreemptedError(15)
    except PreemptedError:
        guard.close("stopped")
    assert "mine is switched off: gone. The run" in caplog.text


# ---- a run's start


def started(folder, logger, strict, config=None):
    tracking = Tracking(folder, {"mine": logger}, (), writes=True)
    tracking.begin(config or {}, {}, strict)
    return tracking


def test_at_the_start_of_a_new_run_an_error_names_the_tracker(tmp_path):
    logger = Fake({"log_hyperparams"})
    with pytest.raises(ConnectionError, match=r"logger\.mine cannot be used: gone; logger=csv trains without"):
        started(tmp_path, logger, strict=True)
    assert logger.calls == ["log_hyperparams", "finalize", "close failed"]


def test_an_error_for_users_stays_as_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"^log in$"):
        started(tmp_path, Fake({"log_hyperparams"}, ValueError("log in")), strict=True)


def test_a_resumed_run_starts_without_a_tracker_that_fails(tmp_path, caplog):
    tracking = started(tmp_path, Fake({"log_hyperparams"}), strict=False)
    assert (tracking.loggers, tracking.trackers, tracking.off) == ([], [], ["mine"])
    assert "mine is switched off: gone" in caplog.text


def test_trackers_get_no_settings_of_loggers_and_no_passwords(tmp_path):
    logger = Fake()
    config = {"seed": 0, "logger": {"mine": {"key": "hidden"}}, "tasks": {"a": {"url": "https://me:hidden@host/data"}}}
    started(tmp_path, logger, True, config)
    assert logger.params == {"seed": 0, "tasks": {"a": {"url": "https://***@host/data"}}}


# ---- a full disk

WRITES = """
import resource, sys
from pathlib import Path
from msh.tracking.guard import Guard
from msh.tracking.trackers import RunTensorBoardLogger

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
guard = Guard("tensorboard", RunTensorBoardLogger(sys.argv[1]))
for step in range(500):
    guard.logger.log_metrics({"a/val/loss": step / 8}, step)
    guard.logger.save()
guard.close("success")
print("on" if guard.on else "off")
"""


def test_tensorboard_on_a_full_disk_is_switched_off(tmp_path):
    """The limit on the size of files stands for a disk that is full."""
    pytest.importorskip("tensorboard")
    done = subprocess.run([sys.executable, "-c", WRITES, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "off\n"
    assert done.stderr.count("is switched off") == 1
    assert "File too large" in done.stderr


def test_results_name_the_trackers_that_are_off(tmp_path):
    results = Results("toy", 0, [], {}, run_id="0a1b2c3d")
    results.incomplete_trackers = ["mine"]
    results.save(tmp_path)
    assert Results.load(tmp_path).incomplete_trackers == ["mine"]
