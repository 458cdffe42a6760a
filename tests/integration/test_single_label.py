"""A task of flags may have a single one: it trains, is evaluated, answers and is exported as others do."""

import json

import numpy as np
import pytest
import torch
from running import SMALL, few_steps, here

import msh
from msh.cli import evaluate
from msh.inference.export import export_task


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    inputs = np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32)
    np.savez(folder / "flags.npz", inputs=inputs, targets=(inputs[:, :1] > 0).astype(int))
    (folder / "tasks").mkdir()
    source = {"_target_": "msh.tasks.arrays.arrays", "path": str(folder / "flags.npz"), "kind": "multilabel"}
    (folder / "tasks" / "flags.yaml").write_text(json.dumps({"flags": {"source": source | {"classes": ["big"]}}}))
    settings = ["tasks=[flags,iris]", *few_steps("iris"), *SMALL, "baseline=dense", "logger=none"]
    more = [
        f"hydra.searchpath=[file://{folder}]",
        "trainer.max_epochs=10",
        "pruning.density=0.3",
        f"hydra.run.dir={folder / 'run'}",
    ]
    found, results = msh.train(*settings, *more)
    return found, results, inputs


def test_it_trains_and_answers(run, tmp_path):
    folder, results, inputs = run
    assert results.tasks["flags"].test > 0.8
    here(evaluate.main, f"run={folder}", cwd=tmp_path)
    answers = msh.load(folder).predict("flags", inputs)
    assert (
        np.mean([("big" in labels) == (row[0] > 0) for labels, row in zip(answers.labels, inputs, strict=True)]) > 0.8
    )
    assert answers.to_rows()[0].keys() == {"index", "big"}


def test_it_is_exported(run, tmp_path):
    folder, _, inputs = run
    predictor, file = msh.load(folder), tmp_path / "flags.pt2"
    export_task(predictor, "flags", file, "pt2")
    _, probabilities = torch.export.load(file).module()(torch.from_numpy(inputs))
    assert torch.allclose(probabilities, predictor.predict("flags", inputs).probabilities.to(probabilities), atol=1e-6)
