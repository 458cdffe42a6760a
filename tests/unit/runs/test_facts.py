"""A run folder, whole and in pieces."""

import json

import pytest

from helpers import learn, make_network
from msh.files.state_file import save_network
from msh.runs.facts import read_run
from msh.runs.metrics import write_rows
from msh.runs.results import FILE_NAME, LaterVersionError, Results, TaskResult

COLUMNS = ["a/train/loss", "a/val/accuracy", "a/sparsity", "b/val/rmse", "val/loss", "capacity/free", "epoch", "step"]


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run of two tasks."""
    network = make_network()
    for seed, task in enumerate("ab"):
        learn(network, task, seed=seed)
    save_network(tmp_path / "network.safetensors", network)
    results = Results("toy", 3, [["a"], ["b"]], {"a": TaskResult("accuracy", "max", 0)}, "0a1b", "finished")
    results.tasks["b"] = TaskResult("rmse", "min", 1)
    results.add_row({"a": 0.75})
    results.add_row({"a": 0.75, "b": 2.0})
    results.save(tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("name: toy\nseed: 3\npaths: {data_dir: '${name}/x'}\n")
    empty = dict.fromkeys(COLUMNS, "")
    rows = [
        {"a/train/loss": "0.5", "step": "1"},
        {"a/val/accuracy": "0.5", "val/loss": "1.0", "step": "2"},
        {"a/sparsity": "0.75", "capacity/free": "0.5", "step": "2"},
        {"a/val/accuracy": "0.75", "step": "4"},
        {"b/val/rmse": "2.5", "step": "6"},
    ]
    write_rows(tmp_path / "metrics.csv", COLUMNS, [empty | row for row in rows])
    return tmp_path


def test_a_finished_run_has_everything_and_no_notes(folder):
    facts = read_run(folder)
    assert facts.notes == []
    assert facts.tasks == ["a", "b"]
    assert facts.stages == ["a", "b"]
    assert facts.files == {"network.safetensors": (folder / "network.safetensors").stat().st_size}
    assert facts.ownership.total().owned == {"a": 13, "b": 13}
    assert "data_dir: ${name}/x" in facts.config_text


def test_curves_are_the_cells_of_metrics_csv(folder):
    facts = read_run(folder)
    curves = {(c.task, c.split, c.quantity): (c.steps, c.values) for c in facts.curves}
    assert curves == {
        ("a", "train", "loss"): ([1], [0.5]),
        ("a", "val", "accuracy"): ([2, 4], [0.5, 0.75]),
        ("a", "", "sparsity"): ([2], [0.75]),
        ("b", "val", "rmse"): ([6], [2.5]),
    }
    assert [c.task for c in facts.curves_of("val")] == ["a", "b"]
    assert [c.quantity for c in facts.curves_of("")] == ["sparsity"]
    assert [c.task for c in facts.curves_of("train", "loss")] == ["a"]
    assert facts.curves_of("train") == []


def test_cells_that_are_no_numbers_are_counted_and_left_out(folder):
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("2.5", "two"))
    facts = read_run(folder)
    assert facts.notes == ["metrics.csv: 1 cell left out, without a number."]
    assert [c.task for c in facts.curves_of("val")] == ["a"]


@pytest.mark.parametrize(
    ("status", "note"),
    [
        ("stopped", "was stopped: 1 of 2"),
        ("running", "has not ended, or was killed: 1 of 2"),
        ("failed", "stopped with an error: 1 of 2"),
    ],
)
def test_an_unfinished_run_names_the_tasks_that_are_not_learned_yet(status, note, folder):
    results = Results.load(folder)
    results.status, results.matrix = status, results.matrix[:1]
    results.tasks["b"].test = None
    results.save(folder)
    facts = read_run(folder)
    assert note in facts.notes[0]
    assert "not yet: b" in facts.notes[0]
    assert facts.notes[1:] == ["network.safetensors holds b, without a test score in results.json."]


DAMAGE = [
    ("metrics.csv", "There are no learning curves: metrics.csv is missing", "is incomplete"),
    (
        "network.safetensors",
        "The owners of weights are unknown: there is no file",
        "not a safetensors file, or is damaged",
    ),
    (".hydra/config.yaml", "config.yaml is missing", None),
    (FILE_NAME, "Scores are unknown", "results.json cannot be read"),
]


@pytest.mark.parametrize(("name", "missing", "torn"), DAMAGE, ids=[name for name, *_ in DAMAGE])
def test_a_missing_or_damaged_file_is_noted_and_the_others_are_read(name, missing, torn, folder):
    path = folder / name
    whole, content = read_run(folder), path.read_bytes()
    if torn:
        path.write_bytes(content[: len(content) // 2])
        facts = read_run(folder)
        assert torn in facts.notes[0]
        assert facts.tasks == ["a", "b"]
    path.unlink()
    facts = read_run(folder)
    assert missing in facts.notes[0]
    assert len(facts.notes) == 1
    fields = {"metrics.csv": "curves", "network.safetensors": "ownership", ".hydra/config.yaml": "config"}
    for other, attribute in fields.items():
        assert bool(getattr(facts, attribute)) == (other != name), other
    assert facts.tasks == whole.tasks
    assert (facts.results.experiment, facts.results.seed) == ("toy", 3)


def test_a_config_that_is_no_yaml_is_noted(folder):
    (folder / ".hydra" / "config.yaml").write_text("a: [1,\n")
    facts = read_run(folder)
    assert "config.yaml cannot be read" in facts.notes[0]
    assert facts.config_text == ""


def test_a_folder_that_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has neither results\.json nor \.hydra"):
        read_run(tmp_path)


def test_a_later_schema_version_is_refused(folder):
    content = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(LaterVersionError, match=r"results\.json cannot be read: schema_version 2 is later than 1"):
        read_run(folder)
