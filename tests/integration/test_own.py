"""The user's own module, metric, loss, optimizer and callback, by `_target_`, in runs; a module passed from Python."""

import json
import math
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from running import few_steps, here
from torch import nn
from torch.utils.data import TensorDataset

import msh
from msh.cli import app, evaluate, train
from msh.cli.own import allowed

SETTINGS = ["trainer.max_epochs=2", "logger=none", "report=false", "threads=1", "trainer.accelerator=cpu"]
DIGITS = ["tasks=[digits]", *few_steps("digits")]


class Net(nn.Module):
    """The user's network: a recurrent layer over the rows of an image, whose outputs are a tuple."""

    def __init__(self, width=16):
        super().__init__()
        self.rows = nn.GRU(8, width, batch_first=True)

    def forward(self, images):
        return self.rows(images.flatten(1).unflatten(1, (8, 8)))


def draws():
    """One number each from torch's, Python's and NumPy's global generator."""
    return torch.tensor([torch.rand(()).item(), random.random(), np.random.rand()])


class Drawing(nn.Module):
    """Draws initial weights and what it multiplies in training from every global generator."""

    def __init__(self, input_shape=(64,), output_shape=(32,)):
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), math.prod(output_shape))
        with torch.no_grad():
            self.linear.weight += draws().sum() / 100

    def forward(self, inputs):
        outputs = self.linear(inputs.flatten(1)).relu()
        return outputs * (1 + draws().sum()) if self.training else outputs


class DrawingLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", 1 + draws().sum())

    def forward(self, outputs, targets):
        return self.weight * nn.functional.cross_entropy(outputs, targets)


class Counting(pl.Callback):
    epochs = 0

    def on_train_epoch_end(self, trainer, module):
        Counting.epochs += 1


def distance(outputs, targets, power=2.0):
    return (outputs.softmax(1) - nn.functional.one_hot(targets, outputs.shape[1])).abs().pow(power).mean()


def test_everything_of_the_users_is_named_by_its_target(tmp_path, capsys):
    own = [
        *("backbone=module", f"backbone.target={__name__}.Net", "+backbone.args.width=24", *DIGITS),
        f"tasks.digits.loss={{_target_: {__name__}.distance, power: 1.5}}",
        "tasks.digits.metric={_target_: torchmetrics.classification.MulticlassAUROC, name: auroc}",
        *("optimizer._target_=torch.optim.RMSprop", "optimizer.lr=0.003"),
        f"+callbacks.count._target_={__name__}.Counting",
        "callbacks=none",
    ]
    Counting.epochs = 0
    folder = tmp_path / "run"
    here(train.main, *own, *SETTINGS, f"hydra.run.dir={folder}", cwd=tmp_path)
    results = json.loads((folder / "results.json").read_text())["tasks"]["digits"]
    assert (results["metric"], results["direction"]) == ("auroc", "max")
    assert Counting.epochs == 2
    here(evaluate.main, f"run={folder}", "unsafe=true", cwd=tmp_path)
    assert json.loads((folder / "evaluation.json").read_text())[0]["score"] == results["test"]
    predictor = msh.load(folder, classes={f"{__name__}.Net": Net})
    assert len(predictor.predict("digits", torch.zeros(2, 8, 8).numpy()).labels) == 2
    with pytest.raises(ValueError, match=f"pass the constructor.* or --allow {__name__}.Net on the command line"):
        msh.load(folder)
    Image.new("L", (8, 8), 99).save(tmp_path / "in.png")
    allow = ["--allow", f"{__name__}.Net"]
    here(app.main, "predict", folder, tmp_path / "in.png", *allow, "-o", tmp_path / "out.csv", cwd=tmp_path)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    here(app.main, "export", folder, *allow, "-o", tmp_path / "one.safetensors", cwd=tmp_path)
    assert (tmp_path / "one.safetensors").stat().st_size
    here(app.main, "inspect", folder, "--modules", *allow, cwd=tmp_path)
    here(app.main, "push", folder, f"{tmp_path / 'card'}/", cwd=tmp_path)
    card = (tmp_path / "card" / "README.md").read_text()
    assert (
        f"import {__name__}\nimport msh\n\npredictor = msh.load('.', classes={{'{__name__}.Net': {__name__}.Net}})"
        in card
    )
    assert f"--allow {__name__}.Net\nmsh serve . --allow {__name__}.Net" in card


