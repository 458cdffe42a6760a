"""Test the router: confidences and choices worked out by hand, and the answers of predictors that route."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import msh
from frozen import frozen
from messages import says
from msh.files.state_file import open_safetensors, save_network, write_safetensors
from msh.inference.export import sliced
from msh.inference.predictions import Prediction
from msh.inference.router import (
    Means,
    Route,
    choose,
    confidence,
    fit_means,
    form_of,
    may_read,
    right_tasks,
    route_from_data,
    rules_for,
)
from msh.tasks import RawData, Split, build_task
from msh.tasks.image_step import ReadImages
from msh.tasks.steps import ReadArrays

BACKBONE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 16, "depth": 2}
LOG3 = math.log(3)

# ---- rules


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        ("softmax", "classification", [3 / 5, 1 / 3]),  # logits (log 3, 0, 0): 3 / (3 + 1 + 1)
        ("energy", "classification", [math.log(5), LOG3]),
        ("entropy", "classification", [(0.6 * math.log(0.6) + 0.4 * math.log(0.2)) / LOG3, -1.0]),
        ("softmax", "multilabel", [(3 / 4 + 1 / 2 + 1 / 2) / 3, 1 / 2]),  # sigmoid(log 3) = 3 / 4
        ("energy", "multilabel", [math.log(4) + 2 * math.log(2), 3 * math.log(2)]),
        (
            "entropy",
            "multilabel",
            [((0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2) - 2) / 3, -1.0],
        ),
    ],
)
def test_confidences(rule, kind, expected):
    logits = torch.tensor([[LOG3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = confidence(rule, kind, logits)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rule", ["softmax", "energy", "entropy"])
@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_confidences_of_huge_logits_are_numbers(rule, kind):
    found = confidence(rule, kind, torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -1e30]]))
    assert found.isfinite().all()


def test_means_of_features():
    features = torch.tensor([[0.0, 5.0], [2.0, 5.0], [10.0, 5.0], [14.0, 5.0]])
    means = fit_means(features, torch.tensor([3, 3, 7, 7]))
    assert means.centers.tolist() == [[1, 5], [12, 5]]
    # Within classes: (1 + 1 + 4 + 4) / 4 = 2.5, and 0; each gets a tenth of their mean, 1.25.
    assert means.variances.tolist() == pytest.approx([2.625, 0.125])
    found = means.confidence(torch.tensor([[1.0, 5.0], [11.0, 5.0], [12.0, 6.0]]).double())
    assert found.tolist() == pytest.approx([0, -(1 / 2.625) / 2, -(1 / 0.125) / 2], abs=1e-6)


def test_means_of_constant_features_have_no_zero_variance():
    means = fit_means(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    assert means.variances.tolist() == [1, 1]


def test_regressions_are_compared_by_means_alone():
    assert rules_for(["classification", "regression"]) == ("means",)
    assert rules_for(["classification", "multilabel"]) == ("softmax", "energy", "entropy", "means")


def test_the_best_rule_is_chosen():
    """Task a has small energies, b large ones: raw ones send half of a's examples to b, standardized ones none."""
    energy = {"a": torch.tensor([[2.0, 4.0], [1.0, 5.0]]), "b": torch.tensor([[0.0, 1.0], [10.0, 20.0]])}
    softmax = {"a": torch.tensor([[0.4, 0.4], [0.5, 0.5]]), "b": torch.tensor([[0.1, 0.1], [0.2, 0.2]])}
    found = choose({"softmax": softmax, "energy": energy})
    assert found.accuracy == {"softmax": 0.5, "softmax, standardized": 0.5, "energy": 0.75, "energy, standardized": 1}
    assert (found.rule, found.name) == ("energy", "energy, standardized")
    assert (found.centers, found.scales) == ([3, 15], [1, 5])
    right = right_tasks(energy, [0.0, 0.0], [1.0, 1.0])
    assert {task: marks.tolist() for task, marks in right.items()} == {"a": [True, False], "b": [True, True]}


# ---- data in files


def test_routes_are_data():
    route = Route("means", ("a", "b"), 0.1, 2.5, Means(torch.tensor([[0.1, 2]]), torch.tensor([1.0, 0.3])))
    again = route_from_data(json.loads(json.dumps(route.to_data())))
    assert (again.rule, again.tasks, again.center, again.scale) == ("means", ("a", "b"), 0.1, 2.5)
    assert torch.equal(again.means.centers, route.means.centers)
    assert torch.equal(again.means.variances, route.means.variances)
    assert "means" not in Route("energy", ("a",)).to_data()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"rule": "loudest", "tasks": ["a"]},
        {"rule": "energy", "tasks": "a"},
        {"rule": "energy", "tasks": ["a"], "scale": 0},
        {"rule": "energy", "tasks": ["a"], "center": "NaN"},
        {"rule": "means", "tasks": ["a"]},
        {"rule": "means", "tasks": ["a"], "means": {"centers": {"dtype": "float32", "shape": [2], "data": "AA"}}},
        {"rule": "energy", "tasks": ["a"], "more": 1},
        [1],
    ],
)
def test_wrong_routes_are_refused(data):
    with pytest.raises(ValueError, match="the router's settings are invalid"):
        route_from_data(data)


