"""A task's own metric and loss, by `_target_`: used as msh's are, and tried before training."""

import pytest
import torch
import torchmetrics
from torch.nn import functional

from messages import says
from msh.tasks import RawData, Split, build_task
from msh.tasks.own import with_own


def make_task(kind="classification", outputs=3):
    targets = {
        "classification": torch.arange(40) % outputs,
        "multilabel": (torch.arange(40 * outputs).view(40, outputs) % 2).float(),
        "regression": torch.arange(40.0 * outputs).view(40, outputs),
    }[kind]
    split = Split(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), targets)
    return build_task("a", RawData(kind, split, split, outputs))


CLASSES = [
    ("classification", "torchmetrics.classification.MulticlassAUROC", "multiclass_auroc", "max"),
    ("classification", "torchmetrics.F1Score", "multiclass_f1_score", "max"),
    ("multilabel", "torchmetrics.classification.MultilabelF1Score", "multilabel_f1_score", "max"),
    ("regression", "torchmetrics.regression.MeanAbsoluteError", "mean_absolute_error", "min"),
]


@pytest.mark.parametrize(("kind", "target", "name", "direction"), CLASSES)
def test_any_torchmetrics_class_can_be_a_tasks_metric(kind, target, name, direction):
    task = with_own(make_task(kind), {"_target_": target, "name": name}, None)
    assert (task.metric, task.direction) == (name, direction)
    metric = task.build_metric()
    split = task.splits["val"]
    metric.update(task.predictions(torch.randn(len(split), 3)), split.targets)
    assert torch.isfinite(metric.compute())
    assert isinstance(task.constant_score("val"), float)


def test_a_metric_has_its_classs_name_and_direction():
    task = with_own(make_task("regression"), {"_target_": "torchmetrics.MeanAbsoluteError"}, None)
    assert task.metric == "mean_absolute_error"
    block = {"_target_": "torchmetrics.MeanAbsoluteError", "name": "error", "direction": "max"}
    assert with_own(make_task("regression"), block, None).direction == "max"


WRONG_METRICS = [
    ({"_target_": "torch.nn.ReLU"}, says("tasks.a.metric._target_", "a torchmetrics.Metric class", "torch.nn.ReLU")),
    ({"_target_": "torchmetrics.Nothing"}, says("tasks.a.metric._target_")),
    ({"_target_": "torchmetrics.MeanAbsoluteError"}, "tasks.a.metric cannot be computed"),
    (
        {"_target_": "torchmetrics.classification.MulticlassAUROC", "name": "f1"},
        says("tasks.a.metric.name", value="f1"),
    ),
    (
        {"_target_": "torchmetrics.classification.MulticlassAUROC", "direction": "up"},
        says("tasks.a.metric.direction", value="up"),
    ),
    (
        {"_target_": "torchmetrics.classification.MulticlassAUROC", "name": "loss"},
        says("tasks.a.metric.name", value="loss"),
    ),
    (
        {"_target_": "torchmetrics.classification.MulticlassAccuracy", "average": None},
        says("tasks.a.metric", value="a tensor of shape (3,)"),
    ),
    (
        {"_target_": "torchmetrics.classification.MulticlassConfusionMatrix", "direction": "max"},
        says("tasks.a.metric", value="a tensor of shape (3, 3)"),
    ),
    (
        {"_target_": "torchmetrics.classification.MulticlassROC", "direction": "max"},
        says("tasks.a.metric", value="a tuple"),
    ),
]


@pytest.mark.parametrize(("block", "message"), WRONG_METRICS)
def test_wrong_metrics_are_refused_before_training(block, message):
    with pytest.raises(ValueError, match=message):
        with_own(make_task(), block, None)


