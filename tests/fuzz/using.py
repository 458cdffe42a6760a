"""List what a trained network reads from strangers: its file, inputs' files, and requests over HTTP."""

import io
import json
from argparse import ArgumentParser
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from fastapi.testclient import TestClient

import msh
from frozen import network_of_each_kind
from fuzz.bytewise import hostile_csv, hostile_json
from fuzz.formats import hostile_header, hostile_image, hostile_metadata, hostile_tensor_file, hostile_tensors
from fuzz.harness import Kind
from msh.cli import predict
from msh.inference.requests import example_input, inputs_from_json
from msh.inference.serving import Limits, make_app

REFUSED = {400, 404, 413, 415, 422}
"""Status codes of requests that are refused."""


def using_kinds(folder: Path) -> list[Kind]:
    """List the kinds.

    Args:
        folder: an empty or missing one, where valid files are made.
    """
    folder.mkdir(parents=True)
    path = network_of_each_kind(folder)
    predictor = msh.load(path)
    examples = {name: example_input(info.steps) for name, info in predictor.tasks.items()}
    bodies = {name: json.dumps({"inputs": [example, example]}).encode() for name, example in examples.items()}

    def load(place: Path) -> None:
        loaded = msh.load(place / path.name)
        for name in set(loaded.tasks) & set(bodies):
            try:
                loaded.predict(name, inputs_from_json(loaded.tasks[name].steps, bodies[name]))
            except ValueError:  # the example does not suit a recipe that was changed
                continue

    kinds = [
        Kind(
            "network to load",
            {path.name: path.read_bytes()},
            path.name,
            (hostile_header, hostile_metadata, hostile_tensors, hostile_tensor_file),
            load,
        )
    ]
    table = "rooms,heat\n3,oil\n,gas\n5.5,new\n"
    rows = "".join(json.dumps(row) + "\n" for row in ({"rooms": 3, "heat": "oil"}, {"rooms": None, "heat": "gas"}))
    inputs = {
        "image.png": ("birds", (folder / "birds" / "crow" / "3.png").read_bytes(), (hostile_image,)),
        "rows.csv": ("flats", table.encode(), (hostile_csv,)),
        "rows.jsonl": ("flats", rows.encode(), ()),
        "rows.json": ("flats", f"[{rows.strip().replace(chr(10), ',')}]".encode(), (hostile_json,)),
        "texts.txt": ("texts", b"word1 word3\nword8\n", ()),
        "arrays.jsonl": ("arrays", b"[1, 2, 3, 4]\n[0.5, 0, 1e3, -2]\n", ()),
    }
    for name, (task, content, mutators) in inputs.items():
        command = [str(path), "INPUT", "--task", task, "--skip-bad"]
        kinds.append(Kind(f"predict {name}", {name: content}, name, mutators, _predicting(command, name)))
    client = TestClient(make_app(predictor, Limits(batch_milliseconds=0)), raise_server_exceptions=False)
    client.__enter__()  # its thread serves all requests
    for task, body in bodies.items():
        name = "body.json"
        kinds.append(Kind(f"request: {task}", {name: body}, name, (hostile_json,), _asking(client, task, name)))
    return kinds


def _predicting(command, name):
    """Make a reader that runs `msh predict` in this process."""
    parser = ArgumentParser()
    predict.arguments(parser)

    def read(place: Path) -> None:
        given = parser.parse_args([str(place / name) if word == "INPUT" else word for word in command])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as printed:
            try:
                predict.predict(given)
            except SystemExit as end:
                if end.code != predict.SOME_BAD:
                    raise RuntimeError(f"exit code {end.code}") from end
                raise ValueError(printed.getvalue()) from end

    return read


def _asking(client, task, name):
    """Make a reader that sends a file as a request's body."""

    def read(place: Path) -> None:
        body, headers = (place / name).read_bytes(), {"content-type": "application/json"}
        answer = client.post(f"/predict/{task}", content=body, headers=headers)
        if answer.status_code in REFUSED:
            raise ValueError(f"{name}: {answer.status_code}: {answer.json()['detail']}")
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:300]}"

    return read
