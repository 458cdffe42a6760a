"""Row 16: `msh serve` with four tasks, beside a plain FastAPI app that serves a dense network for each.

    python -m benchmarks.serving PORT FEATURES...

serves that app: dense networks for inputs with so many features.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import chain, count
from pathlib import Path
from socket import socket

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.networks import CLASSES
from benchmarks.records import Record
from benchmarks.timing import ROOT, Settings, whole_process
from msh.backbones import MLP

FEATURES = {"digits": 64, "wine": 13, "iris": 4, "breast_cancer": 30}
"""Task to its number of input features."""
BODIES = {name: json.dumps({"inputs": [[0.5] * size]}) for name, size in FEATURES.items()}
"""Requests to the plain app."""
WIDTH, DEPTH = 1000, 6
TRAIN = ["+experiment=sequential", f"tasks=[{','.join(FEATURES)}]", f"backbone.width={WIDTH}"]
TRAIN += [f"backbone.depth={DEPTH}", "pruning=at_init", "trainer.max_epochs=1", "logger=none"]
CLIENTS = 16
"""Connections that send a request each at a time, on which a server's four tasks take turns."""
SECONDS = 4.0
"""Of load in a round."""


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


class Body(BaseModel):
    """A request to the plain app."""

    inputs: list[list[float]]


def plain_app(features: Sequence[int]) -> FastAPI:
    """Serve a dense network per task, as one writes it without msh."""
    app, names = FastAPI(), list(FEATURES)
    networks = [torch.nn.Sequential(MLP((n,), WIDTH, DEPTH), torch.nn.Linear(WIDTH, CLASSES)).eval() for n in features]

    @app.post("/predict/{task}")
    def predict(task: str, body: Body) -> dict[str, list]:
        with torch.inference_mode():
            found = networks[names.index(task)](torch.tensor(body.inputs)).softmax(1)
        return {"labels": found.argmax(1).tolist(), "probabilities": found.tolist()}

    return app


def serving(settings: Settings) -> Iterator[Record]:
    """Measure row 16."""
    rounds = settings.rounds(5)
    seconds = SECONDS if not settings.quick else 1.0
    loads: dict[str, list[Load]] = {"msh": [], "dense": []}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        whole_process([sys.executable, "train.py", *TRAIN, f"hydra.run.dir={run}"], settings.threads)
        commands = {
            "msh": [sys.executable, "-m", "msh.cli.app", "serve", run, "--port"],
            "dense": [sys.executable, "-m", "benchmarks.serving"],
        }
        memory: dict[str, float] = {}
        for number in range(rounds):
            for name, command in commands.items():
                tail = list(FEATURES.values()) if name == "dense" else []
                with running(command, tail, settings.threads) as (port, pid):
                    bodies = bodies_of(port) if name == "msh" else BODIES
                    load(port, bodies, 1.0)  # builds the tasks' modules
                    loads[name].append(load(port, bodies, seconds))
                    if number == 0:
                        memory[name] = bytes_of(pid)
        with running(commands["dense"], [], settings.threads) as (_, pid):
            empty = bytes_of(pid)
    yield from records(settings, loads, memory, empty)


def records(
    settings: Settings, loads: Mapping[str, Sequence[Load]], memory: Mapping[str, float], empty: float
) -> Iterator[Record]:
    """Compare what the clients saw, and the processes' memory."""
    rounds = len(loads["msh"])
    who = f"`msh serve` with four tasks of 10 % of FC {DEPTH} x {WIDTH}, {CLIENTS} clients, one input per request"
    to = "a FastAPI app with four dense networks"
    for id, share, word in (("median", 0.5, "median"), ("p99", 0.99, "99th percentile")):
        times = {name: statistics.median(load.quantile(share) for load in all) for name, all in loads.items()}
        what, ratio = f"{word} of a request's time, {who} / {to}", times["msh"] / times["dense"]
        yield settings.record(f"16-{id}", what, ratio, "ratio (dense in ms)", 1e3 * times["dense"], rounds)
    rates = {name: statistics.median(len(x.seconds) / x.wall for x in all) for name, all in loads.items()}
    what = f"requests per second of {to} / of {who}"
    yield settings.record("16-rate", what, rates["dense"] / rates["msh"], "ratio (dense per s)", rates["dense"], rounds)
    what, unit = f"memory of the process, {who} / {to}", "ratio (dense in bytes)"
    yield settings.record("16-memory", what, memory["msh"] / memory["dense"], unit, memory["dense"], 1)
    own = {name: value - empty for name, value in memory.items()}
    what = f"the same beyond that app without networks ({empty / 1e6:.0f} MB)"
    yield settings.record("16-own", what, own["msh"] / own["dense"], unit, own["dense"], 1)


@contextmanager
def running(command: Sequence[object], tail: Sequence[int], threads: int) -> Iterator[tuple[int, int]]:
    """Start a server; give its port and process id once it answers."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*map(str, command), str(port), *map(str, tail)]
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


def bodies_of(port: int) -> dict[str, str]:
    """Read an example of a request per task from `msh serve`."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/tasks")
        tasks = json.loads(connection.getresponse().read())
    return {task["name"]: json.dumps({"inputs": [task["input"]["example"]]}) for task in tasks}


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

    uvicorn.run(plain_app([int(size) for size in sys.argv[2:]]), port=int(sys.argv[1]), log_level="warning")
