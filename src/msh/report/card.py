"""Write the model card of a network for the Hugging Face hub, from its file and its run's results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import msh
from msh.errors import without_secrets
from msh.inference.hub import hub_package
from msh.recipes import Recipe, own_names
from msh.report.usage import Usage, usage_of
from msh.runs.results import Results, comparison
from msh.runs.words import ARROWS, counted, listed, number
from msh.subnetworks import Capacity, NetworkState

PIPELINES = {
    ("images", "classification"): "image-classification",
    ("table", "classification"): "tabular-classification",
    ("table", "regression"): "tabular-regression",
    ("tokenize", "classification"): "text-classification",
    ("next_tokens", "lm"): "text-generation",
    ("tagged_words", "token_classification"): "token-classification",
}
"""(First step of the preprocessing, kind of task) to the hub's name for such a task."""
SHOWN_CLASSES = 12
"""Classes of a task that the card names."""
MOST_TASKS = 24
"""Tasks whose code the card shows."""
INSTALL = "Install it with `pip install 'msh[hub]'`."


def write_card(state: NetworkState, results: Results | None, source: str, name: str, licence: str | None) -> str:
    """Write a model card: metadata for the hub, and a page.

    Args:
        state: the network.
        results: of its run; None if they are not known.
        source: as `msh.load` takes it, where the card will be.
        name: of the network.
        licence: its identifier on the hub, such as "mit"; None: the card states none.
    Raises:
        ValueError: a task has no preprocessing, as an earlier release wrote it; or the package for cards is missing.
    """
    hub = hub_package("a model card")
    own = own_names(state.recipe)
    usages = [_usage(task, entry.recipe, own) for task, entry in state.tasks.items()]
    kinds = sorted({pipeline for usage in usages if (pipeline := _pipeline(usage))})
    scores = _scores(results)
    data = hub.ModelCardData(
        license=licence,
        library_name="msh",
        tags=["msh", "multi-task-learning", "continual-learning", "sparsity", *kinds],
        pipeline_tag=kinds[0] if len(kinds) == 1 else None,
        metrics=sorted({metric for metric, _ in scores.values()}) or None,
        model_name=name if scores else None,
        eval_results=[
            hub.EvalResult(
                task_type=_pipeline(usage) or "other",
                dataset_type=usage.task,
                dataset_name=usage.task,
                dataset_split="test",
                metric_type=scores[usage.task][0],
                metric_value=scores[usage.task][1],
            )
            for usage in usages
            if usage.task in scores
        ]
        or None,
    )
    page = "\n\n".join(_page(state, results, usages, source, name, licence))
    return without_secrets(f"---\n{data.to_yaml()}\n---\n\n{page}\n")


def _usage(task: str, recipe: Recipe, own: Sequence[str]) -> Usage:
    usage = usage_of(task, recipe, own=own)
    if usage is None:
        raise ValueError(f"task {task!r} has no preprocessing, as an earlier release wrote it: train it again")
    return usage


def _pipeline(usage: Usage) -> str | None:
    return PIPELINES.get((usage.reads, usage.outputs.kind))


def _scores(results: Results | None) -> dict[str, tuple[str, float]]:
    """Return each evaluated task's (metric, test score)."""
    rows = results.tasks if results is not None else {}
    return {task: (row.metric, row.test) for task, row in rows.items() if row.test is not None}


def _page(
    state: NetworkState,
    results: Results | None,
    usages: Sequence[Usage],
    source: str,
    name: str,
    licence: str | None,
) -> list[str]:
    total = state.total()
    tasks = counted(len(usages), "task")
    parts = [
        f"# {name}",
        f"One network that does {tasks}, each in a subnetwork of its own: {listed([usage.task for usage in usages])}. "
        f"The tasks own {total.taken / total.size:.1%} of its {total.size:,} prunable weights.",
        "## Tasks",
        _table(usages, results, total),
        _guarantee(results),
        "## How to use it",
        INSTALL,
    ]
    for usage in usages[:MOST_TASKS]:
        parts += [f"### {usage.task}", f"```python\n{usage.python(source)}```"]
    parts += [
        "On the command line, and over HTTP:",
        f"```sh\n{usages[0].command(source)}\nmsh serve {shlex.quote(source)}{usages[0].allowed}\n```",
        "## Licence",
        licence or "The authors state no licence.",
        f"Written by msh {msh.__version__}.",
    ]
    return [part for part in parts if part]


def _table(usages: Sequence[Usage], results: Results | None, total: Capacity) -> str:
    rows: Mapping[str, object] = results.tasks if results is not None else {}
    lines = ["| task | kind | answers | reads | test score | density |", "|---|---|---|---|---|---|"]
    for usage in usages:
        outputs = usage.outputs
        names = listed(outputs.names, SHOWN_CLASSES) if outputs.names else counted(outputs.number, "output")
        if outputs.kind == "lm":
            names = f"the next of {counted(outputs.number, 'token')}"
        answers = f"{names} ({outputs.unit})" if outputs.unit else names
        row = results.tasks[usage.task] if results is not None and usage.task in rows else None
        score = "" if row is None or row.test is None else f"{row.metric} {ARROWS[row.direction]} {number(row.test)}"
        density = total.owned[usage.task] / total.size
        cells = (usage.task, outputs.kind, answers, usage.reads_what, score, f"{density:.3f}")
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Escape what Markdown or HTML would read as its own in a cell."""
    for letter in "\\|`*_[]<>":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def _guarantee(results: Results | None) -> str:
    if results is None or not results.guarantee["checked"]:
        return ""
    checked, violations = results.guarantee["checked"], results.guarantee["violations"]
    return (
        f"Later tasks do not change earlier ones: frozen tasks were compared {counted(checked, 'time')} "
        f"({comparison(results.guarantee)}), and {violations or 'none'} had changed."
    )
