"""Build a W&B workspace: panels for the values that `tracking` logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msh.compat import workspace_model
from msh.tasks.task import METRICS
from msh.tracking.tracking import BARS, CAPACITY, HEAT_MAP, MATRIX, OWNER_MAPS, SCORES
from msh.tracking.wandb_file import STEP

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "msh"
PINNED = ("mean_score", "forgetting", "guarantee/verdict", "capacity/owned")
"""First columns in the list of runs."""
SYSTEM = {
    "processor, %": ["system/cpu"],
    "memory, %": ["system/memory_percent", "system/proc.memory.percent"],
    "disk, %": ["system/disk./.usagePercent"],
    "GPU, %": ["system/gpu.0.gpu", "system/gpu.0.memoryAllocated"],
}


def build_workspace(entity: str, project: str, name: str = NAME) -> Workspace:
    """Build the workspace without saving it; needs neither network nor login.

    Args:
        entity: in W&B.
        project: in W&B.
        name: the workspace's.
    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ValueError(f"dashboards need wandb-workspaces: pip install 'msh[dashboard]' ({error})") from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections(),
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(pinned_columns=[f"summary:{key}" for key in PINNED]),
    )


def save_workspace(workspace: Workspace, url: str | None = None) -> str:
    """Create the workspace in W&B, or replace an existing one's panels.

    Args:
        workspace: from `build_workspace`.
        url: the workspace to update; None: create a new one.
    Returns:
        Its URL.
    Raises:
        ValueError: W&B refuses it, or the one to update belongs to another entity or project.
        ConnectionError: W&B cannot be reached.
    """
    import wandb_workspaces.workspaces as ws
    from requests import RequestException
    from wandb.errors import CommError, Error

    try:
        if url is not None:
            existing = ws.Workspace.from_url(url)
            if (existing.entity, existing.project) != (workspace.entity, workspace.project):
                raise ValueError(f"--update {url} is of {existing.entity}/{existing.project}")
            existing.sections, existing.settings = workspace.sections, workspace.settings
            workspace = existing
        return str(workspace.save().url)
    except (CommError, RequestException) as error:
        raise ConnectionError(f"W&B cannot be reached: {error}; --dry-run needs no network") from error
    except Error as error:
        raise ValueError(f"W&B refuses: {error}") from error


def spec(workspace: Workspace) -> dict[str, Any]:
    """Return the workspace as W&B stores it, for JSON."""
    view: dict[str, Any] = workspace_model(workspace).model_dump(mode="json", by_alias=True, exclude_none=True)
    return view


def sections() -> list[Section]:
    """Return the sections: scores, capacity, guarantee, pruning, system."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(title: str, pattern: str, **how: Any) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=STEP, metric_regex=pattern, **how)

    rising, falling = (
        "|".join(name for name, metric in METRICS.items() if metric.direction == direction)
        for direction in ("max", "min")
    )
    scores = [
        lines("validation, higher is better", f".+/val/({rising})"),
        lines("validation, lower is better", f".+/val/({falling})"),
        lines("test after each stage, higher is better", f".+/test/({rising})"),
        lines("test after each stage, lower is better", f".+/test/({falling})"),
        lines("training loss", ".+/train/loss", log_y=True),
        wr.MediaBrowser(title="scores after each stage", media_keys=[HEAT_MAP]),
        wr.WeavePanelSummaryTable(table_name=MATRIX),
        wr.WeavePanelSummaryTable(table_name=SCORES),
    ]
    capacity = [
        wr.MediaBrowser(title="owners of each layer", media_keys=[BARS]),
        lines("share of the weights that each task owns", "owned/.+|capacity/free", plot_type="stacked-area"),
        wr.MediaBrowser(title="owner maps", media_keys=[OWNER_MAPS]),
        wr.WeavePanelSummaryTable(table_name=CAPACITY),
    ]
    guarantee = [
        wr.ScalarChart(title="comparisons of frozen tasks", metric=wr.SummaryMetric("guarantee/checked")),
        wr.ScalarChart(title="tasks that changed", metric=wr.SummaryMetric("guarantee/violations")),
        wr.BarPlot(title="forgetting", metrics=[wr.SummaryMetric("forgetting")]),
        wr.BarPlot(title="backward transfer", metrics=[wr.SummaryMetric("bwt")]),
    ]
    pruning = [lines("sparsity", ".+/sparsity"), lines("validation loss", ".+/val/loss")]
    system = [wr.LinePlot(title=title, x="Relative Time (Process)", y=keys) for title, keys in SYSTEM.items()]
    named = {"scores": scores, "capacity": capacity, "guarantee": guarantee, "pruning": pruning, "system": system}
    return [ws.Section(name=name, panels=panels, is_open=name != "system") for name, panels in named.items()]
