"""Code that a run folder's config may call, and the arguments of what a config calls."""

import pytest
from omegaconf import OmegaConf
from toys import make_run

from messages import says
from msh.errors import ProblemsError
from msh.training.config import plain_values
from msh.training.targets import check_arguments, check_targets

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


# ---- arguments


def block(target, /, **arguments):
    return {"_target_": target, **arguments}


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"backbone": block("msh.backbones.MLP", foo=1)}, "backbone.foo"),
        ({"optimizer": block("torch.optim.Adam", _partial_=True, foo=1)}, "optimizer.foo"),
        ({"scheduler": block("torch.optim.lr_scheduler.OneCycleLR", _partial_=True, foo=1)}, "scheduler.foo"),
        ({"prune_scheduler": block("torch.optim.lr_scheduler.StepLR", _partial_=True, foo=1)}, "prune_scheduler.foo"),
        ({"logger": {"csv": block("msh.tracking.loggers.RunCSVLogger", foo=1)}}, "logger.csv.foo"),
        ({"callbacks": {"ours": block("msh.training.callbacks.RestoreBest", foo=1)}}, "callbacks.ours.foo"),
        (
            {"callbacks": {"it": block("collections.OrderedDict", inner=block("fractions.Fraction", foo=1))}},
            "it.inner.foo",
        ),
        ({"tasks": {"a": {"source": {**SOURCE, "foo": 1}}}}, "tasks.a.source.foo"),
        ({"tasks": {"a": {"source": SOURCE, "stem": block("msh.tasks.stems.linear", foo=1)}}}, "tasks.a.stem.foo"),
        (
            {"backbone": block("msh.backbones.Adapted", target="msh.backbones.ResNet18", args={"foo": 1})},
            "backbone.args.foo",
        ),
    ],
)
def test_an_argument_that_its_target_does_not_take_is_named_with_those_it_takes(changed, key):
    with pytest.raises(ValueError, match=rf"there is no setting .*{key}; .* takes \w+"):
        check_arguments(make_run(["a"], **changed))


def test_all_unknown_arguments_are_told_at_once_with_the_nearest_one():
    changed = {
        "backbone": block("msh.backbones.MLP", wide=1, weights="w.pt"),
        "optimizer": {"_target_": "torch.optim.SGD"},
    }
    changed["optimizer"]["momentun"] = 0.9
    with pytest.raises(ProblemsError) as caught:
        check_arguments(make_run(["a"], **changed))
    wide, weights, momentum = caught.value.problems
    assert "did you mean 'width'?" in wide
    assert "backbone=module" in weights
    assert "did you mean 'momentum'?" in momentum


@pytest.mark.parametrize("target", ["no.such.Thing", "collections.OrderedDict", "builtins.dict", 7])
def test_targets_that_do_not_exist_or_take_any_argument_are_left_to_the_call(target):
    check_arguments(make_run(["a"], callbacks={"it": block(target, foo=1)}))
