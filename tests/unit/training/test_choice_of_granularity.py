"""Test what tasks keep where the config leaves it open."""

import logging

import pytest
import torch
from torch import nn

from golden.settings import composed
from msh.backbones.conv import PaperConv
from msh.backbones.mlp import MLP
from msh.backbones.resnet import ResNet18
from msh.backbones.transformer import Transformer
from msh.subnetworks import CapacityError, MultiSubnetwork, OverlappingUnits
from msh.training import prepare
from msh.training.build import build_granularity
from msh.training.config import run_config
from msh.training.plan import stages_of
from msh.training.prepare import choose_granularity

QUIET = ("tasks=[wine]", "logger=none")
ENOUGH = prepare.ENOUGH_UNITS, prepare.ENOUGH_CHANNELS


class Branching(nn.Module):
    """Decides by what it has computed, which no trace can follow."""

    input_shape, features = (4,), 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs if float(outputs.sum()) > 1e9 else outputs.relu()


def make_mlp(width=8):
    return MultiSubnetwork(MLP([4], width=width, depth=2))


def chosen(network, *overrides):
    config = run_config(composed("config", *QUIET, *overrides))
    pruning = choose_granularity(config, network, stages_of(config)).pruning
    return pruning.granularity, pruning.overlap


@pytest.fixture(autouse=True)
def few_units(monkeypatch):
    """Let small networks have enough units."""
    monkeypatch.setattr(prepare, "ENOUGH_UNITS", 1)
    monkeypatch.setattr(prepare, "ENOUGH_CHANNELS", 1)


@pytest.mark.parametrize("pruning", ["gradual", "gradual_later"])
@pytest.mark.parametrize(
    "backbone", [lambda: MLP([4], width=8, depth=2), lambda: PaperConv([1, 12, 12], channels=[8, 8], linear=[8, 8])]
)
def test_units_are_kept_where_every_layer_has_its_own(backbone, pruning, caplog):
    with caplog.at_level(logging.INFO):
        assert chosen(MultiSubnetwork(backbone()), f"pruning={pruning}") == ("unit", True)
    assert "tasks keep whole units" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "overlap"),
    [(["pruning.density=0.1"], False), (["pruning.density=0.3"], True), (["pruning.density=null"], True)],
)
def test_tasks_share_units_where_their_own_do_not_suffice_or_shares_are_equal(overrides, overlap, caplog):
    shared = ["pruning.share=equal"] if overrides == ["pruning.density=null"] else []
    tasks = ["tasks=[wine,iris,digits]", "pruning.granularity=unit"]
    config = run_config(composed("config", *QUIET, *tasks, *overrides, *shared))
    network = make_mlp(width=40)
    with caplog.at_level(logging.INFO):
        granularity, plan = prepare._plan_budgets(
            config, network, stages_of(config), build_granularity(config, network)
        )
    assert isinstance(granularity, OverlappingUnits) == overlap
    assert ("each task keeps units of its own" in caplog.text) == (not overlap)
    if shared:
        owned = [sum(counts.values()) for counts in plan.values()]
        assert owned == pytest.approx([sum(network.sizes().values()) / len(plan)] * len(plan), rel=0.01)


@pytest.mark.parametrize(("channels", "kept"), [(8, "weight"), (16, "unit")])
def test_fewer_channels_than_units_are_enough(channels, kept, caplog, monkeypatch):
    monkeypatch.setattr(prepare, "ENOUGH_CHANNELS", 5)
    network = MultiSubnetwork(PaperConv([1, 12, 12], channels=[channels, channels], linear=[8, 8]))
    with caplog.at_level(logging.INFO):
        assert chosen(network, "pruning.density=0.2")[0] == kept
    assert ("channels of layer" in caplog.text) == (kept == "weight")


