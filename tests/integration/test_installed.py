"""The wheel alone: its configs travel in it, and the command works in an empty folder."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from running import ROOT, SMALL


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("msh-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


COMMANDS = """
import json, sys
from pathlib import Path
site, *commands = map(json.loads, sys.argv[1:])
sys.path.insert(0, site)
from msh.cli.app import main
for command in commands:
    runs = map(str, Path("outputs").glob("*/*"))
    sys.argv[1:] = [f"run={next(runs)}" if argument == "run=" else argument for argument in command]
    main()
"""


def msh(site, *commands, cwd):
    """The wheel's commands, one after another in a process; `run=` gets the run folder."""
    return subprocess.run(
        [sys.executable, "-c", COMMANDS, *map(json.dumps, [str(site), *commands])],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )


def test_wheel_holds_every_config(site):
    shipped = {path.relative_to(site / "msh" / "conf") for path in (site / "msh" / "conf").rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert (site / "hydra_plugins" / "msh_sweeper.py").is_file()


def test_train_with_a_config_folder_of_the_users_own_then_evaluate(site, tmp_path):
    own = tmp_path / "mine" / "tasks"
    own.mkdir(parents=True)
    (own / "flowers.yaml").write_text(
        "flowers:\n  source:\n    _target_: msh.tasks.bundled.bundled\n    name: iris\n  batch_size: 8\n"
    )
    settings = ["--config-dir", "mine", "+experiment=sequential", "tasks=[wine,flowers]", "trainer.max_epochs=2"]
    train = ["train", *settings, "logger=csv", *SMALL, "report=true"]
    done = msh(site, train, ["evaluate", "run="], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "sequential").iterdir()
    assert list(json.loads((folder / "results.json").read_text())["tasks"]) == ["wine", "flowers"]
    assert "data-plot" in (folder / "report.html").read_text()
    scores = {row["task"]: row["score"] for row in json.loads((folder / "evaluation.json").read_text())}
    assert scores.keys() == {"wine", "flowers"}
    assert "flowers" in done.stdout.partition("run folder:")[2]


def test_unknown_command_names_the_nearest(site, tmp_path):
    failed = msh(site, ["trian"], cwd=tmp_path)
    assert failed.returncode == 2
    assert "did you mean 'train'?" in failed.stderr
