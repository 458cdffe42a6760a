"""Two language models in one small GPT: learned one after the other, used without their data, on every way."""

import json
import math
import random
import shutil

import pytest
import torch
from running import here

import msh
from messages import says
from msh.cli import app, train
from msh.runs.results import Results
from msh.training.evaluation import load_run

pytest.importorskip("transformers", reason="needs msh[hf]")

TASKS = """
{name}:
  source:
    _target_: msh.tasks.text.texts
    path: ${{paths.data_dir}}/{name}.txt
    kind: lm
    length: 8
    vocabulary: 50
  batch_size: 16
"""
PHRASES = {
    "plain": ["the cat sat on the mat.", "a dog ran in the park.", "the cat ran."],
    "verse": ["thou art fair", "o , speak to me !", "wherefore art thou ?"],
}
GPT = [
    *("backbone=hf", "backbone.name=gpt2", "+backbone.args.n_layer=2", "+backbone.args.n_head=2"),
    *("+backbone.args.n_embd=32", "+backbone.args.vocab_size=60", "+backbone.args.n_positions=16"),
]
SMALL = ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "logger=csv"]


def write_data(folder):
    generator = random.Random(0)
    (folder / "conf" / "tasks").mkdir(parents=True)
    for name, phrases in PHRASES.items():
        lines = dict.fromkeys(" ".join(generator.choices(phrases, k=generator.randint(2, 7))) for _ in range(120))
        (folder / f"{name}.txt").write_text("\n".join([*lines][:60]) + "\n")
        (folder / "conf" / "tasks" / f"{name}.yaml").write_text(TASKS.format(name=name))


