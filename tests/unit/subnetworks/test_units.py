"""Test units per budget and selected units, with numbers computed by hand."""

import pytest
import torch
from torch import nn

from messages import says
from msh.backbones import MLP, PaperConv, ResNet18, Transformer
from msh.subnetworks import (
    Budget,
    CapacityError,
    MultiSubnetwork,
    OverlappingUnits,
    Units,
    candidate_counts,
    fit_units,
    plan_units,
    prune,
    rewind,
    snapshot,
    top_k_mask,
    trace_units,
)
from msh.subnetworks.units import choose_in_rectangles, count_weights, unit_masks, units_in_use

FIRST, SECOND = "layers.1.weight", "layers.3.weight"


def make_network(inputs=4, width=6):
    """Two linear layers, 24 and 36 weights."""
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((inputs,), width, depth=2))
    return network, trace_units(network, "neuron")


def begin(network, task):
    network.add_task(task, nn.Linear(6, 2))
    network.begin(task)
    return network.subnetwork(task).values


def test_count_weights_of_units():
    _, graph = make_network()
    assert count_weights(graph, {FIRST: 2, SECOND: 3}) == 2 * 4 + 3 * 2
    conv = trace_units(MultiSubnetwork(PaperConv((3, 12, 12))), "channel")
    counts = dict(zip(conv.layers, (1, 2, 3, 4, 5, 6), strict=True))
    assert count_weights(conv, counts) == 27 + 18 + 54 + 108 + 5 * 4 * 4 + 30


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        (4, None),
        (5, (1, 1)),
        (6, (1, 2)),  # the first layer's next unit would take 5
        (12, (2, 2)),
        (13, (2, 2)),
        (14, (2, 3)),
        (59, (6, 5)),
        (60, (6, 6)),
        (999, (6, 6)),
    ],
)
def test_the_most_units_that_a_budget_holds(weights, counts):
    _, graph = make_network()
    assert fit_units(graph, weights) == (counts and dict(zip((FIRST, SECOND), counts, strict=True)))


def test_no_budget_is_exceeded_and_shares_stay_within_a_unit_of_each_other():
    graph = trace_units(MultiSubnetwork(PaperConv((1, 11, 11))), "channel")
    for weights in range(50, 30000, 977):
        counts = fit_units(graph, weights)
        if counts is None:
            continue
        assert count_weights(graph, counts) <= weights
        shares = {name: (counts[name] - 1, counts[name], graph.layers[name].units) for name in counts}
        least = max(less / units for less, _, units in shares.values())
        assert all(now / units >= least - 1 / units for _, now, units in shares.values())
        wider = {name: min(units, counts[name] + 2) for name, (_, _, units) in shares.items()}
        assert count_weights(graph, wider) > weights


def test_a_plan_is_in_units_and_leaves_the_rest_to_later_tasks():
    _, graph = make_network()
    budgets = {"a": Budget(density=0.2), "b": Budget(weights=14), "c": Budget(share="equal")}
    assert plan_units(graph, budgets) == {
        "a": {FIRST: 2, SECOND: 2},
        "b": {FIRST: 2, SECOND: 3},
        "c": {FIRST: 2, SECOND: 1},
    }
    assert plan_units(graph, {"a": Budget(share="equal")}, {FIRST: 3, SECOND: 1}) == {"a": {FIRST: 3, SECOND: 1}}


def test_more_units_than_are_free_is_refused():
    _, graph = make_network()
    budgets = {"a": Budget(density=0.5), "b": Budget(density=0.3)}
    with pytest.raises(CapacityError, match=f"'b' wants 3 of the 6 units of layer '{FIRST}', but only 2 are free"):
        plan_units(graph, budgets)
    with pytest.raises(CapacityError, match=f"'b' wants 1 of the 6 units of layer '{FIRST}', but only 0 are free"):
        plan_units(graph, {"a": Budget(density=1.0), "b": Budget(share="equal")})


def test_a_budget_below_one_unit_of_each_layer_is_refused():
    _, graph = make_network()
    with pytest.raises(CapacityError, match=rf"'a' wants 4 weights, but one unit of each.*'{FIRST}' on takes 5 \(6 of"):
        plan_units(graph, {"a": Budget(weights=4)})


def test_a_budget_over_the_whole_network_is_refused():
    _, graph = make_network()
    with pytest.raises(ValueError, match=says("scope", "tensor with whole units (task 'a')", "network")):
        plan_units(graph, {"a": Budget(density=0.5, scope="network")})


def test_the_units_with_the_largest_sums_are_kept():
    network, graph = make_network()
    values = begin(network, "a")
    values[FIRST].data = torch.tensor([3.0, 1, 4, 1, 5, 0])[:, None].repeat(1, 4)
    values[SECOND].data = torch.ones(6, 6)
    values[SECOND].data[5, 1] = -9
    prune(network, "a", {FIRST: 2, SECOND: 1}, rescale=False, granularity=Units(graph))
    expected = torch.zeros(6, 6)
    expected[5, [2, 4]] = 1.0
    torch.testing.assert_close(values[SECOND].data, expected)
    assert values[FIRST].any(1).tolist() == [False, False, True, False, True, False]


