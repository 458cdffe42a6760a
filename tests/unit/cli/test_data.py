"""`msh data` shows what training would read, and all problems at once."""

import pytest

from msh.cli import app


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
