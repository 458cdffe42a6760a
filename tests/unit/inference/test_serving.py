"""Serve over HTTP: the predictor's answers, batches of several requests, limits, and refusals of hostile requests."""

import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import msh
from frozen import network_of_each_kind
from messages import says
from msh.cli import app, serve

pytest.importorskip("fastapi", reason="needs msh[serve]")
pytest.importorskip("httpx", reason="needs httpx")
from fastapi.testclient import TestClient
from PIL import Image

from msh.errors import requirement
from msh.inference.batching import Batcher, Computer
from msh.inference.serving import Limits, make_app


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return network_of_each_kind(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def predictor(path):
    return msh.load(path)


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(make_app(predictor, Limits(batch_milliseconds=0))) as client:
        yield client


def image_bytes(path, name="crow/3"):
    return (path.parent / "birds" / f"{name}.png").read_bytes()


def encoded(content):
    return {"image": base64.b64encode(content).decode()}


def raw_inputs(path):
    """Task to (inputs in JSON, the same as the predictor takes them)."""
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)).double().tolist()
    rows = [{"rooms": 3, "heat": "oil"}, {"rooms": None, "heat": "gas"}, {"rooms": 5.5, "heat": "new"}]
    images = [image_bytes(path), image_bytes(path, "wren/1")]
    return {
        "arrays": (vectors, np.array(vectors)),
        "regression": (vectors, np.array(vectors)),
        "texts": (["word1 word3", "word8"], ["word1 word3", "word8"]),
        "birds": ([encoded(image) for image in images], images),
        "flats": (rows, rows),
    }


@pytest.mark.parametrize("task", ["arrays", "regression", "texts", "birds", "flats"])
def test_answers_are_the_predictors_bitwise(client, predictor, path, task):
    sent, raw = raw_inputs(path)[task]
    answer = client.post(f"/predict/{task}", json={"inputs": sent}).json()
    expected = predictor.predict(task, raw)
    assert answer["task"] == task
    if task == "regression":
        assert answer["predictions"] == [{"values": one.values} for one in expected]
    else:
        assert answer["predictions"] == [{"label": one.label, "probabilities": one.probabilities} for one in expected]


def test_lists_in_additional_columns_are_ignored_and_in_others_refused(client):
    row = {"rooms": 3, "heat": "oil"}
    expected = client.post("/predict/flats", json={"inputs": [row]}).json()
    for more in ([1, 2], {"a": [None]}, [], "x"):
        assert client.post("/predict/flats", json={"inputs": [{**row, "more": more}]}).json() == expected
    problem = "must be a text, a number, true, false or null"
    for name in row:
        for cell in (["oil"], {"oil": 1}, []):
            refused = client.post("/predict/flats", json={"inputs": [row, {**row, name: cell}]})
            assert (refused.status_code, refused.json()["detail"]) == (422, f"inputs.1.{name}: {problem}")
    many = client.post("/predict/flats", json={"inputs": [{**row, "heat": []}] * 9})
    assert (many.status_code, "and 4 more problems" in many.json()["detail"]) == (422, True)
    assert client.post("/predict/flats", json={"inputs": [{"rooms": 3, "more": []}]}).status_code == 422


