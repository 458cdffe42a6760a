"""Test predictions from files: as the network computes them, from raw inputs, with errors that name the input."""

import copy
import csv
import pickle
import threading
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import msh
from frozen import frozen
from messages import says
from msh.cli import predict
from msh.errors import requirement
from msh.files.merging import release_task, split_task
from msh.files.state_file import save_network
from msh.inference.computing import Computing, computing_from_data, flushes_denormal
from msh.inference.examples import as_examples
from msh.recipes import build
from msh.subnetworks import MultiSubnetwork
from msh.tasks import RawData, Split, build_task
from msh.tasks.outputs import Outputs
from msh.tasks.tokens import Texts

CLASSES = ("low", "mid", "high")
BACKBONE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 16, "depth": 2}


def vectors(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 4, generator=generator) * 3 + 5
    if kind == "classification":
        return inputs, torch.arange(60) % 3
    if kind == "multilabel":
        return inputs, (torch.rand(60, 3, generator=generator) > 0.5).float()
    return inputs, 1e6 + 10 * torch.randn(60, 2, generator=generator, dtype=torch.float64)


def data_of(kind):
    inputs, targets = vectors(kind)
    outputs = {"classification": 3, "multilabel": 3, "regression": 2}[kind]
    names = CLASSES if kind == "classification" else ()
    return RawData(kind, Split(inputs, targets), Split(inputs[:9], targets[:9]), outputs, None, names)


@pytest.fixture
def tasks():
    tasks = [build_task(kind, data_of(kind)) for kind in ("classification", "multilabel", "regression")]
    words = Texts([f"word{i % 9} word{i % 4}" for i in range(60)], vocabulary=20, length=5)
    rows = torch.arange(60)
    split = Split(rows, rows % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    texts = build_task("texts", RawData("classification", split, split, 2, words, ("no", "yes")), stem=stem)
    return {task.name: task for task in [*tasks, texts]}


@pytest.fixture
def network(tasks):
    return frozen(BACKBONE, tasks.values())


@pytest.fixture
def path(network, tmp_path):
    path = tmp_path / "network.safetensors"
    save_network(path, network)
    return path


@pytest.fixture
def predictor(path):
    return msh.load(path)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_raw_inputs_get_the_networks_answers(predictor, network, tasks, kind):
    raw = vectors(kind)[0][:9]
    expected = network.module(kind)(tasks[kind].splits["test"].inputs[:8])
    found = predictor.predict(kind, raw.numpy())
    assert torch.equal(found.raw[:8], expected)
    assert (len(found), found.indices, found.errors) == (9, tuple(range(9)), {})
    if kind == "classification":
        assert torch.equal(found.probabilities[:8], expected.softmax(1))
        assert found.labels[:8] == [CLASSES[n] for n in expected.argmax(1)]
        order = expected[0].argsort(descending=True)
        assert [name for name, _ in found.top(3)[0]] == [CLASSES[n] for n in order]
    elif kind == "multilabel":
        assert torch.equal(found.probabilities[:8], expected.sigmoid())
        assert found[0].label == tuple(str(n) for n in range(3) if expected[0, n] >= 0)
    else:
        assert torch.equal(found.values[:8], tasks[kind].predictions(expected))
        assert abs(found.values.mean() - 1e6) < 100
        assert list(found[0].values) == ["0", "1"]


def test_texts_get_answers(predictor):
    found = predictor.predict("texts", ["word1 word1", "word8"])
    assert set(found.labels) <= {"no", "yes"}
    assert predictor.predict("texts", "word8")[0] == predictor.predict("texts", ["word8"])[0]


def test_one_input_needs_no_list(predictor):
    raw = vectors("classification")[0]
    for one in (raw[3], raw[3].numpy()):
        assert predictor.predict("classification", one).labels == predictor.predict("classification", raw[3:4]).labels


def test_the_task_may_be_left_out_where_there_is_one_or_a_router(predictor, path, tmp_path):
    raw = vectors("classification")[0][:2]
    with pytest.raises(ValueError, match="name the task: the inputs fit classification, multilabel, regression, and"):
        predictor.predict(raw)
    split_task(path, "classification", tmp_path / "one.safetensors")
    alone = msh.load(tmp_path / "one.safetensors")
    assert torch.equal(alone.predict(raw).raw, predictor.predict("classification", raw).raw)


@pytest.fixture
def split(path, tmp_path):
    """A task's own file, and a network file with the other tasks."""
    own, base = tmp_path / "own.safetensors", tmp_path / "base.safetensors"
    split_task(path, "classification", own)
    release_task(path, "classification", base)
    return own, base


@pytest.mark.parametrize("lean", [False, True])
def test_a_tasks_own_file_answers_with_this_task_alone_whatever_its_base_has(split, predictor, lean):
    raw = vectors("classification")[0][:5]
    joined = msh.load(split[0], base=split[1], lean=lean)
    assert list(joined.tasks) == ["multilabel", "regression", "texts", "classification"]
    expected = predictor.predict("classification", raw).raw
    assert torch.equal(joined.predict(raw).raw, expected)
    assert torch.equal(joined.predict("classification", raw).raw, expected)
    assert joined.task().name == "classification"
    assert torch.equal(joined.predict("regression", raw).raw, predictor.predict("regression", raw).raw)
    assert joined.predict(raw, among=["regression"]).tasks == ("regression",) * 5
    assert set(joined.predict_all(raw)) == {"classification", "multilabel", "regression"}


def test_the_command_line_asks_for_no_task_of_a_tasks_own_file(split, predictor, tmp_path, capsys):
    raw = vectors("classification")[0][:5].numpy()
    np.save(tmp_path / "in.npy", raw)
    parser = ArgumentParser()
    predict.arguments(parser)
    predict.predict(parser.parse_args([str(split[0]), str(tmp_path / "in.npy"), "--base", str(split[1])]))
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0]) == ["input", "label", "probability"]
    assert [row["label"] for row in rows] == predictor.predict("classification", raw).labels


