"""Code that a run folder's config may call."""

import pytest
from omegaconf import OmegaConf

from messages import says
from msh.training.config import plain_values
from msh.training.targets import check_targets

SOURCE = {"_target_": "msh.tasks.bundled.bundled", "name": "wine"}
BACKBONE = {"_target_": "msh.backbones.MLP"}


def config(**changed):
    tasks = {"a": {"source": SOURCE, "stem": None}}
    optimizer = {"_target_": "torch.optim.Adam"}
    return {"tasks": tasks, "backbone": BACKBONE, "optimizer": optimizer} | changed


def test_msh_and_torch_may_be_called():
    check_targets(config(), "run")


def test_targets_that_an_evaluation_never_calls_are_not_checked():
    check_targets(config(logger={"_target_": "os.system"}), "run")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.load",
        "msh.training.run.logging.shutdown",
        "msh.tasks.build.torch.load",
        "torch.nn.functional.torch.hub.load",
        "torch.optim.lr_scheduler.warnings.warn",
        "mshnot.thing",
        7,
    ],
)
@pytest.mark.parametrize("place", ["backbone", "tasks.a.source", "tasks.a.stem", "backbone.parts.0"])
def test_other_code_is_refused_by_key_and_name(target, place):
    made = OmegaConf.create(config(backbone=BACKBONE | {"parts": [{}]}))
    OmegaConf.update(made, place, {"_target_": target}, merge=False, force_add=True)
    changed = plain_values(made)
    with pytest.raises(ValueError, match=f"run: {says(f'{place}._target_', value=target)}.*unsafe=true"):
        check_targets(changed, "run")


def test_the_constructor_of_an_own_module_is_among_the_targets():
    settings = config(backbone={"_target_": "msh.backbones.Adapted", "target": "os.system"})
    with pytest.raises(ValueError, match=says("backbone.target", value="os.system")):
        check_targets(settings, "config.yaml")


def test_interpolated_targets_are_checked():
    made = plain_values(OmegaConf.create(config(first="os", backbone={"_target_": "${first}.system"})))
    with pytest.raises(ValueError, match=says("backbone._target_", value="os.system")):
        check_targets(made, "run")
