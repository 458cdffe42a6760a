"""Row 16: `msh serve` with four tasks, beside FastAPI apps that serve a dense network for each.

    python -m benchmarks.serving PORT numbers|raw TASK...

serves such an app, which takes scaled numbers, or the same raw inputs as `msh serve`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from socket import socket
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor, nn

from benchmarks.networks import CLASSES
from benchmarks.records import Record
from benchmarks.timing import ROOT, Settings, whole_process
from msh.backbones import MLP

FEATURES = {"digits": 64, "wine": 13, "iris": 4, "breast_cancer": 30}
"""Task to its number of input features."""
NUMBERS = {name: json.dumps({"inputs": [[0.5] * size]}) for name, size in FEATURES.items()}
"""Requests to the app that takes numbers."""
WIDTH, DEPTH = 1000, 6
TINY = 8
"""Width of a network whose process has the memory of a server alone."""
CLIENTS = 16
"""Connections that send a request each at a time, on which a server's four tasks take turns."""
SECONDS = 4.0
"""Of load in a round."""
APPS = {
    "numbers": "a FastAPI app with four dense networks, which gets scaled numbers",
    "raw": "a FastAPI app with four dense networks, which gets the same raw inputs (Pillow, pandas, scikit-learn)",
}


@dataclass
class Load:
    """What clients measured in a round.

    Attributes:
        seconds: per request.
        wall: seconds of the round.
    """

    seconds: list[float]
    wall: float

    def quantile(self, share: float) -> float:
        """Return the time that this share of the requests was answered within."""
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


# ---- the apps


class Body(BaseModel):
    """A request to an app."""

    inputs: list[Any]


def plain_app(kind: str, tasks: Sequence[str]) -> FastAPI:
    """Serve a dense network per task, as one writes it without msh.

    Args:
        kind: of inputs, "numbers" or "raw".
        tasks: those to serve.
    """
    app = FastAPI()
    networks = {name: dense_network(FEATURES[name]) for name in tasks}
    if kind == "raw":
        from sklearn.preprocessing import StandardScaler  # noqa: F401  # without tasks, too, for the process's memory

    prepared = {name: preprocessing(name) if kind == "raw" else torch.tensor for name in tasks}

    @app.post("/predict/{task}")
    def predict(task: str, body: Body) -> dict[str, list]:
        with torch.inference_mode():
            found = networks[task](prepared[task](body.inputs)).softmax(1)
        return {"labels": found.argmax(1).tolist(), "probabilities": found.tolist()}

    return app


def dense_network(features: int) -> nn.Module:
    """Build a dense network for inputs with so many features."""
    return nn.Sequential(MLP((features,), WIDTH, DEPTH), nn.Linear(WIDTH, CLASSES)).eval()


def preprocessing(task: str) -> Callable[[list[Any]], Tensor]:
    """Fit the preprocessing of a task's raw inputs, as one writes it: images as base64 of files, tables as rows."""
    import numpy as np
    import pandas as pd
    from PIL import Image
    from sklearn import datasets
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task == "digits":
        scaler = StandardScaler().fit(datasets.load_digits().data / 16)

        def of_images(inputs: list[Any]) -> Tensor:
            files = (BytesIO(b64decode(one["image"])) for one in inputs)
            pixels = [
                np.asarray(Image.open(file).convert("L").resize((8, 8)), dtype=np.float64) / 255 for file in files
            ]
            return torch.from_numpy(scaler.transform(np.stack(pixels).reshape(len(pixels), -1))).float()

        return of_images
    frame = getattr(datasets, f"load_{task}")(as_frame=True).data
    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler()).fit(frame)

    def of_rows(inputs: list[Any]) -> Tensor:
        return torch.from_numpy(pipeline.transform(pd.DataFrame(inputs)[frame.columns])).float()

    return of_rows


# ---- the comparison


def serving(settings: Settings) -> Iterator[Record]:
    """Measure row 16."""
    rounds = settings.rounds(5)
    seconds = SECONDS if not settings.quick else 1.0
    loads: dict[str, list[Load]] = {"msh": [], **{kind: [] for kind in APPS}}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run, tiny = Path(folder) / "run", Path(folder) / "tiny"
        _train(run, WIDTH, DEPTH, settings)
        _train(tiny, TINY, 1, settings)
        commands = {kind: [sys.executable, "-m", "benchmarks.serving", "PORT", kind, *FEATURES] for kind in APPS}
        commands = {"msh": _serve(run), **commands}
        for number in range(rounds):
            for name, command in commands.items():
                with running(command, settings.threads) as (port, pid):
                    bodies = NUMBERS if name == "numbers" else examples(run)
                    load(port, bodies, 1.0)  # builds the tasks' modules
                    loads[name].append(load(port, bodies, seconds))
                    if number == 0:
                        memory[name] = bytes_of(pid)
        empty = {kind: commands[kind][: -len(FEATURES)] for kind in APPS} | {"msh": _serve(tiny)}
        for name, command in empty.items():
            with running(command, settings.threads) as (port, pid):
                if name == "msh":
                    load(port, examples(tiny), 1.0)
                memory[f"{name}, empty"] = bytes_of(pid)
        held = tensor_bytes(run)
    yield from records(settings, loads, memory, held)


def _train(run: Path, width: int, depth: int, settings: Settings) -> None:
    command = [sys.executable, "train.py", "+experiment=sequential", f"tasks=[{','.join(FEATURES)}]"]
    command += [f"backbone.width={width}", f"backbone.depth={depth}", "pruning=at_init", "trainer.max_epochs=1"]
    whole_process([*command, "logger=none", f"hydra.run.dir={run}"], settings.threads)


