"""`msh inspect KEY=VALUE` shows the backbone that settings choose, without data where there is none."""

import re

import pytest

from messages import says
from msh.cli import app


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    def with_arguments(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["msh", "inspect", *arguments])
        app.main()
        return capsys.readouterr().out

    return with_arguments


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.strip("│ ").startswith(f"{name} ")]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_modules_are_shown_for_the_first_tasks_inputs(run):
    text = run("tasks=[wine]", "backbone.width=10", "backbone.depth=1")
    assert "inputs: [13], as task wine has them" in text
    assert cells(text, "layers.1") == ["layers.1", "prunable", "130", "10", "weight, unit", "260"]


def test_no_data_is_needed(run, tmp_path):
    where = ("tasks=cifar10", f"paths.data_dir={tmp_path}")
    text = run("backbone=torchvision", "backbone.name=squeezenet1_1", *where)
    assert "inputs: [3, 224, 224], as the library says" in text
    text = run("backbone=resnet18", "backbone.width=8", "backbone.input_shape=[3,16,16]", *where)
    assert "inputs: [3, 16, 16], of backbone.input_shape" in text


def test_a_shape_that_nothing_says_is_asked_for(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        run("backbone=mlp", "tasks=cifar10", f"paths.data_dir={tmp_path}")
    assert re.search(says("backbone.input_shape"), capsys.readouterr().err)


def test_a_model_that_reads_tokens_needs_no_text_task(run):
    small = "{hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8, vocab_size: 30}"
    text = run("backbone=hf", "backbone.name=bert", "backbone.input_shape=[6]", f"+backbone.args={small}")
    (line,) = [line for line in text.splitlines() if "model.pooler.dense" in line]
    assert "unused" in line


def test_tensors_are_shown_for_settings_too(run):
    text = run("tasks=[wine]", "backbone.width=10", "backbone.depth=1", "--parameters")
    assert cells(text, "layers.1.weight") == ["layers.1.weight", "10 × 13", "prunable", "weight of Linear"]


def test_options_of_the_users_folder_are_found(run, tmp_path):
    (tmp_path / "own" / "backbone").mkdir(parents=True)
    option = "_target_: msh.backbones.mlp.MLP\ninput_shape: [3]\nwidth: 7\ndepth: 1\n"
    (tmp_path / "own" / "backbone" / "small.yaml").write_text(option)
    assert cells(run("backbone=small", "--config-dir", "own"), "layers.1")[:3] == ["layers.1", "prunable", "21"]


def test_settings_beside_a_file_are_refused(run, tmp_path, capsys):
    (tmp_path / "net").touch()
    with pytest.raises(SystemExit, match="1"):
        run("net", "backbone=mlp")
    assert "leave out net or backbone=mlp" in capsys.readouterr().err
