"""Errors of classes that a config names: one line that names key, class, type and message."""

import re
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from toys import begin, fit, make_run, make_task

from helpers import FEATURES, INPUTS
from messages import says
from msh.cli.errors import message_of
from msh.errors import Problems
from msh.subnetworks import MultiSubnetwork
from msh.tasks.own import with_own
from msh.training.build import build_backbone, build_tasks, check_backbone
from msh.training.callbacks.allowed import build_callbacks
from msh.training.module import SubnetworkModule
from msh.training.own_code import reporting
from msh.training.schedulers import check_optimizer

ERRORS = {
    "Key": (KeyError("nokey"), "KeyError: 'nokey'"),
    "Value": (ValueError("boom"), "ValueError: boom"),
    "Lines": (AssertionError("one\n  two"), "AssertionError: one two"),
    "Bare": (NotImplementedError(), "NotImplementedError"),
}


def failing(base, error):
    class Failing(base):
        def __init__(self, *args, **kwargs):
            raise error

    return Failing


for kind, (raised, _) in ERRORS.items():
    for part, base in (("Net", nn.Module), ("Adam", torch.optim.Adam), ("Stop", pl.Callback), ("source", object)):
        globals()[f"{part}{kind}"] = failing(base, raised)
    globals()[f"Loss{kind}"] = failing(nn.Module, raised)


def build(part, target):
    if part in ("backbone.target", "backbone._target_"):
        own = {"_target_": "msh.backbones.Adapted", "target": target}
        backbone = own if part == "backbone.target" else {"_target_": target, "input_shape": [4]}
        build_backbone(make_run(["a"], backbone=backbone), {"a": make_task()})
    elif part == "optimizer._target_":
        check_optimizer(make_run(["a"], optimizer={"_target_": target, "_partial_": True}))
    elif part == "callbacks.mine._target_":
        build_callbacks(make_run(["a"], callbacks={"mine": {"_target_": target}}))
    else:
        build_tasks(make_run({"a": {"source": {"_target_": target}}}))


PARTS = {
    "backbone.target": "Net",
    "backbone._target_": "Net",
    "optimizer._target_": "Adam",
    "callbacks.mine._target_": "Stop",
    "tasks.a.source._target_": "source",
}


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("kind", ERRORS)
def test_any_error_of_a_class_names_key_class_type_and_message(key, kind):
    target = f"{__name__}.{PARTS[key]}{kind}"
    with pytest.raises(ValueError, match=r"cannot") as caught:
        build(key, target)
    failed = "cannot load the data" if "source" in key else "cannot be built"
    assert str(caught.value) == f"{key} = {target} {failed}: {ERRORS[kind][1]}"
    assert caught.value.__cause__ is ERRORS[kind][0]  # its traceback is logged


@pytest.mark.parametrize("kind", ERRORS)
def test_a_losss_error_has_its_type(kind):
    with pytest.raises(ValueError, match=rf"tasks.a.loss cannot be built from .*Loss{kind}.*: {ERRORS[kind][1]}$"):
        with_own(make_task(), None, {"_target_": f"{__name__}.Loss{kind}"})


def test_a_missing_argument_is_named():
    with pytest.raises(
        ValueError, match=r"backbone.target = torch.nn.Linear cannot be built: TypeError: .*in_features"
    ):
        build("backbone.target", "torch.nn.Linear")


def test_errors_of_files_stay_such_and_a_class_that_is_not_there_is_hydras():
    message = r"source._target_ = my.load cannot be built: FileNotFoundError: no file"
    with pytest.raises(OSError, match=message), reporting("source._target_", "my.load"):
        raise FileNotFoundError("no file")
    with pytest.raises(InstantiationException, match=r"Error locating target"), reporting("key", "no.such.Class"):
        instantiate({"_target_": "no.such.Class"})


def test_msh_reports_its_own_errors():
    with pytest.raises(KeyError, match="bug"), reporting("key", "msh.tasks.tables.table"):
        raise KeyError("bug")


def test_an_unexpected_error_within_hydra_has_its_type():
    with pytest.raises(InstantiationException) as caught:
        instantiate({"_target_": f"{__name__}.NetKey"})
    assert re.fullmatch(r"KeyError: 'nokey'", message_of(caught.value))


def test_the_traceback_of_a_collected_error_is_kept():
    error = ValueError("why")

    def fail():
        raise error

    with pytest.raises(ValueError, match="why") as caught, Problems() as problems:
        problems.check(fail)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"_target_": "msh.backbones.MLP", "width": 0}, [says("backbone.width", ">= 1", 0)]),
        ({"_target_": "msh.backbones.MLP", "width": 0, "depth": 0}, [says("backbone.width"), says("backbone.depth")]),
        ({"_target_": "msh.backbones.ResNet18", "width": 0}, [says("backbone.width", ">= 1", 0)]),
        ({"_target_": "msh.backbones.PaperConv", "pool_stride": 0}, [says("backbone.pool_stride")]),
        ({"_target_": "msh.backbones.Transformer", "width": 7}, [says("backbone.width")]),
        ({"_target_": "msh.backbones.ResNet18", "width": 0, "input_shape": [4]}, [says("backbone.input_shape")]),
    ],
)
def test_arguments_of_a_backbone_are_checked_without_data_and_with_their_key(settings, problems):
    with pytest.raises(ValueError, match=r"backbone\.") as caught:
        check_backbone(make_run(["a"], backbone=settings))
    for problem in problems:
        assert re.search(problem, str(caught.value))
    if settings["_target_"] == "msh.backbones.MLP":
        with pytest.raises(ValueError, match=problems[0]):
            build_backbone(make_run(["a"], backbone=settings), {"a": make_task()})


class Complex(nn.Module):
    """A layer and a complex filter."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(INPUTS, FEATURES)
        self.filter = nn.Parameter(torch.ones(FEATURES // 2 + 1, dtype=torch.cfloat))

    def forward(self, inputs):
        spectrum = torch.fft.rfft(self.layer(inputs))
        return torch.fft.irfft(spectrum * self.filter, n=FEATURES)


@pytest.mark.parametrize("fused", [True, False])
def test_a_backbone_with_complex_parameters_trains_them(fused, tmp_path):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=0.01, fused=fused)
    module = begin(SubnetworkModule(MultiSubnetwork(Complex()), {"a": make_task()}, adam), "a")
    fit(module, tmp_path, epochs=1)
    trained = module.network.subnetwork("a").private["filter"]
    assert trained.dtype == torch.cfloat
    assert trained.imag.any()


@pytest.mark.parametrize("name", ["MLP", "ResNet18", "PaperConv", "Transformer"])
def test_backbones_with_valid_arguments_pass(name):
    check_backbone(make_run(["a"], backbone={"_target_": f"msh.backbones.{name}"}))
