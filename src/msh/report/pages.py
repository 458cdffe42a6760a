"""Pages that open from a disk: one file each, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.embed import json_item
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import msh
from msh.files.atomic import write_text
from msh.report.maps import FREE_COLOUR
from msh.report.plots import Plot
from msh.runs.colours import FEW, RAMP


@dataclass(frozen=True)
class Row:
    """A line of a table; its first cell heads it.

    Attributes:
        cells: of the table's columns.
        task: by which it is found.
        colour: of the mark before its first cell.
        link: from its first cell.
        best: columns whose cells stand out.
    """

    cells: Sequence[str]
    task: str = ""
    colour: str = ""
    link: str = ""
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        label: what it holds.
        columns: their names.
        rows: its lines.
        words: so many columns from the left hold words, the others numbers.
        summary: the table is folded away under this.
        long: whether cells may take several lines.
    """

    label: str
    columns: Sequence[str]
    rows: Sequence[Row]
    words: int = 1
    summary: str = ""
    long: bool = False


@dataclass(frozen=True)
class Legend:
    """What colours mean.

    Attributes:
        names: (name, colour, whether it is a task that can be found), where each has its own.
        ramp: colours of a ramp, where there are many.
        first: name at its start.
        last: name at its end.
        free: colour of what is free, with a ramp.
    """

    names: Sequence[tuple[str, str, bool]] = ()
    ramp: str = ""
    first: str = ""
    last: str = ""
    free: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy, folded under a summary; `marked` is the same with marks, as HTML."""

    summary: str
    text: str
    marked: Markup | None = None
    open: bool = True


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is left out."""

    key: str
    title: str
    lead: str = ""
    legend: Legend | None = None
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    code: Sequence[Code] = ()
    maps: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Page:
    """All of a page.

    Attributes:
        title: of the page.
        subtitle: below it.
        notes: what is missing or not finished.
        verdict: whether anything was forgotten.
        good: whether the verdict is a good one.
        tiles: (what, figure) of the most important figures.
        sections: its parts.
        tasks: names of the tasks, as owner maps number them from 1.
        find: what the field at the top finds: a task, or what rows are named for instead.
        source: what it was made from.
    """

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    verdict: str = ""
    good: bool = True
    tasks: Sequence[str] = field(default_factory=list)
    find: str = "task"
    source: str = ""


def legend_of(colours: Mapping[str, str], free: bool = False) -> Legend:
    """What the tasks' colours mean.

    Args:
        colours: task to its colour.
        free: whether what no task owns is drawn too.
    """
    if len(colours) > len(FEW):
        ends = list(colours)
        return Legend(ramp=", ".join(RAMP), first=ends[0], last=ends[-1], free=FREE_COLOUR if free else "")
    names = [(task, colour, True) for task, colour in colours.items()]
    return Legend([*names, ("free", FREE_COLOUR, False)] if free else names)


def write_page(path: Path, page: Page) -> None:
    """Write a page as one file that needs no other, nor a network.

    Raises:
        OSError: it cannot be written.
    """
    environment = Environment(loader=PackageLoader("msh.report", "page"), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # models refer to models that came before
    plots = [plot for section in page.sections for plot in section.plots]
    items: dict[str, Any] = {plot.key: json_item(plot.figure) for plot in plots}
    maps = [row for section in page.sections for row in section.maps]
    if maps:
        items["maps"] = {"tasks": list(page.tasks), "maps": maps}
    text = environment.get_template("page.html.j2").render(
        page=page,
        items=items,
        version=msh.__version__,
        style=Markup(_file("style.css")),
        script=Markup(_file("page.js")),
        libraries=[Markup(part) for part in Resources("inline", components=["bokeh"], log_level="warn").js_raw],
    )
    write_text(path, text)


def _file(name: str) -> str:
    return (files("msh.report") / "page" / name).read_text(encoding="utf-8")