def test_a_network_of_an_own_class_learns_another_task_if_the_class_is_named_again(tmp_path, capsys):
    own = ["backbone=module", f"backbone.target={__name__}.Net", "+backbone.args.width=24"]
    small = [*SETTINGS, "trainer.max_epochs=1", "callbacks=none"]
    here(train.main, *own, *DIGITS, *small, f"hydra.run.dir={tmp_path / 'one'}", cwd=tmp_path)
    more = [f"network={tmp_path / 'one'}", "retrain=[digits]"]
    two = f"hydra.run.dir={tmp_path / 'two'}"
    with pytest.raises(SystemExit):
        here(train.main, *more, *small, two, cwd=tmp_path)
    assert "name it with the same override" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        here(train.main, *more, *own[:2], "+backbone.args.width=32", "backbone.pool=cls", *small, two, cwd=tmp_path)
    problems = capsys.readouterr().err
    assert "backbone must be {'_target_': " in problems
    assert "'width': 24}, as in the network" in problems
    assert "backbone.pool must be 'mean', as in the network" in problems
    here(train.main, *more, *own, *small, two, cwd=tmp_path)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["status"] == "finished"


def test_names_that_cannot_be_imported_are_refused_together():
    with pytest.raises(ValueError, match="--allow must be a class or function, got") as caught:
        allowed(["nowhere.Net", f"{__name__}.SETTINGS", f"{__name__}.Net"])
    assert "--allow must be a class or function that can be imported (ModuleNotFoundError" in str(caught.value)
    assert f"{__name__}.Net" not in str(caught.value)


class Plain(nn.Module):
    """A backbone that is used as it is; its outputs are those of `form`."""

    def __init__(self, input_shape, form):
        super().__init__()
        self.input_shape, self.features, self.form = tuple(input_shape), 12, form
        self.layer = nn.Linear(64, 12)

    def forward(self, images):
        features = self.layer(images.flatten(1))
        forms = {
            "tensor": features,
            "tuple": (features, features),
            "mapping": {"features": features},
            "sequence": features[:, None].expand(-1, 5, -1),
            "wide": torch.cat([features, features], 1),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("tuple", "a tuple"),
        ("mapping", "a dict"),
        ("sequence", r"a tensor \[2, 5, 12\] for two examples"),
        ("wide", r"a tensor \[2, 24\] for two examples"),
    ],
)
def test_a_backbone_that_returns_no_features_says_what_came_and_what_is_expected(form, found, tmp_path):
    own = [f"backbone._target_={__name__}.Plain", f"+backbone.form={form}", *DIGITS]
    with pytest.raises(ValueError, match=rf"outputs of backbone Plain must be a tensor \(batch, 12\).*{found}.*module"):
        msh.train(*own, *SETTINGS, f"hydra.run.dir={tmp_path / 'run'}")


def test_a_backbone_with_features_of_its_own_is_used_as_it_is(tmp_path):
    own = [f"backbone._target_={__name__}.Plain", "+backbone.form=tensor", *DIGITS]
    _, results = msh.train(*own, *SETTINGS, f"hydra.run.dir={tmp_path / 'run'}")
    assert results.status == "finished"


