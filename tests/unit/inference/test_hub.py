"""Share networks: push to a hub on loopback and to folders, load from both, and read every refusal."""

import json
import re
import shutil
import sys

import pandas as pd
import pytest
import torch
import yaml

import msh
from frozen import frozen
from messages import says
from msh.cli import app
from msh.files.state_file import save_network
from msh.inference.hub import repository
from msh.tasks import RawData, Split, build_task
from msh.tasks.tables import table
from msh.tasks.tokens import Texts

pytest.importorskip("huggingface_hub", reason="needs msh[hub]")
from hub import TOKEN, hub, use

__all__ = ["hub"]
BACKBONE = {"_target_": "msh.backbones.mlp.MLP", "input_shape": [4], "width": 16, "depth": 2}
RESULTS = {
    "schema_version": 1,
    "experiment": "shared",
    "seed": 0,
    "status": "finished",
    "wall_seconds": 1.0,
    "bwt": 0.0,
    "run_id": "abc",
    "curriculum": [["arrays"], ["flats"], ["texts"]],
    "matrix": [],
    "forgetting": 0.0,
    "guarantee": {"checked": 3, "violations": 0},
    "capacity": {"prunable": 320, "owned": 192, "free": 128},
    "tasks": {
        "arrays": {"metric": "accuracy", "direction": "max", "stage": 0, "test": 0.75, "density": 0.2},
        "flats": {"metric": "accuracy", "direction": "max", "stage": 1, "test": 0.5, "density": 0.2},
        "texts": {"metric": "accuracy", "direction": "max", "stage": 2, "density": 0.2, "evaluated": False},
    },
}
ROWS = [{"rooms": 3, "heat": "oil"}, {"rooms": None, "heat": "gas"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, as far as sharing it needs one."""
    folder = tmp_path_factory.mktemp("sharing")
    split = Split(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3)
    arrays = build_task("arrays", RawData("classification", split, split, 3, None, ("low", "mid|*", "high")))
    frame = pd.DataFrame({"rooms": [i % 7 for i in range(60)], "heat": ["gas", "oil"] * 30})
    frame["sold"] = [("no", "yes")[i % 5 > 2] for i in range(60)]
    frame.to_csv(folder / "flats.csv", index=False)
    flats = build_task("flats", table(str(folder / "flats.csv"), target="sold"))
    words = Texts([f"word{i % 9} word{i % 4}" for i in range(60)], vocabulary=20, length=5)
    rows = torch.arange(60)
    labels = Split(rows, rows % 2)
    stem = {"_target_": "msh.tasks.stems.TokenStem", "width": 4, "pooling": "mean"}
    texts = build_task("texts", RawData("classification", labels, labels, 2, words, ("no", "yes")), stem=stem)
    save_network(folder / "network.safetensors", frozen(BACKBONE, [arrays, flats, texts]))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["msh", *map(str, arguments)])
    app.main()


def refused(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments)
    assert stop.value.code == 1
    return capsys.readouterr().err


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def same_answers(one, other):
    return torch.equal(one.predict("flats", ROWS).raw, other.predict("flats", ROWS).raw)


def test_a_pushed_network_is_loaded_from_the_hub(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    command(monkeypatch, "push", run, "me/houses", "--license", "cc-by-4.0", "--private")
    printed = capsys.readouterr()
    assert f"uploaded: {hub.address}/me/houses" in printed.out
    assert hub.repos["me/houses"]["private"]
    files = hub.repos["me/houses"]["branches"]["main"]
    assert files.keys() == {"README.md", "network.safetensors", "results.json"}
    assert files["network.safetensors"] == (run / "network.safetensors").read_bytes()
    assert same_answers(msh.load(run), msh.load("hf://me/houses"))
    assert not [part for part in (printed.out, printed.err, *map(str, files.values())) if TOKEN in part]
    command(monkeypatch, "push", run, "me/houses")  # again, into the repository that is there


def test_branches_are_revisions(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    command(monkeypatch, "push", run, "hf://me/houses@trial")
    assert hub.repos["me/houses"]["branches"]["main"] == {}
    assert same_answers(msh.load(run), msh.load("hf://me/houses@trial"))
    with pytest.raises(ValueError, match="hf://me/houses@other: the repository has no branch, tag or commit 'other'"):
        msh.load("hf://me/houses@other")
    with pytest.raises(ValueError, match=r"hf://me/houses holds no network of msh: it has no network\.safetensors"):
        msh.load("hf://me/houses")


def test_commands_read_from_the_hub(run, hub, monkeypatch, tmp_path):
    hub.put("me/houses", {"network.safetensors": (run / "network.safetensors").read_bytes()})
    pd.DataFrame(ROWS).to_csv(tmp_path / "rows.csv")
    out = tmp_path / "answers.csv"
    command(monkeypatch, "predict", "hf://me/houses", "--task", "flats", tmp_path / "rows.csv", "-o", out)
    assert list(pd.read_csv(out).label) == msh.load(run).predict("flats", ROWS).labels
    command(monkeypatch, "export", "hf://me/houses", "--task", "flats", "-o", tmp_path / "flats.safetensors")
    assert same_answers(msh.load(run), msh.load(tmp_path / "flats.safetensors"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    command(monkeypatch, "push", "hf://me/houses", "me/copy")
    assert hub.repos["me/copy"]["branches"]["main"].keys() == {"README.md", "network.safetensors"}


def test_a_network_in_the_cache_needs_no_hub(run, hub, monkeypatch):
    hub.put("me/houses", {"network.safetensors": (run / "network.safetensors").read_bytes()})
    msh.load("hf://me/houses")
    use("http://127.0.0.1:9", monkeypatch)
    assert same_answers(msh.load(run), msh.load("hf://me/houses"))
    with pytest.raises(ValueError, match=r"hf://me/flats: the hub at http://127\.0\.0\.1:9 cannot be reached"):
        msh.load("hf://me/flats")


def test_refusals_say_what_to_do(run, hub, monkeypatch, capsys):
    hub.put("me/hidden", private=True)
    sign_in = "set HF_TOKEN, or run `hf auth login`"
    assert sign_in in refused(monkeypatch, capsys, "push", run, "me/houses")
    for name in ("me/nothing", "me/hidden"):
        message = refused(monkeypatch, capsys, "predict", f"hf://{name}", "rows.csv")
        assert f"hf://{name}: there is no such repository; if it is private, {sign_in}" in message
    monkeypatch.setenv("HF_TOKEN", "hf_" + "w" * 34)
    message = refused(monkeypatch, capsys, "push", run, "me/houses")
    assert f"hf://me/houses needs a valid token: {sign_in}" in message
    assert "wwww" not in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = refused(monkeypatch, capsys, "push", run, "others/houses")
    assert "hf://others/houses: your token does not allow this" in message
    use("http://127.0.0.1:9", monkeypatch)
    message = refused(monkeypatch, capsys, "push", run, "me/houses")
    assert "hf://me/houses: the hub at http://127.0.0.1:9 cannot be reached" in message
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'msh[hub]'" in refused(monkeypatch, capsys, "predict", "hf://me/houses", "rows.csv")


@pytest.mark.parametrize("address", ["houses", "me/houses/too", "hf://", "hf://../x/y", "me/a b", "me/..", "me/x@"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match=says("the address", "hf://user/name or hf://user/name@revision", address)):
        repository(address)


def test_a_folder_is_complete_wherever_it_is(run, tmp_path, monkeypatch):
    command(monkeypatch, "push", run, f"{tmp_path}/shared", "--license", "mit")
    shutil.move(tmp_path / "shared", tmp_path / "there")
    assert same_answers(msh.load(run), msh.load(tmp_path / "there"))
    card = (tmp_path / "there" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "there")
    assert len(snippets(card)) == 3
    for code in snippets(card):
        exec(compile(code, "card", "exec"), {})


def test_the_card_tells_the_facts(run, tmp_path, monkeypatch):
    command(monkeypatch, "push", run, f"{tmp_path}/shared", "--license", "mit")
    card = (tmp_path / "shared" / "README.md").read_text()
    data = metadata(card)
    assert (data["license"], data["library_name"], data["metrics"]) == ("mit", "msh", ["accuracy"])
    assert "tabular-classification" in data["tags"]
    assert "pipeline_tag" not in data  # several kinds
    scored = {row["dataset"]["name"]: row["metrics"][0]["value"] for row in data["model-index"][0]["results"]}
    assert scored == {"arrays": 0.75, "flats": 0.5}
    assert "| flats | classification | no, yes | rooms, heat | accuracy ↑ 0.5000 | 0." in card
    assert "| texts | classification | no, yes | texts |  | 0." in card
    assert r"low, mid\|\*, high" in card
    assert "compared 3 times (bitwise), and none had changed" in card


def test_a_network_file_is_shared_without_scores(run, tmp_path, monkeypatch):
    shutil.copy(run / "network.safetensors", tmp_path / "network.safetensors")
    command(monkeypatch, "push", tmp_path / "network.safetensors", f"{tmp_path}/shared")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"README.md", "network.safetensors"}
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "license" not in metadata(card)
    assert "model-index" not in metadata(card)
    assert "The authors state no licence." in card


def test_a_run_folder_is_not_written_into(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "other" / ".hydra").mkdir(parents=True)
    message = refused(monkeypatch, capsys, "push", run, tmp_path / "other")
    assert "is a run folder: choose another one" in message


def test_no_secret_reaches_the_files(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    results = {**RESULTS, "experiment": f"with {TOKEN}"}
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    command(monkeypatch, "push", tmp_path / "run", f"{tmp_path}/{TOKEN}/")
    for name in ("README.md", "results.json"):
        assert TOKEN not in (tmp_path / TOKEN / name).read_text()
