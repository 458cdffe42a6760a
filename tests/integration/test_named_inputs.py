"""Examples of several inputs, by name or in order: from data sets and data modules to training, files and answers."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import msh
from messages import says
from msh.inference.inputs import read_inputs
from msh.inference.requests import describe_input, inputs_from_json
from msh.tasks.arrays import data_module, dataset
from msh.training.config import GROUPS, RunConfig
from msh.training.run import train
from msh.training.typed import convert

CLASSES, WORDS = 3, 2000


class Items(Dataset):
    """Images and tokens whose class is the sign of the one or the other; `form` is that of the items."""

    def __init__(self, form, seed, examples=40):
        generator = torch.Generator().manual_seed(seed)
        self.form, self.labels = form, torch.randint(CLASSES, (examples,), generator=generator)
        self.image = torch.randn(examples, 1, 4, 4, generator=generator) + self.labels.view(-1, 1, 1, 1)
        self.tokens = torch.randint(1, WORDS, (examples, 5), generator=generator)
        self.mask = torch.arange(5) < torch.randint(1, 6, (examples, 1), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        image, tokens, mask, label = self.image[row], self.tokens[row], self.mask[row], self.labels[row]
        if self.form == "order":
            return (image, tokens), label
        if self.form == "mapping":
            return {"image": image, "tokens": tokens, "attention_mask": mask}, label
        return {"image": image, "tokens": tokens, "attention_mask": mask, "labels": label}


class Module(pl.LightningDataModule):
    """Batches of mappings, as the loaders of transformers' data sets make them."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def train_dataloader(self):
        return DataLoader(Items("whole", self.seed), batch_size=8, shuffle=True, collate_fn=collate)

    def test_dataloader(self):
        return DataLoader(Items("whole", 9, 12), batch_size=8)


def collate(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def source(form, seed=0):
    return data_module(Module(seed)) if form == "module" else dataset(Items(form, seed), Items(form, 9, 12))


class InOrder(nn.Module):
    """Two inputs, in order."""

    def __init__(self):
        super().__init__()
        self.words, self.pixels, self.last = nn.Embedding(WORDS, 8), nn.Linear(16, 8), nn.Linear(16, 12)

    def forward(self, x, y):
        assert y.dtype == torch.int64
        return self.last(torch.cat([self.pixels(x.flatten(1)), self.words(y).mean(1)], 1).relu())


class ByName(InOrder):
    """Three inputs, by name; a vector per token."""

    def forward(self, *, tokens, image, attention_mask):
        assert attention_mask.dtype == torch.bool
        pixels = self.pixels(image.flatten(1))[:, None].expand(-1, 5, -1)
        return self.last(torch.cat([pixels, self.words(tokens)], 2).relu())


def config_of(form, model, **settings):
    tasks = {n: {"source": {"_target_": f"{__name__}.source", "form": form, "seed": i}} for i, n in enumerate("ab")}
    usual = {
        "tasks": {name: task | {"batch_size": 8} for name, task in tasks.items()},
        "backbone": {"_target_": "msh.backbones.Adapted", "target": f"{__name__}.{model.__name__}", "pool": "mean"},
        "pruning": {"density": 0.3, "begin": 0.3, "end": 0.3},
        "trainer": {"accelerator": "cpu", "max_epochs": 3},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.01},
        "threads": 1,
    }
    return convert(RunConfig, usual | settings, GROUPS)


