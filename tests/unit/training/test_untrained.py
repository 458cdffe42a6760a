"""The tensors that no gradient reaches are named after the first stage."""

import logging

import torch
from torch import nn
from toys import begin, fit, make_module

from helpers import INPUTS, OUTPUTS
from msh.subnetworks import MultiSubnetwork
from msh.training.callbacks.untrained import ReportUntrained, _is_reached


class Backbone(nn.Module):
    """Has a layer that the outputs depend on, one that they do not, one cut off by a factor of 0, and one detached."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.silent, self.cut = (nn.Linear(INPUTS, 10) for _ in range(4))

    def forward(self, inputs):
        return self.used(inputs) + 0.0 * self.silent(inputs) + self.cut(inputs).detach()


def watched(tmp_path, caplog, backbone):
    module = make_module()
    module.network = MultiSubnetwork(backbone)
    module.network.add_task("a", head=nn.Linear(10, OUTPUTS))
    module.network.begin("a")
    callback = ReportUntrained()
    fit(module, tmp_path, callback, epochs=1)
    with caplog.at_level(logging.WARNING, "msh"):
        callback.report()
    return [record.getMessage() for record in caplog.records if "no gradient reached" in record.getMessage()]


def test_tensors_without_a_gradient_are_named_once(tmp_path, caplog):
    (message,) = watched(tmp_path, caplog, Backbone())
    names = "cut.bias, cut.weight, silent.bias, silent.weight, unused.bias, unused.weight"
    assert message.startswith(f"no gradient reached {names} in the first stage")


def test_nothing_is_said_where_all_tensors_train(tmp_path, caplog):
    backbone = nn.Sequential(nn.Linear(INPUTS, 10), nn.Tanh(), nn.LayerNorm(10))
    assert watched(tmp_path, caplog, backbone) == []


def test_a_tensor_that_one_task_trains_is_not_named(caplog):
    callback = ReportUntrained()
    callback.waiting = {"a": {"values.x/weight", "values.y/weight"}, "b": {"values.y/weight"}}
    callback.report()
    assert "no gradient reached y.weight in" in caplog.text


def test_a_task_that_never_trained_says_nothing(caplog):
    ReportUntrained().report()
    assert caplog.text == ""


def test_watching_changes_no_bit(tmp_path):
    torch.manual_seed(0)
    module = begin(make_module(), "a")
    fit(module, tmp_path, ReportUntrained())
    trained = {name: tensor.clone() for name, tensor in module.network.subnetwork("a").values.items()}
    torch.manual_seed(0)
    other = begin(make_module(), "a")
    fit(other, tmp_path / "other")
    assert all(torch.equal(trained[name], tensor) for name, tensor in other.network.subnetwork("a").values.items())


def test_a_gradient_of_zeros_is_none_and_a_sparse_one_counts():
    assert not _is_reached(None)
    assert not _is_reached(torch.zeros(3))
    assert _is_reached(torch.tensor([0.0, torch.nan]))
    assert _is_reached(torch.zeros(3).to_sparse())
