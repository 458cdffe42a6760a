"""What run folders and files hold, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from msh.deploy.files import NETWORK_FORMAT, SUBNETWORK_FORMATS, read_metadata, read_subnetwork
from msh.deploy.plans import PLAN_FORMAT, read_plan
from msh.reports.colours import colours_of
from msh.reports.facts import RunFacts, read_run
from msh.reports.groups import in_groups
from msh.reports.ownership import LayerCapacity, Ownership, planned_ownership, read_ownership
from msh.reports.table import new_console
from msh.reports.words import bytes_of, number, share
from msh.subnetworks import Part

LAYERS, TASKS = 20, 8
"""Layers, and tasks of a layer, up to which each has a line of its own."""
NAMED = 3
"""Tasks that another reads up to which each is named."""
BAR = 20
"""Width of a bar, in characters."""


def print_folder_or_file(path: Path, everything: bool = False, console: Console | None = None) -> None:
    """Print tasks, densities, sizes, who reads whom, and capacity per layer as a tree.

    Args:
        path: run folder, finished or not; or network, subnetwork or plan file.
        everything: every layer and task has a line, however many there are.
        console: to print on.
    Raises:
        FileNotFoundError: there is no such file, or the folder is not a run folder.
        ValueError: the file is damaged or of another kind, or results.json is of a later schema version.
    """
    console = console or new_console()
    if path.is_dir():
        _print_run(read_run(path), everything, console)
        return
    size, kind = path.stat().st_size if path.is_file() else 0, read_metadata(path).get("format")
    if kind == NETWORK_FORMAT:
        _print_ownership(f"{path.name}: network, {bytes_of(size)}", read_ownership(path), everything, console)
    elif kind == PLAN_FORMAT:
        plan = read_plan(path)
        _print_ownership(f"{path.name}: plan, {bytes_of(size)}", planned_ownership(plan), everything, console)
    elif kind in SUBNETWORK_FORMATS:
        _print_part(f"{path.name}: subnetwork, {bytes_of(size)}", read_subnetwork(path), everything, console)
    else:
        raise ValueError(f"{path} is none of network, subnetwork and plan file: its format is {kind!r}")


def _print_run(facts: RunFacts, everything: bool, console: Console) -> None:
    results = facts.results
    console.print(f"{escape(results.experiment)}, seed {results.seed}: {results.status}", style="bold", highlight=False)
    for note in facts.notes:
        console.print(escape(note), style="red", highlight=False)
    if facts.ownership is None:
        console.print(_tasks_table(facts, None))
        return
    size = facts.files["network.safetensors"]
    _print_ownership(f"network.safetensors, {bytes_of(size)}", facts.ownership, everything, console, facts)


def _print_ownership(
    title: str, ownership: Ownership, everything: bool, console: Console, facts: RunFacts | None = None
) -> None:
    total, colours = ownership.total, colours_of(ownership.tasks)
    console.print(_tasks_table(facts, ownership))
    tree = Tree(_line(title, total, colours))
    layers = ownership.capacity
    for group in in_groups([layer.name for layer in layers], len(layers) if everything else LAYERS):
        members = [layers[place] for place in group.places]
        together = members[0] if len(members) == 1 else LayerCapacity.together(group.name, members)
        shape = " × ".join(map(str, together.shape)) if len(members) == 1 else f"{len(members)} layers"
        branch = tree.add(_line(f"{group.name} ({shape})", together, colours))
        for name, count, colour in _owners(together, colours, len(total.owned) if everything else TASKS):
            branch.add(Text(f"{name} {count:,}, {share(count, together.size)}", style=colour))
    console.print(tree)


def _owners(layer: LayerCapacity, colours: Mapping[str, str], most: int) -> list[tuple[str, int, str]]:
    """(name, weights, colour) of a layer's owners, neighbours together where there are more than so many."""
    tasks = list(layer.owned)
    found = []
    for group in in_groups(tasks, max(most, 1)):
        members = [tasks[place] for place in group.places]
        found.append((group.name, sum(layer.owned[task] for task in members), colours[members[0]]))
    return [row for row in found if row[1]]


