"""report.html: a run to look at."""

from __future__ import annotations

import html
import re
from pathlib import Path

from markupsafe import Markup

from msh.report.maps import CHANGES, LABEL, WRITTEN, capacity_plot, matrix_plot, overlap_plot, owner_maps
from msh.report.pages import Code, Legend, Page, Row, Section, Table, legend_of, write_page
from msh.report.plots import Drawn, Plot, curves_plot, scores_plot, sparsity_plot
from msh.runs.colours import colours_of
from msh.runs.facts import RunFacts, read_run
from msh.runs.ownership import used_by_task
from msh.runs.results import Results
from msh.runs.words import ARROWS, bytes_of, duration, listed, number, share
from msh.subnetworks import Capacity

FILE_NAME = "report.html"
BASELINES = {"dense": "#e0702e", "finetune": "#1fa187", "joint": "#c8649a"}
"""Kinds of network that a run's own is compared with, to their colours."""
OWN_COLOUR = "#2f7fc1"
TUNED = {"this network": OWN_COLOUR, "fine-tuned": BASELINES["finetune"]}
SNIPPET = """from pathlib import Path

from msh.training.evaluation import load_run

config, tasks, network = load_run(Path({folder!r}))
network.eval()
for name in network.tasks:
    size, test = config.evaluation.batch_size or tasks[name].batch_size, tasks[name].splits["test"]
    examples, targets = test.inputs[:size], test.targets[:size]
    outputs = tasks[name].predictions(network(examples, name))
    print(name, outputs.shape, targets.shape)
"""


def write_report(folder: Path, path: Path | None = None) -> RunFacts:
    """Write the report of a run, finished or not.

    Args:
        folder: the run folder.
        path: of the report; report.html in the run folder when None.
    Returns:
        What was reported, with notes on what is missing.
    Raises:
        FileNotFoundError: it is not a run folder.
        LaterVersionError: results.json is of a later schema version.
        OSError: the report cannot be written.
    """
    facts = read_run(folder)
    write_page(path or folder / FILE_NAME, page_of(facts))
    return facts


def page_of(facts: RunFacts) -> Page:
    """The report of a run."""
    results, colours = facts.results, colours_of(facts.tasks)
    found = [
        _summary(facts, colours),
        _curves(facts, colours),
        _matrix(facts),
        *_ownership(facts, colours),
        _sparsity(facts, colours),
        _forgetting(results, colours),
        _baselines(results),
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
        sections=[section for section in found if section],
        tasks=[*facts.ownership.tasks] if facts.ownership else [],
        source=f" from {facts.folder.absolute()}",
    )


def _tiles(facts: RunFacts) -> list[tuple[str, str]]:
    """(what, figure); a dash where results.json does not tell."""
    results, (checked, violations) = facts.results, (facts.results.guarantee[key] for key in ("checked", "violations"))
    learned = sum(task.test is not None for task in results.tasks.values())
    return [
        ("tasks learned", f"{learned} of {len(results.tasks)}" if results.tasks else "–"),
        ("mean forgetting", "–" if results.forgetting is None else f"{results.forgetting:g}"),
        (f"violations in {checked:,} comparisons", f"{violations:,}" if results.tasks else "–"),
        ("of the network is owned", _used(facts)),
    ]


def _used(facts: RunFacts) -> str:
    capacity = facts.results.capacity
    return share(capacity["owned"], capacity["prunable"]) if capacity else "–"


def _verdict(results: Results) -> str:
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    if violations:
        return f"The guarantee was violated: in {violations:,} of {checked:,} comparisons a frozen task had changed."
    if not checked:
        return ""
    so_far = "" if results.status == "finished" else " so far"
    return (
        f"Nothing was forgotten{so_far}: frozen tasks' outputs were compared with their records {checked:,} times, "
        "bit for bit, and none had changed."
    )


# ---- sections


