"""Ensembles average the outputs of tasks on the same data."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import begin, make_config, make_module, make_task

from msh.tasks import RawData, Split, build_task
from msh.training.ensembles import Ensemble, check_members, evaluate_ensembles


def other_inputs(task):
    split = task.splits["test"]
    return replace(task, splits=task.splits | {"test": Split(split.inputs + 1, split.targets)})


DIFFERENT = {
    "examples": lambda: make_task("b", tests=31),
    "inputs": lambda: other_inputs(make_task("b")),
    "kind": lambda: make_task("b", "regression"),
    "metric": lambda: make_task("b", metric="f1"),
}


def test_tasks_on_the_same_data_are_accepted():
    assert check_members({"all": ["a", "b"]}, {name: make_task(name) for name in "ab"}) is None


@pytest.mark.parametrize("what", DIFFERENT)
def test_tasks_with_different_data_or_metrics_are_refused(what):
    tasks = {"a": make_task("a"), "b": DIFFERENT[what]()}
    with pytest.raises(ValueError, match=r"ensembles\.all: tasks 'a' and 'b' differ"):
        check_members({"all": ["a", "b"]}, tasks)


class Answers(nn.Module):
    """Return fixed outputs for each task, independent of the input."""

    def __init__(self, answers):
        super().__init__()
        self.answers = {task: torch.tensor(answer) for task, answer in answers.items()}

    def forward(self, inputs, task):
        return self.answers[task].expand(len(inputs), -1)


def together(kind, answers):
    splits = Split(torch.zeros(10, 2), torch.zeros(10, 2) if kind != "classification" else torch.arange(10) % 2)
    task = build_task("a", RawData(kind, splits, splits, 2))
    ensemble = Ensemble(Answers(answers), {"all": list(answers)}, dict.fromkeys(answers, task))
    return ensemble(torch.zeros(3, 2), "all")


def test_probabilities_of_classes_are_averaged():
    one, other = [0.9, 0.1], [0.3, 0.7]  # together .6 and .4
    outputs = together(
        "classification", {"a": torch.tensor(one).log().tolist(), "b": torch.tensor(other).log().tolist()}
    )
    torch.testing.assert_close(outputs.softmax(-1), torch.tensor([[0.6, 0.4]]).expand(3, -1))
    sure = together("classification", {"a": [0.0, 1e4], "b": [0.0, 1e4]})
    assert bool(sure.isfinite().all())


def test_probabilities_of_labels_are_averaged_separately():
    one, other = torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.4])
    outputs = together("multilabel", {"a": one.logit().tolist(), "b": other.logit().tolist()})
    torch.testing.assert_close(outputs.sigmoid(), torch.tensor([[0.7, 0.3]]).expand(3, -1))
    assert bool(together("multilabel", {"a": [300.0, -300.0], "b": [300.0, -300.0]}).isfinite().all())


def test_values_are_averaged():
    outputs = together("regression", {"a": [1.0, 4.0], "b": [3.0, -4.0], "c": [5.0, 0.0]})
    assert outputs.tolist() == [[3.0, 0.0]] * 3


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_score_is_that_of_the_mean_output(kind, tmp_path):
    tasks = {name: make_task(name, kind) for name in "ab"}
    module = make_module(*tasks.values())
    for seed, name in enumerate("ab"):
        begin(module, name)
        nn.init.normal_(module.network.subnetwork(name).head.weight, generator=torch.Generator().manual_seed(seed))
        module.network.restrict(name, {key: mask & (name == "b") for key, mask in module.network.masks(name).items()})
        module.network.freeze(name)
    config = make_config()
    config.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    rows = evaluate_ensembles({"both": ["a", "b"]}, module.network, tasks, config, tmp_path)
    split = tasks["a"].splits["test"]
    with torch.no_grad():
        answers = [module.network(split.inputs, name) for name in "ab"]
    if kind == "classification":
        expected = (sum(answer.softmax(-1) for answer in answers).argmax(1) == split.targets).float().mean()
    else:
        predicted = tasks["a"].predictions(sum(answers) / 2)
        expected = (predicted - split.targets).square().mean().sqrt()
    row = rows["both"]
    assert row["test"] == pytest.approx(expected.item(), rel=1e-5)
    assert (row["metric"], row["direction"], row["tasks"]) == (tasks["a"].metric, tasks["a"].direction, ["a", "b"])


def test_ensembles_with_one_validation_split_are_evaluated_on_it(tmp_path):
    tasks = {name: make_task(name) for name in "abc"}
    split = tasks["c"].splits["val"]
    tasks["c"] = replace(tasks["c"], splits=tasks["c"].splits | {"val": Split(split.inputs + 1, split.targets)})
    module = make_module(*tasks.values())
    for name in tasks:
        begin(module, name)
        module.network.restrict(name, {key: mask & (name == "c") for key, mask in module.network.masks(name).items()})
        module.network.freeze(name)
    config = make_config()
    config.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    rows = evaluate_ensembles({"same": ["a", "b"], "all": ["a", "b", "c"]}, module.network, tasks, config, tmp_path)
    split = tasks["a"].splits["val"]
    with torch.no_grad():
        answer = sum(module.network(split.inputs, name).softmax(-1) for name in "ab")
    assert rows["same"]["val"] == pytest.approx((answer.argmax(1) == split.targets).float().mean().item())
    assert rows["all"]["val"] is None


def test_without_ensembles_nothing_is_evaluated(tmp_path):
    assert evaluate_ensembles({}, None, {}, make_config(), tmp_path) == {}