def test_kept_units_keep_their_norm_over_their_columns():
    network, graph = make_network()
    values = begin(network, "a")
    before = {name: values[name].detach().clone() for name in (FIRST, SECOND)}
    prune(network, "a", {FIRST: 2, SECOND: 3}, granularity=Units(graph))
    for name, units in units_in_use(graph, network.masks("a")).items():
        torch.testing.assert_close(values[name].norm(), before[name][units].norm())


def test_rewinding_restores_the_norm_of_early_rows():
    network, graph = make_network()
    values = begin(network, "a")
    earlier = snapshot(network, "a")
    prune(network, "a", {FIRST: 2, SECOND: 3}, granularity=Units(graph))
    values[SECOND].data.mul_(7)
    rewind(network, "a", earlier, granularity=Units(graph))
    units = units_in_use(graph, network.masks("a"))
    torch.testing.assert_close(
        values[SECOND].norm(), earlier[f"values.{SECOND.replace('.', '/')}"][units[SECOND]].norm()
    )
    assert torch.equal(values[SECOND] != 0, network.masks("a")[SECOND])


def test_a_unit_with_another_tasks_weight_is_no_candidate():
    network, graph = make_network()
    begin(network, "a")
    prune(network, "a", {FIRST: 2, SECOND: 3}, granularity=Units(graph))
    network.freeze("a")
    begin(network, "b")
    assert candidate_counts(network, "b", {}, Units(graph)) == {FIRST: 4, SECOND: 3}
    with pytest.raises(ValueError, match=says("k", "in [0, 3], the number of candidates", 4)):
        prune(network, "b", {FIRST: 4, SECOND: 4}, granularity=Units(graph))
    prune(network, "b", {FIRST: 4, SECOND: 3}, granularity=Units(graph))
    network.freeze("b")
    assert not any((network.masks("a")[name] & network.masks("b")[name]).any() for name in (FIRST, SECOND))


def test_a_unit_without_all_its_weights_is_no_candidate():
    network, graph = make_network()
    begin(network, "a")
    masks = network.masks("a")
    masks[FIRST][2, 1] = masks[SECOND][3, 4] = masks[SECOND][5, 2] = False
    network.restrict("a", masks)
    # unit 5 of the second layer misses only what unit 2 of the first would have fed
    assert candidate_counts(network, "a", {}, Units(graph)) == {FIRST: 5, SECOND: 5}
    prune(network, "a", {FIRST: 5, SECOND: 5}, granularity=Units(graph))
    assert (~network.masks("a")[SECOND].any(1)).nonzero().flatten().tolist() == [3]


def test_units_in_use_have_a_weight_or_feed_one():
    _, graph = make_network()
    masks = {FIRST: torch.zeros(6, 4, dtype=torch.bool), SECOND: torch.zeros(6, 6, dtype=torch.bool)}
    masks[FIRST][1, 2] = masks[SECOND][0, 3] = masks[SECOND][4, 1] = True
    units = units_in_use(graph, masks)
    assert {name: each.nonzero().flatten().tolist() for name, each in units.items()} == {FIRST: [1, 3], SECOND: [0, 4]}
    conv = trace_units(MultiSubnetwork(PaperConv((1, 28, 28))), "channel")
    last, flat = list(conv.layers)[3:5]
    block = conv.layers[flat].source.block
    masks = {name: torch.zeros(layer.shape, dtype=torch.bool) for name, layer in conv.layers.items()}
    masks[flat][0, 2 * block + 1] = True  # one position of channel 2
    assert units_in_use(conv, masks)[last].nonzero().flatten().tolist() == [2]


def test_weights_are_chosen_within_the_fewest_units_that_have_enough():
    _, graph = make_network()
    scores = {FIRST: torch.ones(6, 4), SECOND: torch.ones(6, 6)}
    scores[FIRST][[1, 4]] = 3.0  # units 1 and 4 rank first, and 4 of the second layer
    scores[SECOND][4] = 2.0
    scores[SECOND][2, 1] = 5.0  # then 2
    free = {name: torch.ones_like(each, dtype=torch.bool) for name, each in scores.items()}
    masks = choose_in_rectangles(graph, scores, {FIRST: 8, SECOND: 3}, free)
    assert masks[FIRST].nonzero().tolist() == [[row, column] for row in (1, 4) for column in range(4)]
    assert masks[SECOND].nonzero().tolist() == [[2, 1], [4, 1], [4, 4]]  # of the 4 weights between these units
    free[FIRST][1] = False  # its weights are taken: another unit has more free ones
    masks = choose_in_rectangles(graph, scores, {FIRST: 8, SECOND: 3}, free)
    assert masks[FIRST].any(1).nonzero().flatten().tolist() == [0, 4]
    with pytest.raises(ValueError, match=says("k", "in [0, 20], the number of candidates", 21)):
        choose_in_rectangles(graph, scores, {FIRST: 21, SECOND: 3}, free)