def test_uploads_are_answered_as_base64_is(client, path):
    images = [image_bytes(path), image_bytes(path, "wren/1")]
    sent = client.post("/predict/birds", json={"inputs": [encoded(image) for image in images]})
    files = [("files", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]
    assert client.post("/predict/birds", files=files).json() == sent.json()
    assert client.post("/predict/arrays", files=files).status_code == 415


def test_top_limits_classes_in_falling_order(client):
    found = client.post("/predict/arrays?top=2", json={"inputs": [[1, 2, 3, 4]]}).json()["predictions"][0]
    first, second = found["probabilities"].items()
    assert (found["label"], first[1] >= second[1]) == (first[0], True)
    assert client.post("/predict/regression?top=2", json={"inputs": [[1, 2, 3, 4]]}).status_code == 422
    for top, bound in ((0, ">= 1"), ("a", "a whole number"), (1.5, "a whole number")):
        refused = client.post(f"/predict/arrays?top={top}", json={"inputs": [[1, 2, 3, 4]]})
        assert (refused.status_code, refused.json()["detail"]) == (422, requirement("top", bound, str(top)))


def test_every_task_describes_an_input_with_an_example_that_it_answers(client):
    tasks = client.get("/tasks").json()
    examples = client.get("/openapi.json").json()["paths"]["/predict/{task}"]["post"]["requestBody"]["content"]
    assert [task["name"] for task in tasks] == ["arrays", "regression", "texts", "birds", "flats"]
    for task in tasks:
        body = examples["application/json"]["examples"][task["name"]]["value"]
        assert body == {"inputs": [task["input"]["example"]]}
        assert client.post(f"/predict/{task['name']}", json=body).status_code == 200
    assert tasks[0]["classes"] == ["low", "mid", "high"]
    assert [column["name"] for column in tasks[4]["input"]["columns"]] == ["rooms", "heat"]


def test_a_path_on_the_server_is_no_input(client, path):
    image = str(path.parent / "birds" / "crow" / "3.png")
    for inputs in ([image], [{"image": image}], [{"path": image}], [["/etc/passwd"]], image):
        answer = client.post("/predict/birds", json={"inputs": inputs})
        assert answer.status_code == 422
        assert "crow" not in answer.json()["detail"]


def test_an_unknown_task_is_answered_with_the_list(client):
    answer = client.post("/predict/aray", json={"inputs": [[1]]})
    assert answer.status_code == 404
    for part in ("arrays, regression, texts, birds, flats", "did you mean 'arrays'"):
        assert part in answer.json()["detail"]


def test_a_bad_row_is_named_with_the_predictors_reason(client):
    rows = [{"rooms": 3, "heat": "oil"}, {"rooms": "many", "heat": "oil"}]
    answer = client.post("/predict/flats", json={"inputs": rows})
    assert answer.status_code == 422
    for part in ("input 1", "'rooms'", "'many'"):
        assert part in answer.json()["detail"]


WRITTEN = "column 'rooms': '2,5' is not a finite number: write a decimal point"
MISSING = "inputs: the columns 'rooms' are missing; there are 'heat'"


@pytest.mark.parametrize(
    ("task", "bad", "reason"),
    [
        ("flats", {"rooms": "2,5", "heat": "oil"}, WRITTEN),
        ("flats", {"heat": "oil"}, MISSING),
        ("birds", b"no image", r"cannot be read: cut short or damaged, or not an image"),
        ("birds", np.full((9, 9), 1.5), r"cannot be read: its values are .*: images deeper than 8 bits must be .*\]"),
    ],
)
def test_a_reason_has_no_number_but_the_inputs_and_no_setting_of_training(client, predictor, path, task, bad, reason):
    good = {"flats": {"rooms": 1, "heat": "oil"}, "birds": image_bytes(path)}[task]
    inputs = [good, good, bad, good]
    assert re.fullmatch(reason, predictor.predict(task, inputs, skip_bad=True).errors[2])
    with pytest.raises(ValueError, match=rf"^task '{task}', input 2: {reason}$"):
        predictor.predict(task, inputs)
    with pytest.raises(ValueError, match=rf"^task '{task}', two: {reason}$"):
        predictor.predict(task, inputs, names=["none", "one", "two", "three"])
    if task == "flats":
        detail = client.post(f"/predict/{task}", json={"inputs": inputs}).json()["detail"]
        assert re.fullmatch(rf"task 'flats', input 2: {reason}", detail)


def test_requests_that_arrive_together_are_one_batch_and_a_bad_one_harms_none(predictor):
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    with TestClient(make_app(predictor, Limits(batch_milliseconds=300))) as client, ThreadPoolExecutor(9) as pool:
        sent = [vector.tolist() for vector in vectors[:8]] + [["bad"]]
        answers = list(pool.map(lambda one: client.post("/predict/arrays", json={"inputs": [one]}), sent))
        metrics = client.get("/metrics").text
    assert [answer.status_code for answer in answers] == [200] * 8 + [422]
    expected = predictor.predict("arrays", vectors[:8]).probabilities
    found = [list(answer.json()["predictions"][0]["probabilities"].values()) for answer in answers[:8]]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=0)
    batches = float(metrics.split('msh_batches_total{task="arrays"} ')[1].split()[0])
    assert batches < 8
    assert 'msh_requests_total{task="arrays"} 9.0' in metrics
    assert 'msh_errors_total{status="422",task="arrays"} 1.0' in metrics


