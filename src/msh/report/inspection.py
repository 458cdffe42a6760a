"""Print summaries: run folders, network, subnetwork and plan files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from msh.files.header import holdings_in
from msh.report.terminal import new_console
from msh.runs.colours import colours_of
from msh.runs.facts import RunFacts, read_run
from msh.runs.groups import in_groups
from msh.runs.tables import Column, Table
from msh.runs.words import abbreviated, number, shape_of, share
from msh.subnetworks.description import Capacity, Holdings

if TYPE_CHECKING:
    from msh.recipes import Constructors
    from msh.subnetworks.modules import BackboneFacts, ModuleFacts
    from msh.subnetworks.state import NetworkState

LAYERS, TASKS = 20, 8
"""Most layers, and tasks of a layer, that have a line each."""
NAMED, BAR = 3, 20
"""Most tasks to name among those that a task reads; letters of a bar."""


def print_folder_or_file(path: Path, everything: bool = False, console: Console | None = None) -> None:
    """Print tasks, densities, sizes, reads, and each layer's capacity.

    Args:
        path: run folder, finished or not; or network, subnetwork or plan file.
        everything: print a line for every layer and task.
        console: to print on.
    Raises:
        FileNotFoundError: there is no such file, or the folder is not a run folder.
        ValueError: the file is damaged or has another kind, or results.json has a later schema version.
    """
    console = console or new_console()
    if path.is_dir():
        _print_run(read_run(path, tensors=False), everything, console)
        return
    kind, holdings = holdings_in(path)
    title = f"{path.name}: {kind}, {decimal(path.stat().st_size)}"
    if kind == "subnetwork":
        _print_subnetwork(title, holdings, everything, console)
    else:
        _print_ownership(title, holdings, everything, console)


def print_parameters(path: Path, console: Console | None = None) -> None:
    """Print each backbone tensor's role, prunable, private or shared, with the reason.

    Args:
        path: run folder; or network, subnetwork or plan file.
        console: to print on.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has another kind.
    """
    print_table(tensors_table(_roles(_read(path))), console=console)


def print_modules(path: Path, console: Console | None = None, classes: Constructors | None = None) -> None:
    """Print each backbone module's role, weights, granularities and FLOPs.

    Args:
        path: run folder; or network, subnetwork or plan file.
        console: to print on.
        classes: constructors of other code that the file names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has another kind, or does not say how to build its backbone.
    """
    facts = modules_in(_read(path), path, classes)
    print_table(modules_table(facts), facts.note, console)


def print_table(table: Table[Any], note: str = "", console: Console | None = None) -> None:
    """Print a table in 80 columns or more, and a note below it."""
    console = console or new_console()
    table.print(console)
    if note:
        console.print(note, markup=False, highlight=False)


def _read(path: Path) -> NetworkState:
    from msh.files.state_file import read_state

    return read_state(path / "network.safetensors" if path.is_dir() else path).state


def tensors_table(rows: Iterable[tuple[str, Sequence[int], str, str]]) -> Table[Any]:
    """Make a table of a backbone's tensors: (name, shape, role, reason) of each."""
    columns: list[Column[Any]] = [
        Column("tensor", lambda row: row[0], words=True),
        Column("shape", lambda row: shape_of(row[1]) or "1", words=True),
        Column("role", lambda row: row[2], words=True),
        Column("why", lambda row: row[3], words=True),
    ]
    return Table("tensors", columns, list(rows))


def modules_table(facts: BackboneFacts, summary: str = "") -> Table[ModuleFacts]:
    """Make a table of a backbone's modules, with the sums; a page folds it under a summary."""
    columns: list[Column[ModuleFacts]] = [
        Column("module", lambda row: row.name, words=True),
        Column("role", lambda row: row.role, words=True),
        Column("weights", lambda row: row.weights or None, ","),
        Column("private", lambda row: row.private or None, ","),
        Column("shared", lambda row: row.shared or None, ",", optional=True),
        Column("granularity", lambda row: ", ".join(row.granularities), words=True),
        Column("flops", lambda row: row.flops or None, abbreviated, "FLOPs"),
    ]
    return Table("modules", columns, [*facts.modules, facts.total], summary=summary)


def modules_in(state: NetworkState, path: Path, classes: Constructors | None = None) -> BackboneFacts:
    """Describe the modules of a state's backbone.

    Args:
        state: has the backbone's recipe.
        path: its file, for messages.
        classes: constructors of other code that the file names.
    Raises:
        ValueError: it has no recipe, or one of other code.
    """
    from msh.inference.rebuilding import backbone_of
    from msh.subnetworks.modules import describe_modules

    return describe_modules(backbone_of(path, state, classes), list(state.owners))


