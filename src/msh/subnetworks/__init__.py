"""Assign weights to tasks, train and prune them, and compute with them; needs torch, not Lightning or Hydra."""

from msh.subnetworks.allocation import (
    FREE,
    Allocation,
    Budget,
    CapacityError,
    EmptyLayerError,
    layer_counts,
    top_k_mask,
    top_k_masks,
)
from msh.subnetworks.blocks import plan_blocks
from msh.subnetworks.criteria import CRITERIA, Criterion
from msh.subnetworks.empty import check_layers, empty_layers
from msh.subnetworks.granularity import WEIGHTS, Blocks, Granularity, OverlappingUnits, Units, Weights
from msh.subnetworks.learned import ScoreStart, let_scores_choose, start_scores
from msh.subnetworks.network import MultiSubnetwork, Reuse
from msh.subnetworks.planning import check_free, least_budget, plan_counts
from msh.subnetworks.pruning import (
    candidate_counts,
    cut,
    go_back,
    keep_state,
    loss_gradients,
    prune,
    rewind,
    score,
    select,
    select_apart,
    snapshot,
)
from msh.subnetworks.schedules import SCHEDULES, Schedule
from msh.subnetworks.state import Capacity, NetworkState, TaskState
from msh.subnetworks.subnetwork import Subnetwork
from msh.subnetworks.tracing import GRANULARITIES, GranularityName, UnitGraph, trace_units
from msh.subnetworks.units import fit_units, plan_units
from msh.subnetworks.views import TaskNetwork

__all__ = [
    "CRITERIA",
    "FREE",
    "GRANULARITIES",
    "SCHEDULES",
    "WEIGHTS",
    "Allocation",
    "Blocks",
    "Budget",
    "Capacity",
    "CapacityError",
    "Criterion",
    "EmptyLayerError",
    "Granularity",
    "GranularityName",
    "MultiSubnetwork",
    "NetworkState",
    "OverlappingUnits",
    "Reuse",
    "Schedule",
    "ScoreStart",
    "Subnetwork",
    "TaskNetwork",
    "TaskState",
    "UnitGraph",
    "Units",
    "Weights",
    "candidate_counts",
    "check_free",
    "check_layers",
    "cut",
    "empty_layers",
    "fit_units",
    "go_back",
    "keep_state",
    "layer_counts",
    "least_budget",
    "let_scores_choose",
    "loss_gradients",
    "plan_blocks",
    "plan_counts",
    "plan_units",
    "prune",
    "rewind",
    "score",
    "select",
    "select_apart",
    "snapshot",
    "start_scores",
    "top_k_mask",
    "top_k_masks",
    "trace_units",
]