# ---- forms of input


def test_the_type_of_inputs_says_which_steps_may_read_them():
    arrays, images = ReadArrays((4,)), ReadImages("L", (8, 8))
    for inputs in (torch.zeros(2, 4), np.zeros(4), [[1.0, 2.0]], [np.zeros(4)]):
        assert may_read(arrays, inputs)
    for inputs in ("a.png", Path("a.png"), [b"a"], np.zeros((8, 8)), [Path("a"), Path("b")]):
        assert may_read(images, inputs)
    for inputs in ("text", {"a": 1}, pd.DataFrame({"a": [1]}), [Path("a")], [], b"a"):
        assert not may_read(arrays, inputs)
    assert form_of((images,)) == form_of((ReadImages("RGB", (9, 9)),)) != form_of((arrays,))
    assert form_of((arrays,)) != form_of((ReadArrays((5,)),))


# ---- predictors


def vectors(shift):
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + shift


def task(name, shift, kind="classification"):
    targets = torch.arange(60) % 3 if kind == "classification" else torch.randn(60, 1, dtype=torch.float64)
    split = Split(vectors(shift), targets)
    names = ("low", "mid", "high") if kind == "classification" else ()
    return build_task(name, RawData(kind, split, split, 3 if kind == "classification" else 1, None, names))


ROUTES = {
    "a": Route("energy", ("a", "b"), 1.05, 0.05),
    "b": Route("energy", ("a", "b"), 1.3, 0.02),
}


def write(path, routes, granularity="weight", density=0.2):
    network = frozen(BACKBONE, [task("a", 0.0), task("b", 2.0)], granularity, density)
    for name, route in routes.items():
        network.subnetwork(name).recipe["router"] = route.to_data()
    save_network(path, network)
    return msh.load(path)


@pytest.fixture
def predictor(tmp_path):
    return write(tmp_path / "network.safetensors", ROUTES)


def expected_tasks(predictor, inputs):
    scores = {}
    for name, route in ROUTES.items():
        logits = predictor.predict(name, inputs).raw.double()
        scores[name] = (logits.logsumexp(1) - route.center) / route.scale
    return ["a" if one >= two else "b" for one, two in zip(scores["a"], scores["b"], strict=True)]


def test_the_most_confident_task_answers(predictor):
    inputs = vectors(1.0)[:30]
    found = predictor.predict(inputs)
    assert set(found.tasks) == {"a", "b"}
    assert list(found.tasks) == expected_tasks(predictor, inputs)
    each = {name: predictor.predict(name, inputs) for name in "ab"}
    for row, (name, answer) in enumerate(zip(found.tasks, found, strict=True)):
        assert torch.equal(found.parts[name].raw[row], each[name].raw[row])
        assert answer == found[row] == each[name][row]
        assert answer.task == name
    assert found.labels == [each[name].labels[row] for row, name in enumerate(found.tasks)]
    assert list(found.to_pandas()["task"]) == list(found.tasks)
    assert found.to_rows(2)[3] == {"index": 3, "task": found.tasks[3]} | each[found.tasks[3]].to_rows(2)[3]


def test_one_input_is_routed(predictor):
    assert len(predictor.predict(vectors(0.0)[0])) == 1


def test_means_route_by_the_heads_inputs(tmp_path):
    generator = torch.Generator().manual_seed(3)
    routes = {
        name: Route("means", ("a", "b"), means=Means(torch.rand(3, 16, generator=generator), torch.rand(16) + 0.1))
        for name in "ab"
    }
    predictor = write(tmp_path / "network.safetensors", routes)
    inputs = vectors(1.0)[:8]
    found, scores = predictor.predict(inputs), []
    for name in "ab":
        module = predictor.module(name)
        scores.append(routes[name].means.confidence(module.features(predictor.prepare(name, inputs)).double()))
        assert torch.equal(found.parts[name].raw, predictor.predict(name, inputs).raw)
    assert list(found.tasks) == ["ab"[place] for place in torch.stack(scores).argmax(0)]


