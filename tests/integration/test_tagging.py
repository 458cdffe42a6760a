"""A class for each word, on a BERT-like model: trained, used without data, on the command line, exported, served."""

import json
import shutil

import pytest
import torch
from running import here

import msh
from msh.cli import app, train
from msh.runs.results import Results
from msh.training.evaluation import load_run

pytest.importorskip("transformers", reason="needs msh[hf]")

TASK = """
{name}:
  source:
    _target_: msh.tasks.tagged.tagged_texts
    path: ${{paths.data_dir}}/{file}
    vocabulary: 60
    length: 6
  batch_size: 8
  metric: {metric}
"""
PEOPLE, PLACES = ["Ann", "Bob", "Eve"], ["Rome", "Oslo"]
BERT = ["hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32", "vocab_size=60"]


def write_data(folder):
    """Names and parts of speech: one in JSON Lines, one in columns. Texts have 4 to 8 words, windows 6 tokens."""
    rows, lines = [], []
    for i in range(90):
        words = [PEOPLE[i % 3], "lives", "in", PLACES[i % 2], *["and", "left", "it", "too"][: i % 5]]
        names = ["PER", "O", "O", "LOC", *["O"] * (i % 5)]
        rows.append(json.dumps({"tokens": words, "tags": names}))
        speech = [
            "N" if name != "O" else "V" if word in ("lives", "left") else "X"
            for word, name in zip(words, names, strict=True)
        ]
        lines += [f"{word} {tag}" for word, tag in zip(words, speech, strict=True)] + [""]
    (folder / "names.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "speech.conll").write_text("\n".join(lines))
    (folder / "conf" / "tasks").mkdir(parents=True)
    for name, file, metric in (("names", "names.jsonl", "f1"), ("speech", "speech.conll", "accuracy")):
        text = TASK.format(name=name, file=file, metric=metric)
        (folder / "conf" / "tasks" / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagging")
    write_data(folder)
    settings = ["backbone=hf", "backbone.name=bert", *(f"+backbone.args.{setting}" for setting in BERT)]
    settings += ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none", "trainer.max_epochs=8"]
    settings += ["pruning.density=0.4", "optimizer.lr=0.01", "tasks=[names,speech]", f"paths.data_dir={folder}"]
    here(train.main, f"--config-dir={folder / 'conf'}", *settings, f"hydra.run.dir={folder / 'run'}", cwd=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def moved(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("moved") / "network.safetensors"
    shutil.copy(run / "network.safetensors", path)
    return msh.load(path)


def test_both_tasks_are_learned_and_nothing_is_forgotten(run):
    results = Results.load(run)
    assert results.guarantee == {"checked": 1, "violations": 0}
    assert results.forgetting == 0
    assert [task.metric for task in results.tasks.values()] == ["f1", "accuracy"]
    assert all(task.test == task.test_when_learned > 0.9 for task in results.tasks.values()), results.tasks
    assert "PER" in (run / "report.html").read_text()


def test_each_word_has_a_label_as_the_run_computed_it(run, moved):
    text = ["Eve", "lives", "in", "Oslo", "and", "left", "it", "too"]  # 8 words: two windows
    answers = moved.predict("names", [text, "Bob left"])
    assert answers.words == (tuple(text), ("Bob", "left"))
    assert answers[0].label == ("PER", "O", "O", "LOC", "O", "O", "O", "O")
    assert answers.labels[1] == ("PER", "O")
    assert answers[-1] == answers[1]
    assert answers.probabilities.shape == (10, 3)
    assert torch.allclose(answers.probabilities.sum(1), torch.ones(10))
    assert answers.to_rows()[1] == {"index": 1, "text": "Bob left", "label": "PER O"}
    assert moved.predict("names", "Bob left").labels == [("PER", "O")]
    _, tasks, network = load_run(run)
    for name, task in tasks.items():
        split, info = task.splits["test"], moved.tasks[name]
        texts = [list(words) for words in dict.fromkeys(map(tuple, split.raw[torch.arange(len(split))]))]
        tokens = moved.prepare(name, texts)
        with info.computing.applied(torch.device("cpu")):
            ours, theirs = moved.module(name)(tokens), network.module(name)(tokens)
        assert torch.equal(ours, theirs)


def test_bad_inputs_are_named_or_skipped(moved):
    with pytest.raises(ValueError, match="input 1: inputs must be texts, or lists of words"):
        moved.predict("names", ["Ann", ["Bob", 3]])
    answers = moved.predict("names", ["Ann", ["Bob", 3]], skip_bad=True)
    assert (answers.indices, list(answers.errors)) == ((0,), [1])
    with pytest.raises(ValueError, match="task must be of kind lm"):
        moved.generate("names", "Ann")


def test_the_command_line_reads_texts_and_lists_of_words(run, tmp_path):
    (tmp_path / "t.txt").write_text("Ann lives in Rome\nBob left\n")
    (tmp_path / "t.jsonl").write_text('["Ann", "lives", "in", "Rome"]\n{"tokens": ["Bob", "left"]}\n')
    found = []
    for name in ("t.txt", "t.jsonl"):
        here(app.main, "predict", run, "--task", "names", tmp_path / name, "-o", tmp_path / "a.jsonl", cwd=tmp_path)
        found.append([json.loads(line)["label"] for line in (tmp_path / "a.jsonl").read_text().splitlines()])
    assert found[0] == found[1] == ["PER O O LOC", "PER O"]


@pytest.mark.filterwarnings("ignore")  # of torch.onnx
def test_onnxruntime_computes_the_predictors_answers(moved, run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    here(app.main, "export", run, "--task", "names", "-o", tmp_path / "names.onnx", cwd=tmp_path)
    texts = ["Ann lives in Rome", "Bob left"]
    windows = moved.tasks["names"].steps[0].windows(texts)
    session = runtime.InferenceSession(tmp_path / "names.onnx")
    _, probabilities = session.run(None, {"inputs": windows.tokens.numpy()})
    words = probabilities[(windows.targets != -100).numpy()]  # (words, classes)
    assert words == pytest.approx(moved.predict("names", texts).probabilities, rel=1e-5, abs=1e-6)


def test_a_task_is_exported_and_served(moved, run, tmp_path):
    here(app.main, "export", run, "--task", "names", "-o", tmp_path / "names.pt2", cwd=tmp_path)
    tokens = moved.prepare("names", ["Ann lives in Rome", "Bob left"])
    logits, _ = torch.export.load(tmp_path / "names.pt2").module()(tokens)
    assert torch.allclose(logits, moved.module("names")(tokens), rtol=1e-5, atol=1e-5)
    pytest.importorskip("fastapi", reason="needs msh[serve]")
    pytest.importorskip("httpx", reason="needs httpx")
    from fastapi.testclient import TestClient

    from msh.inference.serving import make_app

    with TestClient(make_app(moved)) as client:
        answer = client.post("/predict/names", json={"inputs": [["Bob", "left"], "Ann lives"]}).json()
        assert answer["predictions"][0] == {"words": ["Bob", "left"], "labels": ["PER", "O"]}
        for task in client.get("/tasks").json():
            body = {"inputs": [task["input"]["example"]]}
            assert client.post(f"/predict/{task['name']}", json=body).status_code == 200
        assert client.post("/predict/names?top=2", json={"inputs": ["Bob"]}).status_code == 422
        assert client.post("/predict/names", json={"inputs": [[1]]}).status_code == 422
