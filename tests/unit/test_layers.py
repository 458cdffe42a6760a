"""Imports go down the list of layers only; functions stay small."""

import ast
from pathlib import Path

import pytest

import msh

SOURCE = Path(msh.__file__).parent
LAYERS = [
    "cli",
    "report",
    "training",
    "tracking",
    "runs",
    "inference",
    "files",
    "tasks",
    "backbones",
    "subnetworks",
]
"""From the top down: a layer imports those below it."""
ROOT_MODULES = ["__init__", "checked", "compat", "draws", "errors", "recipes"]
FILES = sorted(SOURCE.rglob("*.py"))
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "hydra", "omegaconf", "wandb", "torchmetrics"}
LONGEST_FUNCTION = 60


def layer_of(path):
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path):
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path):
    names = [name.split(".") for name in imported(path)]
    return {parts[1] for parts in names if parts[0] == "msh" and len(parts) > 1}


def test_every_file_is_in_a_layer_or_one_of_the_root_modules():
    found = {layer_of(path) for path in FILES}
    assert found - set(LAYERS) <= set(ROOT_MODULES)
    assert set(LAYERS) <= found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below_it(layer):
    above = set(LAYERS[: LAYERS.index(layer)])
    files = [path for path in FILES if layer_of(path) == layer]
    wrong = {str(path.relative_to(SOURCE)): found for path in files if (found := layers_imported(path) & above)}
    assert wrong == {}


def test_root_modules_import_no_layer():
    files = [path for path in FILES if layer_of(path) in ROOT_MODULES]
    assert len(files) == len(ROOT_MODULES)
    found = {path.name: layers for path in files if (layers := layers_imported(path) & set(LAYERS))}
    assert found == {"__init__.py": {"cli", "inference"}}  # msh.train and msh.load, imported when they are used


def test_backbones_know_nothing_of_tasks_nor_of_subnetworks():
    files = [path for path in FILES if layer_of(path) == "backbones"]
    known = {"backbones", "draws", "errors", "importer"}
    assert {path.name: found for path in files if (found := layers_imported(path) - known)} == {}


def test_the_core_needs_neither_lightning_nor_hydra():
    files = [path for path in FILES if layer_of(path) == "subnetworks"]
    roots = {path.name: {name.split(".")[0] for name in imported(path)} & FRAMEWORKS for path in files}
    assert {name: found for name, found in roots.items() if found} == {}
    assert len(roots) > 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_stay_small(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
