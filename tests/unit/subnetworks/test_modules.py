"""Facts about a backbone's modules: roles, granularities and FLOPs."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from msh.backbones import MLP, Adapted, PaperConv, Transformer
from msh.subnetworks.modules import describe_modules


class Mixed(nn.Module):
    """Has each role once."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 8)])
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.frozen.weight
        self.unused = nn.Linear(8, 5)
        self.token = nn.Parameter(torch.zeros(8))

    def forward(self, inputs):
        return self.tied(self.frozen(self.normed(self.blocks[0](inputs)))) + self.token


def rows_of(facts):
    return {row.name: row for row in facts.modules}


def test_each_module_has_its_role_and_numbers():
    rows = rows_of(describe_modules(Adapted(Mixed(), [4])))
    found = {name: (row.role, row.weights, row.private, row.shared, row.flops) for name, row in rows.items()}
    assert found == {
        "model": ("private", 0, 8, 0, 0),
        "model.blocks.0": ("prunable", 32, 8, 0, 64),
        "model.normed": ("private", 0, 8, 0, 128),
        "model.normed.parametrizations.weight": ("prunable", 64, 8, 0, 0),
        "model.frozen": ("shared", 0, 0, 72, 128),
        "model.tied": ("shared", 0, 0, 0, 128),
        "model.unused": ("unused", 0, 0, 45, 0),
    }


def test_a_weight_that_gets_no_gradient_is_unused_although_a_budget_counts_it():
    class Net(Mixed):
        input_shape, features = (4,), 8

    assert rows_of(describe_modules(Net()))["unused"].role == "unused"
    assert rows_of(describe_modules(Net()))["unused"].weights == 40


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_counted(layer):
    module = layer(4, 8, num_layers=2, batch_first=True, bidirectional=True)
    weights = sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
    facts = describe_modules(Adapted(module, [5, 4]))
    assert facts.total.flops == 2 * 5 * weights  # each step multiplies with every weight once


@pytest.mark.parametrize(
    "make",
    [
        lambda: Transformer([6], vocabulary=20, width=8, heads=2, hidden=16, depth=2),
        lambda: Adapted(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [5, 8]),
        lambda: PaperConv([1, 12, 12]),
    ],
    ids=["transformer", "torch", "conv"],
)
def test_no_operation_is_counted_twice_or_lost(make):
    torch.manual_seed(0)
    backbone = make().eval()
    shape = (1, *backbone.input_shape)
    inputs = torch.ones(shape, dtype=torch.long) if hasattr(backbone, "vocabulary") else torch.zeros(shape)
    with FlopCounterMode(display=False) as counter:
        backbone(inputs)
    facts = describe_modules(backbone)
    assert facts.total.flops == counter.get_total_flops()
    assert min(row.flops for row in facts.modules) >= 0


def test_granularities_are_those_that_work():
    facts = describe_modules(MLP([4], width=6, depth=2))
    assert [row.granularities for row in facts.modules] == [("weight", "nm", "unit"), ("weight", "unit")]
    assert facts.note == ""
    facts = describe_modules(PaperConv([1, 12, 12]))
    first, *others = [row.granularities for row in facts.modules if row.weights]
    assert first == ("weight", "block", "unit")  # its one channel is no group of four
    assert set(others) == {("weight", "nm", "block", "unit")}
    assert facts.note == ""
    facts = describe_modules(Adapted(Mixed(), [4]))
    assert {row.granularities for row in facts.modules if row.weights} == {("weight", "nm")}
    assert "granularity 'unit' does not work for this backbone" in facts.note


def test_a_backbone_that_cannot_compute_an_example_is_refused():
    class Broken(nn.Module):
        input_shape, features = (3,), 8

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, inputs):
            return self.layer(inputs)

    with pytest.raises(ValueError, match=r"Broken cannot compute an example of the shape \[3\]"):
        describe_modules(Broken())
