"""The report of a real run in a browser, and `msh inspect`."""

import json
import re
import shutil
from html import unescape

import pytest
from browser import browser, check_drawn, open_page
from running import SMALL, few_steps, here

from made_runs import write_run
from msh.report.run_page import write_report
from msh.runs.colours import colours_of
from msh.runs.results import Results

TASKS = ["wine", "iris", "diabetes"]


def command(name, *arguments, cwd):
    """Run a subcommand of `msh` in this process."""
    from msh.cli.app import main

    here(main, name, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of three tasks, the later of which read the earlier."""
    from msh.cli.train import main

    folder = tmp_path_factory.mktemp("report")
    settings = [f"tasks=[{','.join(TASKS)}]", "reuse=all", "baseline=finetune", "trainer.max_epochs=2", "logger=csv"]
    settings += few_steps(*TASKS)
    run = f"hydra.run.dir={folder / 'run'}"
    here(main, "+experiment=sequential", run, *settings, *SMALL, "report=true", cwd=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a made run of 200 tasks and 100 layers."""
    folder = tmp_path_factory.mktemp("large")
    write_run(folder, 200, [(1200, 800)] + [(64, 64)] * 60 + [(64, 16, 3, 3)] * 39, reads=3)
    write_report(folder)
    return folder


@browser
@pytest.mark.parametrize(
    ("width", "height", "scheme", "background"),
    [(1280, 7000, 1, (255, 255, 255)), (390, 7000, 0, (18, 21, 27))],
    ids=["desktop-light", "phone-dark"],
)
def test_a_browser_draws_every_figure_and_loads_nothing(width, height, scheme, background, trained, tmp_path):
    told, messages, shot = open_page(trained / "report.html", tmp_path, width, height, scheme)
    check_drawn((trained / "report.html").read_text(), width, told, messages)
    assert shot.getpixel((2, 2)) == background
    found = {colour: count for count, colour in shot.getcolors(1 << 24)}
    for task, colour in colours_of(TASKS).items():
        assert found.get(tuple(bytes.fromhex(colour[1:])), 0) > 300, task


@browser
def test_two_hundred_tasks_and_a_hundred_layers_are_drawn(large, tmp_path):
    page = large / "report.html"
    told, messages, _ = open_page(page, tmp_path, 390, 844, 1)
    check_drawn(page.read_text(), 390, told, messages)
    assert page.stat().st_size < 5_000_000


@browser
def test_a_browser_draws_a_comparison(trained, large, tmp_path):
    command("report", trained, large, cwd=tmp_path)
    page = tmp_path / "comparison.html"
    told, messages, _ = open_page(page, tmp_path, 390, 844, 0)
    check_drawn(page.read_text(), 390, told, messages)


def test_report_and_terminal_show_the_numbers_of_results_json(trained, tmp_path, capsys):
    results = Results.load(trained)
    assert results.status == "finished"
    page = (trained / "report.html").read_text()
    command("inspect", trained, cwd=tmp_path)
    printed = capsys.readouterr().out
    for name, task in results.tasks.items():
        row = unescape(re.search(rf'<tr data-task="{name}">.*?</tr>', page, flags=re.S).group())
        (line,) = [line for line in printed.splitlines() if line.strip("│ ").startswith(f"{name} ")]
        for text in (f"{task.test:.4f}", f"{task.density:.3f}", f"{task.weights:,}", f"{task.weights_private:,}"):
            assert f">{text}<" in row
            assert f" {text} " in line
        for other, count in task.weights_read.items():
            assert f"{other} {count:,}" in line
    share = f"{results.capacity['owned'] / results.capacity['prunable']:.1%}"
    assert f"<dd>{share}</dd>" in page
    assert f"{results.capacity['prunable']:,} weights, {share} owned" in printed


def test_the_page_has_a_program_and_a_command_for_each_task(trained):
    page = (trained / "report.html").read_text()
    assert re.findall(r"<summary>(\w+), in Python</summary>", page) == TASKS
    terminal = next(text for text in re.findall(r"<pre>(.*?)</pre>", page, flags=re.S) if "msh evaluate" in text)
    commands = [line.split("#")[0].split() for line in unescape(terminal).splitlines()]
    assert [parts[1] for parts in commands] == [*("predict" for _ in TASKS), "evaluate", "inspect", "report"]
    assert [parts[4] for parts in commands[: len(TASKS)]] == TASKS
    assert str(trained) not in page  # the folder may be moved


def test_an_unfinished_run_is_reported_with_notes(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    results = Results.load(folder)
    results.status, results.matrix = "running", results.matrix[:2]
    results.tasks["diabetes"].test = None
    results.save(folder)
    (folder / "network.safetensors").write_bytes((folder / "network.safetensors").read_bytes()[:100])
    command("report", folder, "-o", "half.html", cwd=tmp_path)
    said, page = capsys.readouterr().err, (tmp_path / "half.html").read_text()
    for text in ("not yet: diabetes", "safetensors file, or is damaged"):
        assert text in said
        assert text in page


@pytest.mark.parametrize("name", ["report", "inspect"])
@pytest.mark.parametrize("later", [True, False])
def test_a_later_version_and_a_folder_without_a_run_are_refused(name, later, tmp_path, capsys):
    message = "is not a run folder: it has neither results.json nor .hydra/config.yaml"
    if later:
        (tmp_path / "results.json").write_text(json.dumps({"schema_version": 2}))
        message = "results.json cannot be read: schema_version 2 is later than 1, which this release reads"
    with pytest.raises(SystemExit) as stop:
        command(name, tmp_path, cwd=tmp_path)
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_fails_does_not_lose_the_run(tmp_path, monkeypatch, capsys):
    from msh.cli.train import main
    from msh.report import run_page as report

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", fail)
    settings = ["+experiment=sequential", "tasks=[wine]", *few_steps("wine"), "trainer.max_epochs=1", "logger=none"]
    here(main, *settings, *SMALL, "report=true", "hydra.run.dir=run", cwd=tmp_path)
    assert Results.load(tmp_path / "run").status == "finished"
    assert "report.html was not written: OSError: [Errno 28] No space left on device" in capsys.readouterr().out


def test_a_run_that_fails_is_reported(tmp_path):
    from msh.cli.train import main

    settings = ["tasks=[wine]", "trainer.max_epochs=2", "logger=csv", "optimizer.lr=1e30", "pruning=at_init"]
    settings.append(f"hydra.run.dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit):
        here(
            main,
            "+experiment=sequential",
            f"hydra.run.dir={tmp_path / 'run'}",
            *settings,
            *SMALL,
            "report=true",
            cwd=tmp_path,
        )
    assert "The run stopped with an error: 0 of 1 stages" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("setting", [["report=false"], ["report=true", "trainer.fast_dev_run=true"]])
def test_no_report_is_written_if_none_is_wanted(setting, train_here):
    settings = ["tasks=[wine]", *few_steps("wine"), "trainer.max_epochs=1", "logger=none", *setting]
    folder, _ = train_here("+experiment=sequential", *settings)
    assert not (folder / "report.html").exists()


def test_a_comparison_names_folders_without_a_run_and_continues_with_the_rest(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command("report", "empty", "nowhere", str(trained), "-o", "page.html", cwd=tmp_path)
    captured = capsys.readouterr()
    assert re.findall(r"left out: (\S+) is not a run folder", captured.err) == ["empty", "nowhere"]
    assert captured.out == "written: page.html\n"
    (tmp_path / "page.html").unlink()
    with pytest.raises(SystemExit, match="1"):
        command("report", "empty", "nowhere", "-o", "page.html", cwd=tmp_path)
    assert "none of the 2 folders has a run" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
