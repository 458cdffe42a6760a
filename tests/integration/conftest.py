import pytest
from running import SMALL, here


@pytest.fixture
def train_here(tmp_path, capsys):
    """Runs `train.py` in this process, in a small network; returns (run folder, what it printed).

    An error that the user would see raises AssertionError with its message.
    """

    def run(*overrides, folder="run", small=True):
        from msh.cli.train import main

        fixed = [f"hydra.run.dir={tmp_path / folder}", *(SMALL if small else []), *overrides]
        resuming = any(o.startswith("resume=") for o in overrides)
        try:
            here(main, *(overrides if resuming else fixed), cwd=tmp_path)
        except SystemExit as stop:
            raise AssertionError(f"exit code {stop.code}: {capsys.readouterr().err}") from None
        return tmp_path / folder, capsys.readouterr().out

    return run
