"""A command composes its config once, to the same config as Hydra does, with the same refusals."""

import importlib
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from msh.cli.composing import composing_once
from msh.compat import hydra_commands

HYDRAS = next(base for base in hydra_commands().ConfigLoaderImpl.__mro__ if base.__module__.startswith("hydra."))
ONCE = composing_once(HYDRAS)
CONF = {
    "config.yaml": "defaults: [_self_, model: small]\nseed: 0",
    "needy.yaml": 'defaults: [_self_, model: "???"]\nseed: 0',
    "model/small.yaml": "width: 4",
    "model/wide.yaml": "# @package _global_\nmodel: {width: 9}\nhydra: {mode: MULTIRUN}",
}
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in Hydra with one of the two loaders; returns its jobs' configs, with Hydra's, and its errors."""
    for name, text in CONF.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    count = []
    composed = HYDRAS._load_configuration_impl
    monkeypatch.setattr(HYDRAS, "_load_configuration_impl", lambda *a, **k: (count.append(1), composed(*a, **k))[1])

    def command(loader, *arguments, name="config"):
        monkeypatch.setattr(hydra_commands(), "ConfigLoaderImpl", loader)
        monkeypatch.setattr(sys, "argv", ["command", *arguments, "hydra.run.dir=r", "hydra.sweep.dir=s", *QUIET])
        found, ended = [], 0
        count.clear()
        GlobalHydra.instance().clear()

        @hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name=name)
        def main(config):
            found.append(OmegaConf.to_yaml(config) + OmegaConf.to_yaml(HydraConfig.get()))

        try:
            main()
        except SystemExit as stop:
            ended = stop.code
        return (found, ended, capsys.readouterr().err), len(count)

    return command


@pytest.mark.parametrize(
    ("arguments", "jobs", "saved"),
    [
        (["seed=1"], 1, 1),
        (["seed=1", "hydra.mode=RUN"], 1, 1),
        (["-m", "seed=1,2"], 2, 1),
        (["model=wide", "seed=1,2"], 2, 1),
        (["-m", "model=small,wide"], 2, 1),
    ],
)
def test_a_config_is_composed_once(arguments, jobs, saved, run):
    usual, times = run(HYDRAS, *arguments)
    once, fewer = run(ONCE, *arguments)
    assert once == usual
    assert len(once[0]) == jobs
    assert fewer == times - saved


@pytest.mark.parametrize(
    ("arguments", "name", "part"),
    [
        (["seed=1,2"], "config", "Ambiguous value for argument 'seed=1,2'"),
        (["sed=1"], "config", "Could not override 'sed'"),
        (["model=none"], "config", "Could not find 'model/none'"),
        ([], "needy", "You must specify 'model'"),
    ],
)
def test_errors_are_hydras(arguments, name, part, run):
    (found, code, message), _ = run(ONCE, *arguments, name=name)
    assert (found, code) == ([], 1)
    assert part in message
    assert run(HYDRAS, *arguments, name=name)[0] == (found, code, message)


@pytest.mark.parametrize("name", ["train", "evaluate", "plan"])
def test_commands_compose_once(name, monkeypatch, capsys):
    monkeypatch.setattr(hydra_commands(), "ConfigLoaderImpl", HYDRAS)
    monkeypatch.setattr(sys, "argv", [name, "--cfg", "job", *(["-o", "plan.safetensors"] if name == "plan" else [])])
    GlobalHydra.instance().clear()
    importlib.import_module(f"msh.cli.{name}").main()
    assert capsys.readouterr().out
    assert hydra_commands().ConfigLoaderImpl is not HYDRAS
    assert composing_once(hydra_commands().ConfigLoaderImpl) is hydra_commands().ConfigLoaderImpl
