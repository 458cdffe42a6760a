"""The documentation is true: its Python runs, its commands and settings exist, its tables match the files."""

import contextlib
import io
import json
import re
import shlex
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from running import ROOT, few_steps, here

from msh.cli import data
from msh.cli.composing import use_own_loader
from msh.cli.configs import config_folder
from msh.training.config import NAMED, register, run_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("train.py", "evaluate.py")


def blocks(path, language):
    """The page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.S | re.M)


def commands(path):
    """The page's shell commands as lists of words, without comments and line breaks."""
    text = "\n".join(blocks(path, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


COMMANDS = [(path.name, words) for path in PAGES for words in commands(path)]


def test_the_readme_s_example_runs_and_forgets_nothing(capsys):
    names = {}
    exec(compile(*blocks(ROOT / "README.md", "python"), "README.md", "exec"), names)
    assert capsys.readouterr().out == f"torch.Size([256, 1]) {4608 - 2 * (102 + 819)}\n"
    network, inputs, targets = (names[name] for name in ("network", "inputs", "targets"))
    assert list(network.parameters()) == []
    for task, target in targets.items():
        assert (network(inputs, task) - target).square().mean() < 0.5 * target.var(), task


@pytest.mark.parametrize("path", [path for path in PAGES[1:] if blocks(path, "python")], ids=lambda path: path.name)
def test_python_in_the_pages_runs(path, train_here, tmp_path, monkeypatch):
    if path.name == "using.md":
        digits = ["tasks=[digits]", *few_steps("digits"), "trainer.max_epochs=1"]
        train_here("+experiment=sequential", *digits, folder="outputs/sequential/RUN")
        tiny = ["backbone.args.n_layer=1", "backbone.args.n_embd=8", "trainer.max_epochs=2", "pruning.rounds=1"]
        tiny += ["threads=1", "trainer.accelerator=cpu", "logger=none", "callbacks=none"]
        for name in ("style_a", "style_b"):
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / f"{name}.txt").write_text("".join(f"the film {i} is long\n" for i in range(200)))
        train_here("+experiment=language_models", *tiny, folder="outputs/language_models/RUN", small=False)
    monkeypatch.chdir(tmp_path)
    for code in blocks(path, "python"):
        exec(compile(code, path.name, "exec"), {})


def test_the_readme_s_own_tasks_train(train_here, tmp_path):
    rows = "".join(f"{i % 7},{i % 5},{3 * (i % 7) - i % 5}\n" for i in range(60))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "houses.csv").write_text("rooms,age,price\n" + rows)
    for place, label in enumerate(("crow", "wren")):
        (tmp_path / "data" / "birds" / label).mkdir(parents=True)
        for i in range(12):
            image = Image.new("RGB", (9, 8 + i), (60 * place, 10 * i, 0))
            image.save(tmp_path / "data" / "birds" / label / f"{i}.png")
    own_tasks(ROOT / "README.md", tmp_path / "my")
    look, command = (words for words in commands(ROOT / "README.md") if "--config-dir" in words)
    assert (look[1], command[2:4]) == ("data", ["--config-dir", "my"])
    here(data.main, *(word.replace("=DIR", "=data") for word in look[2:]), cwd=tmp_path)
    assert "crow" in (tmp_path / "data.html").read_text()
    overrides = [word.replace("=DIR", "=data") for word in command[4:]]
    folder, _ = train_here(*overrides, "logger=none", "trainer.max_epochs=2", "--config-dir", "my")
    assert list(json.loads((folder / "results.json").read_text())["tasks"]) == ["birds", "houses"]


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {words[1] for _, words in COMMANDS if words[0] == "make"} <= targets


def of_train(words):
    """The overrides in a command that composes a run's config; None for other commands."""
    words = words[1:] if words[0] == "srun" else words
    if words[:2] == ["python", "train.py"] or words[:2] in (["msh", "train"], ["msh", "plan"]):
        return words[2:]
    return None


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if of_train(words) is not None], ids=" ".join)
def test_settings_in_the_pages_compose(words, tmp_path):
    overrides = [word for word in of_train(words) if word not in ("-m", "-o", "PLAN")]
    if "--config-dir" in overrides:
        place = overrides.index("--config-dir")
        assert overrides[place + 1] == "my"
        del overrides[place : place + 2]
        page = next(page for page in PAGES if words in commands(page))
        overrides = [*overrides, f"hydra.searchpath=[file://{own_tasks(page, tmp_path / 'my')}]"]
    parser = OverridesParser.create()
    plain = []
    for text in overrides:
        override = parser.parse_override(text)
        if override.is_sweep_override():  # an interval has no first value
            values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else ["0.1"]
            text = f"{override.get_key_element()}={values[0]}"
        if not re.match(r"hydra[./]launcher", text):  # launchers are extras
            plain.append(text.replace("+experiment=", "experiment="))  # as train.py does
    register()
    use_own_loader()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        run_config(compose("config", overrides=plain))


def own_tasks(page, folder):
    """Write the page's YAML blocks where their first comments say; returns the folder."""
    for text in blocks(page, "yaml"):
        path = folder.parent / re.match(r"[a-z_]+: # (my/tasks/[a-z_]+\.yaml)", text).group(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("words", [w for _, w in COMMANDS if w[0] == "msh" and of_train(w) is None], ids=" ".join)
def test_commands_and_options_in_the_pages_exist(words, monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["msh", words[1], "--help"])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["msh"].partition(":")
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        getattr(import_module(module), name)()
    assert "usage" in printed.getvalue()
    for option in (word for word in words[2:] if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}\b", printed.getvalue()), option


def test_every_other_command_is_known():
    known = {"make", "msh", "srun", ".", "wandb", "ray", "export", "cat"}
    for page, words in COMMANDS:
        is_script = words[:2] in [["python", script] for script in SCRIPTS]
        assert is_script or words[0] in known or re.match(r"\w+=", words[0]), (page, words)


def test_the_table_of_groups_lists_every_option():
    rows = re.findall(r"^\| `([a-z./_]+)` \| (.*?) \|", (ROOT / "docs" / "training.md").read_text(), flags=re.M)
    groups = {group: set(re.findall(r"`([a-z0-9_]+)`", options)) for group, options in rows}
    for group, named in groups.items():
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        if options := set(NAMED.get(group.replace(".", "/"), files)):
            assert named == options, group
    assert {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - set(groups) == {
        "experiment_procedure",  # chosen by experiment and procedure
        "hydra",
        "paths",
        "wandb_sweep",
    }


def test_the_readme_s_scores_are_the_recorded_ones():
    records = json.loads((ROOT / "docs" / "results.json").read_text())
    scores = {(record["row"], record["task"]): record for record in records}
    text = (ROOT / "README.md").read_text().partition("## Results")[2]
    pattern = r"^\| (?:([a-z_0-9]+):.*?)? ?\| ([a-z_0-9]+) \| (\w+) [↑↓] \| ([.\d]+) \| ([.\d]+) \| ([.\d]*) ?\|$"
    lines = re.findall(pattern, text, flags=re.M)
    assert len(lines) >= 6
    row = None
    for id, task, metric, *cells in lines:
        row = id or row
        record = scores[row, task]
        assert metric == record["metric"]
        for cell, key in zip(cells, ("mean", "dense", "authors"), strict=True):
            wanted = record[key]
            assert float(cell) == pytest.approx(wanted, abs=5e-5) if cell else wanted is None, (row, task, key)


def test_links_between_pages_lead_somewhere():
    for path in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
            if not re.match(r"https?:", target):
                assert (path.parent / Path(target)).exists(), f"{path.name}: {target}"
