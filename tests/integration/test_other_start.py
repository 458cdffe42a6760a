"""A run resumes with the initial weights that it started from, and refuses others before anything is trained."""

import shutil

import pytest
import torch
from running import few_steps
from safetensors.torch import save_file
from torch import nn

import msh
from golden.recording import told_to_end_after
from msh.training.origin import ORIGIN
from msh.training.preemption import PreemptedError

SETTINGS = [
    *("tasks=[wine,iris]", *few_steps("wine", "iris"), "trainer.max_epochs=2", "checkpoint.min_seconds=0"),
    *("pruning.density=0.3", "pruning.granularity=weight", "threads=1", "callbacks=none", "report=false"),
    *("logger=none", "trainer.accelerator=cpu", "hydra.run.dir=run"),
]
MODULE = ["backbone=module", "backbone.target=test_other_start.Net", "backbone.weights=weights.safetensors"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(13, 32), nn.BatchNorm1d(32), nn.Linear(32, 32)

    def forward(self, inputs):
        return self.second(self.norm(self.first(inputs.flatten(1))).relu()).relu()


def seeded(seed, part=""):
    """A module; of one with another seed, the part or all has other values."""
    torch.manual_seed(0)
    net = Net()
    torch.manual_seed(seed)
    for parameter in net.get_submodule(part).parameters():
        nn.init.uniform_(parameter)
    return net


def from_a_file(net, *more):
    save_file(net.state_dict(), "weights.safetensors")
    return msh.train(*SETTINGS, *MODULE, *more)


def from_a_module(net, *more):
    return msh.train(*SETTINGS, *more, backbone=net)


@pytest.fixture(params=[from_a_file, from_a_module])
def train(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param


def stop(train, steps):
    with told_to_end_after(steps), pytest.raises(PreemptedError):
        train(seeded(1))


@pytest.mark.parametrize("steps", [5, 30], ids=["in the first task", "in the second"])
@pytest.mark.parametrize("part", ["", "norm"])
def test_other_initial_weights_are_refused(train, steps, part, tmp_path):
    stop(train, steps)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")}
    with pytest.raises(ValueError, match=r"resume .*run.* starts from other weights than this run with seed=0"):
        train(seeded(2, part), "resume=run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")} == before


@pytest.mark.parametrize("record", [True, False], ids=["this release", "an earlier release, which recorded none"])
def test_the_same_initial_weights_resume_to_the_same_bits(train, record, tmp_path):
    stop(train, 30)
    if not record:
        (tmp_path / "run" / ORIGIN).unlink()
    train(seeded(1), "resume=run")
    assert (tmp_path / "run" / ORIGIN).is_file() == record
    resumed = (tmp_path / "run" / "network.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    train(seeded(1))
    assert (tmp_path / "run" / "network.safetensors").read_bytes() == resumed


def test_a_new_run_replaces_the_record_of_a_start_that_failed(train, tmp_path):
    record = tmp_path / "run" / ORIGIN
    record.parent.mkdir(parents=True)
    record.write_bytes(b"of another start")
    stop(train, 5)
    train(seeded(1), "resume=run")
