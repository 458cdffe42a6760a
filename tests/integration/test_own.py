"""The user's own module, metric, loss, optimizer and callback, by `_target_`, in runs; a module passed from Python."""

import json

import pytest
import pytorch_lightning as pl
import torch
from running import here
from torch import nn

import msh
from msh.cli import evaluate, train

SETTINGS = ["trainer.max_epochs=2", "logger=none", "report=false", "threads=1", "trainer.accelerator=cpu"]


class Net(nn.Module):
    """The user's network: a recurrent layer over the rows of an image, whose outputs are a tuple."""

    def __init__(self, width=16):
        super().__init__()
        self.rows = nn.GRU(8, width, batch_first=True)

    def forward(self, images):
        return self.rows(images.flatten(1).unflatten(1, (8, 8)))


class Counting(pl.Callback):
    epochs = 0

    def on_train_epoch_end(self, trainer, module):
        Counting.epochs += 1


def distance(outputs, targets, power=2.0):
    return (outputs.softmax(1) - nn.functional.one_hot(targets, outputs.shape[1])).abs().pow(power).mean()


def test_everything_of_the_users_is_named_by_its_target(tmp_path, capsys):
    own = [
        *("backbone=module", f"backbone.target={__name__}.Net", "+backbone.args.width=24", "tasks=[digits]"),
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
    with pytest.raises(ValueError, match="pass the constructor"):
        msh.load(folder)


def test_a_module_is_trained_from_python_and_not_changed(tmp_path):
    torch.manual_seed(1)
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folder, results = msh.train("tasks=[digits]", *SETTINGS, f"hydra.run.dir={tmp_path / 'run'}", backbone=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert results.status == "finished"
    free = msh.load(folder, classes={"given": lambda: Net()})
    assert free.network.backbone.model.rows.weight_hh_l0.shape == (48, 16)


def test_images_of_other_sizes_are_read_as_the_model_does_without_its_library_data(tmp_path):
    settings = ["backbone=timm", "backbone.name=test_resnet", "backbone.input_shape=[3,16,16]", "tasks=[digits,iris]"]
    folder = tmp_path / "run"
    here(train.main, *settings, *SETTINGS, f"hydra.run.dir={folder}", cwd=tmp_path)
    predictor = msh.load(folder)
    assert [step.step for step in predictor.tasks["digits"].steps][-2:] == ["repeat_channels", "resize"]
    assert predictor.prepare("digits", torch.zeros(8, 8).numpy()).shape == (1, 3, 16, 16)
    here(evaluate.main, f"run={folder}", cwd=tmp_path)
