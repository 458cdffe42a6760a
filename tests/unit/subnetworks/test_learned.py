"""Test learned scores, and selected weights of earlier tasks."""

from itertools import product

import pytest
import torch
from torch import nn

from helpers import (
    PRUNABLE,
    copy_state,
    differences,
    learn,
    make_batch,
    make_head,
    make_mlp,
    make_network,
    quarter,
    seen_weights,
    train,
)
from messages import says
from msh.subnetworks import (
    CRITERIA,
    CapacityError,
    MultiSubnetwork,
    candidate_counts,
    go_back,
    keep_state,
    let_scores_choose,
    loss_gradients,
    prune,
    start_scores,
)

LEARNED = CRITERIA["learned"]


def make_scored(weight, kept, scores, rescale=False):
    """Make a linear layer with these weights that computes with the best of these scores."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    network = MultiSubnetwork(nn.Sequential(layer))
    network.add_task("a")
    network.begin("a")
    start_scores(network, "a")
    sub = network.subnetwork("a")
    sub.scores["0.weight"].data = torch.tensor(scores)
    let_scores_choose(network, "a", {"0.weight": kept}, rescale)
    return network, sub


def make_choosing(seed=0, norm="none"):
    """Make a network with a frozen task, and a begun one that may read its weights."""
    network = make_network(norm, seed)
    learn(network, "old", seed=seed)
    network.add_task("new", head=make_head(seed), reuse="learned")
    network.begin("new")
    return network


# ---- scores


def test_the_best_weights_are_selected_and_gradients_reach_all_scores():
    network, sub = make_scored([[2.0, 3.0, 5.0]], 1, [[0.1, 0.9, 0.5]])
    outputs = network(torch.tensor([[1.0, 10.0, 100.0]]))
    outputs.backward(torch.tensor([[0.5]]))
    assert outputs.tolist() == [[30.0]]
    assert sub.values["0.weight"].grad.tolist() == [[0.0, 5.0, 0.0]]
    assert sub.scores["0.weight"].grad.tolist() == [[0.5 * 2.0, 0.5 * 30.0, 0.5 * 500.0]]


def test_the_selection_follows_the_scores_after_a_validation_pass():
    network, sub = make_scored([[2.0, 3.0]], 1, [[0.1, 0.9]])
    inputs = torch.tensor([[1.0, 10.0]])
    with torch.inference_mode():
        assert network(inputs).item() == 30.0
    network(inputs).sum().backward()
    with torch.no_grad():
        sub.scores["0.weight"].copy_(torch.tensor([[0.9, 0.1]]))
    with torch.inference_mode():
        assert network(inputs).item() == 2.0
    network(inputs).sum().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_the_selection_follows_an_optimizers_changes_to_scores(fused):
    """Fused optimizers do not change tensors' versions."""
    network, sub = make_scored([[2.0, 3.0]], 1, [[0.4, 0.5]])
    optimizer = torch.optim.AdamW([sub.scores["0.weight"]], lr=0.3, fused=fused)
    outputs = network(torch.tensor([[1.0, 10.0]]))
    assert outputs.item() == 30.0
    (outputs * torch.tensor([[-1.0]])).sum().backward()
    sub.scores["0.weight"].grad.mul_(torch.tensor([[1.0, -1.0]]))  # what is not chosen becomes the better one
    optimizer.step()
    assert network(torch.tensor([[1.0, 10.0]])).item() == 2.0


def test_before_selection_every_candidate_is_used_and_scores_train():
    network = make_network()
    network.add_task("a", head=make_head())
    network.begin("a")
    inputs, _ = make_batch()
    before = network(inputs)
    start_scores(network, "a")
    after = network(inputs)
    after.square().sum().backward()
    sub = network.subnetwork("a")
    assert torch.equal(after, before)
    for name in PRUNABLE:
        torch.testing.assert_close(sub.scores[name].grad, sub.values[name].grad * sub.values[name])
        assert sub.scores[name].grad.abs().max() > 1e-3