def _serve(run: Path) -> list[str]:
    return [sys.executable, "-m", "msh.cli.app", "serve", str(run), "--port", "PORT"]


def examples(run: Path) -> dict[str, str]:
    """Write a request per task of a run, with an input as `msh serve` shows it."""
    import msh
    from msh.inference.requests import example_input

    tasks = msh.load(run).tasks
    return {name: json.dumps({"inputs": [example_input(info.steps)]}) for name, info in tasks.items()}


def tensor_bytes(run: Path) -> dict[str, int]:
    """Count the bytes of the tensors that compute four tasks: in `msh serve`, and in four dense networks."""
    import msh
    from msh.subnetworks.sparse import FrozenForm

    predictor = msh.load(run, lean=True)
    modules = [module for task in predictor.tasks for module in predictor.module(task).modules()]
    held = {tensor.data_ptr(): tensor.nbytes for module in modules for tensor in module.buffers(recurse=False)}
    for form in (getattr(module, "form", None) for module in modules):
        if isinstance(form, FrozenForm):
            [block] = form.pattern.matrix(1).parts
            held |= {tensor.data_ptr(): tensor.nbytes for tensor in (form.sparse(), block.starts, block.column)}
    networks = [dense_network(features) for features in FEATURES.values()]
    dense = sum(parameter.nbytes for network in networks for parameter in network.parameters())
    return {"msh": sum(held.values()), "dense": dense}


def records(
    settings: Settings, loads: Mapping[str, Sequence[Load]], memory: Mapping[str, float], held: Mapping[str, int]
) -> Iterator[Record]:
    """Compare what the clients saw, and the processes' memory."""
    rounds = len(loads["msh"])
    who = f"`msh serve` with four tasks of 10 % of FC {DEPTH} x {WIDTH}, {CLIENTS} clients, one input per request"
    rates = {name: statistics.median(len(x.seconds) / x.wall for x in all) for name, all in loads.items()}
    for kind, to in APPS.items():
        for id, share, word in (("median", 0.5, "median"), ("p99", 0.99, "99th percentile")):
            times = {name: statistics.median(load.quantile(share) for load in loads[name]) for name in ("msh", kind)}
            what = f"{word} of a request's time, {who}: {1e3 * times['msh']:.1f} ms / {to}"
            value, dense = times["msh"] / times[kind], 1e3 * times[kind]
            yield settings.record(f"16-{kind}-{id}", what, value, "ratio (dense in ms)", dense, rounds)
        what = f"requests per second of {to} / of {who}: {rates['msh']:.0f}"
        value = rates[kind] / rates["msh"]
        yield settings.record(f"16-{kind}-rate", what, value, "ratio (dense per s)", rates[kind], rounds)
    unit = "ratio (dense in bytes)"
    for kind, to in APPS.items():
        what = f"memory of the process, {who}: {memory['msh'] / 1e6:.0f} MB / {to}"
        yield settings.record(f"16-{kind}-memory", what, memory["msh"] / memory[kind], unit, memory[kind], 1)
        own = {name: memory[name] - memory[f"{name}, empty"] for name in ("msh", kind)}
        what = (
            f"the same beyond the process without networks: {own['msh'] / 1e6:.0f} MB beyond "
            f"{memory['msh, empty'] / 1e6:.0f} MB (four tasks of one layer of {TINY} units) / {own[kind] / 1e6:.0f} MB "
            f"beyond {memory[f'{kind}, empty'] / 1e6:.0f} MB"
        )
        yield settings.record(f"16-{kind}-own", what, own["msh"] / own[kind], unit, own[kind], 1)
    what = f"bytes of the tensors that compute the four tasks, {who}: {held['msh'] / 1e6:.1f} MB / four dense networks"
    yield settings.record("16-tensors", what, held["msh"] / held["dense"], unit, held["dense"], 1)


@contextmanager
def running(command: Sequence[str], threads: int) -> Iterator[tuple[int, int]]:
    """Start a server, with a free port for the word PORT; give its port and process id once it answers."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(port) if word == "PORT" else word for word in command]
    process = subprocess.Popen(["env", f"OMP_NUM_THREADS={threads}", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with closing(HTTPConnection("127.0.0.1", port)) as connection:
                    connection.request("GET", "/openapi.json")
                    connection.getresponse().read()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {' '.join(words)}") from error
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


def load(port: int, bodies: Mapping[str, str], seconds: float) -> Load:
    """Send requests on several connections for some time."""
    start, names = time.perf_counter(), list(bodies)

    def send(first: int) -> list[float]:
        taken = []
        with closing(HTTPConnection("127.0.0.1", port)) as connection:
            for number in count(first):
                began = time.perf_counter()
                if began - start > seconds:
                    return taken
                name = names[number % len(names)]
                connection.request("POST", f"/predict/{name}", bodies[name], {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                taken.append(time.perf_counter() - began)
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        return taken

    with ThreadPoolExecutor(CLIENTS) as clients:
        taken = list(chain.from_iterable(clients.map(send, range(CLIENTS))))
    return Load(taken, time.perf_counter() - start)


def bytes_of(pid: int) -> float:
    """Return a process's proportional share of memory, in bytes (Linux)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * float(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss")


if __name__ == "__main__":
    import uvicorn

    port, kind, *served = sys.argv[1:]
    uvicorn.run(plain_app(kind, served), port=int(port), log_level="warning")
