"""Starting up loads what every command needs, and nothing that only some tasks or loggers use."""

import json
import pkgutil
import subprocess
import sys

import msh

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


def test_importing_msh_loads_no_more_than_it_uses():
    command = [sys.executable, "-c", LOOK, json.dumps([MODULES, UNUSED])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    early, core, unused, all_loaded, drawing = json.loads(done.stdout.splitlines()[-1])
    assert all_loaded
    assert early == [], "the `msh` command itself needs none of these to say what it can do"
    assert core == [], "the core needs torch alone"
    assert unused == []
    assert not drawing, "training draws nothing before its report"
