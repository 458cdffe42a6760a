"""Rows 7, 8 and 20: memory per task, time to switch between tasks, and memory of a training step."""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch

from benchmarks.networks import BACKBONES, FC, SHAPES, begun, dense, drawn, frozen, pruned, training_step
from benchmarks.others import DENSITY as SHARE
from benchmarks.others import NETWORKS, compact_task, inputs_of
from benchmarks.records import Record
from benchmarks.timing import FROM_THE_SYSTEM, Settings, fresh_process, seconds, take_turns
from msh.subnetworks import MultiSubnetwork

DENSITY = 0.02
"""Density of each task in row 7: fifty fill the network."""


def memory(settings: Settings) -> Iterator[Record]:
    """Measure row 7."""
    yield from _state(settings)
    if not settings.quick:  # fifteen processes
        yield from _peaks(settings)


def _state(settings: Settings) -> Iterator[Record]:
    backbone = BACKBONES[FC]()
    of_dense = sum(p.numel() * p.element_size() for p in backbone.parameters() if p.dim() > 1)
    for tasks in settings.cases((1, 5, 10, 50), (1, 10)):
        network = frozen(BACKBONES[FC](), DENSITY, tasks)
        what = (
            f"bytes of all tensors of a network with {tasks} frozen tasks of {DENSITY:.0%} / bytes of the weights of "
            f"one dense network, {FC}; heads, biases and norms apart"
        )
        ratio = shared_bytes(network) / of_dense
        yield settings.record(f"7-state{tasks}", what, ratio, "ratio (dense in bytes)", of_dense, 1)


def shared_bytes(network: MultiSubnetwork) -> int:
    """Count the bytes of a network's tensors, without private ones (head, stem, biases, norms)."""
    own = {id(network.backbone.get_buffer(name)) for name in (*network.names.parameters, *network.names.buffers)}
    for sub in map(network.subnetwork, network.tasks):
        for part in (sub.head, sub.stem, sub.private):
            own |= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
    found = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers()) if id(tensor) not in own}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def _peaks(settings: Settings) -> Iterator[Record]:
    cases, rounds = (1, 5, 10, 50), settings.repeats or 3
    bytes_of: dict[int, list[int]] = {tasks: [] for tasks in (0, *cases)}
    heap: dict[int, list[int]] = {tasks: [] for tasks in (cases[0], cases[-1])}
    for _ in range(rounds):
        for tasks, peaks in bytes_of.items():
            peaks.append(_peak_of_process(tasks, settings.threads, FROM_THE_SYSTEM))
        for tasks, peaks in heap.items():
            peaks.append(_peak_of_process(tasks, settings.threads, {}))
    middle = {tasks: statistics.median(peaks) for tasks, peaks in bytes_of.items()}
    on_heap = {tasks: statistics.median(peaks) for tasks, peaks in heap.items()}
    what = (
        "peak resident memory of a process that trains task {} of {:.0%} (all earlier ones frozen in "
        f"the same network) / of one that trains task 1, {FC}, batch 128, Adam"
    )
    for tasks in cases:
        ratio, of_dense = middle[tasks] / middle[1], middle[0]
        unit = "ratio (dense in bytes)"
        yield settings.record(f"7-peak{tasks}", what.format(tasks, DENSITY), ratio, unit, of_dense, rounds)
    ratio = on_heap[cases[-1]] / on_heap[1]
    label = f"the same with malloc as it is by default: what its heap leaves in pieces counts; task {cases[-1]}"
    yield settings.record("7-peak-heap", label, ratio, "ratio (task 1 in bytes)", on_heap[1], rounds)


def _peak_of_process(tasks: int, threads: int, environment: dict[str, str]) -> int:
    return int(fresh_process("benchmarks.memory", tasks, threads, environment=environment))


