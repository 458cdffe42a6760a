"""Write pages: one file each, which opens without a network."""

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
from msh.report.plots import Plot
from msh.runs.colours import FREE_COLOUR, MANY
from msh.runs.tables import Table

REPORT = "report.html"
"""Name of a run's page in its folder."""

NAMED = 12
"""Most tasks that a legend names."""


@dataclass(frozen=True)
class Legend:
    """Colours in figures.

    Attributes:
        names: name to colour.
        tasks: the names are tasks, which a click finds on the page, except "free".
        ramp: its colours, for many names; then `names` has the few others.
        ends: names at the ramp's ends.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    tasks: bool = False
    ramp: Sequence[str] = ()
    ends: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Code:
    """Text to copy, folded under a summary; `marked` is the same text with highlighting, as HTML."""

    summary: str
    text: str
    marked: Markup | None = None
    open: bool = True


@dataclass(frozen=True)
class Section:
    """A section on a page; empty fields are left out."""

    key: str
    title: str
    lead: str = ""
    legend: Legend | None = None
    plots: Sequence[Plot] = ()
    tables: Sequence[Table[Any]] = ()
    code: Sequence[Code] = ()
    maps: Sequence[Mapping[str, Any]] = ()
    images: Sequence[tuple[str, str]] = ()
    """(data URI, caption) of each."""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: the heading.
        subtitle: below it.
        tiles: (name, value), the most important numbers.
        sections: its parts.
        notes: a sentence for each missing or unfinished part.
        verdict: says that nothing was forgotten, or how often the guarantee was violated.
        good: the verdict is good.
        tasks: names, in the order in which owner maps number them from 1.
        find: noun for the rows that the search field finds.
        source: origin, for the footer.
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
    """Make the legend for tasks.

    Args:
        colours: task to its colour.
        free: the figures show free weights too.
    """
    others = {"free": FREE_COLOUR} if free else {}
    if len(colours) > NAMED:
        tasks = list(colours)
        return Legend(others, ramp=MANY, ends=(tasks[0], tasks[-1]))
    return Legend({**colours, **others}, tasks=True)


def write_page(path: Path, page: Page) -> None:
    """Write a page as one self-contained file.

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