def test_a_bad_row_in_a_batch_refuses_its_request_alone_with_the_same_reason(predictor, monkeypatch):
    rows = [{"rooms": i / 3, "heat": ("oil", "gas", None)[i % 3]} for i in range(8)]
    bad = [{"rooms": 1, "heat": "oil"}, {"rooms": "many", "heat": "oil"}]
    read, step = [], type(predictor.tasks["flats"].steps[0])
    call = step.__call__
    monkeypatch.setattr(step, "__call__", lambda self, inputs: read.append(len(inputs)) or call(self, inputs))
    with TestClient(make_app(predictor, Limits(0))) as client:
        reason = client.post("/predict/flats", json={"inputs": bad}).json()
    assert "input 1: column 'rooms': 'many'" in reason["detail"]
    read.clear()

    def ask(inputs):
        return client.post("/predict/flats", json={"inputs": inputs})

    with TestClient(make_app(predictor, Limits(batch_milliseconds=500))) as client, ThreadPoolExecutor(9) as pool:
        good = [answer.json() for answer in pool.map(ask, [[row] for row in rows])]
        assert sum(read) == 8
        assert len(read) < 8
        answers = [*pool.map(ask, [*([row] for row in rows), bad])]
    assert [answer.status_code for answer in answers] == [200] * 8 + [422]
    assert answers[-1].json() == reason
    for answer, alone in zip(answers[:-1], good, strict=True):  # in other batches
        (now,), (before,) = answer.json()["predictions"], alone["predictions"]
        assert now["label"] == before["label"]
        assert now["probabilities"] == pytest.approx(before["probabilities"], abs=1e-6)
    expected = predictor.predict("flats", rows).probabilities
    found = [list(answer["predictions"][0]["probabilities"].values()) for answer in good]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=0)


def test_an_error_of_the_network_is_no_refusal(predictor, monkeypatch):
    def fail(*_):
        raise ValueError("a fault of the network")

    monkeypatch.setattr(predictor, "answer", fail)
    with TestClient(make_app(predictor), raise_server_exceptions=False) as client:
        assert client.post("/predict/texts", json={"inputs": ["a"]}).status_code == 500


def in_a_loop(function):
    """Run an asynchronous test in a loop with a computer of one thread, and wait for it."""

    async def run():
        with ThreadPoolExecutor(1) as executor:
            await function(Computer(executor))

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_batch_is_put_together_when_its_turn_comes():
    """While the first batch is computed, three requests arrive: they are the second one; sizes are bounded."""
    batches, go_on = [], threading.Event()

    def compute(requests):
        batches.append(list(requests))
        go_on.wait(10)
        return requests

    async def ask(computer):
        batcher = Batcher(compute, computer, size=4, seconds=0.02)
        first = asyncio.ensure_future(batcher.answer(["a"]))
        while not batches:
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(batcher.answer([letter])) for letter in "bc"]
        await asyncio.sleep(0.1)  # they have waited long enough, but it is not their turn
        others += [asyncio.ensure_future(batcher.answer(list(letters))) for letters in ("d", "ef", "g")]
        gone = asyncio.ensure_future(batcher.answer(["x"]))
        await asyncio.sleep(0.01)
        gone.cancel()
        go_on.set()
        assert [await one for one in (first, *others)] == [["a"], ["b"], ["c"], ["d"], ["e", "f"], ["g"]]

    in_a_loop(ask)
    assert batches == [[["a"]], [["b"], ["c"], ["d"]], [["e", "f"], ["g"]]]


def test_requests_wait_no_longer_once_none_arrives():
    batches = []

    def compute(requests):
        batches.append(len(requests))
        return [ValueError("bad") if request == ["bad"] else request for request in requests]

    async def ask(computer):
        batcher = Batcher(compute, computer, size=100, seconds=5.0)
        started = time.monotonic()
        found = await asyncio.gather(*(batcher.answer([one]) for one in ("a", "bad", "c")), return_exceptions=True)
        assert time.monotonic() - started < 3
        assert (found[0], str(found[1]), found[2]) == (["a"], "bad", ["c"])
        alone = Batcher(compute, computer, size=100, seconds=0)
        assert await asyncio.gather(*(alone.answer([one]) for one in "ab")) == [["a"], ["b"]]

    in_a_loop(ask)
    assert batches == [3, 1, 1]


