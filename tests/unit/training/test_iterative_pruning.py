"""The pruning callback, in fits of four batches an epoch."""

import pytest
import torch
from toys import STEPS, AfterBatch, begin, fit, make_config, make_module, make_task

from helpers import PRUNABLE, make_batch, seen_weights
from messages import says
from msh.subnetworks import CRITERIA, SCHEDULES, EmptyLayerError, Units, trace_units
from msh.training.callbacks import IterativePruning, scoring
from msh.training.callbacks.scoring import sample_gradients
from msh.training.module import NonFiniteLossError

WANTED = {"2.weight": 4, "6.weight": 10}


def make_pruner(**settings):
    """From all 12 and 40 weights to 4 and 10, in four cuts over the second epoch."""
    usual = {"criterion": CRITERIA["magnitude"], "schedule": SCHEDULES["linear"], "begin": 1, "end": 2, "rounds": 4}
    return IterativePruning({"a": WANTED}, **(usual | settings))


def counts(module):
    return [int(module.network.masks("a")[name].sum()) for name in PRUNABLE]


def test_cuts_fall_where_rounds_due_says():
    pruner = make_pruner(begin=1, end=3, rounds=4)
    due = [pruner.rounds_due(step, steps_per_epoch=10) for step in (0, 14, 15, 19, 20, 25, 29, 30, 99)]
    assert due == [0, 0, 1, 1, 2, 3, 3, 4, 4]


def test_a_pruner_from_the_start_cuts_first_after_its_first_interval():
    pruner = make_pruner(begin=0, end=1, rounds=2)
    assert [pruner.rounds_due(step, 4) for step in range(5)] == [0, 0, 1, 1, 2]


def test_rounds_between_two_batches_are_made_together():
    pruner = make_pruner(begin=0, end=0.5, rounds=8)
    assert [pruner.rounds_due(step, 4) for step in (1, 2, 3)] == [5, 8, 8]  # a round every quarter of a batch


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": 2, "end": 1}, says("begin", value=2)),
        ({"begin": -1}, says("begin", value=-1)),
        ({"rounds": 0}, says("rounds", ">= 1", 0)),
        ({"rewind_epoch": 2}, says("rewind_epoch", value=2)),
        ({"rewind_epoch": -1}, says("rewind_epoch", value=-1)),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_pruner(**settings)


@pytest.mark.parametrize("rewind_epoch", [None, 0])
def test_cuts_wait_for_the_step_of_accumulated_gradients(rewind_epoch, tmp_path):
    module, steps = begin(make_module(), "a"), []

    class Watched(IterativePruning):
        def _cut_down_to(self, module, number):
            super()._cut_down_to(module, number)
            steps.append((module.trainer.global_step, number))

    usual = {"criterion": CRITERIA["magnitude"], "schedule": SCHEDULES["linear"]}
    pruner = Watched({"a": WANTED}, **usual, begin=0, end=2, rounds=8, rewind_epoch=rewind_epoch)
    fit(module, tmp_path, pruner, config=make_config(accumulate_grad_batches=3))
    assert steps == [(1, 3), (2, 4), (3, 7), (4, 8)]  # after the third and the last batch of each epoch


@pytest.mark.parametrize("criterion", ["magnitude", "learned"])
def test_weights_that_diverge_before_a_cut_are_named(criterion, tmp_path):
    def exploding(parameters):
        return torch.optim.SGD(parameters, lr=1e30)

    module = begin(make_module(make_task("wine"), optimizer=exploding), "wine", criterion)
    pruner = IterativePruning({"wine": WANTED}, CRITERIA[criterion], SCHEDULES["linear"], 0.5, 1, rounds=4)
    with pytest.raises(NonFiniteLossError, match="of 'wine' became NaN or infinite in epoch 0 of toy"):
        fit(module, tmp_path, pruner, name="wine")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """(module, counts after each batch, parameters before) of one fit with pruning under momentum."""
    module = begin(make_module(), "a")
    before = list(module.network.parameters())
    seen = AfterBatch(lambda epoch, batch, module: counts(module))
    fit(module, tmp_path_factory.mktemp("pruned"), make_pruner(), seen)
    return module, seen.seen, before


