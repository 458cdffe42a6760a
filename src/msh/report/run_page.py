"""Write a run's report.html."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import OmegaConf

from msh.recipes import own_names
from msh.report.inspection import modules_in, modules_table
from msh.report.pages import REPORT, Code, Legend, Page, Section, legend_of, write_page
from msh.report.plots import Drawn, Plot, chart_plot, curves_plot, owner_maps, scores_plot, sparsity_plot
from msh.report.usage import Usage, usage_of
from msh.runs.colours import CHANGES, FEW, colours_of
from msh.runs.examples import FOLDER as EXAMPLES
from msh.runs.examples import Example, file_of
from msh.runs.facts import RunFacts, read_run
from msh.runs.results import Results, comparison
from msh.runs.score_tables import BASELINES, capacity_table, matrix_table, tasks_table
from msh.runs.tables import Column, Table
from msh.runs.words import counted, duration, listed, number, quantity, shortened
from msh.tracking.figures import capacity_chart, matrix_chart, overlap_chart

NETWORKS = dict(zip(("this network", *BASELINES), FEW, strict=False))
"""A run's network and its baselines, to their colours."""
TUNED = {"this network": NETWORKS["this network"], "fine-tuned": NETWORKS["finetune"]}
LABEL, MOST_TASKS, MOST_COLUMNS = 20, 24, 12
"""Most letters of a stage's name in a matrix; most tasks of a matrix, and of capacity, as tables."""
HERE = "."
"""The run folder, for code that runs in it: the folder may be moved."""
MOST_LETTERS, MOST_CELLS = 60, 6
"""Most letters of an example's text or cell, and most cells of its row, on the page."""
MOST_BYTES = 2**16
"""Of an example's image; a run's own are thumbnails."""


def write_report(folder: Path, path: Path | None = None) -> RunFacts:
    """Write a run's report; the run may be unfinished.

    Args:
        folder: the run folder.
        path: where it goes; report.html in the run folder when None.
    Returns:
        The facts in the report, with notes on missing parts.
    Raises:
        FileNotFoundError: it is not a run folder.
        LaterVersionError: results.json has a later schema version.
        OSError: the report cannot be written.
    """
    facts = read_run(folder)
    write_page(path or folder / REPORT, page_of(facts))
    return facts


def page_of(facts: RunFacts) -> Page:
    """Build a run's report."""
    results, colours = facts.results, colours_of(facts.tasks)
    sections = [
        _summary(facts, colours),
        _texts(results),
        _curves(facts, colours),
        _matrix(facts),
        *_ownership(facts, colours),
        _modules(facts),
        _sparsity(facts, colours),
        _forgetting(results, colours),
        _baselines(results),
        _examples(facts),
        _config(facts),
        _use(facts),
    ]
    took = f" · {duration(results.wall_seconds)}" if results.wall_seconds else ""
    return Page(
        title=results.experiment,
        subtitle=f"seed {results.seed} · {results.status}{took} · {facts.folder.name}",
        notes=facts.notes,
        verdict=_verdict(results),
        good=results.guarantee["violations"] == 0,
        tiles=_tiles(facts),
        sections=[section for section in sections if section],
        tasks=[*facts.holdings.tasks] if facts.holdings else [],
        source=f" from {facts.folder.name}",
    )


def _tiles(facts: RunFacts) -> list[tuple[str, str]]:
    """Make the tiles; a dash stands for values that results.json lacks."""
    results = facts.results
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    routed = results.router and [("of inputs without a task find it", f"{results.router['accuracy']:.1%}")]
    return [
        ("tasks learned", results.learned if results.tasks else "–"),
        ("mean forgetting", "–" if results.forgetting is None else f"{results.forgetting:g}"),
        (f"violations in {checked:,} comparisons", f"{violations:,}" if results.tasks else "–"),
        ("of the network is owned", "–" if results.owned is None else f"{results.owned:.1%}"),
        *(routed or []),
    ]


def _verdict(results: Results) -> str:
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    if violations:
        return f"The guarantee was violated: in {violations:,} of {checked:,} comparisons a frozen task had changed."
    if not checked:
        return ""
    so_far = "" if results.status == "finished" else " so far"
    how = "bit for bit" if not results.guarantee.get("rounded") else comparison(results.guarantee)
    return (
        f"Nothing was forgotten{so_far}: frozen tasks' outputs were compared with their records "
        f"{counted(checked, 'time')}, {how}, and none had changed."
    )


# ---- sections


