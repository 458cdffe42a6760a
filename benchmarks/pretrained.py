"""Learn new tasks from a pretrained backbone: msh's ways beside LoRA, full fine-tuning and a linear probe.

    pip install -r benchmarks/pretrained-requirements.txt
    python -m benchmarks.pretrained --data-dir DIR [--seeds 0 1 2] [--backbones resnet,vit] [--document]

DIR holds `cifar10-jpeg` (`train` and `test`, with a folder of images per class), `FashionMNIST` and `MNIST`. A dense
network learns the first eight classes of CIFAR-10. Its weights then serve for three tasks with few images each, one
after another: CIFAR-10's last two classes, Fashion-MNIST and MNIST. All ways train in msh's fits, with the same images,
batches, heads, epochs and optimizer; each takes the learning rate with the best mean validation accuracy of the first
seed. Below --folder is a record of each run; what has one is skipped. --document writes docs/pretrained.json, and the
tables in docs/backbones.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from safetensors.torch import save_file

import msh
from benchmarks.adapters import Lora, without_subnetworks
from benchmarks.arguments import names_of, new_parser, positive
from benchmarks.configs import compose
from benchmarks.document import machine, replace_between, table
from benchmarks.few import SIZE, images
from benchmarks.runs import ROOT
from msh.files.state_file import read_state
from msh.runs.results import Results
from msh.training.config import RunConfig, run_config
from msh.training.run import train

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet": ("ResNet-18 of width 8", "msh.backbones.ResNet18", {"width": 8}),
    "vit": (
        "ViT of 4 blocks of width 64, patches of 4 x 4",
        "timm.models.vision_transformer.VisionTransformer",
        {"img_size": SIZE, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 0},
    ),
}
"""Short name to (name, constructor, arguments)."""
RATES = {"resnet": (0.004, 0.012), "vit": (0.001, 0.004)}
"""Learning rates to try."""
SOURCE, FIRST = "cifar_eight", ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"]
NEW = {"cifar_two": ["ship", "truck"], "fashion_mnist": None, "mnist": None}
"""New task to its classes; None: all."""
SUBNETWORKS = {
    "pruned-10": ("pruned to 10 %", ["reuse=none", "pruning.density=0.1"]),
    "pruned-30": ("pruned to 30 %", ["reuse=none", "pruning.density=0.3"]),
    "reading-10": ("pruned to 10 %, `reuse=all`", ["reuse=all", "pruning.density=0.1"]),
    "change-10": ("change of 10 %, `reuse=backbone`", ["reuse=backbone", "pruning.density=0.1"]),
    "change-3": ("change of 3 %, `reuse=backbone`", ["reuse=backbone", "pruning.density=0.03"]),
}
"""msh's ways: short name to (name, settings)."""
ADAPTERS = {"lora-10": Lora(0.1), "lora-10-norms": Lora(0.1, norms=True), "lora-3": Lora(0.03)}
OTHERS = {"full": "full, a network per task", "full-one": "full, one network for all", "probe": "linear probe"}
WAYS = {way: title for way, (title, _) in SUBNETWORKS.items()} | {way: str(a) for way, a in ADAPTERS.items()} | OTHERS
COLUMNS = ("way", *NEW, "mean", "forgetting", "trained per task", "kB per task", "kB in all", "time / full", "rate")


def config_of(options: argparse.Namespace, backbone: str, tasks: Mapping[str, Any], *overrides: str) -> RunConfig:
    """Compose the config of a run; `tasks` maps names to classes."""
    _, target, arguments = BACKBONES[backbone]
    quiet = ("logger=none", "threads=1", "report=false", "checkpoint.min_seconds=3600")
    config = compose("backbone=module", f"backbone.target={target}", *quiet, *overrides)
    settings: dict[str, Any] = {"normalize": "all", "val_fraction": 0.2, "batch_size": options.batch_size}
    examples = options.examples
    if SOURCE in tasks:
        settings |= {"augment": [{"flip": "horizontal"}, {"shift": 2}], "batch_size": 128}
        examples = options.first_examples
    source = {"_target_": "benchmarks.few.few", "folder": str(options.data_dir.resolve()), "train": examples}
    source |= {"test": options.test_examples, "seed": config.seed}
    plain: Any = OmegaConf.to_container(config)
    plain["backbone"] |= {"args": arguments, "input_shape": [3, SIZE, SIZE]}
    plain["tasks"] = {n: {**settings, "source": {**source, "name": n, "classes": c}} for n, c in tasks.items()}
    return run_config(OmegaConf.create(plain))


def pretrain(options: argparse.Namespace, backbone: str) -> tuple[Path, float]:
    """Train the dense network; return the file of its backbone's weights, and its test accuracy."""
    folder = options.folder.resolve() / backbone
    overrides = ["pruning=at_init", "pruning.density=1", "optimizer.lr=0.002"]
    path = folder / "weights.safetensors"
    if not path.exists():
        fresh(folder / "first")
        overrides.append(f"trainer.max_epochs={options.first_epochs}")
        train(config_of(options, backbone, {SOURCE: FIRST}, *overrides), folder / "first")
        module = cast(Any, msh.load(folder / "first").module(SOURCE))
        save_file({name: tensor.contiguous() for name, tensor in module.backbone.state_dict().items()}, path)
    return path, cast(float, Results.load(folder / "first").tasks[SOURCE].test)