def test_counts_follow_the_schedule_after_every_batch(pruned):
    _, seen, _ = pruned
    cuts = [[10, 32], [8, 25], [6, 18], [4, 10]]  # a quarter of 8 and of 30 each; 32.5 and 17.5 round to even
    assert seen == [[12, 40]] * STEPS + cuts + [[4, 10]] * STEPS


def test_the_budget_is_kept_exactly(pruned):
    assert counts(pruned[0]) == [4, 10]


def test_parameters_stay_the_same_objects(pruned):
    module, _, before = pruned
    assert all(a is b for a, b in zip(module.network.parameters(), before, strict=True))


def test_momentum_revives_no_weight(pruned):
    module, _, _ = pruned
    masks, weights = module.network.masks("a"), seen_weights(module.network, "a")
    for name in PRUNABLE:
        assert not weights[name][~masks[name]].any()
        assert weights[name][masks[name]].all()


def test_a_fit_resumed_before_its_first_cut_counts_at_its_start(tmp_path):
    pruner = make_pruner()
    fit(begin(make_module(), "a"), tmp_path, pruner, epochs=1)
    assert pruner.start == {"a": {"2.weight": 12, "6.weight": 40}}
    assert pruner.rounds_done == 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_keeps_the_budget_over_the_whole_network(criterion, tmp_path):
    module = begin(make_module(), "a", criterion)
    pruner = IterativePruning({"a": {"": 13}}, CRITERIA[criterion], SCHEDULES["exponential"], 0, 1, rounds=3, sample=7)
    fit(module, tmp_path, pruner, epochs=1)
    assert sum(counts(module)) == 13


def test_gradient_criteria_leave_no_gradient_and_keep_the_most_sensitive_weights():
    module = begin(make_module(), "a")
    task, network = module.tasks["a"], module.network
    split = task.splits["train"]
    task.loss(network(split.inputs, "a"), split.targets).backward()
    felt = {name: network.subnetwork("a").values[name].grad.abs() for name in PRUNABLE}
    network.zero_grad()
    make_pruner(criterion=CRITERIA["gradient"], begin=0, end=0, rounds=1).prune_now(module)
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, mask in network.masks("a").items():
        assert felt[name][mask].min() >= felt[name][~mask].max()


@pytest.mark.parametrize("sample", [7, 32, 100])
def test_the_gradient_of_a_sample_is_summed_over_batches(sample, monkeypatch):
    module = begin(make_module(), "a")
    whole = sample_gradients(module, "a", sample, number=1)
    sizes = []
    module.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(scoring, "GRADIENT_BATCH", 5)
    parts = sample_gradients(module, "a", sample, number=1)
    assert max(sizes) == 5
    assert sum(sizes) == min(sample, 32)
    for name in PRUNABLE:
        assert torch.allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)
        assert whole[name].abs().max() > 1e-3


def test_gradients_take_batches_of_500_unless_evaluation_takes_smaller_ones():
    module, sizes = begin(make_module(make_task(examples=1300)), "a"), []
    module.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for batch_size, largest in ((None, 500), (300, 300), (900, 500)):
        sizes.clear()
        settings = {"begin": 0, "end": 0, "rounds": 1, "criterion": CRITERIA["gradient"]}
        make_pruner(**settings, batch_size=batch_size).prune_now(module)
        assert (max(sizes), sum(sizes)) == (largest, 1000)


def make_lopsided():
    """The 12 weights of the first layer are smaller than the 40 of the second."""
    module = begin(make_module(), "a")
    module.network.subnetwork("a").values["2.weight"].data.mul_(1e-3)
    return module


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_cut_by_scores_that_empties_a_layer_is_refused_before_anything_is_cut(rounds):
    module, budget = make_lopsided(), {"a": {"": 10}}
    settings = {"criterion": CRITERIA["magnitude"], "schedule": SCHEDULES["one_shot"], "begin": 0, "end": 0}
    with pytest.raises(
        EmptyLayerError, match=r"'a' .* layer '2\.weight': .* density must be >= 0\.7789 \(41 weights\)"
    ):
        IterativePruning(budget, **settings, rounds=rounds).prune_now(module)
    assert counts(module) == [12, 40]
    IterativePruning(budget, **settings, rounds=rounds, allow_empty=True).prune_now(module)
    assert counts(module) == [0, 10]
    module = make_lopsided()
    IterativePruning({"a": {"": round(0.7789 * 52)}}, **settings, rounds=rounds).prune_now(module)
    assert counts(module) == [1, 40]


