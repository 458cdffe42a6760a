"""With reuse=backbone every task reads the frozen backbone and owns a sparse change of it."""

import json
from dataclasses import replace

import pytest
import torch
from running import SMALL, few_steps, here
from torch import nn

import msh
from messages import says
from msh.cli import train
from msh.files.merging import release_task, split_task
from msh.files.state_file import StateFile, read_state
from msh.recipes import AddedTo, build, freeze_base

RUN = [*SMALL, "+experiment=sequential", "tasks=[wine,iris]", *few_steps("wine", "iris"), "reuse=backbone"]
RUN += ["trainer.max_epochs=3", "logger=none"]
FIRST, SECOND = "layers.1.parametrizations.weight", "layers.3.parametrizations.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("reuse")
    here(train.main, *RUN, "hydra.run.dir=run", cwd=cwd)
    return cwd / "run"


def test_tasks_own_changes_and_the_backbone_stays(folder):
    results = json.loads((folder / "results.json").read_text())
    state = read_state(folder / "network.safetensors", "network").state
    assert list(state.owners) == [f"{FIRST}.original", f"{SECOND}.original"]
    assert set(state.shared) == {f"{FIRST}.0.base", f"{SECOND}.0.base"}
    for owner, row in enumerate(results["tasks"].values(), start=1):
        assert row["weights"] == round(0.1 * results["capacity"]["prunable"])
        for name, ids in state.owners.items():
            assert (state.weights[name][ids == owner] != 0).any()
    for name, ids in state.owners.items():
        assert not state.weights[name][ids == 0].any()  # free ones change nothing
        assert state.defaults[name.replace("original", "0.base")].std() > 0.01
    assert results["guarantee"] == {"checked": 1, "violations": 0}


def test_its_file_predicts_alone_and_takes_another_task(folder, tmp_path):
    predictor = msh.load(folder / "network.safetensors")
    row = dict.fromkeys((one.name for one in predictor.tasks["wine"].steps[0].columns), 1.0)
    before = predictor.predict("wine", [row]).probabilities
    base = read_state(folder / "network.safetensors", "network").state.defaults[f"{FIRST}.0.base"]
    more = ["tasks=[digits]", *few_steps("digits"), "trainer.max_epochs=1", f"network={folder}", "logger=none"]
    here(train.main, "+experiment=sequential", *more, "hydra.run.dir=more", cwd=tmp_path)
    assert torch.equal(msh.load(tmp_path / "more").predict("wine", [row]).probabilities, before)
    after = read_state(tmp_path / "more" / "network.safetensors", "network").state
    assert torch.equal(after.defaults[f"{FIRST}.0.base"], base)
    assert list(after.tasks) == ["wine", "iris", "digits"]


def test_a_tasks_file_holds_its_change_alone_and_predicts_on_its_backbone(folder, tmp_path):
    own, network = folder / "subnetworks" / "iris.safetensors", folder / "network.safetensors"
    state = read_state(own, "subnetwork").state
    assert not state.defaults
    assert not state.shared
    assert state.tasks["iris"].base == read_state(network, "network").state.base_digest()
    with pytest.raises(ValueError, match=r"task 'iris' changes a pretrained backbone, which the file does not hold"):
        msh.load(own)
    release_task(network, "iris", tmp_path / "base.safetensors")
    joined, whole = msh.load(own, base=tmp_path / "base.safetensors"), msh.load(folder)
    row = dict.fromkeys((one.name for one in whole.tasks["iris"].steps[0].columns), 1.0)
    assert torch.equal(joined.predict("iris", [row]).probabilities, whole.predict("iris", [row]).probabilities)
    split_task(network, "iris", tmp_path / "split.safetensors")
    assert read_state(tmp_path / "split.safetensors").state.tasks["iris"].base == state.tasks["iris"].base


def test_a_tasks_file_is_refused_on_another_backbone(folder, tmp_path):
    own, network = folder / "subnetworks" / "iris.safetensors", folder / "network.safetensors"
    release_task(network, "iris", tmp_path / "base.safetensors")
    file = read_state(tmp_path / "base.safetensors", "network")
    file.state.defaults[f"{FIRST}.0.base"][0, 0] += 1e-7
    for notes in (file.notes, file.notes | {"start": "other"}):  # the note is made when a network starts
        replace(file, notes=notes).write(tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=r"'iris' changes a pretrained backbone with other values than the net"):
            msh.load(own, base=tmp_path / "other.safetensors")


def test_files_of_earlier_releases_that_hold_the_backbone_still_predict(folder, tmp_path):
    network = read_state(folder / "network.safetensors", "network")
    state = network.state.only("iris")
    bases = {name: network.state.defaults[name] for name in network.state.base_names()}
    tasks = {"iris": replace(state.tasks["iris"], base=None)}
    earlier = replace(state, defaults=bases, shared=tuple(bases), tasks=tasks)
    StateFile(earlier, "subnetwork", network.notes).write(tmp_path / "iris.safetensors")
    alone, whole = msh.load(tmp_path / "iris.safetensors"), msh.load(folder)
    row = dict.fromkeys((one.name for one in whole.tasks["iris"].steps[0].columns), 1.0)
    assert torch.equal(alone.predict("iris", [row]).probabilities, whole.predict("iris", [row]).probabilities)
    release_task(folder / "network.safetensors", "iris", tmp_path / "base.safetensors")
    joined = msh.load(tmp_path / "iris.safetensors", base=tmp_path / "base.safetensors")
    assert torch.equal(joined.predict("iris", [row]).probabilities, whole.predict("iris", [row]).probabilities)


def test_whole_units_and_plans_are_refused(tmp_path, capsys):
    for setting, key in (("pruning.granularity=unit", "reuse"), ("pruning.granularity=channel", "reuse")):
        with pytest.raises(SystemExit):
            here(train.main, *RUN, setting, "hydra.run.dir=no", cwd=tmp_path)
        assert says(key, value="backbone").split("\\")[0] in capsys.readouterr().err


def test_a_change_of_zero_is_the_module_itself_and_its_recipe_repeats_it():
    recipe = {"_target_": "msh.backbones.MLP", "input_shape": [3], "width": 4, "depth": 2}
    torch.manual_seed(0)
    module = build(recipe)
    inputs = torch.randn(5, 3)
    before = module(inputs)
    freeze_base(module, ["layers.1.weight"])
    assert torch.equal(module(inputs), before)
    again = build({**recipe, "_base_": ["layers.1.weight"]})
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(inputs), before)
    with torch.no_grad():
        module.layers[1].parametrizations.weight.original[0, 0] = 1.0
    assert module.layers[1].weight[0, 0] == module.layers[1].parametrizations.weight[0].base[0, 0] + 1
    assert not isinstance(build(recipe).layers[1], AddedTo)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.back = nn.Embedding(4, 3), nn.Linear(3, 4)
        self.back.weight = self.table.weight


@pytest.mark.parametrize(
    ("module", "name", "why"),
    [
        (Tied(), "table.weight", "is tied to another"),
        (nn.LSTM(2, 3), "weight_ih_l0", "belongs to a recurrent layer"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
            "parametrizations.weight.original1",
            "is reparametrized",
        ),
    ],
)
def test_tensors_to_which_nothing_can_be_added_are_named(module, name, why):
    with pytest.raises(ValueError, match=rf"reuse=backbone cannot add changes to '{name}', which {why}"):
        freeze_base(module, [name])
