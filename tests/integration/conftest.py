import logging
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from running import SMALL


@pytest.fixture
def train_here(tmp_path, monkeypatch, capsys):
    """Runs `train.py` in this process, in a small network; returns (run folder, what it printed).

    An error that the user would see raises AssertionError with its message.
    """

    def run(*overrides, folder="run", small=True):
        from msh.cli.train import main

        handlers, threads = logging.getLogger().handlers[:], torch.get_num_threads()
        fixed = [f"hydra.run.dir={tmp_path / folder}", *(SMALL if small else []), *overrides]
        resuming = any(o.startswith("resume=") for o in overrides)
        monkeypatch.setattr(sys, "argv", ["train.py", *(overrides if resuming else fixed)])
        monkeypatch.chdir(tmp_path)
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as stop:
            raise AssertionError(f"exit code {stop.code}: {capsys.readouterr().err}") from None
        finally:
            for handler in set(logging.getLogger().handlers) - set(handlers):
                handler.close()
            logging.getLogger().handlers[:] = handlers
            torch.set_num_threads(threads)
        return tmp_path / folder, capsys.readouterr().out

    return run
