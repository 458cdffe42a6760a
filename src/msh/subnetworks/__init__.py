"""The core: which task owns which weight. Needs torch, and neither Lightning nor Hydra."""

from msh.subnetworks.allocation import (
    FREE,
    Budget,
    Capacity,
    CapacityError,
    check_free,
    plan_counts,
    top_k_mask,
    top_k_masks,
)
from msh.subnetworks.criteria import CRITERIA, Criterion
from msh.subnetworks.network import MultiSubnetwork, Reuse
from msh.subnetworks.pruning import (
    candidate_counts,
    cut,
    loss_gradients,
    prune,
    rewind,
    score,
    select,
    select_apart,
    snapshot,
)
from msh.subnetworks.schedules import SCHEDULES, Schedule
from msh.subnetworks.subnetwork import Subnetwork

__all__ = [
    "CRITERIA",
    "FREE",
    "SCHEDULES",
    "Budget",
    "Capacity",
    "CapacityError",
    "Criterion",
    "MultiSubnetwork",
    "Reuse",
    "Schedule",
    "Subnetwork",
    "candidate_counts",
    "check_free",
    "cut",
    "loss_gradients",
    "plan_counts",
    "prune",
    "rewind",
    "score",
    "select",
    "select_apart",
    "snapshot",
    "top_k_mask",
    "top_k_masks",
]