def test_threads_get_their_own_answers(predictor):
    vectors = np.random.default_rng(0).normal(size=(60, 4)) * 3
    expected = predictor.predict("arrays", vectors).probabilities
    with TestClient(make_app(predictor)) as client, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: client.post("/predict/arrays", json={"inputs": [one]}), vectors.tolist())
        found = [list(answer.json()["predictions"][0]["probabilities"].values()) for answer in answers]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=0)


def test_limits(predictor, monkeypatch):
    with TestClient(make_app(predictor, Limits(0, max_bytes=500, max_inputs=3, timeout=0.2))) as client:
        assert client.post("/predict/texts", json={"inputs": ["a" * 500]}).status_code == 413
        assert client.post("/predict/texts", content=(b"a" * 100 for _ in range(9))).status_code == 413
        assert client.post("/predict/texts", json={"inputs": ["a"] * 4}).status_code == 422
        assert client.post("/predict/texts", json={"inputs": ["a"] * 3}).status_code == 200
        monkeypatch.setattr(predictor, "answer", lambda *_: time.sleep(0.6))
        assert client.post("/predict/texts", json={"inputs": ["a"]}).status_code == 504


def test_wrong_limits_are_refused_together():
    with pytest.raises(ValueError, match="4 problems") as error:
        Limits(-1, 0, 0, float("nan"))
    assert says("max_bytes", ">= 1", 0).replace("\\", "") in str(error.value).replace("\\", "")


def test_a_key_is_asked_for_but_by_health(predictor):
    with TestClient(make_app(predictor, api_key="ключ")) as client:
        assert client.get("/health").json() == {"status": "ok"}
        for given in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "ä".encode()}):
            assert client.get("/tasks", headers=given).status_code == 401
            assert client.post("/predict/texts", json={"inputs": ["a"]}, headers=given).status_code == 401
        assert client.get("/openapi.json").status_code == 404


VALUES = [
    None, True, 0, -1, 10**400, 1e308, -1e308, "", "a", "\ud800", "\x00", "NaN", "9" * 400, [], [[]], {}, {"a": {}},
    [1, 2, 3, 4], [1, 2, 3, 10**400], [1e308] * 4, [[1, 2, 3, 4]], ["1", "2", "3", "4"], [None] * 4, [True] * 4,
    {"image": ""}, {"image": "????"}, {"image": "aGFsbG8="}, {"image": None}, {"rooms": 10**400, "heat": "a"},
    {"rooms": [1], "heat": {}}, {"rooms": True, "heat": False}, {"rooms": 1e308, "heat": "\x00"}, {"rooms": 1},
    float("nan"), [float("inf")] * 4, {"rooms": float("nan"), "heat": float("inf")},
]  # fmt: skip


