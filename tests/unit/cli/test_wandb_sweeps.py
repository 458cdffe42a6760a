"""W&B sweeps: W&B accepts the files, and what its agent calls is a run that Hydra composes."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from msh.cli.arguments import split_arguments
from msh.cli.configs import config_folder
from msh.runs.results import Results, TaskResult
from msh.tracking.tracking import outcome
from msh.training.config import register, run_config

register()
FILES = sorted((Path(config_folder()) / "wandb_sweep").glob("*.yaml"))
ROOT = Path(__file__).resolve().parents[3]


def test_there_are_a_grid_and_a_search():
    assert {yaml.safe_load(path.read_text())["method"] for path in FILES} == {"grid", "bayes"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_is_what_wandbs_schema_allows(path):
    jsonschema = pytest.importorskip("jsonschema")
    found = importlib.util.find_spec("sweeps")  # W&B's own package; importing it warns
    if found is None:
        pytest.skip("the package sweeps is not installed")
    schema = json.loads((Path(found.origin).parent / "config" / "schema.json").read_text())
    config = yaml.safe_load(path.read_text())
    config.pop("run_cap", None)  # newer than the schema
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)] == []


def values(parameter):
    """The ends of what a sweep may choose."""
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_the_agent_calls_is_a_run(path, end):
    config = yaml.safe_load(path.read_text())
    assert (ROOT / config["program"]).is_file()
    chosen = {name: {"value": values(parameter)[end]} for name, parameter in config["parameters"].items()}
    arguments = create_sweep_command_args({"args": chosen})
    command = create_sweep_command(config["command"])
    place = command.index("${args_no_hyphens}")
    _, overrides = split_arguments(command[command.index("${program}") + 1 : place])
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        composed = compose("config", [*overrides, *arguments["args_no_hyphens"]])
    run_config(composed)
    assert composed.name == "sequential"
    assert composed.pruning.density == chosen["pruning.density"]["value"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_metric_is_one_that_runs_put_into_their_summary(path):
    metric = yaml.safe_load(path.read_text())["metric"]
    run = Results("toy", 0, [["a"]], {"a": TaskResult("accuracy", "max", 0, val=0.5)}, "0a1b2c3d")
    assert outcome(run)[metric["name"]] == 0.5
    assert metric["goal"] == "maximize"