def train_one(tasks: int) -> None:
    """Train the last task for a few steps while dense, then while compact; 0 tasks: a dense network."""
    data = drawn(SHAPES[FC], 128)
    if tasks == 0:
        steps(training_step(dense(BACKBONES[FC]()), data))
        return
    network = frozen(BACKBONES[FC](), DENSITY, tasks - 1)
    begun(network, "last")
    steps(training_step(network, data))
    pruned(network, "last", DENSITY)
    steps(training_step(network, data))
    network.freeze("last")


def steps(step) -> None:
    for _ in range(5):
        step()


def peak() -> int:
    """Return this process's peak resident bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def switching(settings: Settings) -> Iterator[Record]:
    """Measure row 8."""
    tasks, rounds = 10, settings.rounds(30)
    network = frozen(BACKBONES[FC](), 0.1, tasks, settings.device)
    model = dense(BACKBONES[FC](), settings.device).eval()
    one, many = (drawn(SHAPES[FC], batch, settings.device)[0] for batch in (1, 512))
    names, costs = cycle(network.tasks), {"8-switch": [], "8-build": []}
    with torch.no_grad():
        for _ in range(rounds + tasks):
            for case, taken in costs.items():
                network.activate(next(names) if case == "8-switch" else network.active)
                if case == "8-build":
                    network.forget_modules(network.active)
                first, second = (seconds(lambda: network(one), settings.device) for _ in range(2))
                taken.append(first - second)
        forward = take_turns({"dense": lambda: model(many)}, rounds, device=settings.device)["dense"]
    whats = {
        "8-switch": f"switching the active task of {tasks} frozen ones (activate and the first forward, less a second "
        "forward of the same)",
        "8-build": "building a frozen task's module (the first forward after it was forgotten, less a second)",
    }
    for case, taken in costs.items():
        cost, what = (
            statistics.median(taken[tasks:]),
            f"{whats[case]} / a forward of the dense network, {FC}, batch 512",
        )
        yield settings.record(case, what, cost / forward, "ratio (dense in ms)", 1e3 * forward, rounds)


# ---- row 20

STEPPED = {"fc": (FC, 128, BACKBONES[FC]), **NETWORKS}
"""Short name to (name, batch size, constructor)."""
KINDS = ("weight", "block", "unit")


def step_memory(settings: Settings) -> Iterator[Record]:
    """Measure row 20, in fresh processes."""
    rounds = settings.repeats or (1 if settings.quick else 3)
    for short, (name, batch, _) in STEPPED.items():
        taken: dict[str, list[int]] = {kind: [] for kind in ("dense", *KINDS)}
        for _ in range(rounds):
            for kind, peaks in taken.items():
                case = f"{short}-{kind}"
                peaks.append(
                    int(fresh_process("benchmarks.memory", case, settings.threads, environment=FROM_THE_SYSTEM))
                )
        middle = {kind: statistics.median(peaks) for kind, peaks in taken.items()}
        for kind in KINDS:
            what = (
                f"peak resident memory of training steps of a compact subnetwork of {SHARE:.0%} of the weights "
                f"(granularity: {kind}) / of the dense network, both less that of the imports, "
                f"{name}, batch {batch}, Adam"
            )
            of_dense, unit = middle["dense"], "ratio (dense in bytes)"
            yield settings.record(f"20-{short}-{kind}", what, middle[kind] / of_dense, unit, of_dense, rounds)


def peak_of_steps(short: str, kind: str) -> int:
    """Train a dense network or a compact task for some steps; return the peak beyond the memory of the imports."""
    _, batch, build = STEPPED[short]
    inputs = inputs_of(build(), batch, "cpu")
    before = resident()
    step = training_step(dense(build()) if kind == "dense" else compact_task(build(), kind, "cpu"), inputs)
    steps(step)
    gc.collect()  # what pruning has left
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    steps(step)
    return peak() - before


def resident() -> int:
    """Return this process's resident bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # as runs do
    torch.set_num_threads(int(sys.argv[2]))
    if sys.argv[1].isdigit():
        train_one(int(sys.argv[1]))
        print(peak())
    else:
        print(peak_of_steps(*sys.argv[1].split("-")))
