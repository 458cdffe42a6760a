"""On a CUDA device, frozen tasks keep their bits, stopped runs resume, and mixed precision and compilation work."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from integration.running import here
from msh.backbones import MLP
from msh.cli import train
from msh.files.state_file import read_state
from msh.subnetworks import (
    WEIGHTS,
    Blocks,
    Budget,
    MultiSubnetwork,
    OverlappingUnits,
    prune,
    trace_units,
)
from msh.training.callbacks.checkpoint import EpochCheckpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RUN = ["+experiment=sequential", "tasks=[wine,iris]", "backbone.width=64", "trainer=gpu", "trainer.max_epochs=4"]
RUN += ["logger=csv", "callbacks=none", "report=false", "checkpoint.min_seconds=0"]


def learn(network, task, granularity, precision, forward=None):
    """Prune a task, and train it for a few steps."""
    kind = {"weight": lambda: WEIGHTS, "block": lambda: Blocks.of(network)}.get(
        granularity, lambda: OverlappingUnits(trace_units(network))
    )()
    blocks = kind.sizes if isinstance(kind, Blocks) else None
    network.add_task(task, nn.Linear(network.backbone.features, 3), granularity=granularity, blocks=blocks)
    network.begin(task, generator=torch.Generator().manual_seed(0))
    prune(network, task, Budget(density=0.2).counts(kind.counts(network.sizes()), {}), granularity=kind)
    network.compact(task)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == torch.float16)
    inputs, targets = torch.randn(32, 20, device="cuda"), torch.arange(32, device="cuda") % 3
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cuda", precision, enabled=precision is not None):
            loss = functional.cross_entropy((forward or network)(inputs, task).float(), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["weight", "block", "unit"])
def test_a_frozen_task_keeps_its_bits_while_another_one_trains(granularity, precision):
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((20,), 64, 3, norm=True)).cuda().train()
    learn(network, "a", granularity, precision)
    network.freeze("a")
    inputs = torch.randn(16, 20, device="cuda")
    before = network(inputs, "a")
    learn(network, "b", granularity, precision)
    assert torch.equal(network(inputs, "a"), before)
    network.freeze("b")
    assert torch.equal(network(inputs, "a"), before)


def test_a_compiled_network_trains():
    torch.manual_seed(0)
    network = MultiSubnetwork(MLP((20,), 64, 2)).cuda().train()
    learn(network, "a", "weight", None, torch.compile(network))


@pytest.mark.parametrize("how", [(), ("pruning.granularity=unit",), ("trainer.precision=bf16-mixed",)])
def test_a_run_stopped_within_a_fit_ends_as_one_that_was_not(how, tmp_path, monkeypatch):
    here(train.main, *RUN, *how, "hydra.run.dir=whole", cwd=tmp_path)
    fit = tmp_path / "run" / "checkpoints" / "stage-001-train"
    with monkeypatch.context() as patch:
        patch.setattr(EpochCheckpoint, "_is_signalled", lambda *_: any(fit.glob("epoch-00000.*")))
        with pytest.raises(SystemExit):
            here(train.main, *RUN, *how, "hydra.run.dir=run", cwd=tmp_path)
    here(train.main, "resume=run", cwd=tmp_path)
    states = [read_state(tmp_path / name / "network.safetensors", "network").state for name in ("whole", "run")]
    for name, weight in states[0].weights.items():
        torch.testing.assert_close(states[1].weights[name], weight, rtol=1e-3, atol=1e-4)  # atomics round differently
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["guarantee"]["violations"] == 0
