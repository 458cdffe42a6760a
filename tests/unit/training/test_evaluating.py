"""Scores of batches against scores of the whole split, and losses that are not finite."""

import math
from dataclasses import replace

import pytest
import torch
from toys import STEPS, AfterBatch, AfterEpoch, begin, fit, make_config, make_module, make_task

from msh.tasks.augmentation import Augmentation, Change
from msh.training.callbacks.checkpoint import newest_readable
from msh.training.fitting import evaluate_tasks
from msh.training.module import FitContext, NonFiniteLossError

KINDS = ["classification", "regression"]


@pytest.fixture(scope="module", params=KINDS)
def frozen(request):
    """A frozen task, with 1101 test examples: batches of 8, and one of 5."""
    module = begin(make_module(make_task(kind=request.param, tests=1101)), "a")
    module.network.freeze("a")
    return module


def by_hand(module, split):
    """(score, loss) of the task on a whole split, without batches or torchmetrics."""
    task, data = module.tasks["a"], module.tasks["a"].splits[split]
    with torch.no_grad():
        outputs = module(data.inputs, "a")
    if task.kind == "classification":
        return (outputs.argmax(1) == data.targets).double().mean().item(), task.loss(outputs, data.targets).item()
    predicted = outputs.double() * task.target_std + task.target_mean
    return math.sqrt(((predicted - data.targets) ** 2).mean()), task.loss(outputs, data.targets).item()


def test_a_score_is_exact_over_uneven_batches(frozen, tmp_path):
    score = evaluate_tasks(frozen, ["a"], "test", make_config(), tmp_path)["a"]
    assert score == pytest.approx(by_hand(frozen, "test")[0], rel=1e-6)
    assert score not in (0.0, 1.0)


def test_evaluating_again_gives_the_same_to_the_last_digit(frozen, tmp_path):
    splits = ("test", "val", "test")
    first, val, second = (evaluate_tasks(frozen, ["a"], split, make_config(), tmp_path) for split in splits)
    assert first == second != val


@pytest.mark.parametrize(("size", "largest"), [(None, 8), (3, 3), (100, 100)])
def test_a_network_evaluates_in_batches_of_the_tasks_size_or_of_the_setting(size, largest, frozen, tmp_path):
    usual, sizes = evaluate_tasks(frozen, ["a"], "test", make_config(), tmp_path), []
    hook = frozen.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    scores = evaluate_tasks(frozen, ["a"], "test", make_config(evaluation=size), tmp_path)
    hook.remove()
    assert max(sizes) == largest
    assert sum(sizes) == 1101
    assert scores == (usual if frozen.tasks["a"].kind == "classification" else pytest.approx(usual, rel=1e-6))


def test_an_evaluation_does_not_change_the_network(tmp_path):
    module = begin(make_module(norm="batch"), "a")
    before = {name: tensor.clone() for name, tensor in module.network.subnetwork("a").state_dict().items()}
    evaluate_tasks(module, ["a"], "test", make_config(), tmp_path)
    after = module.network.subnetwork("a").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_each_epochs_scores_are_of_that_epoch_alone(kind, tmp_path):
    task = make_task(
        kind=kind, examples=1502, val_fraction=0.5, batch_size=200
    )  # validation in batches of 200 and one of 151
    module = begin(make_module(task), "a")

    def look(trainer, module):
        logged = [trainer.callback_metrics[f"a/val/{name}"].item() for name in (task.metric, "loss")]
        return logged, list(by_hand(module, "val")), trainer.callback_metrics["val/loss"].item()

    seen = AfterEpoch(look)
    fit(module, tmp_path, seen, epochs=3)
    assert len({logged[0] for logged, _, _ in seen.seen}) == 3
    for logged, expected, total in seen.seen:
        assert logged == pytest.approx(expected, rel=1e-5)
        assert total == logged[1]


def test_the_stages_loss_is_the_sum_of_its_tasks_losses(tmp_path):
    module = begin(begin(make_module(make_task("a"), make_task("b", "regression")), "a"), "b")
    evaluate_tasks(module, ["a", "b"], "val", make_config(), tmp_path)
    metrics = module.trainer.callback_metrics
    losses = metrics["a/val/loss"], metrics["b/val/loss"]
    assert metrics["val/loss"] == losses[0] + losses[1]


def test_a_step_sums_the_tasks_losses_by_their_weights():
    module = begin(begin(make_module(make_task("a", loss_weight=0.5), make_task("b", loss_weight=2.0)), "a"), "b")
    module.log = lambda *_, **__: None
    splits = {name: module.tasks[name].splits["val"] for name in "ab"}
    with torch.no_grad():
        a, b = (module.tasks[name].loss(module(split.inputs, name), split.targets) for name, split in splits.items())
        together = module.training_step({name: (split.inputs, split.targets) for name, split in splits.items()}, 0)
    assert together.item() == pytest.approx(0.5 * a.item() + 2.0 * b.item(), rel=1e-6)


def test_the_optimizer_has_the_learning_tasks_parameters_and_no_other():
    module = begin(make_module(make_task("a"), make_task("b")), "a")
    module.network.restrict("a", {name: mask & False for name, mask in module.network.masks("a").items()})
    module.network.freeze("a")
    begin(module, "b")
    module.begin_fit(FitContext(tasks=("b",)))
    trained = [parameter for group in module.configure_optimizers().param_groups for parameter in group["params"]]
    expected = list(module.network.subnetwork("b").parameters())
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in expected}
    assert len(trained) == len(expected) > 0


# ---- losses that are not finite


def diverging(parameters):
    return torch.optim.SGD(parameters, lr=1e30)


def test_a_loss_that_becomes_nan_stops_the_fit_and_names_task_and_epoch(tmp_path):
    module = begin(make_module(make_task("wine"), optimizer=diverging), "wine")
    with pytest.raises(NonFiniteLossError, match="loss of 'wine' became NaN or infinite in epoch 0 of toy"):
        fit(module, tmp_path, name="wine", epochs=5)


def test_the_last_good_checkpoint_is_kept(tmp_path):
    def poison(epoch, batch, module):
        if (epoch, batch) == (2, 1):
            torch.nn.init.constant_(module.network.subnetwork("a").head.bias, float("nan"))

    module = begin(make_module(), "a")
    with pytest.raises(NonFiniteLossError, match="in epoch 2 of toy"):
        fit(module, tmp_path, AfterBatch(poison), epochs=5, config=make_config(min_seconds=0))
    newest = newest_readable(tmp_path / "checkpoints")
    assert newest.name.startswith("epoch-00001.")
    state = torch.load(newest, weights_only=True)["state_dict"]
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 5
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_a_fit_after_a_failed_one_starts_clean(tmp_path):
    module = begin(make_module(), "a")
    module.context.nonfinite = {"a": torch.ones((), dtype=torch.bool)}
    fit(module, tmp_path, epochs=1)
    assert not module.context.nonfinite["a"]
    assert module.run_step == 4


# ---- augmentation


def test_only_training_batches_are_augmented(tmp_path):
    batches = []

    def keep(inputs, draws):
        batches.append(draws)
        return inputs

    module = make_module(replace(make_task(), augmentation=Augmentation((Change(1, keep),))))
    fit(begin(module, "a"), tmp_path, epochs=2)
    assert [tuple(draws.shape) for draws in batches] == [(8, 1)] * (2 * STEPS)
    assert len(torch.cat(batches).unique()) == 8 * 2 * STEPS
    module.network.freeze("a")
    evaluate_tasks(module, ["a"], "test", make_config(), tmp_path)
    assert len(batches) == 2 * STEPS
