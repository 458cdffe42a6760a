"""Texts in classes on GPT-2- and BERT-like models from a config: trained, used without their data, padded anyhow."""

import pytest
import torch
from running import here

import msh
from msh.cli import train
from msh.runs.results import Results
from tokenizer_files import word_pieces

pytest.importorskip("transformers", reason="needs msh[hf]")

TASK = """
{name}:
  source:
    _target_: msh.tasks.text.texts
    path: ${{paths.data_dir}}/{name}.csv
    vocabulary: 40
    length: {length}
  batch_size: 8
"""
MODELS = {
    "gpt2": ["last", "n_embd=32", "n_layer=1", "n_head=2", "n_positions=32"],
    "bert": ["cls", "hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16"],
    "distilbert": ["mean", "dim=32", "n_layers=1", "n_heads=2", "hidden_dim=16"],
}


def run(folder, model, pool, *arguments, source=""):
    (folder / "conf" / "tasks").mkdir(parents=True)
    for name, words in (("moods", ("good", "bad")), ("topics", ("film", "wine", "song"))):
        rows = "".join(f"the {words[i % len(words)]} one is {i},{words[i % len(words)]}\n" for i in range(90))
        (folder / f"{name}.csv").write_text("text,label\n" + rows)
        text = TASK.format(name=name, length=10).replace("vocabulary: 40", source or "vocabulary: 40")
        (folder / "conf" / "tasks" / f"{name}.yaml").write_text(text)
    settings = ["backbone=hf", f"backbone.name={model}", f"backbone.pool={pool}", "+backbone.args.vocab_size=120"]
    settings += [f"+backbone.args.{argument}" for argument in arguments]
    settings += ["threads=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none", "report=false"]
    settings += ["trainer.max_epochs=12", "pruning.density=0.4", "optimizer.lr=0.01", "tasks=[moods,topics]"]
    here(
        train.main,
        f"--config-dir={folder / 'conf'}",
        f"paths.data_dir={folder}",
        *settings,
        f"hydra.run.dir={folder / 'run'}",
        cwd=folder,
    )
    return folder / "run"


@pytest.mark.parametrize("model", MODELS)
def test_two_tasks_are_learned_and_used(model, tmp_path):
    folder = run(tmp_path, model, *MODELS[model])
    results = Results.load(folder)
    assert results.guarantee == {"checked": 1, "violations": 0}
    assert results.forgetting == 0
    assert all(task.test > 0.8 for task in results.tasks.values()), results.tasks
    predictor = msh.load(folder / "network.safetensors")
    assert predictor.predict("topics", ["the wine one is 3", "the song one is 4"]).labels == ["wine", "song"]
    module = predictor.module("topics")
    tokens = predictor.prepare("topics", ["the wine one is 3", "song"])
    more = torch.cat([tokens, torch.zeros(2, 7, dtype=torch.int64)], 1)
    with torch.no_grad():
        assert torch.allclose(module(tokens), module(more), atol=1e-5)
    file = folder / "topics.pt2"
    from msh.inference.export import export_task

    export_task(predictor, "topics", file, "pt2")
    logits, _ = torch.export.load(file).module()(tokens)
    assert torch.allclose(logits, module(tokens), rtol=1e-5, atol=1e-5)


def test_a_tokenizer_that_pads_on_the_left_gives_the_answers_of_the_text_alone(tmp_path):
    tokenizer = word_pieces(tmp_path)
    folder = run(tmp_path / "run", "gpt2", *MODELS["gpt2"], source=f"tokenizer: {tokenizer}")
    predictor = msh.load(folder / "network.safetensors")
    tokens = predictor.prepare("moods", ["good film"])
    assert tokens[0, 0] == 3  # padding
    with torch.no_grad():
        alone = predictor.module("moods")(tokens[:, tokens[0] != 3])
        assert torch.allclose(predictor.module("moods")(tokens), alone, atol=1e-5)
