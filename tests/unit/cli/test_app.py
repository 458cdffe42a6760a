"""The list of commands, their help, and unknown ones."""

import shlex
from contextlib import suppress

import pytest

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
