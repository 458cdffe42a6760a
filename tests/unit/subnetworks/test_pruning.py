import copy

import pytest
import torch
from torch import nn

from helpers import PRUNABLE, learn, make_batch, make_head, make_network, make_optimizer, train
from messages import says
from msh.subnetworks import (
    CRITERIA,
    MultiSubnetwork,
    candidate_counts,
    cut_state,
    loss_gradients,
    prune,
    rewind,
    select_apart,
    snapshot,
)


def make_row():
    """Make one layer with the weights 4 -3 2 -1 0.5 in two rows, dense at the start."""
    layer = nn.Linear(5, 2, bias=False)
    layer.weight.data = torch.tensor([[4.0, -3.0, 2.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0, 12.0]])
    network = MultiSubnetwork(nn.Sequential(layer))
    network.add_task("a")
    network.begin("a")
    return network


def make_begun(norm="none", reuse="none"):
    network = make_network(norm)
    learn(network, "old")
    network.add_task("a", head=make_head(), reuse=reuse)
    network.begin("a")
    return network


def values_of(network):
    return {name: values.detach().clone() for name, values in network.subnetwork("a").values.items()}


def test_the_largest_weights_stay_and_the_rest_is_zero():
    network = make_row()
    prune(network, "a", {"0.weight": 3}, rescale=False)
    expected = torch.tensor([[4.0, -3.0, 0, 0, 0], [0, 0, 0, 0, 12.0]])
    torch.testing.assert_close(values_of(network)["0.weight"], expected)


def test_rescaling_keeps_the_norm_by_one_factor():
    network = make_row()
    before = values_of(network)["0.weight"]
    prune(network, "a", {"0.weight": 2})
    after = values_of(network)["0.weight"]
    torch.testing.assert_close(after.norm(), before.norm())
    # 4 and 12 are left: 160 of 174.25
    expected = torch.tensor([4.0, 12.0]) * (174.25 / 160) ** 0.5
    torch.testing.assert_close(after[after != 0], expected)


@pytest.mark.parametrize("reuse", ["none", "all"])
def test_rescaling_keeps_the_norm_of_every_tensors_own_weights(reuse):
    network = make_begun(reuse=reuse)
    own = {name: values[network.masks("a")[name]].norm() for name, values in values_of(network).items()}
    prune(network, "a", {"2.weight": 4, "6.weight": 9})
    for name, values in values_of(network).items():
        torch.testing.assert_close(values[network.masks("a")[name]].norm(), own[name])


def test_an_allowed_empty_tensor_is_zero():
    network = make_row()
    prune(network, "a", {"0.weight": 0}, allow_empty=True)
    assert not values_of(network)["0.weight"].any()
    network.freeze("a")
    assert not network(torch.ones(1, 5)).any()


def test_pruning_to_all_candidates_changes_nothing():
    network = make_begun()
    before, counts = values_of(network), candidate_counts(network, "a", {"2.weight": 0, "6.weight": 0})
    prune(network, "a", counts)
    assert counts == {"2.weight": 9, "6.weight": 30}
    for name, values in values_of(network).items():
        torch.testing.assert_close(values, before[name])


def test_candidates_are_counted_by_the_budgets_keys():
    network = make_begun()
    assert candidate_counts(network, "a", {"": 5}) == {"": 39}
    prune(network, "a", {"": 5})
    assert candidate_counts(network, "a", {"": 5}) == {"": 5}


def test_gradients_decide_if_the_criterion_needs_them():
    network = make_row()
    gradients = {"0.weight": torch.tensor([[0.0, 0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 0.0, 9.0, 0.1]])}
    prune(network, "a", {"0.weight": 3}, CRITERIA["weight_gradient"], gradients, rescale=False)
    expected = torch.tensor([[0, 0, 0, -1.0, 0.5], [0, 0, 0, 0, 12.0]])  # 1, 2.5 and 1.2; 0 x 9 is 0
    torch.testing.assert_close(values_of(network)["0.weight"], expected)


def test_a_criterion_without_its_gradient_changes_nothing():
    network = make_row()
    with pytest.raises(ValueError, match="needs the gradient"):
        prune(network, "a", {"0.weight": 3}, CRITERIA["gradient"])
    assert network.masks("a")["0.weight"].all()