def test_bad_inputs_are_refused_or_skipped(predictor):
    rows = [np.zeros(4), np.zeros(5), np.ones(4)]
    with pytest.raises(ValueError, match=r"input 1: task 'a': inputs: the shape must be .*; task 'b'"):
        predictor.predict(rows)
    found = predictor.predict(rows, skip_bad=True)
    assert (found.indices, list(found.errors), len(found.tasks)) == ((0, 2), [1], 2)
    assert [row["index"] for row in found.to_rows()] == [0, 2]


def test_inputs_that_fit_no_task_are_refused(predictor):
    with pytest.raises(ValueError, match=says("inputs", "such as a task reads: a (arrays), b (arrays)", "dict")):
        predictor.predict({"x": 1})
    with pytest.raises(ValueError, match=says("inputs", "at least one input", 0)):
        predictor.predict([])
    with pytest.raises(ValueError, match="input 0, input 1: task 'b': inputs: the shape"):
        predictor.predict(np.zeros((2, 7)))


@pytest.mark.parametrize("routes", [{}, {"a": ROUTES["a"]}, ROUTES | {"b": Route("energy", ("b", "c"))}])
def test_tasks_that_were_not_compared_need_a_name(tmp_path, routes):
    predictor = write(tmp_path / "network.safetensors", routes)
    with pytest.raises(ValueError, match="name the task: the inputs fit a, b, and the file has no router"):
        predictor.predict(vectors(0.0))
    assert predictor.predict("a", vectors(0.0)).tasks == ("a",) * 60


def test_a_task_that_alone_reads_an_input_answers_it(tmp_path):
    wide = build_task("wide", RawData("regression", *[Split(torch.rand(60, 7), torch.rand(60, 1))] * 2, 1))
    save_network(tmp_path / "network.safetensors", frozen(BACKBONE, [task("a", 0.0), wide]))
    predictor = msh.load(tmp_path / "network.safetensors")
    assert predictor.predict(torch.rand(3, 7)).tasks == ("wide",) * 3
    assert predictor.predict(torch.rand(3, 4)).tasks == ("a",) * 3
    assert predictor.predict(torch.rand(3, 7))[0].values.keys() == {"value"}


def test_means_of_another_size_than_the_heads_are_refused(tmp_path):
    routes = {"a": Route("means", ("a", "b"), means=Means(torch.zeros(2, 3), torch.ones(3)))}
    with pytest.raises(ValueError, match="task 'a': the router's means have 3 features, and the head 16"):
        write(tmp_path / "network.safetensors", routes)


def test_a_damaged_route_is_an_error_of_the_file(predictor, tmp_path):
    tensors, metadata = open_safetensors(tmp_path / "network.safetensors")
    metadata["state"] = metadata["state"].replace('"rule": "energy"', '"rule": "loudest"')
    write_safetensors(tmp_path / "damaged.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"damaged.safetensors: task 'a': the router's settings are invalid"):
        msh.load(tmp_path / "damaged.safetensors")


# ---- all tasks


def test_all_tasks_answer(predictor):
    inputs = vectors(1.0)
    found = predictor.predict_all(inputs)
    assert list(found) == ["a", "b"]
    for name, answers in found.items():
        assert torch.equal(answers.raw, predictor.predict(name, inputs).raw)
        assert isinstance(answers[0], Prediction)


def test_all_tasks_of_whole_units_answer_as_small_networks(tmp_path):
    predictor = write(tmp_path / "network.safetensors", {}, "neuron", 0.1)
    inputs = vectors(1.0)
    found = predictor.predict_all(inputs)
    for name, answers in found.items():
        torch.testing.assert_close(answers.raw, predictor.predict(name, inputs).raw, rtol=1e-5, atol=1e-6)
        small = sliced(predictor.network, name)
        assert torch.equal(answers.raw[:8], small(predictor.prepare(name, inputs)[:8]))
        assert sum(p.numel() for p in small.backbone.parameters()) < 16 * 16
        assert isinstance(small, nn.Module)


def test_all_tasks_of_units_answer_bitwise_as_each_does(tmp_path):
    predictor = write(tmp_path / "network.safetensors", {}, "unit", 0.1)
    for name, answers in predictor.predict_all(vectors(1.0)).items():
        assert torch.equal(answers.raw, predictor.predict(name, vectors(1.0)).raw)
        module = predictor.network.module(name)
        assert sum(b.numel() for n, b in module.backbone.named_buffers() if n.endswith("weight")) < 16 * 16


def test_inputs_that_a_task_cannot_read_are_named(predictor):
    rows = [np.zeros(4), np.zeros(5)]
    with pytest.raises(ValueError, match="task 'a', second: inputs: the shape"):
        predictor.predict_all(rows, names=["first", "second"])
    found = predictor.predict_all(rows, skip_bad=True)
    assert {name: answers.indices for name, answers in found.items()} == {"a": (0,), "b": (0,)}
