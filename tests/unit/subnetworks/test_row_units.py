"""Units of operations that arrange, split and size activations; what code must not do with their number."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from msh.subnetworks import MultiSubnetwork, trace_units
from msh.subnetworks.marks import Attribute, Marked, marked_attributes
from msh.subnetworks.row_units import RowUnits


class Between(nn.Module):
    """A layer of 12 units, an operation, and a layer behind it."""

    def __init__(self, operation, behind=12):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 12), nn.Linear(behind, 5), nn.Linear(5, 3)
        self.operation, self.heads, self.other = operation, 4, 3

    def forward(self, inputs):
        return self.last(self.two(self.operation(self, self.one(inputs))))


def layer_before(operation, behind=12, shape=(2, 5, 4)):
    """Trace such a network; return the first layer and the whole graph."""
    torch.manual_seed(0)
    graph = trace_units(MultiSubnetwork(Between(operation, behind)), "unit", torch.zeros(shape))
    return graph.layers["one.weight"], graph


def attend(hidden, heads=-1):
    """Attend with queries, keys and values that are all the same."""
    parts = hidden.unflatten(-1, (heads, 3)).transpose(1, 2)
    return F.scaled_dot_product_attention(parts, parts, parts).transpose(1, 2)


FOLLOWED = {
    "heads": (lambda _, hidden: attend(hidden).flatten(2), 12, (1, 4, 3)),
    "size of an attribute": (lambda own, hidden: attend(hidden, own.heads).flatten(2), 12, (1, 4, 3)),
    "product": (lambda own, hidden: attend(hidden).reshape(*hidden.shape[:2], own.heads * 3), 12, (1, 4, 3)),
    "shape of an activation": (lambda _, hidden: attend(hidden).reshape(hidden.shape), 12, (1, 4, 3)),
    "size of a dimension": (lambda _, hidden: attend(hidden).reshape(2, 5, hidden.size(-1)), 12, (1, 4, 3)),
    "pieces": (lambda _, hidden: torch.mul(*hidden.chunk(2, -1)), 6, (2, 6, 1)),
    "pieces by size": (lambda own, hidden: torch.mul(*hidden.unflatten(-1, (2, -1)).unbind(-2)), 6, (2, 6, 1)),
    "gate": (lambda _, hidden: F.glu(hidden), 6, (2, 6, 1)),
    "softmax of heads": (
        lambda own, hidden: hidden.unflatten(-1, (own.heads, 3)).softmax(-1).flatten(2),
        12,
        (1, 4, 3),
    ),
    "norm of heads": (lambda _, hidden: F.rms_norm(hidden.unflatten(-1, (-1, 3)), (3,)).flatten(2), 12, (1, 4, 3)),
    "mean of heads": (lambda _, hidden: hidden.unflatten(-1, (-1, 3)).mean(-1), 4, (1, 4, 3)),
    "selected tokens": (lambda _, hidden: hidden[:, 1:], 12, (1, 12, 1)),
    "repeated": (lambda _, hidden: hidden.repeat_interleave(2, -1), 24, (1, 12, 1)),
    "joined tokens": (lambda _, hidden: torch.cat((hidden, hidden * 2), 1), 12, (1, 12, 1)),
    "mask": (lambda _, hidden: hidden.masked_fill(torch.ones(5, 1).bool(), 0.0), 12, (1, 12, 1)),
    "one number": (lambda _, hidden: torch.where(torch.ones(5, 1).bool(), hidden, torch.tensor(0.0)), 12, (1, 12, 1)),
    "assigned tokens": (lambda _, hidden: assigned(hidden, (slice(None), 0)), 12, (1, 12, 1)),
    "columns of a matrix": (lambda _, hidden: torch.ones(5, 5) @ hidden, 12, (1, 12, 1)),
}


def assigned(hidden, index, value=0.0):
    hidden = hidden.clone()
    hidden[index] = value
    return hidden


@pytest.mark.parametrize(("operation", "behind", "expected"), FOLLOWED.values(), ids=FOLLOWED)
def test_units_are_followed_through_an_operation(operation, behind, expected):
    layer, graph = layer_before(operation, behind)
    assert (layer.whole, layer.parts, layer.units, layer.size) == ("", *expected)
    source = graph.layers["two.weight"].source
    assert (source.layer, source.block * layer.units) == ("one.weight", behind)


def test_attributes_that_count_units_are_named():
    _, graph = layer_before(FOLLOWED["product"][0])
    assert graph.counts == {Attribute("", "heads", 4): "one.weight"}
    assert not layer_before(FOLLOWED["heads"][0])[1].counts


def of_two(own, hidden):
    """Attend with as many heads as an attribute says, and use it for something else."""
    return attend(hidden, own.heads).flatten(2) * (hidden.shape[1] // own.heads)


REFUSED = {
    "plain number": (
        lambda _, hidden: attend(hidden).reshape(2, 5, 12),
        12,
        "does not follow from the number of units",
    ),
    "number of heads": (lambda _, hidden: attend(hidden, 4).flatten(2), 12, "does not follow from the number of units"),
    "product without": (
        lambda own, hidden: attend(hidden).reshape(2, 5, own.other * 4),
        12,
        "does not follow from the number of units",
    ),
    "arithmetic": (of_two, 12, "does not follow from the number of units"),
    "other use": (
        lambda own, hidden: attend(hidden, own.heads).flatten(2).unflatten(0, (1, 2)).expand(own.heads, 2, 5, 12),
        12,
        "does not follow from the number of units",
    ),
    "branch": (
        lambda _, hidden: hidden * (2 if hidden.shape[-1] > 6 else 1),
        12,
        "(Between) computes with the number of units",
    ),
    "number per head": (lambda own, hidden: (hidden.unflatten(-1, (-1, 3)) * torch.ones(4, 3)).flatten(2), 12, "'mul'"),
    "selected units": (lambda _, hidden: hidden[..., :6], 6, "'getitem'"),
    "one unit": (lambda _, hidden: hidden.select(-1, 3).unsqueeze(-1).expand(2, 5, 12), 12, "'select'"),
    "assigned units": (lambda _, hidden: assigned(hidden, (..., 0)), 12, "'setitem'"),
    "assigned tensor": (lambda _, hidden: assigned(hidden, (..., 0), torch.ones(2, 5)), 12, "'setitem'"),
    "two halves": (lambda _, hidden: torch.cat(hidden.chunk(2, -1)[::-1], -1), 12, "'chunk'"),
    "unequal pieces": (lambda _, hidden: torch.cat(hidden.split((4, 8), -1), -1), 12, "'split'"),
    "another order": (lambda _, hidden: hidden.unflatten(-1, (4, 3)).mT.flatten(2), 12, "'unflatten'"),
    "in memory": (lambda _, hidden: hidden.view(torch.int32).view(torch.float32), 12, "'view'"),
    "beside others": (lambda own, hidden: torch.cat((hidden, torch.ones(2, 5, 1)), -1), 13, "lie in no regular order"),
    "units in sum": (lambda _, hidden: hidden @ torch.ones(12, 12), 12, "'matmul'"),
    "all units": (lambda _, hidden: hidden.softmax(-1), 12, "'softmax'"),
    "rolled": (lambda _, hidden: hidden.roll(1, -1), 12, "'roll'"),
}


@pytest.mark.parametrize(("operation", "behind", "why"), REFUSED.values(), ids=REFUSED)
def test_a_layer_stays_whole_where_the_number_of_units_matters(operation, behind, why):
    layer, graph = layer_before(operation, behind)
    assert why in layer.whole
    assert graph.layers["two.weight"].source is None
    assert not graph.layers["two.weight"].whole
    assert not graph.counts


def test_units_along_another_dimension_than_the_layer_reads_stay_whole():
    layer, _ = layer_before(lambda own, hidden: hidden.transpose(1, 2), behind=5)
    assert "module 'two' (Linear)" in layer.whole


def test_layers_with_the_same_units_in_another_order_stay_whole():
    def swapped(own, hidden):
        return hidden + own.second(hidden.detach()).unflatten(-1, (-1, 2)).flip(-1).flatten(-2)

    backbone = Between(swapped)
    backbone.second = nn.Linear(12, 12)
    graph = trace_units(MultiSubnetwork(backbone), "unit", torch.zeros(2, 5, 4))
    assert graph.whole.keys() == {"one.weight", "second.weight"}


def test_attributes_are_plain_numbers_again_after_tracing():
    backbone = Between(FOLLOWED["product"][0])
    trace_units(MultiSubnetwork(backbone), "unit", torch.zeros(2, 5, 4))
    assert type(backbone.heads) is int
    assert backbone.heads == 4


def test_sizes_that_a_module_keeps_are_of_use_after_tracing():
    kept = []

    def operation(own, hidden):
        kept.append(hidden.shape[-1])
        return hidden

    trace_units(MultiSubnetwork(Between(operation)), "unit", torch.zeros(2, 5, 4))
    assert kept[0] // 5 == 2
    assert type(copy.deepcopy(kept)[0]) is int


def test_marked_numbers_report_what_their_value_decides():
    seen = []
    width, heads = (Marked(value, (Attribute("", str(value), value),), seen.append) for value in (12, 3))
    assert [factor.name for factor in (width * heads).factors] == ["12", "3"]
    assert [factor.name for factor in (2 * width).factors] == ["12"]
    assert not seen
    assert (width // heads, width - 1, width**2, float(width), width * 0.5) == (4, 11, 144, 12.0, 6.0)
    assert len(seen) == 6
    assert width == 12
    assert width > heads
    assert len(seen) == 9
    assert type(copy.deepcopy(width)) is int
    assert {width: 1}[12] == 1


def test_attributes_that_change_inside_stay_changed():
    module = Between(None)
    with marked_attributes(module, print):
        module.heads = 7
        assert isinstance(module.other, Marked)
    assert (module.heads, module.other, type(module.other)) == (7, 3, int)


def test_united_rows_are_a_unit_and_an_entry_that_is_always_there_is_none():
    rows = RowUnits()
    one, other = rows.add("one", 6), rows.add("other", 3)
    rows.unite(one.view(3, 2), other[:, None])
    rows.unite(torch.tensor([-1, 2]), torch.tensor([0, -1]))
    solution = rows.solve({"one": (6, 4), "other": (3, 4)}, {"next": one}, whole := {})
    assert not whole
    assert solution.leaders == {"one": "one", "other": "one"}
    assert {name: (found.parts, found.size) for name, found in solution.structures.items()} == {
        "one": (1, 2),
        "other": (1, 1),
    }
    assert solution.source(one) == ("one", 2)