@pytest.mark.parametrize(("density", "kept"), [("0.09", "weight"), ("0.11", "unit"), ("{wine:0.09}", "weight")])
def test_units_are_kept_where_enough_of_each_layer_are(density, kept, caplog, monkeypatch):
    monkeypatch.setattr(prepare, "ENOUGH_UNITS", 200)
    with caplog.at_level(logging.INFO):
        assert chosen(make_mlp(width=640), f"pruning.density={density}")[0] == kept
    if kept == "weight":
        assert "task wine would keep about 191 units of layer layers.1.weight, fewer than 200" in caplog.text


@pytest.mark.parametrize(
    ("backbone", "density", "kept"),
    [(MLP, "0.1", "unit"), (MLP, "0.05", "unit"), (PaperConv, "0.2", "weight"), (PaperConv, "0.4", "unit")],
)
def test_the_papers_networks_keep_what_the_comparisons_say(backbone, density, kept, monkeypatch):
    monkeypatch.setattr(prepare, "ENOUGH_UNITS", ENOUGH[0])
    monkeypatch.setattr(prepare, "ENOUGH_CHANNELS", ENOUGH[1])
    assert chosen(MultiSubnetwork(backbone([1, 28, 28])), f"pruning.density={density}")[0] == kept


def test_a_budget_that_no_network_has_is_refused():
    with pytest.raises(CapacityError, match="task 'wine' wants"):
        chosen(make_mlp(), "pruning.density=null", "pruning.weights=5000")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["reuse=all"], "reuse is all"),
        (["reuse=backbone"], "reuse is backbone"),
        (["pruning.scope=erk"], "pruning.scope is erk"),
        (["pruning.start=backbone"], "pruning.start is backbone"),
        (["pruning.gate.step=0.1", "pruning.gate.until=0.9"], "pruning.gate.step is 0.1"),
        (["pruning.begin=0", "pruning.end=0"], "pruning.end is 0"),
        (["pruning.begin=0", "pruning.end=0", "pruning.regrow.share=0.3"], "pruning.regrow.share is 0.3"),
        (["pruning.rewind=0"], "pruning.rewind is 0"),
        (["pruning.criterion=learned"], "pruning.criterion is learned"),
        (["pruning.allow_empty_layers=true"], "pruning.allow_empty_layers is True"),
    ],
)
def test_a_setting_that_units_do_not_have_keeps_single_weights(overrides, why, caplog):
    with caplog.at_level(logging.INFO):
        assert chosen(make_mlp(), *overrides) == ("weight", None)
    assert f"tasks keep single weights, and not whole units: {why}" in caplog.text


@pytest.mark.parametrize(
    ("backbone", "why"),
    [
        (lambda: ResNet18([3, 8, 8], width=4), "would stay whole"),
        (lambda: Transformer([6], vocabulary=20, width=8, heads=2, hidden=16), "would stay whole"),
        (Branching, "depends on the values of its inputs"),
    ],
)
def test_a_backbone_without_units_in_every_layer_keeps_single_weights(backbone, why, caplog):
    with caplog.at_level(logging.INFO):
        assert chosen(MultiSubnetwork(backbone())) == ("weight", None)
    assert why in caplog.text


@pytest.mark.parametrize(("before", "after"), [("weight", ("weight", None)), ("unit", ("unit", True))])
def test_a_task_that_is_added_keeps_what_earlier_ones_do(before, after):
    network = make_mlp()
    network.add_task("earlier", nn.Linear(8, 2), granularity=before)
    assert chosen(network) == after


@pytest.mark.parametrize("granularity", ["weight", "block", "unit", "neuron"])
def test_a_granularity_of_the_users_stays(granularity, caplog):
    with caplog.at_level(logging.INFO):
        assert chosen(make_mlp(), f"pruning.granularity={granularity}") == (granularity, None)
    assert "tasks keep" not in caplog.text


def test_the_choice_changes_no_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network = make_mlp()
    after = torch.get_rng_state()
    chosen(network)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)
