"""A compact task replaces its weakest weights by free ones; everything else follows them."""

import math
from inspect import signature

import pytest
import torch
from torch import nn

from msh.backbones import MLP
from msh.subnetworks import WEIGHTS, MultiSubnetwork, OverlappingUnits, Units, loss_gradients, prune, trace_units
from msh.subnetworks.blocks import is_in_blocks
from msh.subnetworks.granularity import Blocks
from msh.subnetworks.regrowth import choose_regrown, move, move_state, share_at
from msh.subnetworks.units import units_in_use

FIRST, SECOND = "layers.1.weight", "layers.3.weight"


def make(kept, granularity=WEIGHTS, name="weight", reuse="none", before=None):
    """Two layers, 24 and 36 weights; task "a" is compact, after a frozen task "old" with `before` weights."""
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((4,), 6, depth=2))
    network.train()
    if before is not None:
        network.add_task("old", nn.Linear(6, 2))
        network.begin("old")
        prune(network, "old", before)
        network.freeze("old")
    network.add_task("a", nn.Linear(6, 2), reuse=reuse, granularity=name)
    network.begin("a", generator=torch.Generator().manual_seed(1))
    prune(network, "a", kept, granularity=granularity(trace_units(network)) if granularity is not WEIGHTS else WEIGHTS)
    network.compact("a")
    return network


def train(network, optimizer, steps=1):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        optimizer.zero_grad()
        network(inputs, "a").square().sum().backward()
        optimizer.step()


def test_the_share_decays_by_a_cosine():
    assert [round(share_at(0.3, time), 6) for time in (0, 1 / 3, 0.5, 1, 2)] == [0.3, 0.225, 0.15, 0, 0]