def test_an_unknown_task_is_refused(predictor):
    bound = "one of classification, multilabel, regression, texts"
    with pytest.raises(ValueError, match=says("task", bound, "tekst", "texts")):
        predictor.predict("tekst", ["a"])


def test_bad_inputs_are_named_and_may_be_skipped(predictor):
    texts = ["word1", 7, "word2", None]
    problem = r"input 1: inputs must be texts, got 7\n.*input 3: inputs must be texts"
    with pytest.raises(ValueError, match=problem) as raised:
        predictor.predict("texts", texts)
    assert "task 'texts'" in str(raised.value)
    found = predictor.predict("texts", texts, skip_bad=True)
    assert (found.indices, list(found.errors)) == ((0, 2), [1, 3])
    assert torch.equal(found.raw, predictor.predict("texts", ["word1", "word2"]).raw)
    assert len(predictor.predict("texts", [3], skip_bad=True)) == 0


def test_the_same_problem_of_many_inputs_is_one_line(predictor):
    problem = "input 0, input 1, input 2, input 3, input 4 and 3 more: inputs: the shape"
    with pytest.raises(ValueError, match=problem) as raised:
        predictor.predict("classification", np.zeros((8, 5)))
    assert str(raised.value).count("\n") == 0


def test_rows_and_data_frames(predictor):
    pytest.importorskip("pandas")
    raw = vectors("classification")[0][:3]
    found = predictor.predict("classification", raw)
    assert [row["label"] for row in found.to_rows(2)] == found.labels
    frame = found.to_pandas(2)
    assert list(frame.columns) == ["label", "probability", "label_2", "probability_2"]
    assert list(predictor.predict("regression", raw).to_pandas().columns) == ["0", "1"]
    with pytest.raises(ValueError, match=says("top", ">= 1", 0)):
        found.top(0)
    with pytest.raises(ValueError, match="it has probabilities, not values"):
        _ = found.values


