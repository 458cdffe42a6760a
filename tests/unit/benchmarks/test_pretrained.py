"""Ways to use pretrained weights: frozen tensors stay, LoRA has the size asked for, and the docs have the records."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from msh.tasks import RawData, Split

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import few, pretrained  # noqa: E402
from benchmarks.adapters import Lora, freeze, with_adapter  # noqa: E402
from benchmarks.pretrained import BACKBONES, NEW, learn, row_of, runs_of, text_of  # noqa: E402

peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # frozen normalization stays in it
CLASSES = (*pretrained.FIRST, "ship", "truck")


def drawn(name, folder):
    """Ten classes of noise of different brightness."""

    def split(examples, seed):
        targets = torch.arange(examples) % 10
        noise = torch.rand(examples, 3, few.SIZE, few.SIZE, generator=torch.Generator().manual_seed(seed))
        return Split((noise + targets[:, None, None, None]) / 11, targets)

    return RawData("classification", split(400, 1), split(200, 2), 10, classes=CLASSES)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "images", drawn)
        patch.setattr(pretrained, "images", drawn)
        patch.setitem(BACKBONES, "resnet", (*BACKBONES["resnet"][:2], {"width": 2}))
        folder = tmp_path_factory.mktemp("pretrained")
        sizes = ["--examples", "40", "--test-examples", "30", "--batch-size", "8", "--epochs", "6"]
        sizes += ["--first-examples", "160", "--first-epochs", "1", "--seeds", "0"]
        yield pretrained.parse(["--folder", str(folder), "--data-dir", str(folder), *sizes])


@pytest.mark.parametrize(
    "way", ["change-10", "reading-10", "probe", "full", "full-one", pytest.param("lora-10-norms", marks=peft)]
)
def test_each_way_learns_and_is_evaluated_again_after_every_task(options, way):
    record = learn(options, "resnet", way, 0, 0.001)
    assert [sum(score is not None for score in row) for row in record["matrix"]] == [1, 2, 3]
    assert len(record["val"]) == len(record["bytes"]) == len(NEW)
    forgotten = [record["matrix"][i][i] - record["matrix"][-1][i] for i in range(len(NEW))]
    assert way == "full-one" or forgotten == [0, 0, 0]
    assert record["seconds"] > 0
    assert record["bytes_in_all"] >= sum(record["bytes"]) - (way in pretrained.SUBNETWORKS) * 50_000  # shared headers
    assert learn(options, "resnet", way, 0, 0.001) == record


def test_the_first_seed_chooses_the_rate_by_validation_alone(options, monkeypatch):
    scores = {0.001: (0.6, 0.1), 0.004: (0.5, 0.9)}

    def fake(options, backbone, way, seed, rate):
        val, test = scores[rate]
        return {"seed": seed, "rate": rate, "val": [val], "matrix": [[test]]}

    monkeypatch.setattr(pretrained, "learn", fake)
    monkeypatch.setitem(pretrained.RATES, "resnet", tuple(scores))
    options.seeds = [0, 7]
    assert [(run["seed"], run["rate"]) for run in runs_of(options, "resnet", "full")] == [(0, 0.001), (7, 0.001)]


def test_rows_have_means_over_seeds_and_what_was_forgotten():
    def run(seed, first, seconds):
        matrix = [[0.9, None, None], [0.8, 0.6, None], [first, 0.6, 0.4]]
        return {"matrix": matrix, "trained": [3, 5, 4], "bytes": [1000] * 3, "bytes_in_all": 9000} | {
            "seconds": seconds,
            "rate": 0.001,
        }

    row = row_of("full-one", [run(0, 0.6, 4.0), run(1, 0.3, 2.0)], [run(0, 0.6, 8.0), run(1, 0.3, 4.0)])
    assert row["cifar_two"] == "0.450 ± 0.212"
    assert row["mean"] == "0.483 ± 0.071"
    assert row["forgetting"] == "0.150"
    assert (row["trained per task"], row["kB per task"], row["time / full"]) == (4, 1, "0.50")


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 6))


@pytest.mark.parametrize("norms", [False, True])
def test_a_frozen_backbone_keeps_its_statistics_unless_norms_are_the_tasks(norms):
    module = small()
    before = module[1].running_mean.clone()
    freeze(module, norms)
    module.train()(torch.randn(5, 3, 4, 4))
    assert torch.equal(module[1].running_mean, before) != norms
    assert not any(parameter.requires_grad for parameter in module.parameters())


@peft
def test_adapters_have_the_size_asked_for_and_do_not_touch_each_other():
    module = small()
    freeze(module, norms=True)
    model = with_adapter(module, "first", ["0.weight", "3.weight"], Lora(0.2, norms=True))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for name, p in trained.items() if "lora" in name) == 27 + 8 + 32 + 6  # rank 1 of .2 * 408 / 73
    assert sum(p.numel() for name, p in trained.items() if "lora" not in name) == 2 * 8  # normalization
    inputs = torch.randn(5, 3, 4, 4)
    before = model.eval()(inputs)
    assert with_adapter(model, "second", ["0.weight", "3.weight"], Lora(0.2, norms=True)) is model
    torch.optim.SGD(model.parameters(), 1.0).step(lambda: model.train()(inputs).square().sum().backward())
    assert not torch.equal(model.eval()(inputs), before)
    model.set_adapter("first")
    assert torch.equal(model(inputs), before)


def test_the_tables_in_the_docs_are_those_of_the_records():
    docs = ROOT / "docs"
    content = json.loads((docs / "pretrained.json").read_text())
    text = (docs / "backbones.md").read_text()
    assert text_of(content) in text
    for entry in content["backbones"].values():
        for runs in entry["runs"].values():
            assert len({run["rate"] for run in runs}) == 1