def _summary(facts: RunFacts, colours: dict[str, str]) -> Section | None:
    results = facts.results
    if not results.tasks:
        return None
    compared = [name for name in BASELINES if any(getattr(t, name) is not None for t in results.tasks.values())]
    reuse = any(task.weights_reused for task in results.tasks.values())
    columns = ["task", "metric", "test", "validation", *compared, "forgetting", "density", "weights"]
    columns += [*(["read"] if reuse else []), "private", "file", "trained"]
    rows = []
    for name, task in results.tasks.items():
        forgetting = results.forgetting_of(name)
        cells = [name, f"{task.metric} {ARROWS[task.direction]}", number(task.test), number(task.val)]
        cells += [number(getattr(task, other)) for other in compared]
        cells += [
            "" if forgetting is None else f"{forgetting:g}",
            "" if task.density is None else f"{task.density:.3f}",
        ]
        cells += [_count(task.weights), *([_count(task.weights_reused)] if reuse else [])]
        cells += [_count(task.weights_private), bytes_of(size) if (size := _file_size(facts, name)) else ""]
        cells.append(duration(task.train_seconds) if task.train_seconds else "")
        rows.append(Row(cells, name, colours[name], best=frozenset({2})))
    for name, found in results.ensemble.items():
        cells = [f"{name} of {len(found['tasks'])}", f"{found['metric']} {ARROWS[found['direction']]}"]
        rows.append(Row([*cells, number(found["test"]), *[""] * (len(columns) - 3)], name, best=frozenset({2})))
    table = Table("Tasks", columns, rows, words=2)
    lead = "Test scores are measured again after the last stage; ↑ more is better, ↓ less is. Private is what a task "
    lead += "has for itself: head, stem, biases, norms" + ("; read are others' weights." if reuse else ".")
    return Section("tasks", "Tasks", lead, tables=[table])


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _file_size(facts: RunFacts, task: str) -> int:
    return facts.files.get(str(Path("subnetworks") / f"{task}.safetensors"), 0)


def _curves(facts: RunFacts, colours: dict[str, str]) -> Section | None:
    plots: list[Plot] = []
    measured = facts.curves_of("val")
    for metric in dict.fromkeys(curve.quantity for curve in measured):
        drawn = [Drawn(c.task, colours[c.task], c) for c in measured if c.quantity == metric]
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
    lead = "On the validation split while each task was learned; losses on the training batches are dotted."
    return Section("curves", "Learning curves", lead, legend_of(colours), plots)


def _matrix(facts: RunFacts) -> Section | None:
    results = facts.results
    if not results.matrix:
        return None
    labels = [
        name if len(name) <= LABEL else listed(stage, 1)
        for name, stage in zip(facts.stages, results.curriculum, strict=True)
    ]
    plots = [matrix_plot("matrix", "This network", results.matrix, results, labels)]
    tables = _matrix_table("This network", results, results.matrix, facts.stages)
    tuned = results.finetune["matrix"]
    if tuned:
        title = "One dense network, fine-tuned task after task"
        plots.append(matrix_plot("finetuned", title, tuned, results, list(results.tasks)))
        tables += _matrix_table(title, results, tuned, list(results.tasks))
    legend = Legend([(name, colour, False) for name, colour in CHANGES.items()])
    lead = "Test scores of every task after every stage, each measured anew; colours say how they changed since the "
    lead += "task was learned."
    return Section("matrix", "Accuracy matrix", lead, legend, plots, tables)


def _matrix_table(title: str, results: Results, matrix: list[list[float | None]], stages: list[str]) -> list[Table]:
    if len(results.tasks) > 2 * WRITTEN:
        return []
    rows = [Row([name, *map(number, row)]) for name, row in zip(stages, matrix, strict=False)]
    return [Table(title, ["after", *results.tasks], rows, summary=f"{title}, as a table")]


def _ownership(facts: RunFacts, colours: dict[str, str]) -> list[Section]:
    ownership = facts.ownership
    if ownership is None or not ownership.owners:
        return []
    layers, total, legend = ownership.capacity(), ownership.total(), legend_of(colours, free=True)
    capacity = [
        capacity_plot("capacity-all", [total], colours, "All layers"),
        capacity_plot("capacity", layers, colours, "Layer by layer"),
    ]
    sections = [
        Section(
            "capacity",
            "Capacity",
            "Who owns the weights that can be pruned; no weight has two owners.",
            legend,
            capacity,
            [_capacity_table([*layers, total])],
        )
    ]
    picture, maps = owner_maps(ownership, colours)
    lead = "Who owns which weight of a layer: a row is an output unit, a column one of its inputs."
    sections.append(Section("owners", "Owner maps", lead, legend, [picture], maps=maps))
    if any(len(counts) > 1 for counts in used_by_task(ownership).values()):
        lead = "The share of the weights that one task computes with, its own and those that it reads, that another "
        lead += "computes with too: rows are of the first, columns of the second."
        sections.append(Section("overlap", "Mask overlap", lead, plots=[overlap_plot(ownership)]))
    else:
        lead = "No task reads another's weights: no two masks have a weight in common."
        sections.append(Section("overlap", "Mask overlap", lead))
    return sections