def trained(folder, *overrides):
    settings = [f"--config-dir={folder / 'conf'}", f"paths.data_dir={folder}", *SMALL, *overrides]
    here(train.main, *settings, cwd=folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of both tasks: its folder, with its data beside it."""
    folder = tmp_path_factory.mktemp("language")
    write_data(folder)
    where = f"hydra.run.dir={folder / 'run'}"
    # shared with all tests of this module: a dense network of each task beside its subnetwork
    trained(folder, "tasks=[plain,verse]", *GPT, "pruning.density=0.2", "trainer.max_epochs=6", "baseline=dense", where)
    return folder / "run"


@pytest.fixture(scope="module")
def moved(run, tmp_path_factory):
    """The network file alone."""
    path = tmp_path_factory.mktemp("moved") / "network.safetensors"
    shutil.copy(run / "network.safetensors", path)
    return msh.load(path)


def test_no_task_forgets_and_results_have_the_perplexity(run):
    results = Results.load(run)
    assert results.guarantee == {"checked": 1, "violations": 0}
    assert results.forgetting == 0.0
    for task in results.tasks.values():
        assert (task.metric, task.direction, task.density) == ("perplexity", "min", pytest.approx(0.2, abs=1e-4))
        assert task.test == task.test_when_learned  # bitwise
        assert 1 < task.test < 8  # of about 15 words
        assert 1 < task.dense < 8
    page = (run / "report.html").read_text()
    assert "perplexity" in page


def test_the_score_is_the_perplexity_of_the_whole_test_split(run):
    _, tasks, network = load_run(run)
    for name, task in tasks.items():
        split = task.splits["test"]
        with torch.no_grad():
            logs = network(split.inputs[:], name).log_softmax(-1)
        counted = split.targets != -100
        losses = -logs.gather(2, split.targets.clamp(min=0)[..., None])[..., 0][counted]
        assert Results.load(run).tasks[name].test == pytest.approx(math.exp(losses.double().mean()), rel=1e-5)


def test_texts_have_the_runs_perplexity_without_its_data(run, moved):
    _, tasks, network = load_run(run)
    for name, task in tasks.items():
        split, info = task.splits["test"], moved.tasks[name]
        assert (info.kind, moved.module(name)(split.inputs[:4]).shape) == ("lm", (4, 8, task.outputs))
        size = info.computing.batch_size
        with info.computing.applied(torch.device("cpu")):
            batches = [split.inputs[start : start + size] for start in range(0, len(split), size)]
            mine = torch.cat([moved.module(name)(batch) for batch in batches])
            theirs = torch.cat([network.module(name)(batch) for batch in batches])
        assert torch.equal(mine, theirs)
        texts = list(dict.fromkeys(split.raw[torch.arange(len(split))]))
        assert torch.equal(moved.prepare(name, texts), split.inputs)
        answers = moved.predict(name, texts)
        tokens = torch.tensor([(info.steps[0].windows([text]).targets != -100).sum() for text in texts])
        mean = (answers.raw[:, 0] * tokens).sum() / tokens.sum()
        assert Results.load(run).tasks[name].test == pytest.approx(math.exp(mean), rel=1e-5)
        assert answers.values.shape == (len(texts), 1)
        assert answers[0].values == {"perplexity": answers.values[0, 0].item()}
        assert answers.labels[0] is None
        assert answers.to_pandas().columns.tolist() == ["perplexity"]
    with pytest.raises(ValueError, match="it has values, not probabilities"):
        _ = answers.probabilities


def test_each_task_finds_its_own_style_likelier(moved):
    plain, verse = "the cat sat on the mat.", "o , speak to me !"
    for task, own, other in (("plain", plain, verse), ("verse", verse, plain)):
        a, b = moved.predict(task, [own, other]).values[:, 0].tolist()
        assert a < b
    with pytest.raises(ValueError, match="name the task"):
        moved.predict([plain])
    assert set(moved.predict_all([plain])) == {"plain", "verse"}


def test_bad_texts_are_named_or_skipped(moved):
    with pytest.raises(ValueError, match=f"input 1: {says('inputs', 'texts', 3)}"):
        moved.predict("plain", ["a cat", 3])
    answers = moved.predict("plain", ["a cat", 3], skip_bad=True)
    assert (answers.indices, list(answers.errors)) == ((0,), [1])


def test_the_network_writes_texts_in_each_style(moved):
    assert moved.generate("plain", "the cat", max_new_tokens=3, temperature=0).startswith("the cat")
    several = moved.generate("verse", ["", "thou"], seed=4)
    assert several == moved.generate("verse", ["", "thou"], seed=4)
    words = set(" ".join(PHRASES["verse"]).split())
    assert set(several[0].replace("?", " ?").replace("!", " !").replace(",", " ,").split()) <= words
    with pytest.raises(ValueError, match=says("top_k", ">= 1", 0)):
        moved.generate("plain", "a", top_k=0)


def test_the_command_line_reads_and_writes(run, moved, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("the cat ran.\nthou art\n")
    here(app.main, "predict", run, "--task", "plain", tmp_path / "t.txt", "-o", tmp_path / "a.jsonl", cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    expected = moved.predict("plain", ["the cat ran.", "thou art"]).values[:, 0].tolist()
    assert [row["perplexity"] for row in rows] == expected
    capsys.readouterr()
    here(app.main, "generate", run, "--task", "verse", "thou", "", "--temperature", "0", cwd=tmp_path)
    assert capsys.readouterr().out.splitlines() == moved.generate("verse", ["thou", ""], temperature=0)


def test_a_task_is_exported_with_logits_for_each_token(moved, run, tmp_path):
    here(app.main, "export", run, "--task", "plain", "-o", tmp_path / "plain.pt2", cwd=tmp_path)
    program = torch.export.load(tmp_path / "plain.pt2").module()
    tokens = moved.prepare("plain", ["the cat sat on the mat. a dog ran in the park."])
    logits, probabilities = program(tokens)
    assert torch.allclose(logits, moved.module("plain")(tokens), rtol=1e-5, atol=1e-5)
    assert torch.allclose(probabilities.sum(-1), torch.ones(tokens.shape), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch.onnx
def test_onnxruntime_computes_the_predictors_perplexity(moved, run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    texts = ["the cat sat on the mat. a dog", "a dog ran in", "the cat ran."]
    here(app.main, "export", run, "--task", "plain", "-o", tmp_path / "plain.onnx", cwd=tmp_path)
    session = runtime.InferenceSession(tmp_path / "plain.onnx")
    windows = moved.tasks["plain"].steps[0].windows(texts)
    logits, probabilities = session.run(None, {"inputs": windows.tokens.numpy()})
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1), windows.targets.flatten(), ignore_index=-100, reduction="none"
    )
    counts = windows.sums((windows.targets != -100).sum(1).double())
    found = (windows.sums(losses.double().view_as(windows.targets).sum(1)) / counts).exp()
    expected = moved.predict("plain", texts).values[:, 0]
    assert found.numpy() == pytest.approx(expected, rel=1e-5)
    own = moved.module("plain")(windows.tokens).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(probabilities), own, rtol=1e-5, atol=1e-6)


def test_a_server_answers_with_perplexities(run, moved):
    pytest.importorskip("fastapi", reason="needs msh[serve]")
    pytest.importorskip("httpx", reason="needs httpx")
    from fastapi.testclient import TestClient

    from msh.inference.serving import make_app

    lean = msh.load(run, lean=True)  # as `msh serve` does
    assert lean.generate("verse", "thou", seed=4) == moved.generate("verse", "thou", seed=4)
    with TestClient(make_app(lean)) as client:
        texts = ["the cat ran.", "thou art"]
        answer = client.post("/predict/plain", json={"inputs": texts})
        values = [found["values"]["perplexity"] for found in answer.json()["predictions"]]
        assert values == moved.predict("plain", texts).values[:, 0].tolist()
        for task in client.get("/tasks").json():
            assert task["kind"] == "lm"
            body = {"inputs": [task["input"]["example"]]}
            assert client.post(f"/predict/{task['name']}", json=body).status_code == 200
        assert client.post("/predict/plain", json={"inputs": [3]}).status_code == 422
        assert client.post("/predict/plain?top=2", json={"inputs": texts}).status_code == 422


def test_evaluating_again_gives_the_same_scores(run):
    from msh.cli import evaluate

    here(evaluate.main, f"run={run}", cwd=run)
    rows = json.loads((run / "evaluation.json").read_text())
    assert {row["task"]: row["score"] for row in rows} == {n: t.test for n, t in Results.load(run).tasks.items()}


def test_a_backbone_that_is_not_causal_is_refused_before_training(run, tmp_path, capsys):
    folder = run.parent
    bert = ["backbone=hf", "backbone.name=bert", "+backbone.args.num_hidden_layers=1", "+backbone.args.hidden_size=16"]
    bert += ["+backbone.args.num_attention_heads=2", "+backbone.args.vocab_size=60"]
    for backbone, name in ((bert, "BertModel"), (["backbone=transformer", "backbone.width=16"], "Transformer")):
        with pytest.raises(SystemExit):
            trained(folder, "tasks=[plain]", *backbone, f"hydra.run.dir={tmp_path / name}")
        assert f"is of kind lm, and the backbone {name} is not causal" in capsys.readouterr().err
        assert not list((tmp_path / name).glob("*.safetensors"))