BACKBONES = {
    "linear": lambda: MLP((9,), 11, 3, norm=True),
    "convolutions": lambda: PaperConv((1, 12, 12)),
    "residual": lambda: ResNet18((3, 8, 8), width=4),
    "attention": lambda: Transformer((5,), vocabulary=7, width=8, heads=2, hidden=12),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_units_are_as_few_as_a_search_by_counting_finds(backbone, density):
    torch.manual_seed(0)
    network = MultiSubnetwork(BACKBONES[backbone]())
    graph = trace_units(network)
    scores = {name: torch.rand(weight.shape) for name, weight in network.weights()}
    free = {name: torch.rand(weight.shape) < 0.7 for name, weight in network.weights()}
    kept = {name: int(density * int(mask.sum())) for name, mask in free.items()}
    within = unit_masks(graph, fewest_by_counting(graph, scores, kept, free))
    wanted = {name: top_k_mask(scores[name], kept[name], free[name] & within[name]) for name in kept}
    masks = choose_in_rectangles(graph, scores, kept, free)
    assert all(torch.equal(masks[name], wanted[name]) for name in kept)


def fewest_by_counting(graph, scores, kept, free):
    """Mark the units that `choose_in_rectangles` says it takes, by trying every number of them and counting."""
    sums = {name: torch.where(free[name], scores[name], 0.0).flatten(1).sum(1) for name in graph.layers}
    ranks = {name: torch.arange(layer.units) for name, layer in graph.layers.items()}
    for members in graph.groups.values():
        total = sum(graph.layers[name].by_unit(sums[name]).sum(1) for name in members)
        ranks |= dict.fromkeys(members, total.argsort(descending=True).argsort())

    def enough(counts):
        within = unit_masks(graph, {name: ranks[name] < count for name, count in counts.items()})
        return all(int((free[name] & within[name]).sum()) >= kept[name] for name in kept)

    everything = {name: layer.units for name, layer in graph.layers.items()}
    grouped = [name for members in graph.groups.values() for name in members]
    widest = max(everything[name] for name in grouped)
    shares = ({name: -(-everything[name] * step // widest) for name in grouped} for step in range(1, widest + 1))
    counts = next(counts for share in shares if enough(counts := everything | share))
    for members in graph.groups.values():
        fewer = (counts | dict.fromkeys(members, few) for few in range(1, counts[members[0]] + 1))
        counts = next(found for found in fewer if enough(found))
    return {name: ranks[name] < count for name, count in counts.items()}


class FromTheRight(nn.Module):
    """A layer that multiplies its inputs with its weight (inputs, outputs)."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().T.clone()), layer.bias

    def forward(self, inputs):
        return torch.addmm(self.bias, inputs, self.weight)


@pytest.mark.parametrize("again", [False, True])
def test_a_transposed_weight_is_cut_and_rewound_as_the_layers_own(again):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    turned = nn.Sequential(FromTheRight(plain[0]), nn.ReLU(), FromTheRight(plain[2]), nn.ReLU(), nn.Linear(8, 5))
    found = []
    for backbone in (plain, turned):
        network = MultiSubnetwork(backbone)
        graph = trace_units(network, example=torch.zeros(1, 6))
        network.add_task("a", nn.Linear(5, 2), granularity="unit")
        network.begin("a")
        values = network.subnetwork("a").values
        for name, layer in graph.layers.items():  # the same in both, whatever order weights are drawn in
            drawn = torch.randn(layer.shape, generator=torch.Generator().manual_seed(layer.shape[0]))
            values[name].data.copy_(layer.turned(drawn))
        earlier = snapshot(network, "a")
        prune(network, "a", {"0.weight": 20, "2.weight": 20, "4.weight": 15}, granularity=OverlappingUnits(graph))
        if again:
            rewind(network, "a", earlier, granularity=OverlappingUnits(graph))
        found.append({name: layer.turned(values[name].detach()) for name, layer in graph.layers.items()})
    assert [layer.transposed for layer in graph.layers.values()] == [True, True, False]
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)


def test_overlapping_units_use_every_weight():
    """Ten tasks of a tenth fit, of which disjoint units would allow three; each computes with as few units as fit."""
    network, graph = make_network(inputs=20, width=30)
    sizes = []
    for task in map(str, range(10)):
        network.add_task(task, nn.Linear(30, 2), granularity="unit")
        network.begin(task, generator=torch.Generator().manual_seed(int(task)))
        prune(network, task, {FIRST: 60, SECOND: 90}, granularity=OverlappingUnits(graph))
        network.freeze(task)
        masks = network.masks(task)
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {FIRST: 60, SECOND: 90}
        units = units_in_use(graph, masks)
        assert not any((mask & ~unit_masks(graph, units)[name]).any() for name, mask in masks.items())
        sizes.append(max(int(each.sum()) for each in units.values()))
    assert sizes[0] == 10  # the square root of a tenth, of 30 units
    assert max(sizes[:8]) < 30
    assert not any(mask.any() for mask in network.free().values())