def _roles(state: NetworkState) -> Iterator[tuple[str, tuple[int, ...], str, str]]:
    """Yield (name, shape, role, reason) per backbone tensor; no reason if the backbone cannot be rebuilt."""
    from msh.recipes import outline
    from msh.subnetworks.roles import find_roles

    shapes = {name: tuple(tensor.shape) for name, tensor in (state.owners | state.defaults).items()}
    try:
        roles = {role.name: role for role in find_roles(outline(state.recipe, "the backbone"))} if state.recipe else {}
    except ValueError:  # the backbone is not msh's code; the state has the roles, without reasons
        roles = {}
    for name in [*roles, *(name for name in shapes if name not in roles)]:
        role = roles.get(name)
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
    if facts.holdings is None:
        _tasks_table(facts, None).print(console)
        return
    size = facts.files["network.safetensors"]
    _print_ownership(f"network.safetensors, {decimal(size)}", facts.holdings, everything, console, facts)


def _print_ownership(
    title: str, holdings: Holdings, everything: bool, console: Console, facts: RunFacts | None = None
) -> None:
    total, colours = holdings.total, colours_of([*holdings.tasks])
    _tasks_table(facts, holdings).print(console)
    tree = Tree(_line(title, total, colours))
    layers = holdings.layers
    for group in in_groups([layer.name for layer in layers], len(layers) if everything else LAYERS):
        members = [layers[place] for place in group.places]
        together = members[0] if len(members) == 1 else Capacity.together(group.name, members)
        shape = shape_of(together.shape) if len(members) == 1 else f"{len(members)} layers"
        branch = tree.add(_line(f"{group.name} ({shape})", together, colours))
        for name, count, colour in _owners(together, colours, len(total.owned) if everything else TASKS):
            branch.add(Text(f"{name} {count:,}, {share(count, together.size)}", style=colour))
    console.print(tree)


def _owners(layer: Capacity, colours: Mapping[str, str], most: int) -> list[tuple[str, int, str]]:
    """Return (name, weights, colour) per owner of a layer; more than `most` are grouped."""
    tasks = list(layer.owned)
    owners = []
    for group in in_groups(tasks, max(most, 1)):
        members = [tasks[place] for place in group.places]
        owners.append((group.name, sum(layer.owned[task] for task in members), colours[members[0]]))
    return [owner for owner in owners if owner[1]]


def _line(title: str, layer: Capacity, colours: Mapping[str, str]) -> Text:
    """Describe a layer in a line: its name, a bar that its owners share, and numbers."""
    text, done, filled = Text(title + "  "), 0, 0
    for task, count in layer.owned.items():
        done += count
        until = round(BAR * done / layer.size) if layer.size else 0
        text.append("█" * (until - filled), style=colours[task])
        filled = until
    text.append("░" * (BAR - filled), style="dim")
    return text.append(f"  {layer.size:,} weights, {share(layer.size - layer.free, layer.size)} owned")


def _tasks_table(facts: RunFacts | None, holdings: Holdings | None) -> Table[str]:
    """Make a table: weights and reads per task; for a run folder, test score and file size too."""
    entries, uses, size = (holdings.tasks, holdings.used, holdings.total.size) if holdings else ({}, {}, 0)
    private = holdings.private if holdings else {}

    def reads(task: str) -> str:
        read = {name: count for name, count in uses.get(task, {}).items() if name != task and count}
        if len(read) > NAMED:
            return f"{len(read)} tasks, {sum(read.values()):,}"
        return ", ".join(f"{name} {count:,}" for name, count in read.items())

    columns: list[Column[str]] = [
        Column("task", str, words=True),
        Column("id", lambda task: entries[task].owner if task in entries else None),
        Column("phase", lambda task: entries[task].phase if task in entries else "not learned", words=True),
        Column("density", lambda task: uses[task][task] / size if size and task in uses else None, ".3f"),
        Column("weights", lambda task: uses[task][task] if task in uses else None, ","),
        Column("private", private.get, ","),
        Column("reads", reads, words=True),
    ]
    if facts is None:
        return Table("tasks", columns, list(entries))

    def score(task: str) -> str | None:
        result = facts.results.tasks.get(task)
        return None if result is None or result.test is None else f"{result.metric} {number(result.test)}"

    columns += [Column("test", score), Column("file", facts.subnetwork_size, decimal)]
    return Table("tasks", columns, facts.tasks)


def _print_subnetwork(title: str, holdings: Holdings, everything: bool, console: Console) -> None:
    """Print a subnetwork file's task."""
    (entry,) = holdings.tasks.values()
    sizes = {layer.name: layer.size for layer in holdings.layers}
    owned = {layer.name: layer.taken for layer in holdings.layers}
    read, private = holdings.read.get(entry.name, {}), holdings.private[entry.name]

    def described(names: Sequence[str]) -> str:
        size, own, others = (sum(counts.get(name, 0) for name in names) for counts in (sizes, owned, read))
        density = f"{own / size:.3f}" if size else "0"
        return f"{own:,} of {size:,} weights, density {density}" + (f", reads {others:,}" if others else "")

    names = list(sizes)
    tree = Tree(Text(f"{title}: task {entry.name}, {described(names)}, {private:,} private values"))
    for group in in_groups(names, len(sizes) if everything else LAYERS):
        tree.add(Text(f"{group.name}  {described([names[place] for place in group.places])}"))
    if entry.reads:
        tree.add(Text(f"reads {', '.join(entry.reads)}"))
    tree.add(Text(f"digest {entry.digest}"))
    console.print(tree)