def test_a_module_is_trained_from_python_and_not_changed(tmp_path):
    torch.manual_seed(1)
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folder, results = msh.train(*DIGITS, *SETTINGS, f"hydra.run.dir={tmp_path / 'run'}", backbone=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert results.status == "finished"
    free = msh.load(folder, classes={"given": lambda: Net()})
    assert free.network.backbone.model.rows.weight_hh_l0.shape == (48, 16)


def test_images_of_other_sizes_are_read_as_the_model_does_without_its_library_data(tmp_path):
    settings = ["backbone=timm", "backbone.name=test_resnet", "backbone.input_shape=[3,16,16]"]
    settings += ["tasks=[digits,iris]", *few_steps("digits", "iris")]
    folder = tmp_path / "run"
    here(train.main, *settings, *SETTINGS, f"hydra.run.dir={folder}", cwd=tmp_path)
    predictor = msh.load(folder)
    assert [step.step for step in predictor.tasks["digits"].steps][-2:] == ["repeat_channels", "resize"]
    assert predictor.prepare("digits", torch.zeros(8, 8).numpy()).shape == (1, 3, 16, 16)
    here(evaluate.main, f"run={folder}", cwd=tmp_path)


USERS = ["--config-dir", "my"]


def write_task(folder, name, target, **source):
    """Write a task into the user's config folder."""
    (folder / "my" / "tasks").mkdir(parents=True)
    task = {name: {"source": {"_target_": target} | source, "batch_size": 8}}
    (folder / "my" / "tasks" / f"{name}.yaml").write_text(json.dumps(task))


def write_model(folder):
    """Write a small BERT with its tokenizer, as transformers saves them; returns its weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "buy", "gold", "milk", "item"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=24, max_position_embeddings=16)
    model = BertModel(config)
    model.save_pretrained(folder)
    return model.state_dict()


def test_a_pretrained_model_in_a_folder_brings_its_weights_and_its_tokenizer(tmp_path):
    weights = write_model(tmp_path / "bert")
    rows = [f"buy {('milk', 'gold')[i % 2]} item {i},{('ham', 'spam')[i % 2]}" for i in range(40)]
    (tmp_path / "mails.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    write_task(tmp_path, "mails", "msh.tasks.text.csv_text", path="mails.csv", text="text", label="label", length=6)
    folder = tmp_path / "run"
    own = ["backbone=hf", f"backbone.name={tmp_path / 'bert'}", "backbone.weights=default", "backbone.pool=cls"]
    here(train.main, *USERS, "tasks=mails", *own, *SETTINGS, f"hydra.run.dir={folder}", cwd=tmp_path)
    predictor = msh.load(folder)
    assert predictor.prepare("mails", "buy gold").tolist() == [[2, 4, 5, 3, 0, 0]]
    free = predictor.network.state.free()["model.encoder.layer.0.output.dense.weight"]
    file = predictor.network.backbone.get_buffer("model.embeddings.position_embeddings.weight")
    assert torch.equal(file, weights["embeddings.position_embeddings.weight"])
    assert bool(free.any())
    config = (folder / ".hydra" / "config.yaml").read_text()
    assert "start: ${start_of:${backbone.weights}}" in config
    here(evaluate.main, f"run={folder}", cwd=tmp_path)


def test_images_for_pretrained_weights_are_scaled_as_the_library_does(tmp_path):
    from PIL import Image
    from safetensors.torch import save_file

    from msh.backbones.libraries import timm_model

    for i in range(24):
        place = tmp_path / "birds" / ("crow", "wren")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 120, 60)).save(place / f"{i}.png")
    save_file(timm_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    write_task(tmp_path, "birds", "msh.tasks.images.image_folder", path="birds", size=8)
    own = ["backbone=timm", "backbone.name=test_resnet.r160_in1k", f"backbone.weights={tmp_path / 'w.safetensors'}"]
    folder = tmp_path / "run"
    here(train.main, *USERS, "tasks=birds", *own, *SETTINGS, f"hydra.run.dir={folder}", cwd=tmp_path)
    steps = msh.load(folder).tasks["birds"].steps
    assert [step.step for step in steps] == ["images", "scale", "resize", "scale"]
    assert steps[2].size == (160, 160)
    assert [round(float(value), 3) for value in steps[3].shift.flatten()] == [0.5, 0.5, 0.5]


def of_class_minus_one():
    return TensorDataset(torch.zeros(20, 4), torch.arange(20) % 3 - 1)


def of_no_file():
    raise FileNotFoundError("no file")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (
            {"_target_": "msh.tasks.arrays.dataset", "train": {"_target_": f"{__name__}.of_class_minus_one"}},
            ValueError,
            "got -1",
        ),
        ({"_target_": "msh.tasks.arrays.dataset"}, ValueError, "train"),
        ({"_target_": f"{__name__}.of_no_file"}, OSError, "no file"),
        ({"_target_": "msh.tasks.arrays.arrays", "path": "no.npz"}, FileNotFoundError, "source.path = no.npz"),
        ({"_target_": "no.such"}, ValueError, "no.such"),
        ({"_target_": "msh.tasks.arrays.arrays", "path": "${oc.env:MSH_NO_SUCH}"}, ValueError, "MSH_NO_SUCH"),
    ],
)
def test_bad_data_from_python_is_an_error_of_pythons_own(source, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path, "mine", target=None, **source)  # with its own _target_
    with pytest.raises(kind, match=message) as caught:
        msh.train(f"hydra.searchpath=[file://{tmp_path / 'my'}]", "tasks=mine", *SETTINGS, "hydra.run.dir=run")
    assert not isinstance(caught.value, HydraException | OmegaConfBaseException)


def test_a_misspelt_setting_from_python_is_one_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'pruning.density'\?$") as caught:
        msh.train("tasks=wine", "pruning.densty=0.1")
    assert caught.value.__suppress_context__
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("files", [None, [], ["notes.txt"]])
def test_a_start_from_python_that_fails_leaves_no_folder_of_its_own(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if files is not None:
        (tmp_path / "run").mkdir()
        for name in files:
            (tmp_path / "run" / name).write_text("precious")
    with pytest.raises(ValueError, match=r"backbone.width must be >= 1, got 0"):
        msh.train("tasks=wine", "backbone.width=0", *SETTINGS, "hydra.run.dir=run")
    assert (None if files is None else files) == (
        [path.name for path in (tmp_path / "run").iterdir()] if (tmp_path / "run").exists() else None
    )


def test_a_seed_determines_what_own_code_draws_from_any_global_generator(tmp_path):
    own = [
        "backbone=module",
        f"backbone.target={__name__}.Drawing",
        "backbone.input_shape=[64]",
        *DIGITS,
        "trainer.accumulate_grad_batches=2",
    ]
    own += [f"tasks.digits.stem={{_target_: {__name__}.Drawing}}"]
    own += [f"tasks.digits.loss={{_target_: {__name__}.DrawingLoss}}"]
    for seed, name in enumerate(("once", "again")):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        here(train.main, *own, *SETTINGS, f"hydra.run.dir={tmp_path / name}", cwd=tmp_path)
    assert (tmp_path / "once/network.safetensors").read_bytes() == (tmp_path / "again/network.safetensors").read_bytes()
