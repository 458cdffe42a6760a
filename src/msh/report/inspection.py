"""What run folders and files hold, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from msh.files.plans import read_plan
from msh.files.state_file import read_state
from msh.recipes import outline
from msh.report.table import new_console
from msh.runs.colours import colours_of
from msh.runs.facts import RunFacts, read_run
from msh.runs.groups import in_groups
from msh.runs.ownership import private_count, used_by_task
from msh.runs.words import bytes_of, number, share
from msh.subnetworks import Capacity, NetworkState
from msh.subnetworks.roles import find_roles

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
    file = read_state(path)
    title = f"{path.name}: {file.kind}, {bytes_of(path.stat().st_size)}"
    if file.kind == "subnetwork":
        _print_subnetwork(title, file.state, everything, console)
    else:
        state = read_plan(path).state if file.kind == "plan" else file.state
        _print_ownership(title, state, everything, console)


def print_parameters(path: Path, console: Console | None = None) -> None:
    """Print the role of each tensor of a backbone, and why: prunable, private or shared.

    Args:
        path: run folder; or network, subnetwork or plan file.
        console: to print on.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another kind.
    """
    console = console or new_console()
    state = read_state(path / "network.safetensors" if path.is_dir() else path).state
    table = Table()
    for name in ("tensor", "shape", "role", "why"):
        table.add_column(name, no_wrap=name != "why")
    for name, shape, role, why in _roles(state):
        table.add_row(escape(name), " × ".join(map(str, shape)) or "1", role, escape(why))
    console.print(table)


def _roles(state: NetworkState) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """(name, shape, role, reason) of a backbone's tensors; no reason where the backbone cannot be built again."""
    shapes = {name: tuple(tensor.shape) for name, tensor in (state.owners | state.defaults).items()}
    try:
        found = {role.name: role for role in find_roles(outline(state.recipe, "the backbone"))} if state.recipe else {}
    except ValueError:  # of code that is not msh's: the roles are known all the same
        found = {}
    for name in [*found, *(name for name in shapes if name not in found)]:
        role = found.get(name)
        kind = "prunable" if name in state.owners else "shared" if name in state.shared else "private"
        if role is not None and name not in shapes:
            kind = role.kind
        why = "" if role is None else role.why if role.kind == kind else f"chosen by `prunable` ({role.why})"
        yield name, shapes.get(name, () if role is None else tuple(role.shape)), kind, why


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
    title: str, ownership: NetworkState, everything: bool, console: Console, facts: RunFacts | None = None
) -> None:
    total, colours = ownership.total(), colours_of([*ownership.tasks])
    console.print(_tasks_table(facts, ownership))
    tree = Tree(_line(title, total, colours))
    layers = ownership.capacity()
    for group in in_groups([layer.name for layer in layers], len(layers) if everything else LAYERS):
        members = [layers[place] for place in group.places]
        together = members[0] if len(members) == 1 else Capacity.together(group.name, members)
        shape = " × ".join(map(str, together.shape)) if len(members) == 1 else f"{len(members)} layers"
        branch = tree.add(_line(f"{group.name} ({shape})", together, colours))
        for name, count, colour in _owners(together, colours, len(total.owned) if everything else TASKS):
            branch.add(Text(f"{name} {count:,}, {share(count, together.size)}", style=colour))
    console.print(tree)


def _owners(layer: Capacity, colours: Mapping[str, str], most: int) -> list[tuple[str, int, str]]:
    """(name, weights, colour) of a layer's owners, neighbours together where there are more than so many."""
    tasks = list(layer.owned)
    found = []
    for group in in_groups(tasks, max(most, 1)):
        members = [tasks[place] for place in group.places]
        found.append((group.name, sum(layer.owned[task] for task in members), colours[members[0]]))
    return [row for row in found if row[1]]


def _line(title: str, layer: Capacity, colours: Mapping[str, str]) -> Text:
    """A layer in a line: its name, a bar in which each task has its share, and numbers."""
    text, done, filled = Text(title + "  "), 0, 0
    for task, count in layer.owned.items():
        done += count
        until = round(BAR * done / layer.size) if layer.size else 0
        text.append("█" * (until - filled), style=colours[task])
        filled = until
    text.append("░" * (BAR - filled), style="dim")
    return text.append(f"  {layer.size:,} weights, {share(layer.size - layer.free, layer.size)} owned")


def _tasks_table(facts: RunFacts | None, ownership: NetworkState | None) -> Table:
    """A line for each task: whose it is, how much it owns and reads, and what a run folder knows besides."""
    table = Table()
    for name in ("task", "id", "phase", "density", "weights", "private", "reads", "test", "file"):
        if facts is not None or name not in ("test", "file"):
            words = name in ("task", "phase", "reads")
            table.add_column(name, justify="left" if words else "right", no_wrap=name != "reads")
    entries = ownership.tasks if ownership else {}
    uses = used_by_task(ownership) if ownership else {}
    total = ownership.total() if ownership else Capacity("", (), {}, 0)
    for task in facts.tasks if facts else list(entries):
        row = ["", "not learned", "", "", "", ""]
        if entry := entries.get(task):
            used, private = uses[task], private_count(entry)
            weights = total.owned[task]
            read = {name: count for name, count in used.items() if name != task and count}
            reads = ", ".join(f"{name} {count:,}" for name, count in read.items())
            if len(read) > NAMED:
                reads = f"{len(read)} tasks, {sum(read.values()):,}"
            density = f"{weights / total.size:.3f}" if total.size else ""
            own = "" if private is None else f"{private:,}"
            row = [str(entry.owner), entry.phase, density, f"{weights:,}", own, reads]
        table.add_row(escape(task), *row, *(_known_of(facts, task) if facts else []))
    return table


def _known_of(facts: RunFacts, task: str) -> list[str]:
    found = facts.results.tasks.get(task)
    size = facts.files.get(str(Path("subnetworks") / f"{task}.safetensors"))
    score = f"{found.metric} {number(found.test)}" if found is not None and found.test is not None else ""
    return [score, "" if size is None else bytes_of(size)]


def _print_subnetwork(title: str, state: NetworkState, everything: bool, console: Console) -> None:
    """Print the one task of a subnetwork file."""
    (entry,) = state.tasks.values()
    sizes, kept = state.sizes(), {layer.name: layer.taken for layer in state.capacity()}
    read = {name: int(state.read_mask(entry.name, name).sum()) for name in entry.reading}
    private = private_count(entry)
    tree = Tree(
        Text(f"{title}: task {entry.name}, {_kept(sizes, kept, read, list(sizes))}, {private:,} private values")
    )
    for group in in_groups(list(sizes), len(sizes) if everything else LAYERS):
        members = [list(sizes)[place] for place in group.places]
        tree.add(Text(f"{group.name}  {_kept(sizes, kept, read, members)}"))
    if entry.reads:
        tree.add(Text(f"reads {', '.join(entry.reads)}"))
    tree.add(Text(f"digest {entry.digest}"))
    console.print(tree)


def _kept(sizes: Mapping[str, int], kept: Mapping[str, int], read: Mapping[str, int], names: Sequence[str]) -> str:
    size, own, others = (sum(counts.get(name, 0) for name in names) for counts in (sizes, kept, read))
    density = f"{own / size:.3f}" if size else "0"
    return f"{own:,} of {size:,} weights, density {density}" + (f", reads {others:,}" if others else "")
