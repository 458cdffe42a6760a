"""A short run with stages of one and of several tasks, and ways to disturb it."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import torch
from running import SMALL, finish
from safetensors.torch import load_file

SETTINGS = [
    "tasks=[digits,wine,iris]",
    "curriculum=[[digits],{tasks:[wine,iris],max_epochs:12}]",
    "trainer.max_epochs=6",
    "++callbacks.stop._target_=msh.training.callbacks.EarlyStoppingPerTask",  # iris stops before wine
    "++callbacks.stop.patience=1",
    "++callbacks.stop.min_delta=0.005",
    "pruning.begin=0.3",
    "pruning.end=0.7",
    "checkpoint.min_seconds=0",
    "tasks.digits.batch_size=32",
    "backbone.norm=true",
    "trainer.log_every_n_steps=10",
]


def args(folder, logger="csv"):
    return ["+experiment=sequential", *SETTINGS, *SMALL, f"logger={logger}", f"hydra.run.dir={folder}"]


def kill_when(process, condition, signum=signal.SIGKILL):
    """A signal as soon as the condition holds; returns what `finish` does."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.005)
    process.send_signal(signum)
    return finish(process)


def kill_worker(process, folder):
    """Kill the process that works in a run folder, once it has written a checkpoint; return its id."""
    seen = set(folder.glob("checkpoints/*/*.*.ckpt"))
    while not set(folder.glob("checkpoints/*/*.*.ckpt")) - seen:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    (worker,) = {int(fd.parts[2]) for fd in Path("/proc").glob("[0-9]*/fd/*") if is_link_to(fd, folder / ".lock")}
    os.kill(worker, signal.SIGKILL)
    return worker


def is_link_to(path, target):
    try:
        return os.readlink(path) == str(target)
    except OSError:
        return False


def assert_same_end(folder, undisturbed):
    a, b = load_file(undisturbed / "network.safetensors"), load_file(folder / "network.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    results = [json.loads((f / "results.json").read_text()) for f in (undisturbed, folder)]
    for key in ("status", "matrix", "forgetting", "bwt", "capacity", "guarantee", "curriculum"):
        assert results[0][key] == results[1][key], key
    rows = [list(csv.DictReader((f / "metrics.csv").read_text().splitlines())) for f in (undisturbed, folder)]
    assert rows[0] == rows[1]