class OfMany(torchmetrics.Metric):
    """Cannot be computed for a few examples."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        self.seen += len(targets)

    def compute(self):
        if self.seen < 5:
            raise ZeroDivisionError
        return float(self.seen)


def test_a_metric_may_need_more_examples_than_it_is_tried_with():
    task = with_own(make_task(), {"_target_": f"{__name__}.OfMany"}, None)
    assert task.constant_score("val") == len(task.splits["val"])


def absolute(outputs, targets, factor=1.0):
    return factor * (outputs - targets).abs().mean()


def test_a_loss_may_be_a_modules_class_or_a_function():
    task = with_own(make_task(), None, {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.2})
    outputs, targets = torch.randn(6, 3), torch.arange(6) % 3
    assert task.loss(outputs, targets) == functional.cross_entropy(outputs, targets, label_smoothing=0.2)
    weighted = with_own(make_task(), None, {"_target_": "torch.nn.CrossEntropyLoss", "weight": [1.0, 2.0, 3.0]})
    assert weighted.loss(outputs, targets) == functional.cross_entropy(outputs, targets, torch.tensor([1.0, 2.0, 3.0]))


def test_a_regressions_own_loss_gets_scaled_targets():
    task = with_own(make_task("regression"), None, {"_target_": f"{__name__}.absolute", "factor": 2.0})
    targets = task.splits["val"].targets
    scaled = (targets - task.target_mean) / task.target_std
    assert torch.equal(task.loss(torch.zeros_like(targets), targets), 2 * scaled.abs().mean())


def vector(outputs, targets):
    return outputs.sum(1)


WRONG_LOSSES = [
    ("cross_entropy", says("tasks.a.loss", value="cross_entropy")),
    ({"_target_": "torch.nn.Nothing"}, says("tasks.a.loss._target_")),
    ({"_target_": "torch.nn.CrossEntropyLoss", "smoothing": 1}, r"tasks\.a\.loss cannot be built"),
    ({"_target_": "torch.nn.MSELoss"}, r"tasks\.a\.loss cannot be computed|tasks\.a\.loss must be"),
    ({"_target_": f"{__name__}.vector"}, says("tasks.a.loss", value="a tensor of shape (4,)")),
    ({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, says("tasks.a.loss._target_")),
    ({"_target_": "builtins.dict"}, says("tasks.a.loss._target_")),
]


@pytest.mark.parametrize(("block", "message"), WRONG_LOSSES)
def test_wrong_losses_are_refused_before_training(block, message):
    with pytest.raises(ValueError, match=message):
        with_own(make_task(), None, block)


class Stateful(torch.nn.Module):
    """A loss that counts its calls, in one place or another."""

    def __init__(self, keep="buffer", matters=True):
        super().__init__()
        self.keep, self.matters, self.calls = keep, matters, 0
        if keep != "late":
            self.register_buffer("count", torch.zeros(()), persistent=keep != "lost")

    def forward(self, outputs, targets):
        if self.keep == "late" and not self.calls:
            self.register_buffer("count", torch.zeros(()))
        self.calls += 1
        self.count += 1
        seen = self.calls if self.keep == "attribute" else self.count
        return functional.cross_entropy(outputs, targets) / (1 + seen * self.matters)


@pytest.mark.parametrize(("keep", "matters"), [("buffer", True), ("attribute", False), ("lost", False)])
def test_a_loss_may_change_where_checkpoints_hold_it_or_nothing_follows_from_it(keep, matters):
    block = {"_target_": f"{__name__}.Stateful", "keep": keep, "matters": matters}
    task = with_own(make_task(), None, block)
    assert task.own_loss.calls == 0  # it was tried in a copy
    task.with_fresh_loss().loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert task.own_loss.calls == 0


@pytest.mark.parametrize("keep", ["attribute", "lost", "late"])
def test_a_loss_whose_state_no_checkpoint_holds_is_refused(keep):
    with pytest.raises(ValueError, match=says("tasks.a.loss._target_", value=f"{__name__}.Stateful")):
        with_own(make_task(), None, {"_target_": f"{__name__}.Stateful", "keep": keep})


class Counting(torchmetrics.MeanAbsoluteError):
    """A metric that divides by the number of its updates, which only one kind resets."""

    def __init__(self, resets=False):
        super().__init__()
        self.resets, self.calls = resets, 0

    def update(self, outputs, targets):
        self.calls += 1
        super().update(outputs, targets)

    def compute(self):
        return super().compute() / self.calls

    def reset(self):
        super().reset()
        self.calls = 0 if self.resets else self.calls


def test_a_metric_that_reset_does_not_restore_is_refused():
    block = {"_target_": f"{__name__}.Counting"}
    assert with_own(make_task("regression"), block | {"resets": True}, None).metric == "counting"
    with pytest.raises(ValueError, match=says("tasks.a.metric._target_", value=f"{__name__}.Counting")):
        with_own(make_task("regression"), block, None)