def _line(title: str, layer: LayerCapacity, colours: Mapping[str, str]) -> Text:
    """A layer in a line: its name, a bar in which each task has its share, and numbers."""
    text, done, filled = Text(title + "  "), 0, 0
    for task, count in layer.owned.items():
        done += count
        until = round(BAR * done / layer.size) if layer.size else 0
        text.append("█" * (until - filled), style=colours[task])
        filled = until
    text.append("░" * (BAR - filled), style="dim")
    return text.append(f"  {layer.size:,} weights, {share(layer.size - layer.free, layer.size)} owned")


def _tasks_table(facts: RunFacts | None, ownership: Ownership | None) -> Table:
    """A line for each task: whose it is, how much it owns and reads, and what a run folder knows besides."""
    table = Table()
    for name in ("task", "id", "phase", "density", "weights", "private", "reads", "test", "file"):
        if facts is not None or name not in ("test", "file"):
            words = name in ("task", "phase", "reads")
            table.add_column(name, justify="left" if words else "right", no_wrap=name != "reads")
    owners = {owner.task: owner for owner in ownership.owners} if ownership else {}
    for task in facts.tasks if facts else list(owners):
        row = ["", "not learned", "", "", "", ""]
        if ownership is not None and (owner := owners.get(task)):
            total, used = ownership.total, ownership.used[task]
            weights = total.owned[task]
            read = {name: count for name, count in used.items() if name != task and count}
            reads = ", ".join(f"{name} {count:,}" for name, count in read.items())
            if len(read) > NAMED:
                reads = f"{len(read)} tasks, {sum(read.values()):,}"
            private = "" if owner.private is None else f"{owner.private:,}"
            density = f"{weights / total.size:.3f}" if total.size else ""
            row = [str(owner.id), owner.phase, density, f"{weights:,}", private, reads]
        table.add_row(escape(task), *row, *(_known_of(facts, task) if facts else []))
    return table


def _known_of(facts: RunFacts, task: str) -> list[str]:
    found = facts.results.tasks.get(task)
    size = facts.files.get(str(Path("subnetworks") / f"{task}.safetensors"))
    score = f"{found.metric} {number(found.test)}" if found is not None and found.test is not None else ""
    return [score, "" if size is None else bytes_of(size)]


def _print_part(title: str, part: Part, everything: bool, console: Console) -> None:
    """A task in a file of its own."""
    sizes = {name: mask.numel() for name, mask in part.masks.items()}
    kept = {name: int(mask.sum()) for name, mask in part.masks.items()}
    read = {name: int(mask.sum()) for name, mask in part.reading.items()}
    private = sum(tensor.numel() for tensor in part.private.values() if tensor.is_floating_point())
    tree = Tree(Text(f"{title}: task {part.task}, {_kept(sizes, kept, read, list(sizes))}, {private:,} private values"))
    for group in in_groups(list(sizes), len(sizes) if everything else LAYERS):
        members = [list(sizes)[place] for place in group.places]
        tree.add(Text(f"{group.name}  {_kept(sizes, kept, read, members)}"))
    if part.reads:
        tree.add(Text(f"reads {', '.join(part.reads)}"))
    tree.add(Text(f"digest {part.digest}"))
    console.print(tree)


def _kept(sizes: Mapping[str, int], kept: Mapping[str, int], read: Mapping[str, int], names: Sequence[str]) -> str:
    size, own, others = (sum(counts.get(name, 0) for name in names) for counts in (sizes, kept, read))
    density = f"{own / size:.3f}" if size else "0"
    return f"{own:,} of {size:,} weights, density {density}" + (f", reads {others:,}" if others else "")
