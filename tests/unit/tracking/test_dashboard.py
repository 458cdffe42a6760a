"""The W&B workspace in code: its sections and panels, without a network; errors say what to do."""

import json
import socket
import sys

import pytest

from dashboards import shown

pytest.importorskip("wandb_workspaces")

from msh.cli.app import main
from msh.tracking.dashboard import build_workspace, save_workspace, sections

SECTIONS = ["scores", "capacity", "guarantee", "pruning", "system"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `msh dashboard`; returns (exit code, printed, errors). A connection is an error."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was made"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["msh", "dashboard", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_a_dry_run_writes_the_workspace_as_json_and_connects_to_nothing(command):
    code, printed, _ = command("--entity", "us", "--project", "ours", "--dry-run")
    view = json.loads(printed)
    assert code == 0
    assert (view["entity"], view["project"], view["displayName"]) == ("us", "ours", "msh")
    section = view["spec"]["section"]
    found = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    assert list(found) == SECTIONS
    assert all(found.values())
    assert section["settings"]["xAxis"] == "trainer/global_step"
    text = json.dumps(found)
    for key in ("matrix/heat_map", "matrix/table", "scores/table", "capacity/bars", "capacity/table", "owner_maps"):
        assert key in text
    stacked = [p["config"] for p in found["capacity"] if p["config"].get("plotType") == "stacked-area"]
    assert [panel["metricRegex"] for panel in stacked] == ["owned/.+|capacity/free"]
    kinds = {panel["viewType"] for panels in found.values() for panel in panels}
    assert {"Run History Line Plot", "Media Browser", "Scalar Chart", "Bar Chart", "Weave"} <= kinds


def test_a_dry_run_writes_to_a_file(command, tmp_path):
    code, printed, _ = command("--entity", "us", "--project", "ours", "--dry-run", "-o", tmp_path / "view.json")
    assert (code, printed) == (0, f"written: {tmp_path / 'view.json'}\n")
    assert json.loads((tmp_path / "view.json").read_text())["entity"] == "us"


@pytest.mark.parametrize(("given", "missing"), [(["--project", "ours"], "entity"), (["--entity", "us"], "project")])
def test_entity_and_project_must_be_given(given, missing, command):
    code, printed, errors = command(*given, "--dry-run")
    assert (code, printed) == (1, "")
    assert f"error: which {missing}? give --{missing} NAME" in errors


def test_a_missing_package_is_named_with_its_installation(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    code, _, errors = command("--entity", "us", "--project", "ours", "--dry-run")
    assert code == 1
    assert "pip install 'msh[dashboard]'" in errors


def test_every_panel_shows_different_keys():
    found = [(section.name, *shown(panel)) for section in sections() for panel in section.panels]
    assert all(keys or pattern for _, keys, pattern in found)
    assert len({(tuple(keys), pattern) for _, keys, pattern in found}) == len(found)


class Saved:
    """Stands for a workspace in W&B, in the library's place."""

    def __init__(self, entity):
        self.entity, self.project, self.sections, self.settings, self.url = entity, "ours", [], None, "https://there"

    def save(self):
        self.saved = True
        return self


def test_an_update_puts_the_panels_into_the_workspace_that_is_there(monkeypatch):
    import wandb_workspaces.workspaces as ws

    there = Saved("us")
    monkeypatch.setattr(ws.Workspace, "from_url", lambda url: there)
    assert save_workspace(build_workspace("us", "ours"), "https://there?nw=1") == "https://there"
    assert there.saved
    assert [section.name for section in there.sections] == SECTIONS
    with pytest.raises(ValueError, match="is of us/ours"):
        save_workspace(build_workspace("them", "ours"), "https://there?nw=1")


def test_without_a_network_saving_is_a_plain_error(monkeypatch):
    import wandb_workspaces.workspaces as ws
    from wandb.errors import CommError

    def fail(self):
        raise CommError("connection refused")

    monkeypatch.setattr(ws.Workspace, "save", fail)
    with pytest.raises(ConnectionError, match="cannot be reached: connection refused; --dry-run needs no network"):
        save_workspace(build_workspace("us", "ours"))
