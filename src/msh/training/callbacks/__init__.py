"""Lightning callbacks: prune within a fit, freeze and check after it, save checkpoints to resume from."""

from msh.training.callbacks.averaging import AverageWeights
from msh.training.callbacks.best import RestoreBest
from msh.training.callbacks.checkpoint import EpochCheckpoint
from msh.training.callbacks.early_stopping import EarlyStoppingPerTask
from msh.training.callbacks.freeze import Freeze, TakeFromRankZero
from msh.training.callbacks.gate import GatedPruning
from msh.training.callbacks.guarantee import Guarantee, GuaranteeError
from msh.training.callbacks.progress import StageProgress
from msh.training.callbacks.prune import IterativePruning
from msh.training.callbacks.regrow import Regrowth
from msh.training.callbacks.untrained import ReportUntrained

__all__ = [
    "AverageWeights",
    "EarlyStoppingPerTask",
    "EpochCheckpoint",
    "Freeze",
    "GatedPruning",
    "Guarantee",
    "GuaranteeError",
    "IterativePruning",
    "Regrowth",
    "ReportUntrained",
    "RestoreBest",
    "StageProgress",
    "TakeFromRankZero",
]