def test_the_weakest_weights_give_way_to_those_with_the_largest_gradients():
    network = make({FIRST: 4, SECOND: 5})
    sub = network.subnetwork("a")
    with torch.no_grad():
        sub.values[FIRST].copy_(torch.tensor([0.1, -3.0, 2.0, -0.2]))
        sub.values[SECOND].copy_(torch.tensor([1.0, 2.0, 3.0, 0.5, 4.0]))
    before = network.masks("a")
    owned = {name: mask.flatten().nonzero().flatten() for name, mask in before.items()}
    free = {name: (~mask).flatten().nonzero().flatten() for name, mask in before.items()}
    gradients = {name: torch.zeros(mask.shape) for name, mask in before.items()}
    gradients[FIRST].view(-1)[owned[FIRST][1]] = 100.0  # its own weight already
    gradients[FIRST].view(-1)[free[FIRST][7]] = -9.0
    gradients[FIRST].view(-1)[owned[FIRST][3]] = 8.0  # dropped, and taken again
    gradients[SECOND].view(-1)[free[SECOND][2]] = 0.1
    masks = choose_regrown(network, "a", 0.5, gradients=gradients)
    origins = move(network, "a", masks)
    expected = sorted([(int(free[FIRST][7]), -1, 0.0), (int(owned[FIRST][1]), 1, -3.0), (int(owned[FIRST][2]), 2, 2.0)])
    expected = sorted([*expected, (int(owned[FIRST][3]), 3, pytest.approx(-0.2))])
    places = network.masks("a")[FIRST].flatten().nonzero().flatten().tolist()
    assert list(zip(places, origins[FIRST].tolist(), sub.values[FIRST].tolist(), strict=True)) == expected
    assert sorted(sub.values[SECOND].tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0] or 0.5 not in sub.values[SECOND].tolist()
    assert all(int(mask.sum()) == count for mask, count in zip(masks.values(), (4, 5), strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_an_optimizers_state_follows_the_weights(optimizer):
    network = make({FIRST: 6, SECOND: 9})
    one = optimizer(network.parameters(), 0.01, momentum=0.9) if "momentum" in signature(optimizer).parameters else None
    one = one or optimizer(network.parameters(), 0.01)
    train(network, one, 2)
    values = network.subnetwork("a").values[FIRST]
    before = {key: part.clone() for key, part in one.state[values].items()}
    origins = move(network, "a", choose_regrown(network, "a", 0.4))
    move_state(network, "a", origins, one)
    assert network.subnetwork("a").values[FIRST] is values
    origin = origins[FIRST]
    assert 1 <= int((origin < 0).sum()) <= 2
    for key, part in before.items():
        after = one.state[values][key]
        if part.dim():
            assert torch.equal(after[origin >= 0], part[origin[origin >= 0]])
            assert not after[origin < 0].any()
        else:
            assert torch.equal(after, part)
    train(network, one)


def test_a_state_of_all_weights_together_is_dropped():
    network = make({FIRST: 6, SECOND: 9})
    optimizer = torch.optim.LBFGS(network.parameters(), 0.01)

    def loss():
        optimizer.zero_grad()
        value = network(torch.ones(2, 4), "a").square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert optimizer.state
    move_state(network, "a", move(network, "a", choose_regrown(network, "a", 0.4)), optimizer)
    assert not optimizer.state
    optimizer.step(loss)


@pytest.mark.parametrize("reuse", ["none", "all"])
def test_gradients_of_a_compact_task_reach_free_weights_and_change_nothing(reuse):
    network = make({FIRST: 6, SECOND: 9}, reuse=reuse, before={FIRST: 5, SECOND: 5})
    inputs = torch.randn(7, 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if isinstance(tensor, torch.Tensor)}
    gradients = loss_gradients(network, "a", lambda: network(inputs, "a").square().sum())
    network(inputs, "a").square().sum().backward()
    for name, mask in network.masks("a").items():
        torch.testing.assert_close(gradients[name][mask], network.subnetwork("a").values[name].grad)
        assert (gradients[name][network.free()[name]] != 0).any()
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_blocks_move_as_one_and_smaller_ones_at_the_edges_stay():
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((6,), 10, depth=2))
    kind = Blocks.of(network, (4, 2))  # 3 x 3 and 3 x 5 blocks, of which the lowest ones have two rows
    network.add_task("a", nn.Linear(10, 2), granularity="block")
    network.begin("a")
    prune(network, "a", {FIRST: 5, SECOND: 9}, granularity=kind)
    network.compact("a")
    before, moved = network.masks("a"), False
    for number in range(5):
        draw = torch.Generator().manual_seed(number)
        move(network, "a", choose_regrown(network, "a", 0.6, kind, generator=draw), kind, draw)
        for name, mask in network.masks("a").items():
            assert int(mask.sum()) == int(before[name].sum())
            assert torch.equal(mask[8:], before[name][8:])
            assert is_in_blocks(mask, (4, 2))
            moved |= not torch.equal(mask, before[name])
    assert moved


@pytest.mark.parametrize(("granularity", "name"), [(Units, "unit"), (Units, "channel"), (OverlappingUnits, "unit")])
def test_whole_units_move_as_one_and_stay_small(granularity, name):
    kept = {FIRST: 2, SECOND: 2} if granularity is Units else {FIRST: 5, SECOND: 6}
    network = make(kept, granularity, name)
    kind = granularity(trace_units(network))
    first = units_in_use(kind.graph, network.masks("a"))
    optimizer, moved = torch.optim.Adam(network.parameters(), 0.01), False
    for number in range(6):
        train(network, optimizer)
        counts = {layer: int(mask.sum()) for layer, mask in network.masks("a").items()}
        draw = torch.Generator().manual_seed(number)
        masks = choose_regrown(network, "a", 0.5, kind, generator=draw)
        move_state(network, "a", move(network, "a", masks, kind, draw), optimizer)
        assert {layer: int(mask.sum()) for layer, mask in network.masks("a").items()} == counts
        units = units_in_use(kind.graph, network.masks("a"))
        moved |= any(not torch.equal(units[layer], first[layer]) for layer in units)
    train(network, optimizer)
    assert moved == (granularity is Units)
    values = network.subnetwork("a").values
    assert all(bool((values[layer] != 0).all()) for layer in (FIRST, SECOND)) or granularity is OverlappingUnits


def test_others_weights_are_never_taken_and_a_wrong_move_is_refused():
    network = make({FIRST: 6, SECOND: 9}, before={FIRST: 12, SECOND: 20})
    inputs = torch.randn(5, 4)
    answer = network(inputs, "old")
    for number in range(5):
        move(network, "a", choose_regrown(network, "a", 1.0, generator=torch.Generator().manual_seed(number)))
        assert not any((mask & network.masks("old")[name]).any() for name, mask in network.masks("a").items())
    assert torch.equal(network(inputs, "old"), answer)
    for masks in (network.masks("old"), {name: ~mask & ~mask for name, mask in network.masks("a").items()}):
        with pytest.raises(ValueError, match=r"new weights of layer .* must be free, and as many as before"):
            move(network, "a", masks)
    network.freeze("a")
    with pytest.raises(ValueError, match="this needs a task that is compact"):
        choose_regrown(network, "a", 0.5)
    assert math.isfinite(float(network(inputs, "a").sum()))
