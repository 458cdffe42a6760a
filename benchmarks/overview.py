"""Draw the README's figure: tasks that share one small network, and the accuracy of a first task while others follow.

    python -m benchmarks.overview

Left, a real network of 3 hidden layers, pruned for 3 tasks one after another: a line per owned weight, in its task's
colour. Right, permuted MNIST: test accuracy on task 1 after each of 10 stages, means over the recorded runs
(benchmarks/run_records), beside one network that is fine-tuned task after task. Writes docs/figures/overview.png.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import nn

from benchmarks.figures import COLOURS
from msh.subnetworks import Budget, MultiSubnetwork, prune

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "overview.png"
RECORDS = ROOT / "benchmarks" / "run_records" / "reproduce" / "permuted_mnist"
UNITS, LAYERS, DENSITY = 9, 4, 0.14
TASKS = {"digits": "#1f4e9c", "wine": "#c9822b", "reviews": "#4f9d69"}
FREE = "#dddddd"


def draw(path: Path) -> None:
    """Draw both panels and write the PNG."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _network(left)
        _accuracy(right)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, metadata={"Software": None})


def _network(panel: Axes) -> None:
    """Draw every weight as a line between two units, in the colour of its owner."""
    torch.manual_seed(0)
    network = MultiSubnetwork(nn.Sequential(*(nn.Linear(UNITS, UNITS) for _ in range(LAYERS - 1))))
    for task in TASKS:
        network.add_task(task, head=nn.Linear(UNITS, 1))
        network.begin(task)
        prune(network, task, kept=Budget(density=DENSITY).counts(network.sizes(), free={}))
        network.compact(task)
        network.freeze(task)
    for owner, (name, colour) in enumerate([("free", FREE), *TASKS.items()]):
        lines = [
            [(layer, int(source)), (layer + 1, int(unit))]
            for layer, owners in enumerate(network.state.owners.values())
            for unit, source in (owners == owner).nonzero()
        ]
        width = 0.5 if name == "free" else 1.4
        panel.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=1 + owner))
        panel.plot([], [], color=colour, label=name)
    places = [(layer, unit) for layer in range(LAYERS) for unit in range(UNITS)]
    panel.scatter(*zip(*places, strict=True), s=28, color="white", edgecolors="#555555", zorder=9)
    panel.set_axis_off()
    panel.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.02), handlelength=1.2)
    panel.set_title("One network: every weight has one owner", fontsize=10)


def _accuracy(panel: Axes) -> None:
    """Plot the test accuracy on the first task after each stage."""
    runs = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*/results.json"))]
    curves = {"own subnetwork, frozen": ("subnetworks", [run["matrix"] for run in runs])}
    curves |= {"one network, fine-tuned": ("finetune", [run["finetune"]["matrix"] for run in runs])}
    for label, (kind, matrices) in curves.items():
        scores = torch.tensor([[row[0] for row in matrix] for matrix in matrices])  # (seeds, stages)
        panel.plot(range(1, scores.shape[1] + 1), scores.mean(0), "o-", markersize=4, color=COLOURS[kind], label=label)
    panel.set_xlabel("tasks learned so far")
    panel.set_ylabel("test accuracy on task 1")
    panel.set_ylim(0, 1.03)
    panel.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
    panel.set_title("Permuted MNIST: task 1 while 9 more are learned", fontsize=10)


if __name__ == "__main__":
    draw(FIGURE)
