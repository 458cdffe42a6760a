"""Printed content of folders and files."""

import io
import re

import pytest
import torch
from rich.console import Console

from helpers import learn, make_head, make_network
from made_runs import write_run
from msh.files.plans import make_plan_file
from msh.files.state_file import save_network, save_subnetwork
from msh.recipes import build
from msh.report.inspection import print_folder_or_file, print_modules, print_parameters
from msh.report.run_page import page_of
from msh.runs.facts import RunFacts
from msh.runs.results import Results
from msh.subnetworks import Allocation, MultiSubnetwork


def shown(path, everything=False, width=140):
    console = Console(file=io.StringIO(), width=width)
    print_folder_or_file(path, everything, console)
    return console.file.getvalue()


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.split("│")[1:-1]]


@pytest.fixture(scope="module")
def network():
    found = make_network()
    for seed, task in enumerate("ab"):
        learn(found, task, reuse="all", seed=seed)
    return found


def test_a_network_files_tasks_readers_and_layers_are_shown(network, tmp_path):
    save_network(tmp_path / "net.safetensors", network)
    text = shown(tmp_path / "net.safetensors")
    private = sum(t.numel() for t in network.subnetwork("b").private_tensors().values())
    assert cells(text, "a") == ["a", "1", "frozen", "0.250", "13", str(private), ""]
    assert cells(text, "b") == ["b", "2", "frozen", "0.250", "13", str(private), "a 13"]
    assert "net.safetensors: network, " in text
    assert "52 weights, 50.0% owned" in text
    lines = [line.strip() for line in text.splitlines()]
    assert any(line.startswith("├── 2.weight (4 × 1 × 3)") and "12 weights, 50.0% owned" in line for line in lines)
    assert "│   ├── a 3, 25.0%" in lines
    assert "    └── b 10, 25.0%" in text.splitlines()


def test_a_subnetwork_files_layers_are_shown(network, tmp_path):
    save_subnetwork(tmp_path / "b.safetensors", network, "b")
    text = shown(tmp_path / "b.safetensors")
    assert "task b, 13 of 52 weights, density 0.250" in text
    assert "6.weight  10 of 40 weights, density 0.250" in text
    assert "reads a" in text
    assert network.digest("b") in text


def test_a_run_folder_shows_scores_and_notes(tmp_path):
    results = write_run(tmp_path, 3, [(20, 10), (5, 20)])
    (tmp_path / "metrics.csv").unlink()
    text = shown(tmp_path)
    assert text.startswith("made, seed 0: finished\nThere are no learning curves")
    assert cells(text, "t000")[-2:] == [f"accuracy {results.tasks['t000'].test:.4f}", ""]
    owned, total = results.capacity["owned"], results.capacity["prunable"]
    assert f"{total} weights, {owned / total:.1%} owned" in text


def test_many_layers_and_tasks_are_shown_together_unless_all_are_wanted(tmp_path):
    write_run(tmp_path, 200, [(8, 8)] * 100)
    short, long = shown(tmp_path), shown(tmp_path, everything=True)
    assert "layers.0 to 4.weight (5 layers)" in short
    assert "t000 to t024" in short
    assert "layers.99.weight (8 × 8)" in long
    assert len(short.splitlines()) < 450 < len(long.splitlines())


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="x is not a safetensors file, or is damaged"):
        shown(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        shown(tmp_path / "y")


def test_a_plan_shows_the_owners_to_be(tmp_path):
    network = make_network()
    network.add_task("a", head=make_head())
    masks = {name: torch.arange(w.numel()).view(w.shape) % 4 == 0 for name, w in network.weights()}
    network.begin("a", Allocation(masks, dict.fromkeys(masks, 1.0)))
    network.freeze("a")
    make_plan_file(network.state.planned(), {}, (4,), "start").write(tmp_path / "plan")
    text = shown(tmp_path / "plan")
    assert cells(text, "a") == ["a", "1", "planned", "0.250", "13", "", ""]
    assert "plan: plan, " in text
    assert "52 weights, 25.0% owned" in text


# ---- roles of tensors


def shown_parameters(path):
    console = Console(file=io.StringIO(), width=140)
    print_parameters(path, console)
    return console.file.getvalue()


def test_every_tensors_role_and_its_reason_are_shown(tmp_path):
    recipe = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 6, "depth": 1, "norm": True}
    network = MultiSubnetwork(build(recipe), recipe=recipe)
    save_network(tmp_path / "network.safetensors", network)
    for path in (tmp_path, tmp_path / "network.safetensors"):
        text = shown_parameters(path)
        assert cells(text, "layers.1.weight") == ["layers.1.weight", "6 × 4", "prunable", "weight of Linear"]
        assert cells(text, "layers.1.bias") == ["layers.1.bias", "6", "private", "bias"]
        assert cells(text, "layers.2.weight")[2] == "private"
        assert cells(text, "layers.2.running_mean")[2:] == ["private", "buffer"]


def test_a_role_that_prunable_chose_has_that_reason(tmp_path):
    recipe = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 6, "depth": 2}
    network = MultiSubnetwork(build(recipe), ["layers.3.*ight"], recipe)
    save_network(tmp_path / "net", network)
    text = shown_parameters(tmp_path / "net")
    assert cells(text, "layers.1.weight")[2:] == ["private", "chosen by `prunable` (weight of Linear)"]
    assert cells(text, "layers.3.weight")[2:] == ["prunable", "weight of Linear"]


def test_roles_of_a_backbone_of_other_code_are_shown_without_reasons(network, tmp_path):
    save_network(tmp_path / "net", network)
    assert cells(shown_parameters(tmp_path / "net"), "2.weight") == ["2.weight", "4 × 1 × 3", "prunable", ""]


# ---- modules


def test_modules_of_a_file_are_shown_in_80_columns_and_in_the_report(tmp_path):
    recipe = {"_target_": "msh.backbones.resnet.ResNet18", "input_shape": [3, 32, 32], "width": 64}
    network = MultiSubnetwork(build(recipe), recipe=recipe)
    save_network(tmp_path / "net", network)
    console = Console(file=io.StringIO(), width=80)
    print_modules(tmp_path / "net", console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if "layers.8.conv1" in line)
    assert [part for part in re.split(r"[│\s]+", line) if part] == [
        *("layers.8.conv1", "prunable", "589,824", "weight,", "nm,", "block,", "unit", "75.5", "M"),
    ]
    assert "3 of 20 layers stay whole, the first being layers.9.conv2.weight (its outputs:" in " ".join(text.split())
    facts = RunFacts(tmp_path, Results("made", 0, [], {}, ""), [], network.state, None)
    (section,) = [section for section in page_of(facts).sections if section.key == "modules"]
    assert section.tables[0].summary
    assert [column.cell(section.tables[0].rows[-1]) for column in section.tables[0].columns][:3] == [
        *("total", "", f"{network.state.total().size:,}"),
    ]


def test_a_report_says_why_modules_are_unknown(network, tmp_path):
    network.recipe = {"_target_": "my_package.Net"}
    facts = RunFacts(tmp_path, Results("made", 0, [], {}, ""), [], network.state, None)
    network.recipe = {}
    (section,) = [section for section in page_of(facts).sections if section.key == "modules"]
    assert "my_package.Net" in section.lead
    assert not section.tables
