"""Measure the growth of cost with weights, tasks and devices, against formulas, up to a thousand tasks.

    python -m benchmarks.scale [--tasks 10 100 1000] [--depth 3] [--only wire,masks,limits,tasks]

Writes the tables in docs/scale.md. Sizes are exact; seconds and memory are this machine's, on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks import fleet
from benchmarks.arguments import names_of, new_parser
from benchmarks.document import machine, replace_between, table
from benchmarks.networks import BACKBONES, begun, compact, dense, frozen
from benchmarks.storage import entropy
from benchmarks.timing import ROOT, fresh_process, whole_process
from msh.files.codec import encode_mask, encode_owners
from msh.files.plans import read_plan
from msh.files.state_file import read_state, save_network
from msh.subnetworks import MultiSubnetwork
from msh.subnetworks.tensors import wide_enough

DOCUMENT = ROOT / "docs" / "scale.md"
FLOAT = 4
"""Bytes per weight."""
HEADER = 100_000_000
"""Most bytes in the header of a safetensors file."""
Rows = list[dict[str, object]]


def wire(options: argparse.Namespace) -> Rows:
    """Count the bytes one DDP process contributes to the reduction in a step, beside the dense network's."""
    rows: Rows = []
    for name, backbone in BACKBONES.items():
        of_dense = trained_bytes(dense(backbone()))
        for phase, density in (("masked", 1.0), ("compact", 0.1), ("compact", 0.02)):
            if phase == "masked":
                network = MultiSubnetwork(backbone())
                begun(network, "0")
            else:
                network = compact(backbone(), density)
            sub = network.subnetwork("0")
            weights = sum(FLOAT * values.numel() for _, values in sub.values.items())
            found = trained_bytes(sub)
            rows.append(
                {
                    "network": name,
                    "task": phase,
                    "density": density,
                    "bytes of its weights": weights,
                    "bytes of private tensors": found - weights,
                    "bytes": found,
                    "dense network": of_dense,
                    "ratio": found / of_dense,
                }
            )
    return rows


