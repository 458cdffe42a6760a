"""A task's loss, predictions, metric, head and stem."""

import math

import pytest
import torch
from torchmetrics import ExplainedVariance, R2Score, RelativeSquaredError

from msh.tasks import METRICS, RawData, Split, build_task


def make_task(kind, outputs, targets, shape=(4,), **settings):
    split = Split(torch.arange(len(targets) * math.prod(shape)).float().view(-1, *shape), targets)
    return build_task("a", RawData(kind, split, split, outputs), **settings)


@pytest.fixture(scope="module")
def regression():
    """Build a task whose training targets have mean 150 and standard deviation 50."""
    return make_task("regression", 1, torch.tensor([[100.0], [200.0]] * 10), val_fraction=0.1)


CLASSES = torch.arange(30) % 3
LABELS = torch.stack([CLASSES == 0, CLASSES != 1], 1).float()


# ---- losses


def test_classification_has_cross_entropy():
    task = make_task("classification", 3, CLASSES)
    outputs = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    expected = (math.log(3) + math.log(4 / 2)) / 2
    assert task.loss(outputs, torch.tensor([1, 0])).item() == pytest.approx(expected)


def test_multilabel_has_binary_cross_entropy():
    task = make_task("multilabel", 2, LABELS)
    outputs = torch.tensor([[0.0, math.log(3)]])
    expected = (math.log(2) + math.log(4)) / 2  # one undecided, one 3 to 1 and wrong
    assert task.loss(outputs, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(expected)


def test_regression_has_the_squared_error_of_the_scaled_target(regression):
    assert regression.target_mean.item() == pytest.approx(150.0, abs=4)
    mean, std = regression.target_mean.item(), regression.target_std.item()
    outputs, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([[mean], [mean + 3 * std]])
    assert regression.loss(outputs, targets).item() == pytest.approx((0 + 4) / 2, rel=1e-5)


# ---- predictions and metrics


def test_a_regression_is_evaluated_in_the_datas_unit(regression):
    mean, std = regression.target_mean.item(), regression.target_std.item()
    metric, outputs = regression.build_metric(), torch.tensor([[0.0], [1.0]])
    metric.update(regression.predictions(outputs), torch.tensor([[mean + 30], [mean + std - 40]]))
    assert metric.compute().item() == pytest.approx(math.sqrt((900 + 1600) / 2), rel=1e-5)


def test_predictions_are_float_for_every_dtype(regression):
    assert regression.predictions(torch.zeros(2, 1, dtype=torch.bfloat16)).dtype == torch.float32


BY_HAND = [
    ("classification", "accuracy", 3, CLASSES, [[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], [0, 1, 1, 2], 0.75),
    ("classification", "f1", 3, CLASSES, [[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], [0, 1, 1, 2], 7 / 9),
    ("multilabel", "label_accuracy", 2, LABELS, [[9.0, -9.0], [9.0, 9.0]], [[1, 1], [0, 1]], 0.5),
    ("multilabel", "label_accuracy", 1, LABELS[:, :1], [[9.0], [-9.0], [-9.0], [9.0]], [[1], [1], [0], [1]], 0.75),
    ("regression", "rmse", 1, LABELS[:, :1], [[3.0], [4.0]], [[0.0], [0.0]], math.sqrt(12.5)),
    ("regression", "mse", 1, LABELS[:, :1], [[3.0], [4.0]], [[0.0], [0.0]], 12.5),
    ("regression", "r2", 1, LABELS[:, :1], [[1.0], [2.0], [4.0]], [[1.0], [2.0], [3.0]], 0.5),
]


@pytest.mark.parametrize(("kind", "name", "outputs", "data", "predicted", "targets", "score"), BY_HAND)
def test_every_metric_agrees_with_a_score_by_hand(kind, name, outputs, data, predicted, targets, score):
    metric = make_task(kind, outputs, data, metric=name).build_metric()
    predictions, truth = torch.tensor(predicted).float(), torch.tensor(targets)
    for i in range(len(truth)):  # R2 needs all examples together
        part = slice(i, i + 1) if name != "r2" else slice(None)
        metric.update(predictions[part], truth[part])
        if name == "r2":
            break
    assert metric.compute().item() == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1.7e9, 1e12])
@pytest.mark.parametrize("kind", [R2Score, ExplainedVariance, RelativeSquaredError])
def test_metrics_of_squares_are_exact_far_from_zero(kind, offset):
    draw = torch.Generator().manual_seed(0)
    targets = 10 * torch.randn(200, 1, generator=draw, dtype=torch.float64)
    outputs = targets + torch.randn(200, 1, generator=draw, dtype=torch.float64)
    metric = kind().set_dtype(torch.float64)
    metric.update(outputs, targets)
    expected = metric.compute()
    metric.reset()
    task = make_task("regression", 1, targets + offset)
    for part in (slice(0, 77), slice(77, None)):
        scaled = (outputs[part] + offset - task.target_mean) / task.target_std
        task.update(metric, scaled, targets[part] + offset)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-3, atol=0)