def test_a_later_cut_that_empties_a_layer_ends_the_fit(tmp_path):
    module = make_lopsided()
    pruner = IterativePruning({"a": {"": 5}}, CRITERIA["magnitude"], SCHEDULES["linear"], 1, 2, 4)
    with pytest.raises(EmptyLayerError, match="task 'a' would keep no weight of layer"):
        fit(module, tmp_path, pruner)


@pytest.mark.parametrize("begin_at", ["initialisation", "epoch 1"])
def test_rewinding_sets_survivors_back_and_clears_the_optimizer(begin_at, tmp_path):
    epoch = 0 if begin_at == "initialisation" else 1
    module = begin(make_module(), "a")
    values = module.network.subnetwork("a").values

    def look(epoch, batch, module):
        states = sum(len(state) for state in module.optimizers().optimizer.state.values())
        return states, {name: values[name].detach().clone() for name in PRUNABLE}

    start = {name: values[name].detach().clone() for name in PRUNABLE}
    seen = AfterBatch(look)
    pruner = make_pruner(schedule=SCHEDULES["one_shot"], rounds=1, rewind_epoch=epoch, rescale=False)
    fit(module, tmp_path, pruner, seen)
    early = start if epoch == 0 else seen.seen[STEPS - 1][1]
    states, after = seen.seen[2 * STEPS - 1]
    masks = module.network.masks("a")
    assert states == 0
    assert seen.seen[2 * STEPS - 2][0] > 0
    assert seen.seen[2 * STEPS][0] > 0
    for name in PRUNABLE:
        assert torch.equal(after[name][masks[name]], early[name][masks[name]])
        assert not torch.equal(seen.seen[2 * STEPS - 2][1][name][masks[name]], early[name][masks[name]])


def test_cuts_of_whole_units_follow_the_schedule_in_units(tmp_path):
    module = begin(make_module(), "a")
    units = trace_units(module.network, "channel", make_batch()[0])
    rows = AfterBatch(lambda *_: [int(m.flatten(1).any(1).sum()) for m in module.network.masks("a").values()])
    wanted = {"a": {"2.weight": 2, "6.weight": 1}}
    pruner = IterativePruning(
        wanted, CRITERIA["gradient"], SCHEDULES["linear"], 0, 1, rounds=2, granularity=Units(units)
    )
    fit(module, tmp_path, pruner, rows, epochs=1)
    assert pruner.start == {"a": {"2.weight": 4, "6.weight": 5}}
    assert rows.seen == [[4, 5], [3, 3], [3, 3], [2, 1]]
    assert counts(module) == [2 * 3, 1 * 2 * 2]


def test_a_cut_with_rescaling_keeps_each_tensors_norm():
    module = begin(make_module(), "a")
    values = module.network.subnetwork("a").values
    before = {name: values[name].detach().norm().item() for name in PRUNABLE}
    make_pruner(begin=0, end=0, rounds=3).prune_now(module)
    assert {name: values[name].detach().norm().item() for name in PRUNABLE} == pytest.approx(before, rel=1e-6)
    assert counts(module) == [4, 10]


def test_the_state_can_be_saved_and_loaded(tmp_path):
    first = make_pruner(rewind_epoch=0)
    module = begin(make_module(), "a")
    fit(module, tmp_path, first, epochs=2)
    torch.save(first.state_dict(), tmp_path / "state")
    second = make_pruner(rewind_epoch=0)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert (second.rounds_done, second.start) == (4, {"a": {"2.weight": 12, "6.weight": 40}})
    assert second.earlier["a"].keys() == first.earlier["a"].keys()
    assert all(torch.equal(second.earlier["a"][name], tensor) for name, tensor in first.earlier["a"].items())


def test_a_debugging_fit_of_one_batch_prunes_down_to_the_budget(tmp_path):
    module = begin(make_module(), "a")
    fit(module, tmp_path, make_pruner(), config=make_config(fast_dev_run=True))
    assert counts(module) == [4, 10]
