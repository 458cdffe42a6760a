"""sweep.html: figures and tables of a sweep, and the reasons for missing ones."""

import json
import re

import pytest
from bokeh.models import Text

from fakes import write_run, write_sweep
from msh.report.importance import importances, pareto_front
from msh.report.sweep_page import FILE_NAME, write_sweep_page
from msh.report.sweep_plots import front_plot, parallel_plot, scale_of
from msh.report.sweeps import read_sweep
from msh.runs.results import UNFINISHED


def columns(plot, name):
    """Return a column of the data that a figure draws."""
    sources = [renderer.data_source.data for renderer in plot.figure.renderers]
    return next(list(data[name]) for data in sources if name in data)


# ---- numbers


def test_no_other_point_dominates_the_front():
    points = {"a": (0.1, 0.7), "b": (0.2, 0.9), "c": (0.2, 0.8), "d": (0.3, 0.9), "e": (0.05, 0.6), "f": (0.1, 0.7)}
    assert pareto_front(points) == ["e", "a", "f", "b"]


@pytest.mark.parametrize(
    ("values", "heights", "ticks"),
    [
        (["1", "3", "2"], [0, 1, 0.5], [(0, "1"), (1, "3")]),
        (["0.001", "0.1", "0.01"], [0, 1, 0.5], [(0, "0.001"), (1, "0.1")]),
        (["-1", "100"], [0, 1], [(0, "-1"), (1, "100")]),
        (["5", "5"], [0.5, 0.5], [(0.5, "5")]),
        (["sgd", "adam", ""], [1, 0.5, 0], [(0, "–"), (0.5, "adam"), (1, "sgd")]),
    ],
)
def test_axes_lay_numbers_out_by_size_and_names_one_above_another(values, heights, ticks):
    found, texts = scale_of(values)
    assert found == pytest.approx(heights)
    assert [(pytest.approx(at), text) for at, text in texts] == ticks


def test_the_setting_that_the_score_depends_on_is_important(tmp_path):
    shares, reason = importances(write_sweep(tmp_path))
    assert reason == ""
    assert list(shares) == ["optimizer.lr", "pruning.density", "seed"]
    assert shares["optimizer.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        ({"densities": (0.1,), "rates": ("0.001", "0.01"), "seeds": (1, 2)}, "Too few jobs: 4 .* 2 settings need 8"),
        ({"densities": (0.1,), "rates": ("0.001",), "seeds": (1, 2, 3, 4)}, "All finished jobs have the same score"),
        ({"densities": (0.1,), "rates": ("0.001",), "seeds": (1,)}, "No setting differs"),
    ],
)
def test_importance_that_cannot_be_computed_has_a_reason(grid, why, tmp_path):
    shares, reason = importances(write_sweep(tmp_path, **grid))
    assert shares == {}
    assert re.match(why, reason)


# ---- figures and the page


def test_figures_have_every_job(tmp_path):
    rows = write_sweep(tmp_path)
    front, parallel = front_plot(rows), parallel_plot(rows)
    assert columns(front, "density") == [row.density for row in rows]
    assert columns(front, "score") == [row.mean_score for row in rows]
    assert columns(parallel, "score") == sorted(row.mean_score for row in rows)
    assert {len(xs) for xs in columns(parallel, "xs")} == {5}  # three settings, density and score
    assert "0.9000 at density 0.01 (job 0)" in front.caption


def test_text_in_a_figure_has_a_colour_for_light_and_for_dark_pages(tmp_path):
    figure = parallel_plot(write_sweep(tmp_path)).figure
    assert {drawn.name for drawn in figure.renderers if isinstance(drawn.glyph, Text)} == {"on light", "on dark"}


def test_densities_over_decades_have_few_ticks(tmp_path):
    ticks = front_plot(write_sweep(tmp_path)).figure.xaxis.ticker.ticks
    assert [tick for tick in ticks if 0.01 <= tick <= 0.3] == [0.01, 0.02, 0.05, 0.1, 0.2]


def test_the_page_is_one_file_with_the_best_score_and_the_errors(tmp_path):
    write_sweep(tmp_path)
    write_run(tmp_path / "12", {"a": {}}, overrides=["pruning.density=9"], status="failed")
    (tmp_path / "12" / UNFINISHED).write_text("it broke <at once>\n")
    rows = read_sweep(tmp_path)
    write_sweep_page(tmp_path, rows)
    text = (tmp_path / FILE_NAME).read_text()
    assert len(text) < 5_000_000
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.(?!data:)", text)
    plots = re.findall(r'<script type="application/json" id="data-(\w+)">(.*?)</script>', text)
    assert [key for key, _ in plots] == ["front", "parallel", "importance"]
    assert all(json.loads(item)["doc"] for _, item in plots)
    assert "12 of 13" in text
    assert "1 of 13 jobs failed." in text
    assert "it broke &lt;at once&gt;" in text
    means = text[text.index('<section id="seeds">') : text.index('<section id="failures">')]
    assert re.search(r'class="[^"]*best[^"]*">0\.9400<', means)
    assert means.count("<tr data-task") == 6


def test_a_sweep_without_a_finished_job_has_a_page_too(tmp_path):
    write_run(tmp_path / "0", {"a": {}}, overrides=["seed=1"], status="running")
    write_sweep_page(tmp_path, read_sweep(tmp_path))
    assert "0 of 1" in (tmp_path / FILE_NAME).read_text()


def test_jobs_that_differ_in_their_seeds_alone_have_a_mean(tmp_path):
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        overrides = [f"seed={seed}", "pruning.density=0.1"]
        write_run(tmp_path / str(seed), {"a": {"val": score, "test": 0.5, "density": 0.1}}, overrides=overrides)
    write_sweep_page(tmp_path, read_sweep(tmp_path))
    text = (tmp_path / FILE_NAME).read_text()
    means = text[text.index('<section id="seeds">') :]
    means = means[: means.index("</section>")]
    assert means.count("<tr data-task") == 1
    assert re.findall(r">(0\.\d{4})<", means)[:2] == ["0.6000", "0.1000"]
