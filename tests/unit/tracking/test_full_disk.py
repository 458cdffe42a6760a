"""A full disk switches TensorBoard off with one warning, without tracebacks of its thread."""

import errno
import logging
import threading

import pytest

pytest.importorskip("tensorboard")
from tensorboard.compat.tensorflow_stub.io import gfile

from msh.tracking.guard import Guard
from msh.tracking.trackers import RunTensorBoardLogger


def test_a_full_disk_switches_tensorboard_off_with_one_warning(tmp_path, monkeypatch, caplog, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest's own would fail the test
    (tmp_path / "metrics.csv").write_text("step,loss\n")
    guard = Guard("tensorboard", RunTensorBoardLogger(str(tmp_path)))
    with caplog.at_level(logging.WARNING):
        guard.logger.log_metrics({"loss": 1.0}, 1)
        guard.logger.experiment.flush()
        monkeypatch.setattr(gfile.LocalFileSystem, "_write", full)
        for step in range(2, 30):
            guard.logger.log_metrics({"loss": 1.0}, step)
        guard.close("success")
    assert not guard.on
    (record,) = caplog.records
    assert "tensorboard is switched off: [Errno 28] No space left on device" in record.getMessage()
    assert "Traceback" not in capsys.readouterr().err


def test_errors_of_other_threads_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    RunTensorBoardLogger(str(tmp_path))
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert "ZeroDivisionError" in capsys.readouterr().err
