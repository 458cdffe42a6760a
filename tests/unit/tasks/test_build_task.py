"""From raw data to a task: checks, held-out examples, scales."""

from dataclasses import replace

import pytest
import torch

from messages import says
from msh.tasks import RawData, Split, build_task
from msh.tasks.build import hold_out


def make_data(kind="classification", examples=100, outputs=3, tests=20):
    """Build data with three features: one wide, one narrow, one constant."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        inputs = torch.randn(count, 3, generator=generator) * torch.tensor([9.0, 0.1, 0.0]) + torch.tensor([5.0, -2, 7])
        if kind == "classification":
            return Split(inputs, torch.arange(count) % outputs)
        targets = torch.randn(count, outputs, generator=generator) * 30 + 150
        return Split(inputs, (targets > 150).float() if kind == "multilabel" else targets)

    return RawData(kind, split(examples), split(tests), outputs)


# ---- scaling


def test_features_are_scaled_by_the_training_split_only():
    data = make_data()
    task = build_task("a", data)
    train, _ = hold_out(data.train, 0.2, "classification")
    mean, std = train.inputs.mean(0), train.inputs.std(0, correction=0)
    for name, raw in (("train", train), ("test", data.test)):
        expected = (raw.inputs - mean)[:, :2] / std[:2]
        torch.testing.assert_close(task.splits[name].inputs[:, :2], expected)
    scaled = task.splits["train"].inputs
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_training_and_validation_data_do_not_depend_on_the_test_split():
    data = make_data("regression")
    other = RawData("regression", data.train, Split(data.test.inputs * 50, data.test.targets - 999), 3)
    one, two = build_task("a", data), build_task("a", other)
    for name in ("train", "val"):
        assert torch.equal(one.splits[name].inputs, two.splits[name].inputs)
    assert torch.equal(one.target_mean, two.target_mean)
    assert torch.equal(one.target_std, two.target_std)


def test_scales_do_not_depend_on_validation_examples():
    data = make_data("regression")
    _, val = hold_out(Split(torch.arange(100), torch.zeros(100)), 0.2, "regression")
    inputs, targets = data.train.inputs.clone(), data.train.targets.clone()
    inputs[val.inputs], targets[val.inputs] = 1e3, 1e3
    one, two = build_task("a", data), build_task("a", RawData("regression", Split(inputs, targets), data.test, 3))
    assert torch.equal(one.splits["train"].inputs, two.splits["train"].inputs)
    assert torch.equal(one.target_std, two.target_std)


def test_inputs_can_be_scaled_together_or_not_at_all():
    data = make_data()
    together = build_task("a", data, normalize="all").splits["train"].inputs
    assert together.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert together.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert together.std(0)[0] > 10 * together.std(0)[1]
    assert torch.equal(build_task("a", data, normalize="none").splits["test"].inputs, data.test.inputs)


# ---- holding out


def test_a_share_that_leaves_a_part_empty_is_rejected():
    with pytest.raises(ValueError, match=r"a share of 0.99 of 10 examples"):
        hold_out(make_data().train.take(torch.arange(10)), 0.99, "classification")


def test_the_same_examples_are_held_out_for_every_seed():
    data = make_data()
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        splits.append(build_task("a", data, normalize="none").splits)
    for name in ("train", "val"):
        assert torch.equal(splits[0][name].inputs, splits[1][name].inputs)
    everything = torch.cat([splits[0]["train"].inputs, splits[0]["val"].inputs])
    assert sorted(everything[:, 0].tolist()) == sorted(data.train.inputs[:, 0].tolist())


def test_classes_are_held_out_in_proportion():
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    data = RawData("classification", Split(torch.randn(100, 2), targets), Split(torch.randn(3, 2), targets[:3]), 3)
    splits = build_task("a", data, val_fraction=0.2).splits
    assert splits["val"].targets.bincount().tolist() == [12, 6, 2]
    assert splits["train"].targets.bincount().tolist() == [48, 24, 8]


def test_a_class_may_have_a_single_example():
    targets = torch.tensor([0] * 9 + [1])
    data = RawData("classification", Split(torch.randn(10, 2), targets), Split(torch.randn(2, 2), targets[:2]), 2)
    assert len(build_task("a", data, val_fraction=0.2).splits["val"]) == 2


# ---- errors


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinite_inputs_are_counted(kind, part, value):
    data = make_data(kind)
    getattr(data, part).inputs[1:4, 0] = value
    with pytest.raises(ValueError, match=f"task 'a', {part} split: 3 inputs are NaN or infinite"):
        build_task("a", data)


def test_nan_targets_are_counted():
    data = make_data("regression")
    data.train.targets[2, 1] = float("nan")
    with pytest.raises(ValueError, match="task 'a', train split: 1 targets are NaN or infinite"):
        build_task("a", data)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("target", [3, 7, -1])
def test_a_class_beyond_the_heads_is_rejected(part, target):
    data = make_data()
    getattr(data, part).targets[0] = target
    message = f"task 'a', {part} split: targets hold the class {target}, but the head has 3 classes: 0 to 2"
    with pytest.raises(ValueError, match=message):
        build_task("a", data)


def test_a_single_class_is_rejected():
    data = make_data()
    data.train.targets[:] = 1
    with pytest.raises(ValueError, match=r"task 'a', train split: all \d+ targets are of the class 1"):
        build_task("a", data)


@pytest.mark.parametrize(
    ("kind", "names", "problem"),
    [
        ("classification", ("a", "b", "a"), "names 'a' more than once"),
        ("multilabel", ("1", 1, "b"), "names '1' more than once"),
        ("regression", ("a", "b", "b"), "names 'b' more than once"),
        ("classification", ("a", "b"), "2 names for 3 classes"),
    ],
)
def test_names_that_are_not_one_for_each_answer_are_rejected(kind, names, problem):
    data = replace(make_data("regression" if kind == "regression" else "classification"), classes=names)
    if kind == "multilabel":
        flags = data.map_splits(lambda split: Split(split.inputs, torch.eye(3)[split.targets]))
        data = replace(flags, kind="multilabel")
    with pytest.raises(ValueError, match=f"task 'a': .*{problem}"):
        build_task("a", data)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_inputs_without_numbers_are_rejected(shape):
    data = make_data().map_splits(lambda split: Split(torch.zeros(len(split), *shape), split.targets))
    with pytest.raises(ValueError, match=says("task 'a': the shape of an input", "of at least one number", shape)):
        build_task("a", data)


def test_targets_without_values_are_rejected():
    data = make_data("regression").map_splits(lambda split: Split(split.inputs, torch.zeros(len(split), 0)))
    with pytest.raises(ValueError, match=says("task 'a': the number of its classes, labels or values", ">= 1", 0)):
        build_task("a", replace(data, outputs=0))


def test_an_empty_split_is_rejected():
    data = make_data()
    empty = Split(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="task 'a', test split: 0 inputs and 0 targets"):
        build_task("a", RawData("classification", data.train, empty, 3))


def test_inputs_and_targets_must_be_equally_many():
    data = make_data()
    uneven = Split(data.train.inputs, data.train.targets[:-1])
    with pytest.raises(ValueError, match="task 'a', train split: 100 inputs and 99 targets"):
        build_task("a", RawData("classification", uneven, data.test, 3))


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_targets_with_another_shape_are_rejected(kind):
    data = make_data(kind)
    flat = Split(data.train.inputs, data.train.targets[:, 0])
    with pytest.raises(ValueError, match=r"targets have shape \(100,\), not \(examples, 3\)"):
        build_task("a", RawData(kind, flat, data.test, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, says("tasks.a.batch_size", ">= 1", 0)),
        ({"batch_size": 2.5}, says("tasks.a.batch_size", "a whole number", 2.5)),
        ({"repeat": 0}, says("tasks.a.repeat", ">= 1", 0)),
        ({"val_fraction": 0.0}, says("tasks.a.val_fraction", "in (0, 1)", 0.0)),
        ({"val_fraction": 1.0}, says("tasks.a.val_fraction", "in (0, 1)", 1.0)),
        ({"loss_weight": -1.0}, says("tasks.a.loss_weight", "> 0", -1.0)),
        ({"loss_weight": 0.0}, says("tasks.a.loss_weight", "> 0", 0.0)),
        ({"loss_weight": float("nan")}, says("tasks.a.loss_weight", "> 0", float("nan"))),
        ({"normalize": "feture"}, says("tasks.a.normalize", value="feture", meant="feature")),
        ({"metric": "acuracy"}, says("tasks.a.metric", value="acuracy", meant="accuracy")),
        ({"metric": "rmse"}, says("tasks.a.metric", "one of accuracy, f1", "rmse")),
    ],
)
def test_settings_out_of_range_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        build_task("a", make_data(), **settings)


def test_too_few_examples_to_hold_any_out_are_rejected():
    one = Split(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="train"):
        build_task("a", RawData("classification", one, one, 1))


def test_splits_with_different_input_shapes_are_rejected():
    data = make_data()
    wide = Split(torch.zeros(20, 4), data.test.targets)
    with pytest.raises(ValueError, match="task 'a', test split"):
        build_task("a", RawData("classification", data.train, wide, 3), normalize="none")


def test_a_batch_has_at_most_the_training_splits_examples():
    assert build_task("a", make_data(), batch_size=1000).batch_size == 80
    assert build_task("a", make_data(), batch_size=7).batch_size == 7


def test_passes_per_epoch_are_counted_for_small_data():
    assert build_task("a", make_data(), batch_size=32).repeat == 1
    assert build_task("a", make_data(), batch_size=32, repeat=None).repeat == 16  # x 80 / 32 = 40 batches
    assert build_task("a", make_data(), batch_size=1000, repeat=None).repeat == 40
    assert build_task("a", make_data(examples=800), batch_size=1, repeat=None).repeat == 1


def test_all_problems_of_data_and_settings_are_reported_together():
    data = make_data("regression")
    data.train.inputs[0, 0] = data.train.targets[0, 0] = data.test.inputs[0, 0] = float("nan")
    with pytest.raises(ValueError, match="train split: 1 inputs") as caught:
        build_task("a", data, batch_size=0, val_fraction=2.0, metric="acuracy", augment=[{"shift": 0}])
    problems = caught.value.problems
    keys = ["batch_size", "val_fraction", "metric", "augment: the input shape", "augment.shift"]
    assert problems[1:3] == [
        "task 'a', train split: 1 targets are NaN or infinite",
        "task 'a', test split: 1 inputs are NaN or infinite",
    ]
    assert [line.split(" must be ")[0] for line in problems[3:]] == [f"tasks.a.{key}" for key in keys]
