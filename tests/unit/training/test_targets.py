"""What the config of a run folder may have called."""

import pytest
from omegaconf import OmegaConf

from msh.training.config import plain_values
from msh.training.targets import check_targets

SOURCE = {"_target_": "msh.tasks.bundled.bundled", "name": "wine"}
BACKBONE = {"_target_": "msh.backbones.MLP"}


def config(**changed):
    tasks = {"a": {"source": SOURCE, "stem": None}}
    optimizer = {"_target_": "torch.optim.Adam"}
    return {"tasks": tasks, "backbone": BACKBONE, "optimizer": optimizer} | changed


def test_what_msh_and_torch_define_is_called():
    check_targets(config(), "run")


def test_what_is_never_called_when_a_run_is_measured_does_not_matter():
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
    with pytest.raises(ValueError, match=rf"run: {place}\._target_ = '?{target}'? is not allowed.*unsafe=true"):
        check_targets(changed, "run")


def test_names_that_are_put_together_are_seen_through():
    made = plain_values(OmegaConf.create(config(first="os", backbone={"_target_": "${first}.system"})))
    with pytest.raises(ValueError, match=r"'os\.system' is not allowed"):
        check_targets(made, "run")