def test_every_metric_is_worked_out_by_hand_above():
    assert {name for _, name, *_ in BY_HAND} | {"perplexity"} == set(METRICS)  # that one is in test_windows.py


@pytest.mark.parametrize(("name", "direction"), [("accuracy", "max"), ("f1", "max"), ("rmse", "min"), ("r2", "max")])
def test_metrics_know_their_direction(name, direction):
    kind = METRICS[name].kinds[0]
    outputs, targets = (3, CLASSES) if kind == "classification" else (1, LABELS[:, :1])
    assert make_task(kind, outputs, targets, metric=name).direction == direction


@pytest.mark.parametrize(("kind", "name"), [("classification", "accuracy"), ("regression", "rmse")])
def test_each_kind_has_a_default_metric(kind, name):
    outputs, targets = (3, CLASSES) if kind == "classification" else (1, LABELS[:, :1])
    assert make_task(kind, outputs, targets).metric == name


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_several_regression_outputs_have_one_score(outputs):
    task = make_task("regression", outputs, torch.randn(30, outputs, generator=torch.Generator().manual_seed(0)))
    metric = task.build_metric()
    metric.update(torch.zeros(6, outputs), torch.full((6, outputs), 2.0))
    assert metric.compute().shape == ()
    assert metric.compute().item() == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e-4, 1.0, 1e15, 1e22, 1e37])
@pytest.mark.parametrize("name", [name for name, spec in METRICS.items() if "regression" in spec.kinds])
def test_scores_of_targets_whose_squares_leave_float32_are_right(name, scale, dtype):
    targets = torch.randn(40, 1, generator=torch.Generator().manual_seed(0)).double()
    usual = make_task("regression", 1, targets, metric=name)
    scaled = make_task("regression", 1, (scale * targets).to(dtype), metric=name)
    unit = {"rmse": scale, "mse": scale**2, "r2": 1.0}[name]
    assert scaled.constant_score("val") == pytest.approx(usual.constant_score("val") * unit, rel=1e-4, abs=0.0)
    scores = []
    for task in (usual, scaled):  # as evaluated in a run: the module is moved to its device, and outputs are float32
        metric = task.build_metric().to("cpu")
        task.update(metric, torch.linspace(-1, 1, 40)[:, None], task.splits["test"].targets)
        scores.append(float(metric.compute()))
    assert scores[1] == pytest.approx(scores[0] * unit, rel=1e-4, abs=0.0)


def test_scales_of_targets_that_are_constant_stay_1_and_metrics_float32():
    task = make_task("regression", 1, torch.full((40, 1), 3e22))
    assert float(task.target_std) == 1.0
    assert task.build_metric().dtype == torch.float32


def test_two_metrics_of_a_task_are_independent():
    task = make_task("classification", 3, CLASSES)
    one, other = task.build_metric(), task.build_metric()
    one.update(torch.eye(3), torch.arange(3))
    other.update(torch.eye(3), torch.tensor([1, 2, 0]))
    assert (one.compute().item(), other.compute().item()) == (1.0, 0.0)


# ---- head and stem


def test_a_head_maps_features_to_outputs():
    head = make_task("classification", 3, CLASSES).build_head(7)
    assert head(torch.zeros(2, 7)).shape == (2, 3)


@pytest.mark.parametrize(("shape", "target"), [((4,), (1, 8, 8)), ((1, 8, 8), (4,)), ((3, 2, 2), (12,)), ((1,), (5,))])
def test_a_stem_maps_to_the_backbones_shape(shape, target):
    task = make_task("classification", 3, CLASSES, shape=shape)
    assert task.input_shape == shape
    stem = task.build_stem(target)
    assert stem(torch.zeros(2, *shape)).shape == (2, *target)
    assert not any(parameter.any() for name, parameter in stem.named_parameters() if name.endswith("bias"))


def test_equal_shapes_need_no_stem():
    assert make_task("classification", 3, CLASSES, shape=(1, 2, 2)).build_stem((1, 2, 2)) is None


def test_a_stem_keeps_the_scale_of_its_inputs():
    torch.manual_seed(0)
    stem = make_task("classification", 3, CLASSES, shape=(64,)).build_stem((400,))
    assert stem(torch.randn(500, 64)).std().item() == pytest.approx(1.0, rel=0.1)