def hostile(task):
    """Bodies, in bytes: wrong values, wrong JSON, deep JSON, damaged JSON."""
    draw = random.Random(task)
    yield from (json.dumps({"inputs": [value]}).encode() for value in VALUES)
    yield from (json.dumps({"inputs": value}).encode() for value in VALUES)
    yield from (json.dumps(value).encode() for value in VALUES)
    yield from (b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"inputs":' * 9000, b'{"inputs": [1], "inputs": 2}')
    whole = json.dumps({"inputs": [[1, 2, 3, 4], "text", {"rooms": 1, "heat": "oil"}]}).encode()
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        yield bytes(damaged)


@pytest.mark.parametrize("task", ["arrays", "regression", "texts", "birds", "flats", "none", "../x", "%00"])
def test_hostile_requests_are_refused_without_a_failure(client, task):
    headers = {"content-type": "application/json"}
    codes = [client.post(f"/predict/{task}", content=body, headers=headers).status_code for body in hostile(task)]
    assert set(codes) <= {200, 400, 404, 413, 415, 422}


def test_hostile_uploads_are_refused(client, path):
    image = image_bytes(path)
    contents = [b"", b"a", image[:40], image[: len(image) // 2], b"\x89PNG\r\n\x1a\n" + b"\xff" * 100]
    codes = {client.post("/predict/birds", files={"files": ("a.png", content)}).status_code for content in contents}
    kinds = [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
        "text/xml",
        "ä",
    ]
    for kind in kinds:
        headers = {"content-type": kind.encode()}
        codes.add(client.post("/predict/birds", content=b"--x\r\nfoo\r\n", headers=headers).status_code)
    assert codes <= {400, 415, 422}


def test_the_command_serves_and_stops_after_the_requests_in_flight(path):
    import httpx

    command = [sys.executable, "-m", "msh.cli.app", "serve", str(path), "--port", "0", "--batch-milliseconds", "20000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MSH_API_KEY": "key-of-test"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("serving arrays, regression, texts, birds, flats on http://127.0.0.1:")
            url, codes, key = line.split()[-1], [], {"X-API-Key": "key-of-test"}
            assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
            assert httpx.get(f"{url}/tasks", trust_env=False).status_code == 401

            def ask():
                body = {"inputs": ["word1"]}
                codes.append(httpx.post(f"{url}/predict/texts", json=body, headers=key, trust_env=False).status_code)

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(0.5)
            server.send_signal(signal.SIGTERM)
            asking.join(30)
            assert (server.wait(30), codes) == (0, [200]), server.stderr.read()
        finally:
            server.kill()


def test_the_command_names_what_is_wrong_before_it_serves(path, monkeypatch, capsys):
    monkeypatch.setenv("MSH_API_KEY", "")
    monkeypatch.setattr(sys, "argv", ["msh", "serve", str(path), "--port", "70000", "--max-inputs", "0"])
    with pytest.raises(SystemExit, match="1"):
        app.main()
    printed = capsys.readouterr().err
    for part in (
        "3 problems",
        "--port must be from 0 to 65535",
        "max_inputs must be >= 1",
        "MSH_API_KEY is set and empty",
    ):
        assert part in printed


def image_of(mode):
    content = io.BytesIO()
    Image.new(mode, (3, 9)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_other_sizes_and_modes_are_answered(client, mode):
    assert client.post("/predict/birds", json={"inputs": [encoded(image_of(mode))]}).status_code == 200


def test_a_missing_package_is_named_with_the_extra(path, monkeypatch):
    parser = ArgumentParser()
    serve.arguments(parser)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r"further packages \(uvicorn\): pip install 'msh\[serve\]'"):
        serve.serve(parser.parse_args([str(path)]))


# ---- without a task


@pytest.mark.parametrize("name", ["texts", "flats", "birds"])
def test_inputs_without_a_task_are_answered_by_the_one_that_reads_them(client, name):
    tasks = {task["name"]: task for task in client.get("/tasks").json()}
    body = {"inputs": [tasks[name]["input"]["example"]] * 2}
    alone = client.post(f"/predict/{name}", json=body).json()["predictions"]
    found = client.post("/predict", json=body).json()
    assert found == {"predictions": [{"task": name, **answer} for answer in alone], "validated": True}
    top = client.post("/predict?top=1", json=body).json()["predictions"][0]
    assert list(top["probabilities"]) == [top["label"]]


def test_uploads_without_a_task_are_answered(client, path):
    content = (path.parent / "birds" / "crow" / "0.png").read_bytes()
    found = client.post("/predict", files={"files": content}).json()["predictions"]
    assert [answer["task"] for answer in found] == ["birds"]


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        ('{"inputs": [[0, 0, 0, 0]]}', 422, "name the task: the inputs fit arrays, regression, and"),
        ('{"inputs": [[0, 0]]}', 422, "the shape must be"),
        ('{"inputs": []}', 422, "at least 1"),
        ('{"inputs": [{"rooms": 1}]}', 422, "missing"),
        ("{", 422, "JSON"),
        ('{"inputs": ["a", 1]}', 422, ""),
        ('{"inputs": [null]}', 422, ""),
        ('{"inputs": [[1e999, 0, 0, 0]]}', 422, ""),
    ],
)
def test_requests_without_a_task_are_refused_with_the_reason(client, content, status, reason):
    found = client.post("/predict", content=content, headers={"content-type": "application/json"})
    assert found.status_code == status, found.text
    assert reason in found.text


def test_hostile_requests_without_a_task_are_refused(client):
    numbers = random.Random(1)
    bodies = [
        b"\xff\xfe",
        b"[]",
        b'{"inputs": {}}',
        b'{"inputs": [[[[]]]]}',
        b'{"inputs": [true]}',
        b'{"inputs": [{}]}',
    ]
    bodies += [bytes(numbers.randrange(256) for _ in range(50)) for _ in range(20)]
    for body in bodies:
        found = client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert 400 <= found.status_code < 500, (body, found.text)
