"""Starting up loads what every command needs, and nothing that only some tasks or loggers use."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import msh
from frozen import frozen
from helpers import learn, make_network
from made_runs import write_run
from msh.cli.app import COMMANDS
from msh.files.state_file import save_network, save_subnetwork
from msh.tasks import RawData, Split, build_task

SOURCE = Path(msh.__file__).parent
MODULES = [module.name for module in pkgutil.walk_packages(msh.__path__, "msh.")]
UNUSED = ["wandb", "matplotlib", "plotly", "seaborn", "pandas", "sklearn", "torchvision", "tensorboard", "optuna"]
LOOK = """
import importlib, json, sys
modules, unused = json.loads(sys.argv[1])
importlib.import_module("msh.cli.app")
early = sorted({"torch", "pytorch_lightning", "hydra"} & set(sys.modules))
importlib.import_module("msh.subnetworks")
core = sorted({"pytorch_lightning", "hydra", "omegaconf", "torchmetrics"} & set(sys.modules))
import pytorch_lightning  # loads torchvision itself, where it is installed

before = set(sys.modules)
importlib.import_module("msh.training.run")
drawing = "bokeh" in sys.modules
for name in modules:
    importlib.import_module(name)
unused = sorted(set(unused) & (set(sys.modules) - before))
print(json.dumps([early, core, unused, "msh.training.run" in sys.modules, drawing]))
"""

LOAD = """
import sys
import msh
for path in sys.argv[1:]:
    msh.load(path).predict("task", [[0.0, 0.0, 0.0, 0.0]])
print(sorted({"torchvision", "torch._dynamo", "torchmetrics"} & set(sys.modules)))
"""


def test_importing_msh_loads_no_more_than_it_uses():
    command = [sys.executable, "-c", LOOK, json.dumps([MODULES, UNUSED])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    early, core, unused, all_loaded, drawing = json.loads(done.stdout.splitlines()[-1])
    assert all_loaded
    assert early == [], "the `msh` command itself needs none of these to say what it can do"
    assert core == [], "the core needs torch alone"
    assert unused == []
    assert not drawing, "training draws nothing before its report"


def test_predicting_loads_neither_other_backbones_nor_metrics_nor_the_compiler(tmp_path):
    split = Split(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2)
    task = build_task("task", RawData("classification", split, split, 2))
    names = ["msh.backbones.MLP", "msh.backbones.mlp.MLP"]
    for name in names:
        network = frozen({"_target_": name, "input_shape": [4], "width": 8, "depth": 1}, [task])
        save_network(tmp_path / name, network)
    command = [sys.executable, "-c", LOAD, *names]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("package", "name"), [("msh", "load"), ("msh.tasks", "Task"), ("msh.backbones", "ResNet18")])
def test_packages_import_names_when_they_are_used(package, name):
    assert pkgutil.resolve_name(f"{package}.{name}").__name__ == name
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'x'"):
        pkgutil.resolve_name(f"{package}.x")


RUN = """
import contextlib, io, sys
from msh.cli.app import main
with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    main()
print(len(printed.getvalue()), sorted({"torch", "pytorch_lightning", "wandb"} & set(sys.modules)))
"""
READ_ONLY = [
    ["--help"],
    *([command, "--help"] for command in COMMANDS),
    ["inspect", "run"],
    ["inspect", "run", "--all"],
    ["inspect", "run/network.safetensors"],
    ["inspect", "b.safetensors"],
    ["report", "run", "again"],
    ["sweep", "."],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "run", 3, [(8, 4), (2, 8)], reads=1)
    write_run(folder / "again", 2, [(8, 4), (2, 8)], seed=1)
    for seed, name in enumerate(("run", "again")):
        (folder / name / ".hydra" / "overrides.yaml").write_text(f"[seed={seed}]\n")
    save_subnetwork(folder / "b.safetensors", learned_network(), "b")
    return folder


def learned_network():
    network = make_network()
    for seed, task in enumerate("ab"):
        learn(network, task, form="scored", reuse="learned", seed=seed)
    return network


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_the_scripts_print_their_help_without_torch(script):
    code = RUN.replace("from msh.cli.app import main", "from runpy import run_path").replace(
        "main()", "run_path(sys.argv[1], run_name='__main__')"
    )
    path = SOURCE.parents[1] / f"{script}.py"
    done = subprocess.run([sys.executable, "-c", code, str(path), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" []")


@pytest.mark.parametrize("arguments", READ_ONLY, ids=" ".join)
def test_commands_that_compute_nothing_load_no_torch(arguments, runs):
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=runs, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, _, loaded = done.stdout.splitlines()[-1].partition(" ")
    assert loaded == "[]"
    assert int(printed) > 20


def test_a_process_that_has_loaded_all_ends_without_a_word_of_libraries():
    command = [sys.executable, SOURCE.parents[1] / "train.py", "--cfg", "job"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "leaked" not in done.stdout