def test_random_pruning_is_the_same_for_the_same_generator():
    masks = []
    for seed in (3, 3, 4):
        network = make_begun()
        prune(network, "a", {"": 12}, CRITERIA["random"], generator=torch.Generator().manual_seed(seed))
        masks.append(torch.cat([mask.flatten() for mask in network.masks("a").values()]))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("phase", ["compact", "frozen"])
def test_only_a_masked_task_is_pruned(phase):
    network = make_begun()
    network.compact("a")
    if phase == "frozen":
        network.freeze("a")
    with pytest.raises(ValueError, match=f"'a' is {phase}"):
        prune(network, "a", {"2.weight": 9, "6.weight": 30})


def test_loss_gradients_equal_a_backward_pass_and_set_no_grad():
    network, (inputs, targets) = make_begun(), make_batch()
    prune(network, "a", {"": 20})
    network.subnetwork("a").head.bias.grad = torch.full((3,), 5.0)

    def loss():
        return (network(inputs) - targets).square().mean()

    found = loss_gradients(network, "a", loss)
    left = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert list(left) == ["subnetworks.a.head.bias"]
    assert left["subnetworks.a.head.bias"].tolist() == [5.0] * 3
    loss().backward()
    for name in PRUNABLE:
        assert torch.equal(found[name], network.subnetwork("a").values[name].grad)
        assert not found[name][~network.masks("a")[name]].any()


def test_a_weight_that_the_loss_does_not_use_has_gradient_zero():
    network = make_begun()
    found = loss_gradients(network, "a", lambda: network.subnetwork("a").head.weight.sum())
    assert {name: (g.shape, bool(g.any())) for name, g in found.items()} == {
        "2.weight": ((4, 1, 3), False),
        "6.weight": ((5, 8), False),
    }


@pytest.mark.parametrize("reuse", ["none", "all"])
def test_rewinding_restores_survivors_and_private_parameters(reuse):
    network = make_begun("batch", reuse)
    earlier, start = snapshot(network, "a"), values_of(network)
    train(network, make_optimizer(torch.optim.SGD, network))
    prune(network, "a", {"2.weight": 3, "6.weight": 10})
    rewind(network, "a", earlier, rescale=False)
    for name, mask in network.masks("a").items():
        assert torch.equal(values_of(network)[name][mask], start[name][mask])
        read = dict(network.weights())[name] * (network.masks("old")[name] & (reuse == "all"))
        assert torch.equal(values_of(network)[name][~mask], read[~mask])
        assert int(mask.sum()) == {"2.weight": 3, "6.weight": 10}[name]
    for name, parameter in network.subnetwork("a").named_parameters():
        if not name.startswith("values"):
            assert torch.equal(parameter, earlier[name])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.LBFGS])
def test_an_optimizers_state_is_cleared_where_a_cut_leaves_nothing(kind):
    network = make_begun()
    optimizer = make_optimizer(kind, network.subnetwork("a"), weight_decay=0.0)
    train(network, optimizer)
    prune(network, "a", {"": 20})
    before = copy.deepcopy(optimizer.state_dict()["state"])
    cut_state(network, "a", optimizer)
    cleared = 0
    for (number, parts), (name, parameter) in zip(
        optimizer.state_dict()["state"].items(), network.subnetwork("a").named_parameters(), strict=False
    ):
        mask = network.masks("a").get(name.removeprefix("values.").replace("/", "."))
        for key, part in parts.items():
            if mask is not None and torch.is_tensor(part) and part.shape == parameter.shape:
                assert torch.equal(part, torch.where(mask, before[number][key], 0.0))
                cleared += 1
            else:
                assert str(part) == str(before[number][key])
    assert cleared == {torch.optim.Adam: 4, torch.optim.RMSprop: 4, torch.optim.LBFGS: 0}[kind]


def test_rewinding_rescales_to_the_norm_of_the_snapshot():
    network = make_begun()
    earlier, start = snapshot(network, "a"), values_of(network)
    prune(network, "a", {"2.weight": 3, "6.weight": 10})
    rewind(network, "a", earlier)
    for name, values in values_of(network).items():
        torch.testing.assert_close(values.norm(), start[name].norm())


def test_a_snapshot_right_after_an_optimizer_step_holds_no_weight_outside_the_mask():
    network = make_begun()
    optimizer = make_optimizer(torch.optim.SGD, network)
    train(network, optimizer)
    prune(network, "a", {"": 20})
    train(network, optimizer, steps=1)
    earlier = snapshot(network, "a")
    for name, mask in network.masks("a").items():
        assert not earlier[f"values.{name.replace('.', '/')}"][~mask].any()