def _summary(facts: RunFacts, colours: dict[str, str]) -> Section | None:
    results = facts.results
    if not results.tasks:
        return None
    reuse = any(task.weights_reused for task in results.tasks.values())
    names = ["task", "metric", "test", "val", *BASELINES, "forgetting", "density", "weights", "weights_reused"]
    names += ["weights_private", "flops", "file_size", "train_seconds"]
    sizes = {task: size for task in results.tasks if (size := facts.subnetwork_size(task)) is not None}
    table = tasks_table(results, names, True, sizes, colour=lambda task: colours.get(task, ""))
    lead = "Test scores are evaluated again after the last stage; ↑ more is better, ↓ less is. Private are the values "
    lead += "of head, stem, biases and norms" + ("; read are other tasks' weights." if reuse else ".")
    if any(task.flops for task in results.tasks.values()):
        lead += " FLOPs are those of a forward pass, as a share of the dense backbone's."
    return Section("tasks", "Tasks", lead, tables=[table])


def _texts(results: Results) -> Section | None:
    counted = {name: task.tokens for name, task in results.tasks.items() if task.tokens is not None}
    if not counted:
        return None
    rows = [(name, *(value for _, value in counts.facts)) for name, counts in counted.items()]
    columns = [Column[Any]("task", itemgetter(0), words=True)]
    facts = next(iter(counted.values())).facts
    columns += [Column(fact, itemgetter(place)) for place, (fact, _) in enumerate(facts, 1)]
    lead = "Tokens beyond a task's length are cut off, and unknown ones look alike to it; all splits together."
    return Section("texts", "Texts", lead, tables=[Table("Texts", columns, rows)])


def _curves(facts: RunFacts, colours: dict[str, str]) -> Section | None:
    plots: list[Plot] = []
    validation = facts.curves_of("val")
    for metric in dict.fromkeys(curve.quantity for curve in validation):
        drawn = [Drawn(c.task, colours[c.task], c) for c in validation if c.quantity == metric]
        plots.append(curves_plot(f"curves-{len(plots)}", metric, drawn))
    losses = [
        Drawn(f"{c.task} ({split})", colours[c.task], c)
        for split in ("train", "val")
        for c in facts.curves_of(split, "loss")
    ]
    if losses:
        plots.append(curves_plot("losses", "loss", losses))
    if not plots:
        return None
    lead = "On the validation split during training; losses on the training batches are dotted."
    return Section("curves", "Learning curves", lead, legend_of(colours), plots)


def _matrix(facts: RunFacts) -> Section | None:
    results = facts.results
    if all(score is None for row in results.matrix for score in row):
        return None
    labels = [
        name if len(name) <= LABEL else listed(stage, 1)
        for name, stage in zip(facts.stages, results.curriculum, strict=True)
    ]
    networks = [("matrix", "This network", results.matrix, facts.stages, labels)]
    if tuned := results.finetune["matrix"]:
        tasks = list(results.tasks)
        networks.append(("finetuned", "One dense network, fine-tuned task after task", tuned, tasks, tasks))
    plots, tables = [], []
    for key, title, matrix, stages, names in networks:
        plots.append(chart_plot(matrix_chart(key, title, matrix, results, names)))
        if len(results.tasks) <= MOST_TASKS:
            tables.append(matrix_table(title, stages, list(results.tasks), matrix, f"{title}, as a table"))
    lead = "Test scores of every task after every stage, each evaluated again; colours show the change since the "
    lead += "task was learned."
    return Section("matrix", "Accuracy matrix", lead, Legend(CHANGES), plots, tables)


def _ownership(facts: RunFacts, colours: dict[str, str]) -> list[Section]:
    state, holdings = facts.ownership, facts.holdings
    if state is None or holdings is None or not holdings.layers:
        return []
    layers, total, legend = holdings.layers, holdings.total, legend_of(colours, free=True)
    charts = [
        capacity_chart("capacity-all", [total], colours, "All layers"),
        capacity_chart("capacity", layers, colours, "Layer by layer"),
    ]
    table = capacity_table([*layers, total], MOST_COLUMNS, "Numbers of weights, as a table")
    lead = "The owners of the prunable weights; no weight has two owners."
    sections = [Section("capacity", "Capacity", lead, legend, [chart_plot(chart) for chart in charts], [table])]
    plot, maps = owner_maps(state, colours)
    lead = "The owner of each weight of a layer: a row is an output unit, a column one of its inputs."
    sections.append(Section("owners", "Owner maps", lead, legend, [plot], maps=maps))
    plots = []
    lead = "No task reads another's weights: no two masks overlap."
    if any(len(counts) > 1 for counts in holdings.used.values()):
        lead = "The share of a task's weights, its own and those that it reads, that another task computes with too: "
        lead += "a row for the first task, a column for the second."
        plots = [chart_plot(overlap_chart(state))]
    sections.append(Section("overlap", "Mask overlap", lead, plots=plots))
    return sections


