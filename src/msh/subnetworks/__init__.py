"""Assign weights to tasks, train and prune them, and compute with them; needs torch, not Lightning or Hydra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msh import importer

if TYPE_CHECKING:
    from msh.subnetworks.allocation import FREE as FREE
    from msh.subnetworks.allocation import Allocation as Allocation
    from msh.subnetworks.allocation import Budget as Budget
    from msh.subnetworks.allocation import CapacityError as CapacityError
    from msh.subnetworks.allocation import EmptyLayerError as EmptyLayerError
    from msh.subnetworks.allocation import layer_counts as layer_counts
    from msh.subnetworks.allocation import top_k_mask as top_k_mask
    from msh.subnetworks.allocation import top_k_masks as top_k_masks
    from msh.subnetworks.blocks import plan_blocks as plan_blocks
    from msh.subnetworks.criteria import CRITERIA as CRITERIA
    from msh.subnetworks.criteria import Criterion as Criterion
    from msh.subnetworks.description import Capacity as Capacity
    from msh.subnetworks.description import TaskState as TaskState
    from msh.subnetworks.empty import check_layers as check_layers
    from msh.subnetworks.empty import empty_layers as empty_layers
    from msh.subnetworks.granularity import WEIGHTS as WEIGHTS
    from msh.subnetworks.granularity import Blocks as Blocks
    from msh.subnetworks.granularity import Granularity as Granularity
    from msh.subnetworks.granularity import NofM as NofM
    from msh.subnetworks.granularity import OverlappingUnits as OverlappingUnits
    from msh.subnetworks.granularity import Units as Units
    from msh.subnetworks.granularity import Weights as Weights
    from msh.subnetworks.groups import Groups as Groups
    from msh.subnetworks.groups import plan_groups as plan_groups
    from msh.subnetworks.learned import let_scores_choose as let_scores_choose
    from msh.subnetworks.learned import start_scores as start_scores
    from msh.subnetworks.network import MultiSubnetwork as MultiSubnetwork
    from msh.subnetworks.options import GRANULARITIES as GRANULARITIES
    from msh.subnetworks.options import GranularityName as GranularityName
    from msh.subnetworks.options import Reuse as Reuse
    from msh.subnetworks.options import ScoreStart as ScoreStart
    from msh.subnetworks.planning import check_free as check_free
    from msh.subnetworks.planning import least_budget as least_budget
    from msh.subnetworks.planning import plan_counts as plan_counts
    from msh.subnetworks.pruning import candidate_counts as candidate_counts
    from msh.subnetworks.pruning import cut as cut
    from msh.subnetworks.pruning import cut_state as cut_state
    from msh.subnetworks.pruning import go_back as go_back
    from msh.subnetworks.pruning import keep_state as keep_state
    from msh.subnetworks.pruning import loss_gradients as loss_gradients
    from msh.subnetworks.pruning import prune as prune
    from msh.subnetworks.pruning import rewind as rewind
    from msh.subnetworks.pruning import score as score
    from msh.subnetworks.pruning import select as select
    from msh.subnetworks.pruning import select_apart as select_apart
    from msh.subnetworks.pruning import snapshot as snapshot
    from msh.subnetworks.schedules import SCHEDULES as SCHEDULES
    from msh.subnetworks.schedules import Schedule as Schedule
    from msh.subnetworks.state import NetworkState as NetworkState
    from msh.subnetworks.subnetwork import Subnetwork as Subnetwork
    from msh.subnetworks.tracing import trace_units as trace_units
    from msh.subnetworks.unit_graph import UnitGraph as UnitGraph
    from msh.subnetworks.units import fit_units as fit_units
    from msh.subnetworks.units import plan_units as plan_units
    from msh.subnetworks.views import TaskNetwork as TaskNetwork

# torch takes a second, and settings need only names
_MODULES = {
    "allocation": "FREE Allocation Budget CapacityError EmptyLayerError layer_counts top_k_mask top_k_masks",
    "blocks": "plan_blocks",
    "criteria": "CRITERIA Criterion",
    "description": "Capacity TaskState",
    "empty": "check_layers empty_layers",
    "granularity": "WEIGHTS Blocks Granularity NofM OverlappingUnits Units Weights",
    "groups": "Groups plan_groups",
    "learned": "let_scores_choose start_scores",
    "network": "MultiSubnetwork",
    "planning": "check_free least_budget plan_counts",
    "pruning": "candidate_counts cut cut_state go_back keep_state loss_gradients prune rewind score select "
    "select_apart snapshot",
    "schedules": "SCHEDULES Schedule",
    "state": "NetworkState",
    "subnetwork": "Subnetwork",
    "options": "GRANULARITIES GranularityName Reuse ScoreStart",
    "tracing": "trace_units",
    "unit_graph": "UnitGraph",
    "units": "fit_units plan_units",
    "views": "TaskNetwork",
}
"""Module to the names that it defines."""
__getattr__ = importer(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}
)
