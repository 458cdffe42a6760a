"""`msh data` shows what training would read, and all problems at once."""

import re

import pytest

from msh.cli import app
from tokenizer_files import byte_pairs


@pytest.fixture
def run(monkeypatch, tmp_path):
    def with_arguments(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["msh", "data", *arguments])
        app.main()

    return with_arguments


def test_tables_and_images_are_shown(run, tmp_path, capsys):
    run("wine", "digits", "diabetes")
    printed = capsys.readouterr().out
    for text in ("images: L, 8 x 8 pixels", "column  ", "class_0", "target: ", "written: data.html"):
        assert text in printed
    page = (tmp_path / "data.html").read_text()
    assert page.count('src="data:image/png;base64,') == 8
    assert "alcohol" in page


def test_problems_of_all_tasks_are_told_at_once(run, capsys, tmp_path):
    with pytest.raises(SystemExit, match="1"):
        run("wine", "iris", "tasks.wine.metric=rmse", "tasks.iris.source.name=irises", "-o", "page.html")
    printed = capsys.readouterr().err
    assert "tasks.wine" in printed
    assert "tasks.iris" in printed
    assert not (tmp_path / "page.html").exists()


def test_an_argument_that_a_source_does_not_take_is_named_with_those_it_takes(run, capsys):
    with pytest.raises(SystemExit, match="1"):
        run("wine", "iris", "tasks.wine.source.nam=x", "tasks.iris.source.name=irises")
    printed = capsys.readouterr().err
    assert re.search(r"no setting tasks.wine.source.nam; .* takes name, .*did you mean 'name'", printed)
    assert "tasks.iris" in printed


TABLE = "id;area;city;rent\n" + "".join(f"{i};{i},5;{'Bonn' if i % 2 else 'Köln'};{i % 3}\n" for i in range(40))


def add_task(folder, name, **source):
    """Write a task's config."""
    (folder / "conf" / "tasks").mkdir(parents=True, exist_ok=True)
    lines = "".join(f"    {key}: {value}\n" for key, value in source.items())
    stem = "  stem: {_target_: msh.tasks.stems.TokenStem}\n" if "text" in source["_target_"] else ""
    (folder / "conf" / "tasks" / f"{name}.yaml").write_text(f"{name}:\n  source:\n{lines}{stem}")


def test_cells_of_tables_are_shown_as_written_beside_their_features(run, tmp_path, capsys):
    (tmp_path / "flats.csv").write_text(TABLE)
    add_task(tmp_path, "flats", _target_="msh.tasks.tables.table", path=tmp_path / "flats.csv", target="rent")
    transforms = ["+tasks.flats.transforms=[{split_classes: ['1', '2']}]", "tasks.flats.normalize=none"]
    run("flats", "--config-dir", "conf", *transforms)
    printed = capsys.readouterr().out
    assert "First training rows, as written" in printed
    words = printed.partition("First training rows")[2].replace("│", " ")
    row = re.search(r"id +dropped +(\d+) .*area +number +(\d+),5 +(\d+)\.5 .*rent +target +(\d) +(\d)", words, re.S)
    number, cell, feature, target, name = map(int, row.groups())
    assert number == cell == feature
    assert number % 3 == target == name != 0
    page = (tmp_path / "data.html").read_text()
    assert f"{number},5" in page
    assert "identifier: numbers the rows" in page


def test_texts_are_shown_with_their_tokens_and_what_is_cut(run, tmp_path, capsys):
    rows = "".join(f"a film for {'good' if i % 2 else 'bad'} people {i},{i % 2}\n" for i in range(40))
    (tmp_path / "films.csv").write_text("text,label\n" + rows)
    for name, settings in (("films", {}), ("bytes", {"tokenizer": byte_pairs(tmp_path)})):
        source = {"path": tmp_path / "films.csv", "length": 4} | settings
        add_task(tmp_path, name, _target_="msh.tasks.text.texts", **source)
    run("films", "bytes", "--config-dir", "conf")
    printed = capsys.readouterr().out
    assert "longer than source.length: 40 of 40 texts" in printed
    assert "cut off: 33.3% of all tokens" in printed
    page = (tmp_path / "data.html").read_text()
    assert "a film for bad" in page
    assert "people" in page
    assert "&lt;s&gt; a" in page


def test_a_table_needs_only_its_file_and_target(run, tmp_path, capsys):
    file = tmp_path / "houses (1), new.csv"
    file.write_text("area,town,asking price\n" + "".join(f"{i},{'ab'[i % 2]},{i * 3 % 71}.5\n" for i in range(90)))
    key = "tasks.table.source"
    run("table", f"{key}.path={file}", f"{key}.target=asking price")
    printed = capsys.readouterr().out
    assert "asking price" in printed
    assert "rmse" in printed or "regression" in printed
    with pytest.raises(SystemExit, match="1"):
        run("table", f"{key}.path={file}")
    assert "tasks.table.source.target" in capsys.readouterr().err