def _modules(facts: RunFacts) -> Section | None:
    state = facts.ownership
    if state is None or not state.recipe:  # a file of an early release
        return None
    lead = "The backbone's modules: their weights, which tasks share one by one, the values of which each task has its "
    lead += "own, and the FLOPs of a forward pass of one example; an addition and a multiplication count as two."
    try:
        described = modules_in(state, Path("network.safetensors"))
    except ValueError as error:
        return Section("modules", "Modules", f"The backbone's modules are unknown: {error}.")
    if described.note:
        lead += f" Whole units: {described.note}."
    return Section("modules", "Modules", lead, tables=[modules_table(described, "Modules, as a table")])


def _sparsity(facts: RunFacts, colours: dict[str, str]) -> Section | None:
    curves = facts.curves_of("", "sparsity")
    if not curves:
        return None
    last: dict[str, int] = {}
    for curve in facts.curves:
        if curve.split in ("train", "val"):
            last[curve.task] = max(last.get(curve.task, 0), curve.steps[-1])
    lead = "The share of the network's weights that each task does without, from its first cut on."
    return Section("sparsity", "Sparsity", lead, legend_of(colours), [sparsity_plot(curves, last, colours)])


def _forgetting(results: Results, colours: dict[str, str]) -> Section | None:
    if results.forgetting is None:
        return None
    tuned = results.finetune["matrix"]
    names = ("task", "metric", "test_when_learned", "test", "forgetting", "finetune_forgetting")
    table = tasks_table(results, names, colour=colours.__getitem__)
    if len(results.curriculum) == 1:
        lead = "All tasks were learned at once: nothing came later that they could forget by."
    else:
        lead = f"Best past minus final test score: {results.forgetting:g}, the mean over tasks that were learned "
        lead += f"before the last stage; backward transfer {results.bwt:g}."
    if tuned:
        lead += (
            f" One dense network that was fine-tuned task after task forgot {number(results.finetune['forgetting'])}."
        )
    plots = _forgetting_plots(results) if tuned else []
    return Section("forgetting", "Forgetting", lead, Legend(TUNED) if plots else None, plots, [table])


def _forgetting_plots(results: Results) -> list[Plot]:
    lost = {
        name: {task: loss for task in results.tasks if (loss := results.forgetting_of(task, matrix)) is not None}
        for name, matrix in zip(TUNED, (results.matrix, results.finetune["matrix"]), strict=True)
    }
    forgetful = {task for losses in lost.values() for task, loss in losses.items() if loss}
    metrics = {task.metric for name, task in results.tasks.items() if name in forgetful}
    return _plots_by_metric("forgetting", results, lost, "forgotten", metrics)


def _baselines(results: Results) -> Section | None:
    scores = {
        network: {n: score for n, task in results.tasks.items() if (score := getattr(task, name)) is not None}
        for network, name in zip(NETWORKS, ("test", *BASELINES), strict=True)
    }
    scores = {network: by_task for network, by_task in scores.items() if by_task}
    compared = {task for kind in BASELINES for task in scores.get(kind, ())}
    metrics = {results.tasks[task].metric for task in compared}
    plots = _plots_by_metric("baselines", results, scores, "on the test split", metrics)
    if not plots:
        return None
    lead = "Compared with a dense network for each task (dense), one dense network that learned task after task "
    lead += "(finetune), and one that learned all tasks at once (joint)."
    return Section("baselines", "Baselines", lead, Legend({network: NETWORKS[network] for network in scores}), plots)


def _plots_by_metric(
    key: str, results: Results, scores: Mapping[str, Mapping[str, float]], label: str, metrics: Collection[str]
) -> list[Plot]:
    """Draw a figure per metric; scores: network to {task: score}."""
    plots: list[Plot] = []
    for metric in dict.fromkeys(task.metric for task in results.tasks.values() if task.metric in metrics):
        rows = {
            name: {task: score for task, score in by_task.items() if results.tasks[task].metric == metric}
            for name, by_task in scores.items()
        }
        rows = {name: row for name, row in rows.items() if row}
        plots.append(scores_plot(f"{key}-{len(plots)}", metric, rows, NETWORKS | TUNED, f"{metric} {label}"))
    return plots


