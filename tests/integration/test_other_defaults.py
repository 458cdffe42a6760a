"""A program may have set another default type or device: training and answers stay the same, and so do its defaults."""

import threading

import numpy as np
import pytest
import torch
from running import SMALL, few_steps

import msh
from msh.inference.computing import usual_defaults
from msh.inference.export import export_task
from msh.inference.rebuilding import rebuild_network

INPUTS = {"iris": np.linspace(0, 7, 12).reshape(3, 4), "diabetes": np.linspace(-0.1, 0.1, 20).reshape(2, 10)}


@pytest.fixture
def defaults(request):
    kind, device = torch.get_default_dtype(), torch.get_default_device()
    wanted = request.param
    if isinstance(wanted, torch.dtype):
        torch.set_default_dtype(wanted)
    else:
        torch.set_default_device(wanted)
    yield
    assert wanted in (torch.get_default_dtype(), torch.get_default_device().type)
    torch.set_default_dtype(kind)
    torch.set_default_device(device)


def learn(folder):
    tasks = ["tasks=[iris,diabetes]", *few_steps("iris", "diabetes")]
    msh.train(*SMALL, *tasks, "baseline=[dense]", "trainer.max_epochs=2", f"hydra.run.dir={folder}")
    return folder / "network.safetensors"


def answers(folder):
    predictor = msh.load(folder)
    raw = [predictor.predict(task, inputs).raw for task, inputs in INPUTS.items()]
    raw += [predictor.predict_all(INPUTS["iris"])["iris"].raw, predictor.prepare("iris", INPUTS["iris"])]
    raw += [predictor.module("iris")(raw[-1]).detach()]
    return raw


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    file = learn(folder / "run")
    return folder / "run", file.read_bytes(), answers(folder / "run")


@pytest.mark.parametrize("defaults", [torch.float64, torch.bfloat16, "meta"], indirect=True)
def test_a_program_with_other_defaults_trains_and_predicts_the_same(defaults, usual, tmp_path):
    assert learn(tmp_path / "run").read_bytes() == usual[1]
    for one, other in zip(answers(usual[0]), usual[2], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    network = rebuild_network(usual[0] / "network.safetensors")
    assert {p.dtype for p in network.parameters()} <= {torch.float32}
    export_task(msh.load(usual[0]), "iris", tmp_path / "iris.pt2", "pt2")


@pytest.mark.parametrize("defaults", [torch.float64], indirect=True)
def test_the_defaults_come_back_after_the_last_of_several_threads(defaults):
    both, done = threading.Barrier(2), []

    def compute(first):
        with usual_defaults():
            both.wait()
            if first:
                other.join()
            done.append(torch.get_default_dtype())

    other = threading.Thread(target=compute, args=(False,))
    other.start()
    compute(True)
    assert done == [torch.float32, torch.float32]
    assert torch.get_default_dtype() == torch.float64
