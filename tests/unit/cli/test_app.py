"""The list of commands, their help, and unknown ones."""

import re
import shlex
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path

import pytest

from messages import says
from msh.cli import app
from msh.training.config import RunConfig
from msh.training.run import announcement

TASKS = {name: {"source": {"_target_": "x"}} for name in ("wine", "iris")}


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["msh", *arguments])
    app.main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_msh_lists_its_commands_with_an_example_each(arguments, monkeypatch, capsys):
    run(monkeypatch, *arguments)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, command in app.COMMANDS.items():
        assert f"{name:10} {command.help}" in lines
        assert command.example in lines
        assert shlex.split(command.example)[:2] == ["msh", name]


def test_an_unknown_command_gets_the_nearest_and_all(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "trian")
    printed = capsys.readouterr().err
    assert "msh has no command 'trian'; did you mean 'train'?" in printed
    assert app.overview() in printed


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_has_an_example_and_fits_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        run(monkeypatch, command, "--help")
    printed = capsys.readouterr().out
    assert app.COMMANDS[command].example in printed
    assert max(map(len, printed.splitlines())) <= 80


WITH_OUTPUT = {
    "merge": ["no.safetensors", "no.safetensors"],
    "release": ["no.safetensors", "wine"],
    "split": ["no.safetensors", "wine"],
    "predict": ["no", "no.png"],
    "report": ["no"],
    "export": ["no"],
    "dashboard": ["--dry-run"],
    "data": ["tasks=[no]"],
    "plan": ["tasks=[no]"],
    "fleet": ["no.safetensors"],
}


@pytest.mark.parametrize("command", WITH_OUTPUT)
def test_a_place_that_takes_no_file_is_refused_before_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, command, *WITH_OUTPUT[command], "-o", str(tmp_path))
    assert re.search(f"^error: {says('-o', value=f'{tmp_path}, a folder')}$", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_commands_with_an_output_are_known():
    texts = {name: Path(app.__file__).with_name(f"{name}.py") for name in app.COMMANDS}
    found = {name for name, path in texts.items() if path.exists() and '"-o"' in path.read_text()}
    parsers = {name: ArgumentParser() for name, command in app.COMMANDS.items() if command.arguments is not None}
    for name, parser in parsers.items():
        app.COMMANDS[name].arguments(parser)
    assert found | {name for name, parser in parsers.items() if "-o" in parser.format_help()} == set(WITH_OUTPUT)


def test_groups_of_help_are_those_to_choose_from_with_the_users_own_options(tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own_flowers.yaml").touch()
    assert app.show_help("train", ["--help", "--config-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "own_flowers" in printed
    assert "experiment_procedure" not in printed
    assert "wandb_sweep" not in printed


def test_a_run_says_what_it_trains_and_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig(tasks=TASKS, backbone={"_target_": "msh.backbones.mlp.MLP"}, optimizer={}, scheduler={})
    line = announcement(config, tmp_path / "outputs" / "run")
    assert line.startswith("training train: wine, iris; 2 stages, 12 epochs each, backbone MLP, on ")
    assert line.endswith("; into outputs/run")
