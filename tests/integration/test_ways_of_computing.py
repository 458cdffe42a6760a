"""Backbones that compute in unusual ways train two tasks with pruning and predict from their file, or are refused."""

import json

import pytest
import torch
from torch import nn

import msh
from golden.recording import told_to_end_after
from messages import says
from msh.inference.rebuilding import rebuild_network
from msh.subnetworks import MultiSubnetwork
from msh.tasks import RawData, Split
from msh.training.config import GROUPS, RunConfig
from msh.training.preemption import PreemptedError
from msh.training.run import train
from msh.training.typed import convert

CLASSES = 3


def images(seed=1):
    """Classes of images (3, 32, 32) that differ in their mean; 33 to train on, so that the last batch has 1 of 8."""
    return RawData("classification", _images(seed, 41), _images(2, 13), CLASSES)


def _images(seed, examples):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (examples,), generator=generator)
    return Split(torch.randn(examples, 3, 32, 32, generator=generator) + targets.view(-1, 1, 1, 1), targets)


def config_of(backbone, **settings):
    sources = {name: {"_target_": f"{__name__}.images", "seed": seed} for seed, name in enumerate("ab")}
    usual = {
        "tasks": {name: {"source": source, "batch_size": 8} for name, source in sources.items()},
        "backbone": backbone,
        "pruning": {"density": 0.3, "begin": 0.3, "end": 0.3},
        "trainer": {"accelerator": "cpu", "max_epochs": 2},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.003},
        "report": False,
        "threads": 1,
    }
    return convert(RunConfig, usual | settings, GROUPS)


def own(make, **args):
    return {"_target_": "msh.backbones.Adapted", "target": f"{__name__}.{make.__name__}", "args": args}