def _capacity_table(layers: list[Capacity]) -> Table:
    tasks = list(layers[0].owned)
    named = tasks if len(tasks) <= WRITTEN else []
    columns = ["layer", "shape", "weights", *named, *([] if named else ["owned"]), "free"]
    rows = []
    for layer in layers:
        shape = " × ".join(map(str, layer.shape)) if len(layer.shape) > 1 else ""
        owned = [f"{layer.owned[task]:,}" for task in named] or [f"{layer.size - layer.free:,}"]
        rows.append(Row([layer.name, shape, f"{layer.size:,}", *owned, f"{layer.free:,}"]))
    return Table("Capacity", columns, rows, words=2, summary="Numbers of weights, as a table")


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
    columns = ["task", "metric", "when learned", "now", "forgotten", *(["forgotten when fine-tuned"] if tuned else [])]
    rows = []
    for name, task in results.tasks.items():
        forgotten = results.forgetting_of(name)
        cells = [name, f"{task.metric} {ARROWS[task.direction]}", number(task.test_when_learned), number(task.test)]
        cells.append("" if forgotten is None else f"{forgotten:g}")
        if tuned:
            cells.append(number(results.forgetting_of(name, tuned)))
        rows.append(Row(cells, name, colours[name]))
    if len(results.curriculum) == 1:
        lead = "All tasks were learned at once: nothing came later that they could forget by."
    else:
        lead = f"Best past minus final test score: {results.forgetting:g} in the mean over tasks that were learned "
        lead += f"before the last stage; backward transfer {results.bwt:g}."
    if tuned:
        lead += (
            f" One dense network that was fine-tuned task after task forgot {number(results.finetune['forgetting'])}."
        )
    plots = _forgetting_plots(results) if tuned else []
    legend = Legend([(name, colour, False) for name, colour in TUNED.items()]) if plots else None
    return Section("forgetting", "Forgetting", lead, legend, plots, [Table("Forgetting", columns, rows, words=2)])


def _forgetting_plots(results: Results) -> list[Plot]:
    plots: list[Plot] = []
    for metric in dict.fromkeys(task.metric for task in results.tasks.values()):
        names = [name for name, task in results.tasks.items() if task.metric == metric]
        found = {
            who: {n: lost for n in names if (lost := results.forgetting_of(n, matrix)) is not None}
            for who, matrix in zip(TUNED, (results.matrix, results.finetune["matrix"]), strict=True)
        }
        if any(lost for losses in found.values() for lost in losses.values()):
            plots.append(scores_plot(f"forgetting-{len(plots)}", metric, found, TUNED, f"{metric} forgotten"))
    return plots


def _baselines(results: Results) -> Section | None:
    colours = {"this network": OWN_COLOUR, **BASELINES}
    plots: list[Plot] = []
    for metric in dict.fromkeys(task.metric for task in results.tasks.values()):
        tasks = {name: task for name, task in results.tasks.items() if task.metric == metric}
        scores = {"this network": {n: t.test for n, t in tasks.items() if t.test is not None}}
        for kind in BASELINES:
            found = {name: score for name, t in tasks.items() if (score := getattr(t, kind)) is not None}
            scores |= {kind: found} if found else {}
        if len(scores) > 1:
            plots.append(scores_plot(f"baselines-{len(plots)}", metric, scores, colours, f"{metric} on the test split"))
    if not plots:
        return None
    shown = [(name, colour, False) for name, colour in colours.items() if name == "this network" or _has(results, name)]
    lead = "Beside a dense network for each task (dense), one dense network that learned task after task (finetune), "
    lead += "and one that learned all at once (joint)."
    return Section("baselines", "Baselines", lead, Legend(shown), plots)


def _has(results: Results, baseline: str) -> bool:
    return any(getattr(task, baseline) is not None for task in results.tasks.values())


def _config(facts: RunFacts) -> Section | None:
    text = facts.config_text
    if not text:
        return None
    keys = re.sub(r"(?m)^(\s*(?:- )?)([\w.+-]+):", r'\1<span class="k">\2</span>:', html.escape(text, quote=False))
    return Section("config", "Config", code=[Code("The composed config", text, Markup(keys), open=False)])


def _use(facts: RunFacts) -> Section:
    folder = str(facts.folder.absolute())
    commands = "\n".join(
        (
            f"msh evaluate run='{folder}'   # measure every task again: the same scores",
            f"msh inspect '{folder}'        # tasks, densities, sizes, capacity",
            f"msh report '{folder}'         # make this page again",
        )
    )
    code = [Code("In a terminal", commands), Code("In Python", SNIPPET.format(folder=folder))]
    return Section("use", "Load and evaluate", "", code=code)
