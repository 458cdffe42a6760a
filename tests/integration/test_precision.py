"""A network in float64, bfloat16 or float16 throughout: training, evaluation, guarantee, files, resume, baselines."""

import json

import pytest
import torch
from running import SMALL, few_steps, here
from safetensors import safe_open

from golden.recording import resume, run, told_to_end_after
from msh.cli import evaluate
from msh.inference.export import sliced
from msh.inference.rebuilding import rebuild_network
from msh.recipes import DTYPES
from msh.training.evaluation import load_run

TINY = [*SMALL, "+experiment=sequential", "logger=none", "checkpoint.min_seconds=0", "trainer.max_epochs=2"]
TASKS = ["tasks=[wine,diabetes,iris]", *few_steps("wine", "diabetes", "iris"), "pruning.density=0.2"]
TASKS += ["curriculum=[[wine,diabetes],[iris]]"]
WINE = ["tasks=[wine]", *few_steps("wine")]
PRECISIONS = {"64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
BASELINES = "baseline=[dense,finetune,joint]"


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module", params=PRECISIONS)
def finished(request, tmp_path_factory):
    """(run folder, type of the network) of a run with baselines."""
    folder = tmp_path_factory.mktemp("precision") / "run"
    run(folder, *TINY, *TASKS, BASELINES, f"trainer.precision={request.param}")
    return folder, DTYPES[PRECISIONS[request.param]]


def test_a_run_keeps_its_type_and_its_guarantee(finished):
    folder, dtype = finished
    results = results_of(folder)
    assert results["status"] == "finished"
    assert results["guarantee"] == {"checked": 2, "violations": 0}
    rows = results["tasks"].values()
    assert all(row[key] is not None for row in rows for key in ("test", "dense", "finetune", "joint"))
    _, _, network = load_run(folder)
    assert {weight.dtype for _, weight in network.weights()} == {dtype}
    head = network.subnetwork("iris").head.weight
    assert head.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_evaluating_again_gives_the_same_scores(finished):
    folder, _ = finished
    here(evaluate.main, f"run={folder}", cwd=folder.parent)
    scores = {row["task"]: row["score"] for row in json.loads((folder / "evaluation.json").read_text())}
    assert scores == {task: row["test"] for task, row in results_of(folder)["tasks"].items()}


@pytest.mark.parametrize("file", ["network.safetensors", "subnetworks/diabetes.safetensors"])
def test_a_file_alone_predicts_what_the_run_does(finished, file):
    folder, dtype = finished
    _, tasks, network = load_run(folder)
    alone = rebuild_network(folder / file)
    assert {weight.dtype for _, weight in alone.weights()} == {dtype}
    inputs = tasks["diabetes"].splits["test"].inputs[torch.arange(8)]
    with torch.no_grad():
        assert torch.equal(alone(inputs, "diabetes"), network.eval()(inputs, "diabetes"))
    with safe_open(folder / file, framework="pt") as opened:
        values = [opened.get_tensor(name) for name in opened.keys() if name.startswith("values.")]  # noqa: SIM118
    assert {tensor.dtype for tensor in values} == {dtype}


def test_an_interrupted_run_ends_as_one_that_was_not(finished, tmp_path):
    whole, dtype = finished
    precision = next(key for key, name in PRECISIONS.items() if DTYPES[name] == dtype)
    with told_to_end_after(12):
        run(tmp_path / "run", *TINY, *TASKS, f"trainer.precision={precision}")
    halves = resume(tmp_path / "run")
    assert results_of(halves)["status"] == "finished"
    assert results_of(halves)["matrix"] == results_of(whole)["matrix"]
    one, other = (load_run(folder)[2] for folder in (whole, halves))
    assert {task: one.digest(task) for task in one.tasks} == {task: other.digest(task) for task in other.tasks}


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_whole_units_can_be_sliced_out(precision, tmp_path):
    settings = [*WINE, "pruning.granularity=unit", "pruning.density=0.2", f"trainer.precision={precision}"]
    folder = run(tmp_path / "run", *TINY, *settings)
    _, tasks, network = load_run(folder)
    inputs = tasks["wine"].splits["test"].inputs[torch.arange(8)]
    with torch.no_grad():
        expected, found = network.eval()(inputs, "wine"), sliced(network, "wine")(inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_float16_without_master_weights_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"16-true.*master_weights"):
        run(tmp_path / "run", *TINY, *WINE, "trainer.precision=16-true", "master_weights=false")


def test_bfloat16_trains_without_master_weights(tmp_path):
    settings = [*WINE, "trainer.precision=bf16-true", "master_weights=false", "baseline=[dense,joint]"]
    assert results_of(run(tmp_path / "run", *TINY, *settings))["status"] == "finished"
