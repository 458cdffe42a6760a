"""Test block sizes, budgets in blocks and selected blocks, with numbers computed by hand."""

import pytest
import torch
from torch import nn

from helpers import make_mlp
from messages import says
from msh.backbones import PaperConv, Transformer
from msh.subnetworks import (
    Blocks,
    Budget,
    CapacityError,
    EmptyLayerError,
    MultiSubnetwork,
    candidate_counts,
    plan_blocks,
    prune,
)
from msh.subnetworks.blocks import block_mask, block_means, block_sizes, choose_covering, usual_side, whole_blocks


@pytest.mark.parametrize(
    ("length", "side"),
    [
        (1, 1),
        (31, 1),
        (32, 2),
        (64, 4),
        (100, 5),
        (512, 32),
        (784, 49),
        (1000, 50),
        (1024, 64),
        (1028, 47),  # 4 x 257: 22 blocks, 6 columns to pad
        (1536, 64),
        (2048, 64),
        (20736, 64),
    ],
)
def test_default_sides(length, side):
    assert usual_side(length) == side
    assert -(-length // side) >= min(length, 16)


def test_only_matrices_and_convolutions_have_blocks():
    transformer = MultiSubnetwork(Transformer((8,), 50, width=64, heads=4, hidden=128))
    assert block_sizes(transformer) == {
        "blocks.0.project.weight": (12, 4),
        "blocks.0.attended.weight": (4, 4),
        "blocks.0.feed_forward.0.weight": (8, 4),
        "blocks.0.feed_forward.2.weight": (4, 8),
    }
    conv = MultiSubnetwork(PaperConv((3, 12, 12), channels=(32, 64)))
    assert set(block_sizes(conv)) == set(conv.names.prunable)
    assert block_sizes(conv, (16, 20))[conv.names.prunable[0]] == (16, 3)


def test_a_tied_or_reparametrized_embedding_has_no_blocks():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(40, 32, bias=False)
            self.tokens = nn.Embedding(32, 40)
            self.tokens.weight = self.out.weight
            self.other = nn.utils.parametrizations.weight_norm(nn.Embedding(32, 40))

        def forward(self, tokens):
            return self.out(self.tokens(tokens) + self.other(tokens))

    network = MultiSubnetwork(Tied())
    assert len(network.names.prunable) == 2
    assert block_sizes(network) == {}


def test_blocks_at_the_edges_have_fewer_weights():
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[4, 6] = mask[0, 0] = False
    assert whole_blocks(mask, (2, 3)).int().tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 0]]
    scores = torch.arange(35.0).view(5, 7)
    assert block_means(scores, (2, 3))[0].tolist() == [4.5, 7.5, 9.5]
    assert block_means(scores, (2, 3))[2].tolist() == [29.0, 32.0, 34.0]
    blocks = torch.zeros(3, 3, dtype=torch.bool)
    blocks[2, 1] = blocks[0, 2] = True
    marked = block_mask(blocks, (5, 7), (2, 3))
    assert marked.nonzero().tolist() == [[0, 6], [1, 6], [4, 3], [4, 4], [4, 5]]