def test_scores_start_from_magnitudes_or_from_a_seeded_draw():
    def start(*how):
        network = make_network()
        network.add_task("a")
        network.begin("a")
        start_scores(network, "a", *how)
        sub = network.subnetwork("a")
        return {n: sub.scores[n].detach() for n in PRUNABLE}, {n: sub.values[n].detach() for n in PRUNABLE}

    scores, values = start()
    mean = torch.cat([values[name].abs().flatten() for name in PRUNABLE]).mean()
    for name in PRUNABLE:
        torch.testing.assert_close(scores[name], values[name].abs() / mean)
    state = torch.get_rng_state()
    draws = [start("random", torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for name in PRUNABLE:
        assert torch.equal(draws[0][name], draws[1][name])
        assert not torch.equal(draws[0][name], draws[2][name])
        assert draws[0][name].min() > 0
    assert torch.cat([draws[0][name].flatten() for name in PRUNABLE]).mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_first_selection_has_the_norm_of_all_candidates(rescale):
    _, sub = make_scored([[3.0, 4.0, 12.0]], 2, [[0.9, 0.8, 0.1]], rescale)
    factor = 13 / 5 if rescale else 1.0
    torch.testing.assert_close(sub.values["0.weight"].detach(), factor * torch.tensor([[3.0, 4.0, 12.0]]))


@pytest.mark.parametrize("kept", [{"2.weight": 3, "6.weight": 9}, {"": 12}])
def test_the_number_kept_is_selected_and_becomes_the_mask(kept):
    network = make_network()
    network.add_task("a", head=make_head())
    network.begin("a")
    start_scores(network, "a")
    let_scores_choose(network, "a", kept)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    chosen = []
    for _ in range(4):
        train(network, optimizer, steps=3)
        seen = seen_weights(network, "a")
        found = {name: int((weight != 0).sum()) for name, weight in seen.items()}
        assert sum(found.values()) == 12
        assert "" in kept or found == kept
        chosen.append(torch.cat([weight.flatten() != 0 for weight in seen.values()]))
    assert not torch.equal(chosen[0], chosen[-1])
    prune(network, "a", kept, LEARNED, rescale=False)
    assert all(torch.equal(seen_weights(network, "a")[name], seen[name]) for name in PRUNABLE)
    network.compact("a")
    assert all(torch.equal(seen_weights(network, "a")[name], seen[name]) for name in PRUNABLE)
    assert not [name for name, _ in network.named_parameters() if "scores" in name]
    network.freeze("a")
    assert network.state.total().taken == 12


def learn_sum(choose):
    """Return the loss on y = sum of the first 4 of 32 inputs, with 4 of a layer's weights; and their indices."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 1, bias=False)
    nn.init.uniform_(layer.weight, 0.05, 0.15)
    network = MultiSubnetwork(nn.Sequential(layer))
    network.add_task("a")
    network.begin("a")
    inputs = torch.randn(256, 32)
    targets = inputs[:, :4].sum(1, keepdim=True)

    def fit(steps):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(steps):
            loss = nn.functional.mse_loss(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    kept = {"0.weight": 4}
    if choose == "learned":
        start_scores(network, "a", "random", torch.Generator().manual_seed(1))
        let_scores_choose(network, "a", kept)
        fit(300)
    prune(network, "a", kept, CRITERIA[choose], generator=torch.Generator().manual_seed(1))
    network.compact("a")
    return fit(100), network.masks("a")["0.weight"][0].nonzero().squeeze(1).tolist()


def test_learned_scores_find_the_only_weights_that_help_where_a_random_mask_cannot():
    loss, places = learn_sum("learned")
    assert places == [0, 1, 2, 3]
    assert loss < 1e-2 < 1 < learn_sum("random")[0]


def test_scores_and_selection_survive_a_file_and_train_identically():
    network, loaded = make_choosing(norm="batch"), make_network("batch", 7)
    start_scores(network, "new")
    let_scores_choose(network, "new", quarter(network))
    train(network, torch.optim.SGD(network.parameters(), lr=0.1))
    prune(network, "new", {name: 2 * count for name, count in quarter(network).items()}, LEARNED, rescale=False)
    for task in ("old", "new"):
        loaded.add_task(task, head=make_head(3))
    loaded.load_state_dict(copy_state(network))
    for each in (network, loaded):
        train(each, torch.optim.SGD(each.parameters(), lr=0.1))
    assert differences(network.state_dict(), loaded.state_dict()) == []
    assert network.subnetwork("new").kept == quarter(network)


def test_go_back_restores_scores_and_reading():
    network = make_choosing()
    start_scores(network, "new")
    let_scores_choose(network, "new", quarter(network))
    state, seen = keep_state(network, "new"), seen_weights(network, "new")
    train(network, torch.optim.Adam(network.parameters(), lr=0.1))
    prune(network, "new", {"": 5}, LEARNED)
    go_back(network, "new", state)
    assert differences(keep_state(network, "new"), state) == []
    assert all(torch.equal(weight, seen[name]) for name, weight in seen_weights(network, "new").items())


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*")  # torch's compiler
def test_a_compiled_training_step_equals_the_plain_one():
    ends = []
    for compiled in (False, True):
        network = make_choosing()
        start_scores(network, "new")
        let_scores_choose(network, "new", quarter(network))
        run = torch.compile(network, backend="eager") if compiled else network
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            run(make_batch()[0]).square().sum().backward()
            optimizer.step()
        ends.append(seen_weights(network, "new"))
    for name in PRUNABLE:
        torch.testing.assert_close(ends[0][name], ends[1][name])


def test_missing_scores_and_phases_are_refused():
    network = make_network()
    network.add_task("a")
    with pytest.raises(ValueError, match=r"task 'a' is new.*masked"):
        start_scores(network, "a")
    network.begin("a")
    with pytest.raises(ValueError, match=says("scores", value="magnitud", meant="magnitude")):
        start_scores(network, "a", "magnitud")
    with pytest.raises(ValueError, match="task 'a' has no scores"):
        let_scores_choose(network, "a", {"": 3})
    with pytest.raises(ValueError, match="criterion 'learned' needs learned scores"):
        prune(network, "a", {"": 3}, LEARNED)


# ---- reading


@pytest.mark.parametrize("criterion", CRITERIA)
def test_own_and_read_weights_are_the_best_of_both_within_the_budget(criterion):
    network = make_choosing()
    inputs, _ = make_batch()
    start_scores(network, "new")
    gradients = loss_gradients(network, "new", lambda: network(inputs, "new").square().sum())
    theirs = network.masks("old")
    assert candidate_counts(network, "new", quarter(network)) == network.sizes()
    prune(network, "new", {"2.weight": 6, "6.weight": 20}, CRITERIA[criterion], gradients)
    own, reading = network.masks("new"), network.reading("new")
    for name, count in {"2.weight": 6, "6.weight": 20}.items():
        assert int((own[name] | reading[name]).sum()) == count
        assert not (own[name] & theirs[name]).any()
        assert not (reading[name] & ~theirs[name]).any()
    assert sum(int(mask.sum()) for mask in reading.values()) > 0
    assert network.view("new").read_counts("new") == {"old": sum(int(mask.sum()) for mask in reading.values())}


def test_gradients_on_a_sample_reach_read_weights_and_training_does_not():
    network = make_choosing()
    inputs, _ = make_batch()
    theirs = network.masks("old")
    gradients = loss_gradients(network, "new", lambda: network(inputs, "new").square().sum())
    network(inputs, "new").square().sum().backward()
    for name in PRUNABLE:
        trained = network.subnetwork("new").values[name].grad
        assert gradients[name][theirs[name]].abs().max() > 1e-3
        assert not trained[theirs[name]].any()
        assert torch.equal(gradients[name][~theirs[name]], trained[~theirs[name]])


def test_scores_of_read_weights_train_and_the_weights_do_not():
    network = make_choosing()
    start_scores(network, "new")
    let_scores_choose(network, "new", quarter(network))
    before = {name: weight.clone() for name, weight in network.weights()}
    sub, theirs = network.subnetwork("new"), network.masks("old")
    start = {name: sub.scores[name].detach().clone() for name in PRUNABLE}
    train(network, torch.optim.Adam(network.parameters(), lr=0.05, weight_decay=0.1), steps=5)
    seen = seen_weights(network, "new")
    for name, weight in network.weights():
        assert torch.equal(weight, before[name])
        assert (sub.scores[name] != start[name])[theirs[name]].all()
        assert set(seen[name][theirs[name]].tolist()) <= {0.0, *weight[theirs[name]].tolist()}


def test_scores_of_read_weights_start_at_own_scores_of_the_same_rank():
    layer = nn.Linear(6, 1, bias=False)
    layer.weight.data = torch.tensor([[9.0, -1.0, 4.0, -2.0, 7.0, 3.0]])
    network = MultiSubnetwork(nn.Sequential(layer))
    network.add_task("old")
    network.begin("old")
    prune(network, "old", {"0.weight": 2}, rescale=False)
    network.freeze("old")
    network.add_task("new", reuse="learned")
    network.begin("new")
    start_scores(network, "new")
    scores = network.subnetwork("new").scores["0.weight"].detach()[0]
    own = scores[[1, 3, 5, 2]]
    torch.testing.assert_close(own, own[0] * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert scores[[4, 0]].tolist() == own[[1, 3]].tolist()  # the middle of each half


@pytest.mark.parametrize("learned", [True, False])
def test_own_weights_take_their_share_of_the_norm_beside_read_ones(learned):
    network = make_choosing()
    held, values = network.held("new"), network.subnetwork("new").values
    for name, own in network.masks("new").items():
        share = int(own.sum()) / own.numel()
        torch.testing.assert_close(values[name].detach()[own].norm(), network.initial_norms[name] * share**0.5)
    if learned:
        start_scores(network, "new", "random")
        let_scores_choose(network, "new", quarter(network))
    prune(network, "new", quarter(network), CRITERIA["learned" if learned else "random"], rescale=not learned)
    for name, own in network.masks("new").items():
        kept = quarter(network)[name]
        assert 0 < int(own.sum()) < kept < int(held[name].sum())
        expected = network.initial_norms[name] * (int(own.sum()) / kept) ** 0.5
        torch.testing.assert_close(values[name].detach()[own].norm(), expected)


def test_a_full_network_has_room_for_a_task_that_reads():
    network = MultiSubnetwork(make_mlp(3, 2, bias=False))
    network.add_task("old")
    network.begin("old")
    network.freeze("old")
    network.add_task("other", reuse="all")
    with pytest.raises(CapacityError, match="'other' has nothing to train"):
        network.begin("other")
    network.add_task("new", head=nn.Linear(2, 2), reuse="learned")
    network.begin("new")
    prune(network, "new", {"0.weight": 4})
    network.compact("new")
    assert [name for name, _ in network.named_parameters()] == [f"subnetworks.new.head.{n}" for n in ("weight", "bias")]
    network.freeze("new")
    assert network.view("new").read_counts("new") == {"old": 4}
    assert network.state.total().owned["new"] == 0


def test_a_reading_mask_takes_a_bit_per_weight():
    network = make_choosing()
    prune(network, "new", quarter(network), CRITERIA["random"])
    network.freeze("new")
    reading = {key: t for key, t in network.state_dict().items() if ".reading." in key}
    assert {key: (t.dtype, t.numel()) for key, t in reading.items()} == {
        "subnetworks.new.reading.2/weight": (torch.uint8, 2),  # of 12 weights
        "subnetworks.new.reading.6/weight": (torch.uint8, 5),  # of 40
    }


def test_the_digest_covers_read_weights_that_are_zero():
    network = make_choosing()
    prune(network, "new", quarter(network), CRITERIA["random"])
    network.freeze("new")
    digest, sub = network.digest("new"), network.subnetwork("new")
    packed = sub.reading["6.weight"]
    network.backbone.get_buffer("6.weight").mul_(0.0)
    zero = network.digest("new")
    for place, bit in product(range(5), (1, 2, 4)):
        packed[place] ^= bit
        assert network.digest("new") not in (digest, zero)
        packed[place] ^= bit
    assert network.digest("new") == zero != digest
