"""Known failures in similar libraries: one test each, named for the failure."""

import pytest
import torch
from torch import nn

from helpers import (
    FEATURES,
    PRUNABLE,
    copy_state,
    counts_by_layer,
    differences,
    learn,
    make_batch,
    make_head,
    make_mlp,
    make_network,
    make_optimizer,
    quarter,
    seen_weights,
    train,
)
from msh.subnetworks import CapacityError, MultiSubnetwork, prune


def make_two_tasks(norm="none"):
    """A frozen task, and one that has just begun."""
    network = make_network(norm)
    learn(network, "old")
    network.add_task("new", head=make_head(1))
    network.begin("new")
    return network


def owned(network, task):
    return {name: weight[network.masks(task)[name]].clone() for name, weight in network.weights()}


def test_weight_decay_moves_no_frozen_weight():
    network = make_two_tasks()
    before = owned(network, "old")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=5.0)
    train(network, optimizer, steps=5)
    network.freeze("new")
    after = owned(network, "old")
    assert all(torch.equal(after[name], before[name]) for name in PRUNABLE)
    assert all(before[name].any() for name in PRUNABLE)


def test_momentum_moves_no_newly_pruned_weight():
    network = make_two_tasks()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    train(network, optimizer, steps=4)
    masks = network.masks("new")
    prune(network, "new", quarter(network))
    gone = {name: masks[name] & ~network.masks("new")[name] for name in PRUNABLE}
    moving = [optimizer.state[network.subnetwork("new").values[name]]["momentum_buffer"] for name in PRUNABLE]
    assert all(momentum[gone[name]].any() for momentum, name in zip(moving, PRUNABLE, strict=True))
    train(network, optimizer, steps=3)
    assert not any(seen_weights(network, "new")[name][gone[name]].any() for name in PRUNABLE)


def test_batchnorm_statistics_of_a_frozen_task_do_not_move():
    network = make_two_tasks("batch")
    old, new = network.subnetwork("old").private, network.subnetwork("new").private
    before = {name: tensor.clone() for name, tensor in old.items()}
    assert "3.running_mean" in before
    train(network.train(), make_optimizer(torch.optim.SGD, network), seed=5)
    network(make_batch(6)[0], "old")
    assert all(torch.equal(old[name], before[name]) for name in before)
    assert not torch.equal(new["3.running_mean"], old["3.running_mean"])
    assert int(new["3.num_batches_tracked"]) == 3


def test_pruning_rebinds_no_parameter_and_the_optimizer_still_updates():
    network = make_two_tasks()
    optimizer = make_optimizer(torch.optim.SGD, network)
    parameters = list(network.parameters())
    train(network, optimizer)
    for count in (30, 20):
        prune(network, "new", {"": count})
        now = list(network.parameters())
        assert all(a is b for a, b in zip(now, parameters, strict=True))
        before = seen_weights(network, "new")
        train(network, optimizer)
        assert not any(torch.equal(seen_weights(network, "new")[name], before[name]) for name in PRUNABLE)


def test_compaction_gives_parameters_that_a_new_optimizer_updates():
    network = make_two_tasks()
    prune(network, "new", quarter(network))
    network.compact("new")
    before = seen_weights(network, "new")
    train(network, make_optimizer(torch.optim.SGD, network))
    after = seen_weights(network, "new")
    for name in PRUNABLE:
        assert (after[name] != before[name])[network.masks("new")[name]].all()


def test_percentile_ties_do_not_give_a_task_all_weights():
    backbone = make_mlp(10, 10)
    nn.init.constant_(backbone[0].weight, 0.25)
    network = MultiSubnetwork(backbone)
    network.add_task("a")
    network.begin("a")
    prune(network, "a", {"0.weight": 10})
    network.freeze("a")
    assert counts_by_layer(network) == {"0.weight": {"": 90, "a": 10}}


@pytest.mark.parametrize("kept", [0, 1, 7, 51, 52])
def test_no_threshold_prunes_one_weight_too_many(kept):
    network = make_network()
    network.add_task("a")
    network.begin("a")
    prune(network, "a", {"": kept}, allow_empty=True)
    assert sum(int(mask.sum()) for mask in network.masks("a").values()) == kept


def test_training_on_no_free_weights_is_an_error():
    network = make_two_tasks()
    network.freeze("new")
    network.add_task("late")
    with pytest.raises(CapacityError, match="'late' has nothing to train"):
        network.begin("late")
    with pytest.raises(ValueError, match="'late' has no weights yet"):
        network(make_batch()[0], "late")


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_biases_of_a_later_task_train_and_those_of_an_earlier_one_do_not(form):
    network = make_two_tasks()
    biases = ["2.bias", "6.bias"]
    old = {name: network.subnetwork("old").private[name].clone() for name in biases}
    new = {name: network.subnetwork("new").private[name].detach().clone() for name in biases}
    if form == "compact":
        network.compact("new")
    train(network, make_optimizer(torch.optim.SGD, network))
    for name in biases:
        assert not torch.equal(network.subnetwork("new").private[name], new[name])
        assert torch.equal(network.subnetwork("old").private[name], old[name])


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_layers_without_bias_train(form):
    torch.manual_seed(0)
    network = MultiSubnetwork(make_mlp(4, 6, FEATURES, bias=False))
    network.add_task("a", head=make_head())
    network.begin("a")
    prune(network, "a", quarter(network))
    if form == "compact":
        network.compact("a")
    before = network.digest("a")
    train(network, make_optimizer(torch.optim.SGD, network))
    assert list(network.subnetwork("a").private) == []
    assert network.digest("a") != before
    network.freeze("a")
    assert network(make_batch()[0]).shape == (6, 3)


@pytest.mark.parametrize("phase", ["dense", "masked", "compact", "frozen"])
def test_evaluation_changes_no_weight(phase):
    network = make_two_tasks("batch")
    train(network, make_optimizer(torch.optim.SGD, network))
    if phase != "dense":
        prune(network, "new", quarter(network))
    if phase == "compact":
        network.compact("new")
    if phase == "frozen":
        network.freeze("new")
    network.eval()
    before = copy_state(network)
    for task in ("new", "old", "new"):
        network(make_batch(8)[0], task)
    assert differences(network.state_dict(), before) == []


def test_the_masks_are_in_the_state_dict():
    network, loaded = make_two_tasks(), make_network(seed=5)
    prune(network, "new", {"": 11})
    for task in network.tasks:
        loaded.add_task(task, head=make_head(8))
    loaded.load_state_dict(copy_state(network))
    for task in network.tasks:
        expected = network.masks(task)
        assert all(torch.equal(mask, expected[name]) for name, mask in loaded.masks(task).items())
    assert sum(int(mask.sum()) for mask in loaded.masks("new").values()) == 11
