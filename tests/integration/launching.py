"""Start ranks as `torch.distributed.run --standalone` does, forked from this process: each is seconds sooner.

As a script: python launching.py PROCESSES SCRIPT ARGUMENT...
"""

import os
import runpy
import sys
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def rank(script, *arguments):
    rank_zero_only.rank = int(os.environ["RANK"])  # as where it is imported in a rank
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    nodes = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": int(sys.argv[1])}
    meeting = {"run_id": "ranks", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    elastic_launch(LaunchConfig(**nodes, **meeting, start_method="fork"), rank)(*sys.argv[2:])