def _config(facts: RunFacts) -> Section | None:
    text = facts.config_text
    if not text:
        return None
    keys = re.sub(r"(?m)^(\s*(?:- )?)([\w.+-]+):", r'\1<span class="k">\2</span>:', html.escape(text, quote=False))
    return Section("config", "Config", code=[Code("The composed config", text, Markup(keys), open=False)])


def _examples(facts: RunFacts) -> Section | None:
    """Show examples of the test split with the network's answers: images with captions, others in a table per task."""
    images: list[tuple[str, str]] = []
    tables: list[Table[Any]] = []
    for task, examples in facts.examples.items():
        pictures = [_picture(facts.folder, example) for example in examples]
        if all(pictures):
            captions = [f"{task}: {_answer(example)} ({example['target'] or 'none'})" for example in examples]
            images += zip(filter(None, pictures), captions, strict=True)
        elif examples:
            tables.append(_example_rows(task, examples))
    if not images and not tables:
        return None
    lead = "From the test split: what the network answers, and the right answer" + (" in brackets." if images else ".")
    return Section("examples", "Example predictions", lead, tables=tables, images=images)


def _picture(folder: Path, example: Example) -> str | None:
    """Return an example's image as a data URI; None if it is none, or its file is missing."""
    path = folder / EXAMPLES / str(example["file"])
    if path.suffix != ".png" or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _example_rows(task: str, examples: Sequence[Example]) -> Table[Any]:
    first = examples[0]["input"]
    names = list(first)[:MOST_CELLS] if isinstance(first, dict) else [] if first is None else ["input"]
    rows = [
        (str(number), *_cells(example["input"], names), _answer(example), example["target"] or "none")
        for number, example in enumerate(examples, start=1)
    ]
    columns = [Column[Any](name, itemgetter(place), words=True) for place, name in enumerate([task, *names])]
    columns += [Column[Any](name, itemgetter(place), words=True) for name, place in (("answer", -2), ("target", -1))]
    return Table(task, columns, rows)


def _cells(shown: Any, names: Sequence[str]) -> list[str]:
    values = [shown.get(name) for name in names] if isinstance(shown, dict) else [shown]
    return ["" if value is None else shortened(str(value), MOST_LETTERS) for value in values]


def _answer(example: Example) -> str:
    """Say an answer: "wren 93 %", the classes of a text's words, a label per line with its probability, or values."""
    answer = example["answer"]
    if answer.keys() == {"label"}:
        return str(answer["label"])
    if "label" in answer:
        return f"{answer['label']} {float(answer['probability']):.0%}"
    values = {name: quantity(float(value)) for name, value in answer.items()}
    return ", ".join(f"{name} {value}" if len(values) > 1 else value for name, value in values.items())


def _use(facts: RunFacts) -> Section:
    usages = _usages(facts)
    commands = [usage.command(HERE) for usage in usages if usage.file is not None]
    requests = [request for usage in usages if (request := usage.request()) is not None]
    again = [
        "msh evaluate run=.   # evaluate every task again: the same scores",
        "msh inspect .        # tasks, densities, sizes, capacity",
        "msh report .         # write this page again",
    ]
    code = [Code(f"{usage.task}, in Python", usage.python(HERE), open=not i) for i, usage in enumerate(usages)]
    code.append(Code("In a terminal", "\n".join([*commands, *again]) + "\n"))
    if requests:
        code.append(
            Code(
                "Serve all tasks, and ask from another terminal",
                "\n".join([f"msh serve .{usages[0].allowed}", *requests]) + "\n",
            )
        )
    lead = "Run this in the folder of this page, wherever it is. The folder, or a copy of its network.safetensors, is "
    lead += "enough: neither data nor config is needed."
    return Section("use", "Load, predict and serve", lead, code=code)


def _usages(facts: RunFacts) -> list[Usage]:
    """List how tasks are used whose preprocessing the network file has."""
    tasks = [*facts.holdings.tasks.items()][:MOST_TASKS] if facts.holdings else []
    backbone = None if facts.config is None else OmegaConf.select(facts.config, "backbone")
    own = [] if backbone is None else own_names(OmegaConf.to_container(backbone), "backbone")
    found = []
    for name, entry in tasks:
        file = file_of(facts.examples.get(name))
        try:
            usage = usage_of(name, entry.recipe, file if file and (facts.folder / file).is_file() else None, own)
        except ValueError as error:
            facts.notes.append(f"How {name} is used is unknown: {error}.")
            continue
        found += [usage] if usage is not None else []
    return found
