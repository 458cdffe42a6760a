"""A `_target_` that replaces another gets none of the settings that only that one takes."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from msh.cli.configs import config_folder
from msh.cli.inherited import drop_inherited
from msh.training.config import register, run_config


class Net:
    def __init__(self, input_shape, width=3):
        pass


def composed(*overrides):
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    drop_inherited(config, config.hydra)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


TARGET = f"backbone._target_={__name__}.Net"
CASES = [
    ([], {"width": 1000, "depth": 6, "norm": False, "input_shape": None}),
    ([TARGET], {"input_shape": None}),
    ([TARGET, "backbone.width=7"], {"input_shape": None, "width": 7}),
    ([TARGET, "backbone.width=1000"], {"input_shape": None, "width": 1000}),
    ([TARGET, "backbone=resnet18"], {"input_shape": None}),
    ([f"+backbone={{_target_: {__name__}.Net, width: 1000}}"], {"input_shape": None, "width": 1000}),
]


@pytest.mark.parametrize(("overrides", "expected"), CASES)
def test_a_backbone_keeps_what_is_written_for_it(overrides, expected):
    block = composed(*overrides).backbone
    assert {key: value for key, value in block.items() if key != "_target_"} == expected


@pytest.mark.parametrize("name", ["Adagrad", "Rprop", "RMSprop", "LBFGS"])
def test_another_optimizer_gets_the_settings_that_it_takes(name):
    optimizer = composed(f"optimizer._target_=torch.optim.{name}").optimizer
    assert optimizer.lr == 0.001
    assert "fused" not in optimizer
    assert ("weight_decay" in optimizer) == (name in ("Adagrad", "RMSprop"))


def test_pretrained_backbones_are_started_from_unless_the_user_says_otherwise():
    named = ["backbone=torchvision", "backbone.name=resnet18"]
    assert run_config(composed(*named)).pruning.start == "fresh"
    pretrained = [*named, "backbone.weights=default"]
    assert run_config(composed(*pretrained)).pruning.start == "backbone"
    assert run_config(composed(*pretrained, "pruning.start=fresh")).pruning.start == "fresh"


STEPS = "scheduler._target_=torch.optim.lr_scheduler.StepLR"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([STEPS, "+scheduler.step_size=20"], {"step_size": 20}),
        ([STEPS, "+scheduler.step_size=20", "optimizer.lr=0.5"], {"step_size": 20}),
        ([STEPS, "+scheduler.step_size=20", "scheduler=cosine"], {"step_size": 20}),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.CyclicLR", "+scheduler.base_lr=1"],
            {"max_lr": 1e-3, "base_lr": 1},
        ),
    ],
)
def test_a_scheduler_keeps_references_that_it_takes(overrides, expected):
    """The option's `max_lr` is a reference, `${optimizer.lr}`."""
    block = OmegaConf.to_container(composed(*overrides).scheduler, resolve=True)
    assert {key: value for key, value in block.items() if not key.startswith("_")} == expected