def test_blocks_of_convolutions_have_all_kernel_positions():
    blocks = torch.tensor([[True, False], [False, True]])
    mask = block_mask(blocks, (4, 3, 2, 2), (2, 2))
    assert mask.shape == (4, 3, 2, 2)
    assert mask[:, :, 0, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert torch.equal(mask, mask[:, :, :1, :1].expand_as(mask))
    assert torch.equal(whole_blocks(mask, (2, 2)), blocks)


def choose(scores, k, candidates=None):
    scores = torch.tensor(scores)
    allowed = torch.ones_like(scores, dtype=torch.bool) if candidates is None else torch.tensor(candidates).bool()
    return choose_covering(scores, k, allowed).int().tolist()


def test_pairs_of_a_row_and_a_column_come_first_then_single_lines_then_the_best():
    scores = [[9.0, 8.0, 7.0], [6.0, 5.0, 4.0]]
    assert choose(scores, 1) == [[1, 0, 0], [0, 0, 0]]
    assert choose(scores, 2) == [[1, 0, 0], [0, 1, 0]]
    assert choose(scores, 3) == [[1, 0, 1], [0, 1, 0]]
    assert choose(scores, 4) == [[1, 1, 1], [0, 1, 0]]
    assert choose(scores, 6) == [[1, 1, 1], [1, 1, 1]]
    assert choose(scores, 0) == [[0, 0, 0], [0, 0, 0]]


def test_a_pair_moves_where_another_row_needs_its_column():
    scores = [[9.0, 1.0, 0.0], [8.0, 0.0, 0.0], [0.0, 7.0, 2.0]]
    candidates = [[1, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert choose(scores, 3, candidates) == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_ties_and_infinite_scores():
    assert choose([[1.0, 1.0], [1.0, 1.0]], 2) == [[1, 0], [0, 1]]
    infinite = [[-torch.inf, -torch.inf], [-torch.inf, -torch.inf]]
    assert choose(infinite, 2) == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="1 scores are NaN"):
        choose([[torch.nan, 1.0]], 1)
    with pytest.raises(ValueError, match=says("k", "in [0, 1], the number of candidates", 2)):
        choose([[1.0, 2.0]], 2, [[1, 0]])


SIZES = {"a": 16, "b": 40}


def test_a_plan_is_in_blocks_and_leaves_the_rest_to_later_tasks():
    budgets = {"x": Budget(density=0.25), "y": Budget(weights=280), "z": Budget(share="equal")}
    assert plan_blocks(SIZES, 560, budgets) == {"x": {"a": 4, "b": 10}, "y": {"a": 8, "b": 20}, "z": {"a": 4, "b": 10}}
    assert plan_blocks(SIZES, 560, {"z": Budget(share="equal")}, {"a": 3, "b": 1}) == {"z": {"a": 3, "b": 1}}


def test_ten_tasks_of_a_tenth_fit():
    tenths = {f"task{number}": Budget(density=0.1) for number in range(10)}
    plan = plan_blocks({"a": 256, "b": 400}, 656, tenths | {"task9": Budget(share="equal")})
    assert [counts["a"] for counts in plan.values()] == [25] * 9 + [31]
    assert [counts["b"] for counts in plan.values()] == [40] * 10


def test_whole_numbers_of_blocks_are_kept_despite_rounding():
    assert plan_blocks({"a": 100}, 100, {"x": Budget(density=0.29)}) == {"x": {"a": 29}}


def test_more_blocks_than_are_free_is_refused():
    budgets = {"x": Budget(density=0.5), "y": Budget(density=0.75)}
    with pytest.raises(CapacityError, match="'y' wants 12 blocks of layer 'a', but only 8 of its 16 are free"):
        plan_blocks(SIZES, 560, budgets)
    with pytest.raises(CapacityError, match="'y' wants 32 blocks of layer 'a', but only 16 of its 16 are free"):
        plan_blocks(SIZES, 560, {"y": Budget(weights=1120)})


def test_a_budget_without_a_block_in_a_layer_is_refused():
    with pytest.raises(EmptyLayerError, match=f"no block of layer 'a'.*{says('density', '>= 0.03125', 0.02)}"):
        plan_blocks(SIZES, 560, {"x": Budget(density=0.02)})
    with pytest.raises(EmptyLayerError, match=f"no block of layer 'a'.*{says('weights', '>= 18', 17)}"):
        plan_blocks(SIZES, 560, {"x": Budget(weights=17)})
    assert plan_blocks(SIZES, 560, {"x": Budget(weights=18)})["x"]["a"] == 1
    assert plan_blocks(SIZES, 560, {"x": Budget(density=0.03125)})["x"]["a"] == 1  # half a block
    assert plan_blocks(SIZES, 560, {"x": Budget(density=0.02)}, allow_empty=True) == {"x": {"a": 0, "b": 1}}
    with pytest.raises(EmptyLayerError, match="no block of layer 'a'"):
        plan_blocks(SIZES, 560, {"x": Budget(density=0.002)}, allow_empty=True)


def test_a_budget_over_the_whole_network_is_refused():
    with pytest.raises(ValueError, match=says("scope", "tensor with blocks (task 'x')", "network")):
        plan_blocks(SIZES, 560, {"x": Budget(density=0.5, scope="network")})
    network = MultiSubnetwork(make_mlp(4, 4))
    network.add_task("a", nn.Linear(4, 2), granularity="block")
    network.begin("a")
    with pytest.raises(ValueError, match=says("kept", "a number per tensor, with blocks", {"": 3})):
        prune(network, "a", {"": 3}, granularity=Blocks.of(network))


@pytest.mark.parametrize("size", [(0, 1), (-1, 2), (2.5, 2)])
def test_sides_that_are_no_whole_numbers_are_refused(size):
    with pytest.raises(ValueError, match=says("block_size", "two whole numbers from 1 on", size)):
        Blocks.of(MultiSubnetwork(make_mlp(4, 4)), size)


def test_a_missing_number_of_blocks_is_refused():
    network = MultiSubnetwork(make_mlp(4, 4, 4))
    network.add_task("a", nn.Linear(4, 2), granularity="block")
    network.begin("a")
    first, second = network.sizes()
    with pytest.raises(ValueError, match=f"kept must be a number for every tensor, also for '{second}'"):
        prune(network, "a", {first: 1}, granularity=Blocks.of(network, (2, 2)))


def test_a_task_keeps_the_blocks_with_the_largest_norms_and_the_tensors_norm():
    network = MultiSubnetwork(make_mlp(4, 6))
    blocks = Blocks.of(network, (3, 2))
    network.add_task("a", nn.Linear(6, 2))
    network.begin("a")
    values = network.subnetwork("a").values["0.weight"]
    values.data = torch.tensor([[1.0, 1, 4, -4]] * 3 + [[-3.0, 3, 2, 2]] * 3)
    norm = values.detach().norm()
    prune(network, "a", {"0.weight": 2}, granularity=blocks)
    assert torch.equal(values != 0, network.masks("a")["0.weight"])
    assert (values != 0).int().tolist() == [[0, 0, 1, 1]] * 3 + [[1, 1, 0, 0]] * 3
    torch.testing.assert_close(values.detach().norm(), norm)


def test_a_block_with_another_tasks_weight_is_no_candidate():
    network = MultiSubnetwork(make_mlp(4, 6))
    network.add_task("a", nn.Linear(6, 2))
    network.begin("a")
    prune(network, "a", {"0.weight": 1})
    network.freeze("a")
    network.add_task("b", nn.Linear(6, 2))
    network.begin("b")
    blocks = Blocks.of(network, (3, 2))
    assert blocks.counts(network.sizes()) == {"0.weight": 4}
    assert candidate_counts(network, "b", {}, blocks) == {"0.weight": 3}
