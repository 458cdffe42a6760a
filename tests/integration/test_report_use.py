"""report.html shows examples, and code that runs as it stands in the run folder, wherever that is."""

import html
import json
import re
import shlex
import shutil

import pytest
from PIL import Image
from running import SMALL, here
from test_using import TASKS, write_data

import msh
from msh.cli import app, evaluate, train
from msh.report.run_page import write_report
from msh.runs.examples import read_examples

KINDS = ("birds", "houses", "flats", "mails", "digits")
COLUMNS = {"houses": {"rooms", "street", "built"}, "flats": {"rooms", "floor", "heating"}}


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run of five kinds of task that was moved, and whose data is elsewhere. Returns (run folder, folder of data)."""
    place = tmp_path_factory.mktemp("reported")
    write_data(place / "data")
    (place / "my" / "tasks").mkdir(parents=True)
    (place / "my" / "tasks" / "four.yaml").write_text(TASKS)
    settings = ["trainer.max_epochs=1", "logger=none", *SMALL, "report=true", "hydra.run.dir=run"]
    here(train.main, "--config-dir", "my", "tasks=[four,digits]", "paths.data_dir=data", *settings, cwd=place)
    folder = place / "somewhere else" / "run"
    folder.parent.mkdir()
    shutil.move(place / "run", folder)
    shutil.move(place / "data", place / "inputs")
    return folder, place / "inputs"


def blocks(folder):
    """Summary to text of each block of code in the section on use."""
    page = (folder / "report.html").read_text()
    section = re.search(r'<section[^>]*id="use".*?</section>', page, re.DOTALL).group()
    found = re.findall(r"<summary>(.*?)</summary>.*?<pre>(.*?)</pre>", section, re.DOTALL)
    return {html.unescape(summary): html.unescape(text) for summary, text in found}


@pytest.mark.parametrize("task", KINDS)
def test_each_tasks_program_runs_where_the_folder_is(moved, task, monkeypatch, capsys):
    folder, _ = moved
    monkeypatch.chdir(folder)
    exec(compile(blocks(folder)[f"{task}, in Python"], "report", "exec"), {})
    assert ("price" if task == "houses" else "probability") in capsys.readouterr().out


def test_the_commands_run_where_the_folder_is(moved, capsys):
    folder, inputs = moved
    lines = [shlex.split(line, comments=True) for line in blocks(folder)["In a terminal"].splitlines()]
    assert [line[:3] for line in lines if line[1] == "predict"] == [["msh", "predict", "."]] * len(KINDS)
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    for line in lines:
        if line[1] == "evaluate":
            here(evaluate.main, *line[2:], f"paths.data_dir={inputs}", cwd=copy)
        else:
            here(app.main, *line[1:], cwd=copy)


def test_the_requests_are_answered(moved):
    pytest.importorskip("fastapi", reason="needs msh[serve]")
    pytest.importorskip("httpx", reason="needs httpx")
    from fastapi.testclient import TestClient

    from msh.inference.serving import Limits, make_app

    folder, _ = moved
    serve, *requests = blocks(folder)["Serve all tasks, and ask from another terminal"].splitlines()
    assert serve == "msh serve ."
    assert len(requests) == len(KINDS)
    with TestClient(make_app(msh.load(folder), Limits(batch_milliseconds=0))) as client:
        for line in requests:
            words = shlex.split(line)
            path = words[1].removeprefix("http://127.0.0.1:8000")
            if "-F" in words:
                name = words[words.index("-F") + 1].removeprefix("files=@")
                answer = client.post(path, files={"files": (folder / name).read_bytes()})
            else:
                answer = client.post(path, content=words[-1], headers={"content-type": "application/json"})
            assert answer.status_code == 200, answer.text


def test_examples_are_of_the_test_split_with_the_runs_answers(moved):
    folder, _ = moved
    predictor, examples = msh.load(folder), read_examples(folder)
    assert set(examples) == set(KINDS)
    assert {example["target"] for example in examples["birds"]} == {"crow", "wren"}
    for task, columns in COLUMNS.items():
        assert all(set(example["input"]) == columns for example in examples[task])
    for task in ("birds", "digits", "houses", "flats", "mails"):
        inputs = [example["input"] for example in examples[task]]
        raw = [str(folder / "examples" / name) for name in inputs] if task in ("birds", "digits") else inputs
        for answer, example in zip(predictor.predict(task, raw).to_rows(), examples[task], strict=True):
            assert answer.get("label") == example["answer"].get("label")
            key = "price" if task == "houses" else "probability"
            assert answer[key] == pytest.approx(example["answer"][key], rel=0.01)  # PNG has 256 levels
    files = [path for path in (folder / "examples").iterdir() if path.suffix == ".png"]
    assert len(files) == 8
    for path in files:
        with Image.open(path) as image:
            assert max(image.size) <= 96
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert "buy gold" in page


def test_a_report_without_examples_still_shows_how_a_task_is_used(moved, tmp_path, monkeypatch, capsys):
    folder, _ = moved
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "examples")
    write_report(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for task in KINDS:
        exec(compile(blocks(tmp_path / "run")[f"{task}, in Python"], "report", "exec"), {})
    assert 'id="examples"' not in (tmp_path / "run" / "report.html").read_text()


def test_damaged_examples_are_left_out_with_a_note(moved, tmp_path):
    folder, _ = moved
    shutil.copytree(folder, tmp_path / "run")
    index = tmp_path / "run" / "examples" / "index.json"
    examples = json.loads(index.read_text())
    examples["birds"][0]["file"] = "../../secret.png"
    index.write_text(json.dumps(examples))
    facts = write_report(tmp_path / "run")
    assert any("Example predictions are left out" in note and "secret.png" in note for note in facts.notes)
    index.write_text("{")
    facts = write_report(tmp_path / "run")
    assert any("Example predictions are left out" in note for note in facts.notes)
