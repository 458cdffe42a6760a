"""Processes that torchrun or srun started share a run folder."""

import warnings

import pytest
import pytorch_lightning as pl

from msh.cli.processes import check_shared_folder
from msh.cli.train import quiet_lightning

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "4"}


def check(monkeypatch, **overrides):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    check_shared_folder({key.replace("_", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    "overrides", [{"hydra_run_dir": "x"}, {"hydra_run_dir": "x", "resume": "auto"}, {"resume": "x"}]
)
def test_processes_with_a_common_folder_are_accepted(overrides, monkeypatch):
    check(monkeypatch, **overrides)


@pytest.mark.parametrize("overrides", [{}, {"seed": "1"}, {"resume": "auto"}])
def test_processes_without_a_common_folder_are_refused(overrides, monkeypatch):
    with pytest.raises(ValueError, match=r"4 processes need one run folder: hydra\.run\.dir=DIR"):
        check(monkeypatch, **overrides)


def test_no_hint_of_lightning_at_srun_shows(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        pl.Trainer(accelerator="cpu", logger=False)
        assert any("`srun` command is available" in str(warning.message) for warning in shown)
        shown.clear()
        quiet_lightning()
        pl.Trainer(accelerator="cpu", logger=False)
    assert not [warning for warning in shown if "srun" in str(warning.message)]