@pytest.mark.parametrize(
    ("form", "model"), [("order", InOrder), ("mapping", ByName), ("whole", ByName), ("module", ByName)]
)
def test_two_tasks_learn_and_answer_from_their_file(form, model, tmp_path):
    train(config_of(form, model), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["guarantee"] == {"checked": 1, "violations": 0}
    predictor = msh.load(tmp_path, classes={f"{__name__}.{model.__name__}": model})
    items = Items("mapping", 9, 12)
    arrays = {"image": items.image.numpy(), "tokens": items.tokens.numpy(), "attention_mask": items.mask.numpy()}
    if form == "order":
        arrays = {"0": arrays["image"], "1": arrays["tokens"]}
    answers = predictor.predict("a", arrays)
    right = torch.tensor([int(label) for label in answers.labels]) == items.labels
    assert float(right.float().mean()) == pytest.approx(results["tasks"]["a"]["test"])
    rows = [{name: array[row] for name, array in arrays.items()} for row in range(12)]
    one_by_one = rows if form != "order" else [tuple(row.values()) for row in rows]
    assert predictor.predict("a", one_by_one).labels == answers.labels
    assert predictor.predict("a", rows[0]).labels == answers.labels[:1]

    inputs = {name: array.tolist() for name, array in rows[3].items()}
    steps = predictor.tasks["a"].steps
    assert predictor.predict("a", inputs_from_json(steps, json.dumps({"inputs": [inputs]}).encode())).labels == [
        answers.labels[3]
    ]
    assert [part["name"] for part in describe_input(steps)["parts"]] == list(arrays)
    with pytest.raises(ValueError, match=says("inputs")):
        predictor.predict("a", {"image": arrays[next(iter(arrays))]})


def test_a_file_of_arrays_by_name_is_read(tmp_path):
    train(config_of("mapping", ByName), tmp_path / "run")
    items = Items("mapping", 9, 12)
    arrays = {"image": items.image.numpy(), "tokens": items.tokens.numpy(), "attention_mask": items.mask.numpy()}
    np.savez(tmp_path / "inputs.npz", **arrays)
    predictor = msh.load(tmp_path / "run", classes={f"{__name__}.ByName": ByName})
    read = read_inputs([predictor.tasks["a"].steps], [str(tmp_path / "inputs.npz")])
    assert len(read.names) == 12
    assert predictor.predict("a", read.examples).labels == predictor.predict("a", arrays).labels


def test_a_model_of_transformers_takes_inputs_by_name(tmp_path):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    block = {"_target_": "msh.backbones.Adapted", "library": "hf", "name": "bert"}
    block["args"] = sizes | {"vocab_size": WORDS, "max_position_embeddings": 8}
    tasks = {n: {"source": {"_target_": f"{__name__}.words", "seed": i}, "batch_size": 8} for i, n in enumerate("ab")}
    train(config_of("whole", ByName, backbone=block, tasks=tasks), tmp_path)
    predictor = msh.load(tmp_path)
    items = Items("whole", 9, 12)
    short = {"input_ids": items.tokens.numpy(), "attention_mask": items.mask.numpy().astype(np.int64)}
    padded = short | {"input_ids": np.where(items.mask, items.tokens, 7)}
    first, second = (predictor.predict("a", arrays) for arrays in (short, padded))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-6)  # padding does not count


class Words(Items):
    def __getitem__(self, row):
        return {"input_ids": self.tokens[row], "attention_mask": self.mask[row].long(), "labels": self.labels[row]}


def words(seed=0):
    return dataset(Words("whole", seed), Words("whole", 9, 12))


def mixed(kind):
    """Data whose inputs are by name, or one array."""
    if kind == "named":
        return source("mapping")
    generator = torch.Generator().manual_seed(0)
    return dataset([], []) if kind == "empty" else source("order") if kind == "order" else plain(generator)


def plain(generator):
    pairs = torch.utils.data.TensorDataset(torch.randn(30, 6, generator=generator), torch.arange(30) % 3)
    return dataset(pairs, pairs)


def test_tasks_with_other_inputs_and_other_backbones_are_refused(tmp_path):
    tasks = {kind: {"source": {"_target_": f"{__name__}.mixed", "kind": kind}} for kind in ("named", "plain")}
    with pytest.raises(ValueError, match="'named' and 'plain' cannot share a backbone: the one has image float32"):
        train(config_of("mapping", ByName, tasks=tasks), tmp_path)
    mlp = {"_target_": "msh.backbones.MLP", "width": 8, "depth": 1}
    with pytest.raises(ValueError, match=says("backbone", value="msh.backbones.MLP")):
        train(config_of("mapping", ByName, backbone=mlp), tmp_path)


def test_settings_that_would_change_inputs_are_refused(tmp_path):
    narrow = {"accelerator": "cpu", "precision": "bf16-true"}
    with pytest.raises(ValueError, match=says("trainer.precision", value="bfloat16")):
        train(config_of("mapping", ByName, trainer=narrow), tmp_path)
    task = {"source": {"_target_": f"{__name__}.source", "form": "mapping"}}
    for key, value in (("normalize", "feature"), ("transforms", [{"permute": 1}])):
        with pytest.raises(ValueError, match=says(f"tasks.a.{key}")):
            train(config_of("mapping", ByName, tasks={"a": task | {key: value}}), tmp_path)


def test_a_module_that_takes_other_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"backbone InOrder cannot compute.*unexpected keyword argument 'image'"):
        train(config_of("mapping", InOrder), tmp_path)


def test_items_of_other_forms_are_refused():
    class Bad(Items):
        def __getitem__(self, row):
            return {"image": self.image[row]} if row == 3 else super().__getitem__(row)

    with pytest.raises(ValueError, match=says("source.train: item 3")):
        dataset(Bad("whole", 0))