def test_a_snapshot_does_not_follow_the_training():
    network = make_begun()
    earlier = snapshot(network, "a")
    copies = {name: tensor.clone() for name, tensor in earlier.items()}
    train(network, make_optimizer(torch.optim.SGD, network))
    assert all(torch.equal(earlier[name], copies[name]) for name in copies)
    assert set(copies) == {name for name, _ in network.subnetwork("a").named_parameters()}


# ---- several tasks at once


def apart(kept, budgets, candidates=None, scores=None):
    """Select the indices of six weights that tasks a and b keep; by default both score the first ones highest."""
    scores = scores or {task: [6.0, 5.0, 4.0, 3.0, 2.0, 1.0] for task in "ab"}
    candidates = candidates or {task: [True] * 6 for task in "ab"}
    masks = select_apart(
        {task: {"w": torch.tensor(scores[task])} for task in "ab"},
        {task: {"w": n} for task, n in zip("ab", kept, strict=True)},
        {task: {"w": n} for task, n in zip("ab", budgets, strict=True)},
        {task: {"w": torch.tensor(candidates[task])} for task in "ab"},
    )
    return [masks[task]["w"].nonzero().flatten().tolist() for task in "ab"]


def test_a_weight_reserved_by_an_earlier_task_goes_to_no_other():
    assert apart(kept=(2, 2), budgets=(2, 2)) == [[0, 1], [2, 3]]


def test_until_the_last_cut_tasks_share_unreserved_weights():
    assert apart(kept=(4, 3), budgets=(2, 1)) == [[0, 1, 3, 4], [2, 3, 4]]


def test_a_task_keeps_no_weight_that_others_reserved():
    assert apart(kept=(6, 6), budgets=(2, 3)) == [[0, 1, 5], [2, 3, 4, 5]]


def test_tasks_that_like_different_weights_do_not_disturb_each_other():
    scores = {"a": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "b": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    assert apart(kept=(2, 3), budgets=(2, 3), scores=scores) == [[0, 1], [3, 4, 5]]


def test_candidates_that_do_not_suffice_for_every_budget_are_refused():
    with pytest.raises(ValueError, match=says("k", "in [0, 3], the number of candidates", 4)):
        apart(kept=(3, 4), budgets=(3, 4))


@pytest.mark.parametrize(("kept", "budget", "expected"), [(3, 2, [0, 1, 4]), (9, 2, [0, 1, 3, 4]), (1, 2, [0, 1])])
def test_a_task_alone_keeps_its_best_candidates_and_never_fewer_than_its_budget(kept, budget, expected):
    masks = select_apart(*alone(kept, budget))
    assert masks["a"]["w"].nonzero().flatten().tolist() == expected


def test_a_task_alone_needs_candidates_for_its_budget_and_scores_that_are_numbers():
    with pytest.raises(ValueError, match=says("k", "in [0, 4], the number of candidates", 5)):
        select_apart(*alone(6, 5))
    with pytest.raises(ValueError, match="1 scores are NaN"):
        select_apart(*alone(3, 2, last=float("nan")))


def alone(kept, budget, last=2.5):
    """Arguments for one task whose weights 2 and 5 are no candidates."""
    scores, candidates = [6.0, 5.0, 4.0, 1.0, last, 9.0], [True, True, False, True, True, False]
    named = {"w": torch.tensor(scores)}, {"w": kept}, {"w": budget}, {"w": torch.tensor(candidates)}
    return tuple({"a": each} for each in named)


def test_tasks_that_are_pruned_together_may_read_the_same_weight():
    scores = {task: {"x": torch.tensor([4.0, 3.0, 2.0, 1.0])} for task in "ab"}
    one = {task: {"x": 2} for task in "ab"}
    every = {task: {"x": torch.ones(4, dtype=torch.bool)} for task in "ab"}
    apart = select_apart(scores, one, one, every)
    assert [apart[task]["x"].tolist() for task in "ab"] == [[True, True, False, False], [False, False, True, True]]
    shared = {"x": torch.tensor([True, False, False, False])}
    both = select_apart(scores, one, one, every, shared)
    assert [both[task]["x"].tolist() for task in "ab"] == [[True, True, False, False], [True, False, True, False]]
