"""List the kinds of file that the program reads, each with a small valid file and a reader."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from torch import nn

from fakes import write_run
from fuzz.bytewise import Mutator, hostile_csv, hostile_json, hostile_yaml
from fuzz.formats import (
    hostile_checkpoint,
    hostile_header,
    hostile_image,
    hostile_metadata,
    hostile_tensor_file,
    hostile_tensors,
)
from fuzz.harness import Kind
from fuzz.using import using_kinds
from helpers import learn, load_network, make_head, make_network
from msh.backbones import MLP
from msh.cli.resume import compose_resumed
from msh.files import plans, version1
from msh.files.merging import merge_files, release_task, split_task
from msh.files.plans import allocation_in, make_plan_file, notes_for_tasks, notes_of, read_plan, start_of
from msh.files.sealed import seal
from msh.files.state_file import read_state, save_network, save_subnetwork, write_safetensors
from msh.files.weights_only import Packing
from msh.files.yaml_files import read_config as read_saved
from msh.report.inspection import print_folder_or_file
from msh.report.run_page import write_report
from msh.report.sweeps import print_sweep, read_sweep, write_csv
from msh.runs.examples import Example
from msh.runs.facts import read_run
from msh.runs.metrics import write_rows
from msh.runs.ownership import mask_overlap, owner_matrix
from msh.runs.results import Results
from msh.subnetworks import Allocation, MultiSubnetwork
from msh.tasks.images import image_folder
from msh.tasks.tables import csv_table
from msh.tasks.text import csv_text
from msh.tasks.tokens import Texts
from msh.tracking.loggers import RunCSVLogger
from msh.tracking.wandb_file import read_offline
from msh.training.callbacks.checkpoint import AtomicCheckpointIO, newest_readable
from msh.training.callbacks.guarantee import read_record
from msh.training.config import register
from msh.training.evaluation import read_settings
from msh.training.fitting import batches_done
from msh.training.settings import INCIDENTAL, identity
from msh.training.state import RunState

TASKS = ("old", "new")
GOLDEN = Path(__file__).parents[1] / "golden" / "files"
TENSOR_FILE = (hostile_header, hostile_metadata, hostile_tensors, hostile_tensor_file)


class AnyDigest(str):
    """Equals every other digest, so that hostile content gets past a plan's digest."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def contents(folder: Path) -> dict[str, bytes]:
    """Map relative path to content, for all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def inspect(path: Path) -> None:
    """Run `msh inspect`."""
    print_folder_or_file(path, True, Console(file=io.StringIO(), width=100))


# ---- safetensors


def use_network(folder: Path) -> None:
    """Inspect, evaluate, split and release."""
    take_apart(folder)
    network = make_network("batch", 9)
    for task in TASKS:
        network.add_task(task, head=make_head(9))
    load_network(folder / "net.safetensors", network)
    for task in TASKS:
        with torch.no_grad():
            network(torch.zeros(2, 4), task)


def use_earlier_network(folder: Path) -> None:
    """Inspect, evaluate, split and release a network file in an earlier format."""
    take_apart(folder)
    network = MultiSubnetwork(MLP((13,), 16, 2, norm=True))
    network.add_task("wine", head=nn.Linear(16, 3))
    network.add_task("iris", head=nn.Linear(16, 3), stem=nn.Sequential(nn.Flatten(), nn.Linear(4, 13)))
    load_network(folder / "net.safetensors", network)
    for task, inputs in (("wine", 13), ("iris", 4)):
        with torch.no_grad():
            network(torch.zeros(2, inputs), task)


def take_apart(folder: Path) -> None:
    """Inspect, split and release."""
    path = folder / "net.safetensors"
    state = read_state(path, "network").state
    assert mask_overlap(state) is not None
    assert state.holdings().used is not None
    for layer in state.owners:
        owner_matrix(state, layer)
    inspect(path)
    for task in state.tasks:
        split_task(path, task, folder / "part.safetensors")
    release_task(path, list(state.tasks)[-1] if state.tasks else "old", folder / "without.safetensors")


def take_up(folder: Path) -> None:
    """Merge a subnetwork into a network."""
    path = folder / "part.safetensors"
    read_state(path, "subnetwork")
    inspect(path)
    merge_files(folder / "base.safetensors", [path], folder / "merged.safetensors")


def merge_plan(folder: Path) -> None:
    """Merge a subnetwork into a plan, and read the plan as a run does."""
    base = folder / "plan.safetensors"
    plan = read_plan(base)
    inspect(base)
    assert mask_overlap(plan.state) is not None
    for task in plan.state.tasks:
        allocation_in(plan, task)
    merge_files(base, [folder / "part.safetensors"], folder / "merged.safetensors", allow_missing=True)


def merge_forged_plan(folder: Path) -> None:
    """Merge into a plan whose digest always fits."""
    earlier = SimpleNamespace(sha256=lambda *_: SimpleNamespace(update=bytes, hexdigest=lambda: AnyDigest("0")))
    with patch.object(plans, "_digest", lambda plan: AnyDigest("0")), patch.object(version1, "hashlib", earlier):
        merge_plan(folder)


def network_kinds(folder: Path) -> list[Kind]:
    found = []
    for form, reuse, free in (("packed", "none", False), ("whole", "all", True), ("reading", "learned", False)):
        network = make_network("batch")
        learn(network, "old")
        learn(network, "new", form="scored" if reuse == "learned" else "compact", reuse=reuse, seed=1)
        path = folder / form / "net.safetensors"
        save_network(path, network, notes_of("0", (4,)), free_weights=free)
        found.append(Kind(f"network, {form}", contents(path.parent), path.name, TENSOR_FILE, use_network))
    place = folder / "part"
    save_subnetwork(place / "part.safetensors", network, "new", notes=notes_of("0", (4,)))
    apart = make_network("batch")
    learn(apart, "old")
    save_network(place / "base.safetensors", apart, notes_of("0", (4,)))
    found.append(Kind("subnetwork", contents(place), "part.safetensors", TENSOR_FILE, take_up))
    return found


def plan_kinds(folder: Path) -> list[Kind]:
    network = make_network("batch")
    start = start_of(network)
    for i, task in enumerate(TASKS):
        network.add_task(task, head=make_head())
        masks = {name: torch.arange(w.numel()).view(w.shape) % 3 == i for name, w in network.weights()}
        network.begin(task, Allocation(masks, dict.fromkeys(masks, 1.0)))
        network.freeze(task)
    plan = make_plan_file(network.state.planned(), {"seed": 0}, (4,), start)
    plan.write(folder / "plan.safetensors")
    save_subnetwork(folder / "part.safetensors", network, "old", notes=notes_for_tasks(plan))
    files = contents(folder)
    return [
        Kind("plan", files, "plan.safetensors", TENSOR_FILE, merge_plan),
        Kind("plan, forged digest", files, "plan.safetensors", TENSOR_FILE[1:3], merge_forged_plan),
        Kind("subnetwork, planned", files, "part.safetensors", TENSOR_FILE, merge_plan),
    ]


def earlier_kinds(folder: Path) -> list[Kind]:
    """List files in the formats before schema 2."""
    found = []
    networks = {"packed": "two/network", "whole": "two/network-free-weights", "reading": "reads-some/network"}
    for form, name in networks.items():
        files = {"net.safetensors": (GOLDEN / f"{name}.safetensors").read_bytes()}
        found.append(Kind(f"network 1, {form}", files, "net.safetensors", TENSOR_FILE, use_earlier_network))
    for format_, name in (("2", "reads-all/iris-2"), ("3", "reads-some/iris-3")):
        base = folder / format_ / "base.safetensors"
        release_task(GOLDEN / name.partition("/")[0] / "network.safetensors", "iris", base)
        files = {"part.safetensors": (GOLDEN / f"{name}.safetensors").read_bytes(), base.name: base.read_bytes()}
        found.append(Kind(f"subnetwork {format_}", files, "part.safetensors", TENSOR_FILE, take_up))
    for name in ("planned-300", "planned"):
        task = next(path for path in sorted((GOLDEN / name).glob("*.safetensors")))
        files = {"plan.safetensors": (GOLDEN / name / "plan").read_bytes(), "part.safetensors": task.read_bytes()}
        found.append(Kind(f"plan 1, {name}", files, "plan.safetensors", TENSOR_FILE, merge_plan))
        found.append(Kind(f"plan 1, {name}, forged", files, "plan.safetensors", TENSOR_FILE[1:3], merge_forged_plan))
    found.append(Kind("subnetwork 3, planned", files, "part.safetensors", TENSOR_FILE, merge_plan))
    return found


# ---- what a run goes on from


def go_on_within(folder: Path) -> None:
    """A fit that goes on, from a file whose checksum is right."""
    seal(folder / "epoch-00001.ckpt")
    newest = newest_readable(folder)
    if newest is None:
        raise ValueError("epoch-00001.ckpt is passed over")
    batches_done(newest)
    AtomicCheckpointIO().load_checkpoint(newest, weights_only=True)


def go_on_between(folder: Path) -> None:
    """A run that goes on between two fits, from a file whose checksum is right."""
    seal(folder / "after-0000.safetensors")
    if not RunState(folder, writes=True).newest()[0]:
        raise ValueError("after-0000.safetensors is passed over")


def going_on_kinds(folder: Path) -> list[Kind]:
    network = make_network("batch")
    learn(network, "old")
    loops = {"fit_loop": {"state_dict": {"combined_loader": []}, "epoch_progress": {"current": {"ready": 1}}}}
    saved = {"state_dict": network.state_dict(), "loops": loops, "optimizer_states": [{}], "lr_schedulers": []}
    (folder / "fit").mkdir(parents=True)
    wide = {"mask": torch.arange(5000) % 7 == 0, "sparse": torch.arange(5000).clamp(max=9).roll(9) % 9 * 0.5}
    saved |= {"callbacks": wide | {"bytes": torch.zeros(5000, dtype=torch.uint8)}, "epoch": 1, "global_step": 2}
    torch.save(Packing().packed(saved), folder / "fit" / "epoch-00001.ckpt")
    save_network(folder / "between" / "after-0000.safetensors", network, {"counted": '{"checked": 1}'})
    record = {"outputs": torch.zeros(2, 3)}
    write_safetensors(folder / "record" / "old.safetensors", record, {"digest": "0", "computed_on": "cpu"})
    return [
        Kind("checkpoint", contents(folder / "fit"), "epoch-00001.ckpt", (hostile_checkpoint,), go_on_within),
        Kind("network to go on", contents(folder / "between"), "after-0000.safetensors", TENSOR_FILE, go_on_between),
        Kind(
            "guarantee record",
            contents(folder / "record"),
            "old.safetensors",
            TENSOR_FILE,
            lambda place: read_record(place / "old.safetensors"),
        ),
    ]


# ---- run folders


def report_on(folder: Path) -> None:
    """`msh inspect RUN_DIR` and what a report is made of."""
    run = folder / "run"
    facts = read_run(run)
    for split in ("train", "val", "test", ""):
        facts.curves_of(split)
    assert facts.config_text is not None
    for task in facts.results.tasks:
        facts.results.forgetting_of(task)
    inspect(run)


def show_run(folder: Path) -> None:
    """`msh report RUN_DIR`."""
    write_report(folder / "run")


def go_on_logging(folder: Path) -> None:
    """The CSV logger of a run that goes on."""
    logger = RunCSVLogger(str(folder / "run"))
    logger.rewind_to(4)
    logger.log_metrics({"a/val/accuracy": 0.5, "more": 1.0}, 5)
    logger.save()


def read_config(folder: Path) -> None:
    """`msh evaluate`, and comparing with what is on disk."""
    path = folder / "run" / ".hydra" / "config.yaml"
    identity(read_saved(path), INCIDENTAL)
    read_settings(folder / "run")


def resume(folder: Path) -> None:
    """`resume=RUN_DIR`: the stored config, and the overrides that the run was started with."""
    register()
    compose_resumed(folder / "run", None, ["seed=3"])


def show_sweep(folder: Path) -> None:
    """`msh sweep`."""
    rows = read_sweep(folder)
    print_sweep(rows, Console(file=io.StringIO(), width=100))
    write_csv(folder / "sweep.csv", rows)


def run_kinds(folder: Path) -> list[Kind]:
    run = folder / "run"
    (run / ".hydra").mkdir(parents=True)
    config = {"name": "fake", "seed": 3, "backbone": {"_target_": "msh.backbones.mlp.MLP", "sizes": [3, 4]}}
    optimizer = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": "${checkpoint.min_seconds}"}
    config |= {"checkpoint": {"min_seconds": 0.1}, "optimizer": optimizer, "paths": {"data_dir": "data"}}
    source = {"_target_": "msh.tasks.bundled.bundled", "name": "wine"}
    config |= {"tasks": {name: {"source": source} for name in "ab"}}
    tasks = {"a": {"val": 0.5, "test": 0.5}, "b": {"val": 0.6, "test": 0.25, "weights_read": {"a": 3}}}
    ensembles = {"all": {"metric": "accuracy", "direction": "max", "tasks": ["a", "b"], "test": 0.5}}
    write_run(run, tasks, config=config, overrides=["seed=3", "optimizer.lr=0.1"], ensemble=ensembles)
    network = make_network()
    for seed, task in enumerate("ab"):
        learn(network, task, seed=seed)
    save_network(run / "network.safetensors", network)
    columns = ["a/train/loss", "a/val/accuracy", "a/sparsity", "b/val/accuracy", "epoch", "step"]
    rows = [dict.fromkeys(columns, "0.5") | {"step": str(step)} for step in range(8)]
    write_rows(run / "metrics.csv", columns, rows)
    (run / "examples").mkdir()
    Image.new("L", (2, 2)).save(run / "examples" / "a.png")
    shown: dict[str, list[Example]] = {
        "a": [{"file": "a.png", "input": "a.png", "answer": {"answer": "7", "7": 0.75}, "target": "1"}],
        "b": [{"file": "b.jsonl", "input": {"rooms": 3, "heat": None}, "answer": {"answer": 2.5}, "target": "3"}],
    }
    (run / "examples" / "index.json").write_text(json.dumps(shown))
    files = contents(folder)
    known = {key: value for key, value in config.items() if key != "rate"} | {
        "optimizer": optimizer | {"lr": "${seed}"}
    }
    whole = files | {"run/.hydra/config.yaml": OmegaConf.to_yaml(OmegaConf.create(known)).encode()}
    job = {name.replace("run/", f"{number}/"): content for name, content in files.items() for number in (0, 1)}
    job["1/unfinished.txt"] = b"ValueError: no\n"
    yaml: Sequence[Mutator] = (hostile_yaml,)
    return [
        Kind("results.json", files, "run/results.json", (hostile_json,), lambda place: Results.load(place / "run")),
        Kind("run: results.json", files, "run/results.json", (hostile_json,), report_on),
        Kind("run: metrics.csv", files, "run/metrics.csv", (hostile_csv,), report_on),
        Kind("run: config.yaml", files, "run/.hydra/config.yaml", yaml, report_on),
        Kind("run: network", files, "run/network.safetensors", TENSOR_FILE, report_on),
        Kind("page: examples", files, "run/examples/index.json", (hostile_json,), show_run),
        Kind("metrics.csv to go on", files, "run/metrics.csv", (hostile_csv,), go_on_logging),
        Kind("config.yaml", files, "run/.hydra/config.yaml", yaml, read_config),
        Kind("config.yaml to resume", whole, "run/.hydra/config.yaml", yaml, resume),
        Kind("overrides.yaml", whole, "run/.hydra/overrides.yaml", yaml, resume),
        Kind("sweep: overrides.yaml", job, "0/.hydra/overrides.yaml", yaml, show_sweep),
        Kind("sweep: results.json", job, "0/results.json", (hostile_json,), show_sweep),
    ]


def wandb_kind() -> Kind:
    from wandb.proto import wandb_internal_pb2

    content = b":W&B\0\0\0"
    for step in range(4):
        record = wandb_internal_pb2.Record()
        if step == 0:
            record.run.run_id = "0a1b"
        for key, value in (("trainer/global_step", str(step)), ("a/val/accuracy", "0.5")):
            item = record.history.item.add()
            item.key, item.value_json = key, value
        packed = record.SerializeToString()
        content += bytes(4) + len(packed).to_bytes(2, "little") + b"\x01" + packed
    name = "wandb/offline-run-1/run-1.wandb"
    return Kind("W&B's offline file", {name: content}, name, (), lambda place: read_offline(place / "wandb"))


# ---- data


def table_kinds() -> list[Kind]:
    table = "size,age,price\n" + "".join(f"{i},{i * 0.5},{i % 3}\n" for i in range(12))
    texts = "text,label\n" + "".join(f'"a film, number {i}",{"good" if i % 2 else "bad"}\n' for i in range(12))
    rows = json.dumps([{"text": f"a film, number {i}", "label": i} for i in range(12)])
    tokenizer = Texts(["a film"], 9, 4).tokenizer(torch.tensor([0])).to_str()
    of_json = {"texts.json": rows.encode(), "tokenizer.json": tokenizer.encode()}

    def read_texts(folder: Path) -> None:
        csv_text(str(folder / "texts.csv"), "text", "label")

    def read_json(folder: Path) -> None:
        csv_text(str(folder / "texts.json"), kind="regression", tokenizer=str(folder / "tokenizer.json"))

    def read_table(folder: Path) -> None:
        path = str(folder / "table.csv")
        csv_table(path, "price")
        csv_table(path, "price", kind="regression")

    return [
        Kind("CSV table", {"table.csv": table.encode()}, "table.csv", (hostile_csv,), read_table),
        Kind("CSV of texts", {"texts.csv": texts.encode()}, "texts.csv", (hostile_csv,), read_texts),
        Kind("JSON of texts", of_json, "texts.json", (hostile_json,), read_json),
        Kind("tokenizer", of_json, "tokenizer.json", (hostile_json,), read_json),
    ]


def image_kinds() -> list[Kind]:
    kinds = []
    for form, suffix in (("PNG", "png"), ("JPEG", "jpg")):
        file = io.BytesIO()
        Image.effect_noise((8, 6), 40).save(file, form)
        files = {f"images/{label}/{i}.{suffix}": file.getvalue() for label in "ab" for i in range(3)}

        def load(folder: Path) -> None:
            image_folder(str(folder / "images"), size=8, mode="RGB")
            image_folder(str(folder / "images"))

        kinds.append(Kind(f"{form} image", files, f"images/a/0.{suffix}", (hostile_image,), load))
    return kinds


def make_kinds(folder: Path) -> dict[str, Kind]:
    """All kinds, by name.

    Args:
        folder: an empty or missing one, where valid files are made.
    """
    kinds = [*network_kinds(folder / "networks"), *plan_kinds(folder / "plans"), *earlier_kinds(folder / "earlier")]
    kinds += going_on_kinds(folder / "going_on")
    kinds += [*run_kinds(folder / "runs"), *table_kinds(), *image_kinds(), wandb_kind()]
    kinds += using_kinds(folder / "using")
    return {kind.name: kind for kind in kinds}
