"""A recipe prepares raw texts bitwise as in training, whatever the source and the tokenizer."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from msh.tasks import build_task
from msh.tasks.preprocessing import prepare, steps_from_data
from msh.tasks.text import texts

LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\x1a")
TEXTS = st.lists(st.text(LETTERS, max_size=30).map(lambda text: f"a{text}."), min_size=6, max_size=9, unique=True)
PARTS = ["train", "train", "train", "val", "test", "test"]
SOURCES = ["csv", "tsv", "parquet", "jsonl", "folder"]


@pytest.fixture(scope="module", autouse=True)
def form():
    """No weights here: once is enough."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer of bytes, in a file."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False)
    built.train_from_iterator(["a text"], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    built.save(str(path))
    return str(path)


def write(source, rows, folder):
    """Write (text, label) pairs; return the path."""
    frame, path = pd.DataFrame(rows, columns=["text", "label"]), folder / f"texts.{source}"
    if source == "csv":
        frame.to_csv(path, index=False)
    elif source == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif source == "parquet":
        frame.to_parquet(path)
    elif source == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        for number, (text, label) in enumerate(rows):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    return str(path)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("built_in", [True, False])
@settings(max_examples=15)
@given(written=TEXTS, unicode=st.sampled_from(["NFC", "NFKD", "none"]), length=st.integers(1, 12))
def test_recipes_prepare_texts_bitwise_as_in_training(source, built_in, tokenizer, written, unicode, length):
    rows = [(text, "yes" if number % 2 else "no") for number, text in enumerate(written)]
    with tempfile.TemporaryDirectory() as folder:
        path = write(source, rows, Path(folder))
        own = {} if built_in else {"tokenizer": tokenizer}
        data = texts(path, test_fraction=0.34, unicode=unicode, length=length, **own)
    assert sorted(data.texts.texts) == sorted(written)
    labels = dict(rows)
    task = build_task("a", data, val_fraction=0.5)
    steps = steps_from_data(json.loads(json.dumps(task.data_recipe()))["preprocessing"])
    raw = data.texts.take(data.test.inputs)
    assert torch.equal(prepare(steps, raw), task.splits["test"].inputs)
    assert [data.classes[target] for target in task.splits["test"].targets] == [labels[text] for text in raw]
    together = prepare(steps, data.texts.take(data.train.inputs))
    trained = torch.cat([task.splits["train"].inputs, task.splits["val"].inputs])
    assert sorted(together.tolist()) == sorted(trained.tolist())
