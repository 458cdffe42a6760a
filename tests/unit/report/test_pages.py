"""Pages: their numbers are those of the run folder, and they load nothing."""

import json
import re
from html import unescape

import pytest

from made_runs import write_run
from msh.cli.report import settings_of
from msh.report.comparison import run_names, write_comparison
from msh.report.run_page import page_of, write_report
from msh.runs.facts import read_run
from msh.runs.results import Results
from msh.runs.words import number
from msh.tasks.tokens import TokenCounts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a made run, with its report."""
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    write_run(folder, 4, [(30, 20), (20, 30)], reads=1)
    write_report(folder)
    return folder


@pytest.fixture
def page(folder):
    return (folder / "report.html").read_text()


def section(page, key):
    return page[page.index(f'<section id="{key}">') : page.index("</section>", page.index(f'<section id="{key}">'))]


def table(text):
    """The texts of a table's rows."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, flags=re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in rows]
    return [[unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in cells]


def test_the_tasks_table_has_the_numbers_of_results_json(folder, page):
    results = Results.load(folder)
    header, *rows = table(section(page, "tasks"))
    assert [row[0] for row in rows] == list(results.tasks)
    for row, task in zip(rows, results.tasks.values(), strict=True):
        known = dict(zip(header, row, strict=True))
        assert (known["test"], known["density"], known["weights"]) == (number(task.test), "0.250", f"{task.weights:,}")


def test_the_matrix_and_capacity_tables_are_those_of_the_files(folder, page):
    facts = read_run(folder)
    _, *rows = table(section(page, "matrix"))
    assert [row[1:] for row in rows] == [[number(score) for score in row] for row in facts.results.matrix]
    header, *layers, total = table(section(page, "capacity"))
    assert header == ["layer", "shape", "weights", *facts.tasks, "free"]
    for row, layer in zip([*layers, total], [*facts.ownership.capacity(), facts.ownership.total()], strict=True):
        assert row[2:] == [f"{count:,}" for count in (layer.size, *layer.owned.values(), layer.free)]


def test_tasks_of_texts_say_how_much_is_cut_off(folder, tmp_path):
    results = Results.load(folder)
    last = list(results.tasks)[-1]
    results.tasks[last].tokens = TokenCounts(texts=2000, longer=50, tokens=1000, cut=125, unknown=0)
    results.save(tmp_path)
    write_report(tmp_path)
    header, row = table(section((tmp_path / "report.html").read_text(), "texts"))
    assert header == ["task", "longer than source.length", "cut off", "unknown"]
    assert row == [last, "50 of 2,000 texts", "12.5% of all tokens", "0.0% of all tokens"]


def test_every_section_exists_and_is_linked(page):
    parts = re.findall(r'<section id="(\w+)">', page)
    assert parts == [
        "tasks",
        "curves",
        "matrix",
        "capacity",
        "owners",
        "overlap",
        "sparsity",
        "forgetting",
        "config",
        "use",
    ]
    assert re.findall(r'<a href="#(\w+)">', page) == parts


def test_every_figure_has_a_caption_with_numbers(page):
    figures = re.findall(r'data-plot="([\w-]+)" role="img" aria-label="([^"]*)"', page)
    assert len(figures) == page.count("data-plot=") == 9
    for key, text in figures:
        assert re.search(r"\d", text), key
        assert f'<figcaption id="{key}-caption">{text}</figcaption>' in page


def test_the_page_loads_nothing(page):
    assert "default-src 'none'" in page
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", body)
    assert "<script src" not in page
    assert len(page) < 2_000_000


def test_the_verdict_is_the_guarantees(folder, tmp_path):
    facts = read_run(folder)
    assert page_of(facts).good
    assert page_of(facts).verdict.startswith("Nothing was forgotten: frozen tasks' outputs were compared with their")
    facts.results.guarantee["violations"] = 2
    assert not page_of(facts).good
    assert "in 2 of 6 comparisons a frozen task had changed" in page_of(facts).verdict
    facts.results.guarantee = {"checked": 0, "violations": 0}
    assert page_of(facts).verdict == ""


def test_names_are_text_and_not_markup(tmp_path):
    write_run(tmp_path, 2, [(4, 4)])
    content = json.loads((tmp_path / "results.json").read_text())
    content["experiment"] = "<script>alert(1)</script>"
    (tmp_path / "results.json").write_text(json.dumps(content))
    (tmp_path / ".hydra" / "config.yaml").write_text("name: '</pre></script><img src=x>'\n")
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page


def test_bokeh_finds_nothing_wrong_with_the_figures(folder, tmp_path, caplog):
    write_report(folder, tmp_path / "again.html")
    assert caplog.records == []


def test_baselines_and_ensembles_are_shown_if_there_are_any(tmp_path):
    results = write_run(tmp_path, 3, [(10, 10)])
    for place, name in enumerate(results.tasks):
        results.tasks[name].dense = 0.5
        results.add_finetune_row(dict.fromkeys(list(results.tasks)[: place + 1], 0.9 - 0.1 * place))
    results.ensemble = {"both": {"metric": "accuracy", "direction": "max", "tasks": ["t000", "t002"], "test": 0.875}}
    results.save(tmp_path)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    header, *rows = table(section(page, "tasks"))
    assert header[4:6] == ["dense", "finetune"]
    assert rows[-1][:3] == ["both of 2", "accuracy ↑", "0.8750"]
    assert 'data-plot="finetuned"' in section(page, "matrix")
    assert "fine-tuned task after task forgot" in section(page, "forgetting")
    assert table(section(page, "forgetting"))[1][-1] == "0.2000"
    assert 'data-plot="baselines-0"' in section(page, "baselines")


@pytest.mark.parametrize(
    "lost",
    [
        ("metrics.csv",),
        ("network.safetensors",),
        (".hydra/config.yaml",),
        ("results.json",),
        ("metrics.csv", "network.safetensors", "results.json"),
    ],
)
def test_an_incomplete_folder_is_reported_as_far_as_it_goes(lost, tmp_path):
    write_run(tmp_path, 2, [(4, 4)])
    for name in lost:
        (tmp_path / name).unlink()
    facts = write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert len(facts.notes) == len(lost)
    for note in facts.notes:
        assert f"<li>{note}</li>" in unescape(page)
    gone = {
        "metrics.csv": "curves",
        "network.safetensors": "capacity",
        ".hydra/config.yaml": "config",
        "results.json": "matrix",
    }
    for name, key in gone.items():
        assert (f'<section id="{key}">' in page) == (name not in lost)
    assert ("<dd>2 of 2</dd>" in page) == ("results.json" not in lost)  # unknown is a dash, not 0 of 0


def test_tasks_that_were_learned_at_once_cannot_forget(tmp_path):
    results = write_run(tmp_path, 2, [(4, 4)])
    results.curriculum = [list(results.tasks)]
    results.matrix = results.matrix[-1:]
    results.save(tmp_path)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "All tasks were learned at once: nothing came later that they could forget by." in page
    assert "1 stage, 2 tasks; no score fell after it was learned." in page


def test_a_run_of_no_stage_yet_is_reported(tmp_path):
    results = write_run(tmp_path, 2, [(4, 4)])
    fresh = Results("made", 0, results.curriculum, results.tasks, "x")
    for task in fresh.tasks.values():
        task.test = task.test_when_learned = None
    fresh.save(tmp_path)
    for name in ("metrics.csv", "network.safetensors"):
        (tmp_path / name).unlink()
    facts = write_report(tmp_path)
    assert "0 of 2 stages" in facts.notes[0]
    assert "not yet: t000, t001" in facts.notes[0]
    assert "0 of 2" in (tmp_path / "report.html").read_text()


# ---- several runs


@pytest.fixture
def others(folder, tmp_path):
    other = tmp_path / "other" / "run"
    other.mkdir(parents=True)
    write_run(other, 3, [(30, 20)], seed=1)
    (other / ".hydra" / "config.yaml").write_text("name: made\nseed: 1\nreuse: all\n")
    return [read_run(folder), read_run(other)]


def test_runs_are_compared_by_task(others, tmp_path):
    settings = settings_of([run.config for run in others])
    assert settings == {"reuse": ["none", "all"], "seed": [0, 1]}
    write_comparison(others, settings, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    header, *rows = table(section(page, "scores"))
    names = run_names(others)
    assert header == ["task", "metric", *names]
    for row in rows:
        scores = [run.results.tasks[row[0]].test if row[0] in run.results.tasks else None for run in others]
        assert row[2:] == [number(score) for score in scores]
    assert len(rows) == 4
    assert table(section(page, "settings"))[1:] == [["reuse", "none", "all"], ["seed", "0", "1"]]
    assert [row[0] for row in table(section(page, "runs"))[1:]] == names
    best = re.findall(r'<td class="[^"]*best">([\d.]+)</td>', section(page, "scores"))
    pairs = [[run.results.tasks[task].test for run in others] for task in ("t000", "t001", "t002")]
    assert sorted(best) == sorted(number(choose(pair)) for choose, pair in zip((max, min, max), pairs, strict=True))


def test_runs_are_named_by_the_different_ends_of_their_paths(others):
    assert run_names(others) == [f"{run.folder.parent.name}/run" for run in others]


def test_a_run_named_twice_is_refused(others):
    with pytest.raises(ValueError, match="a run folder is named twice"):
        run_names([others[0], others[0]])


def test_an_unknown_config_has_no_settings(others):
    assert settings_of([others[0].config, None, others[1].config])["reuse"] == ["none", None, "all"]
    assert settings_of([None, None]) == {}