def test_threads_share_a_predictor(predictor):
    raw = {kind: vectors(kind)[0] for kind in ("classification", "multilabel", "regression")}
    expected = {kind: predictor.predict(kind, inputs).raw for kind, inputs in raw.items()}
    wrong = []

    def ask(kind):
        for _ in range(30):
            if not torch.equal(predictor.predict(kind, raw[kind]).raw, expected[kind]):
                wrong.append(kind)

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in [*raw, *raw, *raw][:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_lean_predictor_answers_bitwise_with_the_weights_alone(path, predictor):
    lean = msh.load(path, lean=True)
    for kind in ("classification", "multilabel", "regression"):
        raw = vectors(kind)[0]
        assert torch.equal(lean.predict(kind, raw).raw, predictor.predict(kind, raw).raw)
        assert torch.equal(lean.predict_all(raw)[kind].raw, predictor.predict(kind, raw).raw)
    with pytest.raises(ValueError, match="load it without lean=True"):
        _ = lean.network


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_a_lean_predictor_holds_the_tasks_weights_alone(granularity, tmp_path):
    """Two tasks of a tenth of two matrices of 2**18 weights: dense ones would take 4 bytes for each weight."""
    backbone = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 512, "depth": 3}
    tasks = [build_task(name, data_of(name)) for name in ("classification", "regression")]
    save_network(tmp_path / "network.safetensors", frozen(backbone, tasks, granularity, 0.1))
    whole, lean = msh.load(tmp_path / "network.safetensors"), msh.load(tmp_path / "network.safetensors", lean=True)
    inputs = torch.randn(5000, 4)
    for name in lean.tasks:
        for size in (1, 32, 5000):  # the last one is too large for a sparse product
            assert torch.equal(lean.module(name)(inputs[:size]), whole.module(name)(inputs[:size]))
    held = [buffer.numel() for name in lean.tasks for buffer in lean.module(name).buffers()]
    assert sum(held) < 2**17


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_a_copy_answers_bitwise_as_the_predictor(copied, lean, granularity, tmp_path):
    """Also one that has answered, as its modules are built then; pickles reach workers' processes."""
    backbone = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 512, "depth": 3}
    tasks = [build_task(name, data_of(name)) for name in ("classification", "regression")]
    save_network(tmp_path / "network.safetensors", frozen(backbone, tasks, granularity, 0.1))
    predictor, inputs = msh.load(tmp_path / "network.safetensors", lean=lean), torch.randn(50, 4)
    before = copied(predictor)
    expected = {task: answers.raw for task, answers in predictor.predict_all(inputs).items()}
    for copy_ in (before, copied(predictor)):
        found = {task: answers.raw for task, answers in copy_.predict_all(inputs).items()}
        assert all(torch.equal(found[task], raw) for task, raw in expected.items())
        assert torch.equal(copy_.predict("regression", inputs).raw, predictor.predict("regression", inputs).raw)


def test_lean_predictors_are_shared_by_threads(path):
    lean, expected = msh.load(path, lean=True), msh.load(path).predict("texts", ["word1", "word8 word2"]).raw
    requests = [["word1"], ["word8 word2"], [7]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: lean.answer("texts", requests), range(200)))
    for first, second, refused in found:
        assert torch.equal(torch.cat([first.raw, second.raw]), expected)
        assert str(refused) == f"task 'texts', input 0: {requirement('inputs', 'texts', 7)}"


def test_a_predictor_computes_as_the_run_did_and_leaves_the_thread_as_it_was():
    for state in (True, False):
        torch.set_flush_denormal(state)
        for setting in (True, False):
            with Computing(flush_denormal=setting).applied(torch.device("cpu")):
                assert flushes_denormal() == setting
                assert not torch.is_grad_enabled()
            assert flushes_denormal() == state
    with Computing(autocast="bfloat16").applied(torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16


def test_a_file_without_preprocessing_is_refused(tmp_path):
    network = MultiSubnetwork(build(BACKBONE), recipe=BACKBONE)
    head = {"_target_": "torch.nn.Linear", "in_features": 16, "out_features": 2}
    network.add_task("a", nn.Linear(16, 2), recipe={"head": head})
    network.begin("a")
    network.freeze("a")
    save_network(tmp_path / "n.safetensors", network)
    with pytest.raises(ValueError, match="task 'a' has no preprocessing"):
        msh.load(tmp_path / "n.safetensors")
    with pytest.raises(FileNotFoundError):
        msh.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("data", [3, {"batch_size": 0}, {"batch_size": "many"}, {"autocast": "int8"}, {"more": 1}])
def test_damaged_settings_of_the_evaluation_are_refused(data):
    with pytest.raises(ValueError, match="the settings of the evaluation are invalid"):
        computing_from_data(data)


def test_examples_of_one_or_several_inputs(tasks):
    steps = tasks["classification"].steps
    assert as_examples(steps, np.zeros(4)).shape == (1, 4)
    assert as_examples(steps, np.zeros((3, 4))).shape == (3, 4)
    assert as_examples(steps, {"a": 1}) == [{"a": 1}]
    assert as_examples(tasks["texts"].steps, (text for text in "ab")) == ["a", "b"]


def test_values_without_a_name_are_called_value():
    assert Outputs("regression", 1).label(0) == "value"