def fresh(folder: Path) -> None:
    """Make an empty folder; what a stopped run has left there is lost."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def subnetworks(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Learn the new tasks in subnetworks; return the run's record."""
    start = time.process_time()
    results = train(config, folder)
    seconds = time.process_time() - start
    state = read_state(folder / "network.safetensors", "network").state
    buffers = {f"private.{name}" for name in state.buffers}
    private = [sum(t.numel() for k, t in e.private.items() if k not in buffers) for e in state.tasks.values()]
    return {
        "val": [results.tasks[name].val for name in NEW],
        "matrix": results.matrix,
        "trained": [cast(int, results.tasks[name].weights) + own for name, own in zip(NEW, private, strict=True)],
        "bytes": [(folder / "subnetworks" / f"{name}.safetensors").stat().st_size for name in NEW],
        "bytes_in_all": (folder / "network.safetensors").stat().st_size,
        "seconds": seconds,
    }


def learn(options: argparse.Namespace, backbone: str, way: str, seed: int, rate: float) -> dict[str, Any]:
    """Learn the new tasks in one way, or read the record of the finished run."""
    folder = options.folder.resolve() / backbone / f"{way}-{seed}-{rate}"
    path = folder / "record.json"
    if not path.exists():
        fresh(folder)
        for name in NEW:
            images(name, str(options.data_dir.resolve()))  # before the time counts
        given = [f"backbone.weights={pretrain(options, backbone)[0]}", f"seed={seed}", f"optimizer.lr={rate}"]
        given += [f"trainer.max_epochs={options.epochs}", "pruning.start=backbone"]
        if way in SUBNETWORKS:
            result = subnetworks(config_of(options, backbone, NEW, *given, *SUBNETWORKS[way][1]), folder)
        else:
            result = without_subnetworks(config_of(options, backbone, NEW, *given), way, ADAPTERS.get(way), folder)
        path.write_text(json.dumps({"seed": seed, "rate": rate, **result}))
        print(backbone, way, path.read_text(), flush=True)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def runs_of(options: argparse.Namespace, backbone: str, way: str) -> list[dict[str, Any]]:
    """Learn the new tasks with every seed, at the learning rate that the first seed's validation chooses."""
    first, *seeds = options.seeds
    tried = [learn(options, backbone, way, first, rate) for rate in RATES[backbone]]
    best = max(tried, key=lambda record: statistics.mean(record["val"]))
    return [best, *(learn(options, backbone, way, seed, best["rate"]) for seed in seeds)]


def row_of(way: str, runs: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a row of a way's runs, beside those of full fine-tuning with the same seeds."""
    last = [run["matrix"][-1] for run in runs]  # (seeds, tasks)
    lost = [statistics.mean(r["matrix"][i][i] - r["matrix"][-1][i] for i in range(len(NEW))) for r in runs]
    columns = {name: [row[i] for row in last] for i, name in enumerate(NEW)}
    columns["mean"] = [statistics.mean(row) for row in last]
    return {
        "way": WAYS[way],
        **{name: spread(values) for name, values in columns.items()},
        "forgetting": f"{statistics.mean(lost):.3f}",
        "trained per task": round(statistics.mean(runs[0]["trained"])),
        "kB per task": round(statistics.mean(runs[0]["bytes"]) / 1000),
        "kB in all": round(runs[0]["bytes_in_all"] / 1000),
        "time / full": f"{sum(run['seconds'] for run in runs) / sum(run['seconds'] for run in full):.2f}",
        "rate": runs[0]["rate"],
    }


def spread(values: Sequence[float]) -> str:
    """Format a mean, and a standard deviation if there are several values."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def text_of(content: Mapping[str, Any]) -> str:
    """Write the tables of docs/backbones.md from the content of docs/pretrained.json."""
    parts = [content["about"]]
    for backbone, entry in content["backbones"].items():
        rates = " and ".join(map(str, RATES[backbone]))
        name, first = BACKBONES[backbone][0], entry["first"]
        parts.append(f"{name}; accuracy {first:.3f} on the first eight classes; learning rates tried: {rates}.")
        rows = [row_of(way, runs, entry["runs"]["full"]) for way, runs in entry["runs"].items()]
        parts.append(table(rows, COLUMNS))
    return "\n\n".join(parts)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="folder of the data sets")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "pretrained", help="of runs and records")
    parser.add_argument("--docs-dir", type=Path, default=ROOT / "docs")
    parser.add_argument("--backbones", type=names_of(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--ways", type=names_of(WAYS), default=list(WAYS), help="full is always measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    sizes = {"examples": 600, "test-examples": 1000, "batch-size": 32, "epochs": 8}
    for name, value in (sizes | {"first-examples": 20000, "first-epochs": 8}).items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    parser.add_argument("--document", action="store_true", help="write the tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    backbones = {}
    for backbone in options.backbones:
        _, first = pretrain(options, backbone)
        ways = [way for way in WAYS if way in options.ways or way == "full"]
        backbones[backbone] = {"first": first, "runs": {way: runs_of(options, backbone, way) for way in ways}}
    about = (
        f"{machine('cpu')} Each new task has {options.examples} images, a fifth of them for validation, and "
        f"{options.test_examples} test images; {options.epochs} epochs in batches of {options.batch_size}; seeds "
        f"{', '.join(map(str, options.seeds))}."
    )
    content = {"about": about, "backbones": backbones}
    print(text_of(content))
    if options.document:
        (options.docs_dir / "pretrained.json").write_text(json.dumps(content, indent=1) + "\n")
        replace_between(options.docs_dir / "backbones.md", "<!-- table: pretrained -->", text_of(content))


if __name__ == "__main__":
    main()