def trained_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's gradients, which each step reduces."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def masks(options: argparse.Namespace) -> Rows:
    """Count the bits in masks and owner maps, beside their entropy."""
    size, rows = 4_000_000, []
    generator = torch.Generator().manual_seed(0)
    for parts in (10, 100, 254, 1_000, 10_000, 100_000):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=generator)[: size // parts]] = True
        owners = torch.arange(size) % parts + 1
        owners = owners[torch.randperm(size, generator=generator)]
        ids = wide_enough(torch.zeros(0, dtype=torch.uint8), parts)
        bits = 8 * encode_mask(mask).numel()
        map_bits = 8 * encode_owners(owners.to(ids.dtype)).numel() / size
        rows.append(
            {
                "tasks": parts,
                "mask, bits per kept weight": bits / (size // parts),
                "entropy": parts * entropy(1 / parts),
                "ratio": bits / (size * entropy(1 / parts)),
                "owner map, bits per weight": map_bits,
                "entropy of it": math.log2(parts),
                "ratio of it": map_bits / math.log2(parts),
                "bytes per id in memory": ids.element_size(),
            }
        )
    return rows


def limits(options: argparse.Namespace) -> Rows:
    """Compute the limits on the number of tasks in a network."""
    rows: Rows = []
    for name, backbone in BACKBONES.items():
        network = frozen(backbone(), 0.01, 2)
        sizes = network.sizes()
        private = sum(tensor.numel() for tensor in network.subnetwork("0").private_tensors().values())
        header = header_bytes(network) - header_bytes(frozen(backbone(), 0.01, 1))
        rows.append(
            {
                "network": name,
                "weights W": sum(sizes.values()),
                "private numbers p": private,
                "W / p": sum(sizes.values()) // private,
                "weights of the smallest tensor": min(sizes.values()),
                "bytes of the network file's header a task": header,
                "tasks until the header is full": HEADER // header,
            }
        )
    return rows


def header_bytes(network: MultiSubnetwork) -> int:
    """Return the bytes in a network file's header."""
    with tempfile.TemporaryDirectory() as folder:
        save_network(Path(folder) / "network", network, free_weights=False)
        with (Path(folder) / "network").open("rb") as file:
            return int.from_bytes(file.read(8), "little")


def tasks(options: argparse.Namespace) -> Rows:
    """Measure plans for many tasks: sizes beside formulas, and seconds; a column per plan."""
    found = {}
    for count in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            found[count] = apart(Path(folder), count, options.depth)
    return [
        {"what": what} | {f"{count:,} tasks": row[what] for count, row in found.items()}
        for what in found[options.tasks[0]]
    ]


def apart(folder: Path, count: int, depth: int) -> dict[str, object]:
    """Plan many tasks, write their files, train one of them for real, merge and load.

    Args:
        folder: for all files.
        count: number of tasks.
        depth: layers in the network.
    """
    steps = {step: _step(step, folder, count, depth) for step in ("plan", "files")}
    job, same = _job(folder, count, depth)
    steps |= {step: _step(step, folder, count, depth) for step in ("merge", "fleet", "load")}
    steps["fleet again"] = _step("fleet", folder, count, depth)
    formula = expected(folder, count)
    sizes = {
        "plan": (folder / "plan").stat().st_size,
        "file": fleet.part(folder, fleet.task_names(count)[-1]).stat().st_size,
        "network": (folder / "network").stat().st_size,
    }
    row: dict[str, object] = {"W: weights": formula["weights"], "k: weights of one task": formula["own"]}
    row["p: private numbers of one task"] = formula["private"]
    for name, label in (("plan", "plan"), ("file", "file of one task"), ("network", "merged network")):
        row |= {f"{label}, bytes": sizes[name], f"{label}, bytes / formula": sizes[name] / formula[name]}
    row["plan and file of one task / gradients of one dense step"] = (sizes["plan"] + sizes["file"]) / (
        FLOAT * (formula["weights"] + formula["private"])
    )
    row["train.py of one task, s"] = job
    row["its file has as many bytes as the untrained one"] = same
    for step in ("plan", "merge", "fleet", "fleet again", "load"):
        unit, taken = ("CPU s", steps[step]["cpu"]) if "fleet" in step else ("s", steps[step]["seconds"])
        row |= {f"{step}, {unit}": taken, f"{step}, ns per task and weight": 1e9 * taken / count / formula["weights"]}
        row[f"{step}, peak MB beyond what the process had before"] = steps[step]["bytes"] / 1e6
    return row


def expected(folder: Path, count: int) -> dict[str, float]:
    """Evaluate the formulas in docs/scale.md for the plan and one task."""
    task = fleet.task_names(count)[-1]
    state = read_state(fleet.part(folder, task), "subnetwork").state
    weights = sum(read_plan(folder / "plan").state.sizes().values())
    own = state.total().owned[task]
    private = sum(tensor.numel() for tensor in state.private(task).values())
    mask = sum(m.numel() * entropy(float(m.float().mean())) for m in state.owned(task).values()) / 8
    return {
        "weights": weights,
        "own": own,
        "private": private,
        "plan": weights * math.log2(count) / 8,
        "file": FLOAT * (own + private) + mask,
        "network": FLOAT * (weights + count * private) + weights * math.log2(count) / 8,
    }


def _step(step: str, folder: Path, count: int, depth: int) -> dict[str, float]:
    """Run a step in a separate process; return its seconds, CPU seconds and peak bytes beyond the start."""
    found: dict[str, float] = json.loads(fresh_process("benchmarks.fleet", step, folder, count, depth, environment={}))
    return found


def _job(folder: Path, count: int, depth: int) -> tuple[float, bool]:
    """Train the last task and replace its file; return (wall seconds, same file size as before)."""
    task = fleet.task_names(count)[-1]
    command = [sys.executable, "train.py", "+experiment=sequential", *fleet.overrides(count, depth)]
    command += [f"plan={folder / 'plan'}", f"task={task}", f"hydra.run.dir={folder / 'run'}"]
    taken, _ = whole_process(command, 1)
    own = fleet.part(folder / "run", task)
    same = own.stat().st_size == fleet.part(folder, task).stat().st_size
    own.replace(fleet.part(folder, task))
    return taken, same


TABLES: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "wire": wire,
    "masks": masks,
    "limits": limits,
    "tasks": tasks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--only", type=names_of(TABLES), default=list(TABLES), help="tables, separated by commas")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--depth", type=int, default=3, help="layers of the network, 1000 wide")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(1)
    for name in options.only:
        rows = TABLES[name](options)
        text = table(rows, list(rows[0]))
        replace_between(options.document, f"<!-- table: scale {name} -->", f"{machine('cpu')}\n\n{text}")
        print(text)


if __name__ == "__main__":
    main()