def learn(folder, backbone, classes=(), **settings):
    """Train two tasks; check the guarantee, and that the file alone has the run's test scores."""
    folder.mkdir(exist_ok=True)
    train(config_of(backbone, **settings), folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["guarantee"] == {"checked": 1, "violations": 0}
    predictor = msh.load(folder, classes={f"{__name__}.{make.__name__}": make for make in classes})
    for name, task in results["tasks"].items():
        split = _images(2, 13)
        labels = torch.tensor([int(label) for label in predictor.predict(name, split.inputs.numpy()).labels])
        assert float((labels == split.targets).float().mean()) == pytest.approx(task["test"])
    return predictor.network


# ---- by the libraries' own switches


def checkpointed_vit():
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model


def checkpointed_timm():
    import timm

    model = timm.create_model("test_vit", img_size=32, num_classes=0)
    model.set_grad_checkpointing(True)
    return model


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


def stochastic_timm():
    import timm

    return timm.create_model("test_vit", img_size=32, num_classes=0, drop_path_rate=0.3)


# ---- own modules


class Small(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.Linear(8, 12)

    def forward(self, images):
        return self.linear(self.norm(self.conv(images)).relu().mean((2, 3)))


class PerFeature(Small):
    """It normalizes features, of which a single example has one each."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(12)

    def forward(self, images):
        return self.last(super().forward(images))


class Counting(Small):
    """Its forward pass assigns buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, images):
        if self.training:
            self.seen = self.seen + len(images)
            self.mean = 0.9 * self.mean + 0.1 * self.conv(images).detach().mean((0, 2, 3))
        return super().forward(images)


def channels_last():
    return Small().to(memory_format=torch.channels_last)


class SparseTable(nn.Module):
    """Looks brightness up in a table with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(32, 8, sparse=True), nn.Linear(8, 12)

    def forward(self, images):
        return self.linear(self.table(images.mean(1).mul(4).add(16).clamp(0, 31).long()).mean((1, 2))).relu()


class Dropping(Small):
    """Half of its features drop out."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(super().forward(images))


class Lazy(nn.Module):
    """Its linear layer gets its size from the first input."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(12), nn.ReLU())

    def forward(self, images):
        return self.layers(images)


def scripted():
    return torch.jit.script(Small())


def scripted_part():
    model = Small()
    model.linear = torch.jit.script(model.linear)
    return model


def compiled():
    return torch.compile(Small(), backend="eager")


WORKING = [
    *(checkpointed_vit, checkpointed_timm, stochastic_timm),
    *(Small, PerFeature, Counting, channels_last, SparseTable, Dropping),
]


@pytest.mark.parametrize("make", WORKING, ids=lambda make: make.__name__)
def test_a_backbone_learns_two_tasks_and_answers_from_its_file(make, tmp_path):
    learn(tmp_path / "run", own(make), [make])


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*")  # torch's compiler
def test_a_compiled_backbone_learns_as_the_module_it_was_compiled_from(tmp_path):
    network = learn(tmp_path / "compiled", own(compiled), [compiled])
    plain = learn(tmp_path / "plain", own(Small), [Small])
    inputs = _images(3, 9).inputs
    for task in "ab":
        assert torch.equal(network.module(task)(inputs), plain.module(task)(inputs))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "module 'model' is TorchScript"),
        (scripted_part, "module 'model.linear' is TorchScript"),
        (Lazy, r"backbone Lazy: 'layers.1.weight' has no shape yet.*nn\.Linear"),
    ],
    ids=["scripted", "partly scripted", "lazy"],
)
def test_a_backbone_that_cannot_work_is_refused_before_training(make, message, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=message):
        train(config_of(own(make)), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_a_backbone_learns_in_a_narrow_type(precision, tmp_path):
    trainer = {"accelerator": "cpu", "max_epochs": 2, "precision": precision}
    learn(tmp_path / "run", own(Small), [Small], trainer=trainer)


def test_scaled_float16_on_a_cpu_is_refused(tmp_path):
    trainer = {"accelerator": "cpu", "precision": "16-mixed"}
    with pytest.raises(ValueError, match=says("trainer.precision", value="16-mixed")):
        train(config_of(own(Small), trainer=trainer), tmp_path)


@pytest.mark.parametrize("make", [Dropping, stochastic_timm, SparseTable], ids=lambda make: make.__name__)
def test_random_draws_follow_from_the_seed_also_in_a_resumed_run(make, tmp_path):
    digests = []
    for name in ("first", "second", "resumed"):
        folder, config = tmp_path / name, config_of(own(make), checkpoint={"min_seconds": 0})
        folder.mkdir()
        if name == "resumed":
            with told_to_end_after(6), pytest.raises(PreemptedError):  # in the second epoch of the first task
                train(config, folder)
            config = config_of(own(make), checkpoint={"min_seconds": 0}, resume=str(folder))
        train(config, folder)
        network = rebuild_network(folder / "network.safetensors", {f"{__name__}.{make.__name__}": make})
        digests.append([network.digest(task) for task in network.tasks])
    assert digests[0] == digests[1] == digests[2]
    assert digests[0][0] != digests[0][1]


def test_an_embedding_with_sparse_gradients_learns_as_one_with_dense_ones():
    gradients = []
    for sparse in (False, True):
        torch.manual_seed(0)
        network = MultiSubnetwork(nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3)))
        network.add_task("a")
        network.begin("a")
        network(torch.tensor([[1, 2], [1, 3]])).sum().backward()
        gradients.append([parameter.grad for parameter in network.subnetwork("a").parameters()])
    assert all(torch.equal(dense, other) for dense, other in zip(*gradients, strict=True))


def test_batch_normalization_of_features_cannot_train_on_single_examples(tmp_path):
    block = {"source": {"_target_": f"{__name__}.images"}, "batch_size": 1}
    with pytest.raises(ValueError, match=says("tasks.a.batch_size", value=1)):
        train(config_of(own(PerFeature), tasks={"a": block}), tmp_path)
    learn(tmp_path / "run", own(Small), [Small], tasks=dict.fromkeys("ab", block))  # it has several positions
