"""Texts in JSON Lines, tables and folders: values read, splits, and all problems of a file at once."""

import gzip
import json
import logging
import re

import pandas as pd
import pytest
import torch

from messages import says
from msh.tasks import build_task
from msh.tasks.text import texts
from tokenizer_files import byte_pairs

ROWS = [{"text": f"text number {i}", "label": "yes" if i % 2 else "no"} for i in range(20)]
LANGUAGES = [
    "Grüße, schöne Welt",
    "Привет, мир",
    "こんにちは世界",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👩‍👩‍👧 ok",
    'a "quote"\nand a line',
]
SPLIT = {"column": "part"}


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(data, part="train"):
    """The texts of a split."""
    return [data.texts.texts[row] for row in data.splits[part].inputs.tolist()]


@pytest.fixture
def folder(tmp_path):
    """A folder with a folder per class, and what systems leave in it."""
    root = tmp_path / "reviews"
    for name in ("bad", "good"):
        (root / name / "old").mkdir(parents=True)
        for i in range(9):
            (root / name / f"{i}.txt").write_text(f"{name} film {i}")
        (root / name / "old" / "10").write_text(f"{name} and old")
        (root / name / ".DS_Store").write_bytes(b"\0\xff")
        (root / name / "._0.txt").write_bytes(b"\0\xff")
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "a.txt").write_text("x")
    (root / "__MACOSX").mkdir()
    return root


def write_as(kind, rows, path):
    """Write rows as a file of a kind; return its path."""
    frame = pd.DataFrame(rows)
    path = path / f"texts.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "xlsx":
        frame.to_excel(path, index=False)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text(lines(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "xlsx", "jsonl", "ndjson", "json"])
def test_all_kinds_of_file_give_the_same_texts_in_any_language(kind, tmp_path):
    rows = [
        {"text": text, "label": i % 3, "part": part}
        for part in ("train", "val", "test")
        for i, text in enumerate(f"{part}: {text}" for text in LANGUAGES)
    ]
    data = texts(write_as(kind, rows, tmp_path), split=SPLIT)
    for part in ("train", "val", "test"):
        assert read(data, part) == [f"{part}: {text}" for text in LANGUAGES]
        assert data.splits[part].targets.tolist() == [i % 3 for i in range(7)]
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "folder"])
def test_byte_order_marks_and_windows_lines_are_understood(kind, encoding, write, tmp_path):
    rows = [{"text": f"é {i}", "label": i % 2} for i in range(10)]
    if kind == "folder":
        for row in rows:
            (tmp_path / "all" / f"{row['label']}").mkdir(parents=True, exist_ok=True)
            write(f"{row['text']}\r\n", f"all/{row['label']}/{row['text'][2]}.txt", encoding)
        data = texts(str(tmp_path / "all"), test_fraction=0.2)
        assert sorted(read(data) + read(data, "test")) == [f"é {i}\n" for i in range(10)]
        return
    content = lines(rows) if kind == "jsonl" else "text,label\n" + "".join(f"é {i},{i % 2}\n" for i in range(10))
    data = texts(write(content.replace("\n", "\r\n"), f"texts.{kind}", encoding))
    assert sorted(read(data) + read(data, "test")) == [f"é {i}" for i in range(10)]
    assert data.classes == ("0", "1")


def test_a_folder_per_class_is_read_at_any_depth_without_hidden_files(folder, caplog):
    (folder / "notes.txt").write_text("of the author")
    with caplog.at_level(logging.WARNING):
        data = texts(str(folder))
    assert data.classes == ("bad", "good")
    assert len(data.texts.texts) == 20
    for part in data.splits:
        assert [data.classes[target] for target in data.splits[part].targets] == [
            t.split()[0] for t in read(data, part)
        ]
    assert "1 files are in no class folder, and ignored, such as" in caplog.text


def test_a_test_folder_has_the_same_classes(folder, tmp_path):
    for name, label in (("bad", "bad"), ("awful", "awful")):
        (tmp_path / name / label).mkdir(parents=True)
        (tmp_path / name / label / "a.txt").write_text("a new one")
    assert read(texts(str(folder), test_path=str(tmp_path / "bad")), "test") == ["a new one"]
    with pytest.raises(ValueError, match=r"awful/a.txt, column 'label': 'awful' is no class of the training"):
        texts(str(folder), test_path=str(tmp_path / "awful"))


def test_packed_json_is_read_and_labels_that_are_lists_are_refused(tmp_path):
    rows = [{"text": f"a text {i}", "label": "ab"[i % 2]} for i in range(30)]
    (tmp_path / "a.jsonl").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert len(texts(str(tmp_path / "a.jsonl")).train) == 24
    rows[3]["label"] = ["a"]
    rows[4]["text"] = ["long " * 99]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"column 'label': \"\['a'\]\" is neither a label nor a number") as caught:
        texts(str(tmp_path / "a.jsonl"))
    assert re.search(r"line 5, column 'text': .* is no text", str(caught.value))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.jsonl.gz", "A.JSON.GZ"])
def test_json_is_read_by_the_suffix_in_any_case_and_below_gzips(name, tmp_path):
    content = lines([{"text": f"a text {i}", "label": "ab"[i % 2]} for i in range(30)]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert len(texts(str(tmp_path / name)).train) == 24


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.txt.gz"])
def test_plain_texts_are_read_by_the_suffix_in_any_case_and_below_gzips(name, tmp_path):
    content = "".join(f"the line, {i}\n" for i in range(30)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert len(texts(str(tmp_path / name), kind="lm", test_fraction=0.2).texts.texts) == 30


def test_files_that_are_no_texts_are_named_together(folder):
    (folder / "bad" / "1.txt").write_bytes("é".encode("latin-1"))
    (folder / "good" / "2.txt").write_bytes(b"PK\x03\0")
    with pytest.raises(ValueError, match="2 problems") as caught:
        texts(str(folder))
    assert "1.txt is not in utf-8: byte 0 (line 1) is 0xe9" in str(caught.value)
    assert "2.txt is not a text" in str(caught.value)
    (folder / "good" / "2.txt").unlink()
    assert "é" in texts(str(folder), encoding="latin-1").texts.texts


def test_folders_without_classes_or_texts_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"no class folder in .*: texts need"):
        texts(str(tmp_path))
    (tmp_path / "good").mkdir()
    with pytest.raises(FileNotFoundError, match="class folders 'good' have no texts"):
        texts(str(tmp_path))


def test_names_of_folders_can_be_numbers(tmp_path):
    for stars in (1, 2, 10):
        (tmp_path / str(stars)).mkdir()
        for i in range(5):
            (tmp_path / str(stars) / f"{i}.txt").write_text(f"{stars} stars {i}")
    assert texts(str(tmp_path)).classes == ("1", "2", "10")
    assert sorted(texts(str(tmp_path), kind="regression").train.targets.unique().tolist()) == [1, 2, 10]


def test_each_folder_is_a_class_whatever_its_name(tmp_path):
    names = ["1", "01", "1.0", "NA", "None", "-", "null", "EU"]
    for part in ("train", "test"):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / part / name / f"{i}.txt").write_text(f"{name} in {part} {i}")
    data = texts(str(tmp_path / "train"), test_path=str(tmp_path / "test"))
    assert sorted(data.classes) == sorted(names)
    for part in ("train", "test"):
        classes = [data.classes[target] for target in data.splits[part].targets]
        assert classes == [text.split()[0] for text in read(data, part)]


def test_labels_of_a_table_find_the_folders_of_training(tmp_path, write):
    for name in ("1", "01", "2", "NA"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "train" / name / f"{i}.txt").write_text(f"{name} {i}")
    test = write("text,label\na,01\nb,1\nc,2.0\nd,1.0\ne,NA\n", "test.csv")
    data = texts(str(tmp_path / "train"), test_path=test)
    assert [data.classes[target] for target in data.test.targets] == ["01", "1", "2", "1"]


def test_bad_lines_are_named_together(write):
    bad = ['{"text": "a"', "[1]", "null", '{"text": "b", "label": 1}', "", '{"text": 7} x']
    with pytest.raises(ValueError, match="4 problems") as caught:
        texts(write("\n".join(bad), "a.jsonl"))
    for number, problem in ((1, "not JSON"), (2, "must be an object"), (3, "must be an object"), (6, "not JSON")):
        assert f"a.jsonl, line {number}: {problem}" in str(caught.value)
    with pytest.raises(ValueError, match="and 10 more"):
        texts(write("{\n" * 30, "b.jsonl"))


def test_half_a_character_and_items_that_are_no_rows_are_named(write):
    halves = [*ROWS, {"text": "cut \ud83d", "label": "no"}]
    path = write("".join(json.dumps(row) + "\n" for row in halves), "a.jsonl")
    with pytest.raises(ValueError, match=r"a.jsonl, line 21, column 'text': .* is no text"):
        texts(path)
    with pytest.raises(ValueError, match=r"b.json, item 21: must be an object"):
        texts(write(json.dumps([*ROWS, None]), "b.json"))


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_files_without_rows_are_refused(content, write):
    with pytest.raises(ValueError, match="has no rows"):
        texts(write(content, "a.jsonl"))


def test_json_in_another_encoding_is_named_with_its_line(write):
    path = write(lines([{"text": "fine", "label": 1}, {"text": "café", "label": 2}]), "a.jsonl", "latin-1")
    with pytest.raises(ValueError, match=r"a.jsonl is not in utf-8: byte .*line 2\) is 0xe9.*source.encoding"):
        texts(path)


def test_problems_of_texts_labels_and_both_files_are_named_together(write):
    train = [*ROWS, {"text": None, "label": "yes"}, {"label": "no"}, {"text": ["a"], "label": "no"}]
    test = [{"text": " ", "label": "maybe"}]
    with pytest.raises(ValueError, match="3 problems") as caught:
        texts(write(lines(train), "a.jsonl"), test_path=write(lines(test), "b.jsonl"))
    message = str(caught.value)
    assert "a.jsonl, line 23, column 'text': \"['a']\" is no text" in message
    assert "b.jsonl, line 1, column 'text': ' ' is an empty text" in message
    assert "b.jsonl, line 1, column 'label': 'maybe' is no class" in message


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "xlsx"])
def test_missing_texts_are_empty_not_words(kind, tmp_path, caplog):
    rows = [*ROWS, {"text": None, "label": "yes"}, {"text": "NA", "label": "no"}, {"text": 7, "label": "no"}]
    if kind == "parquet":
        rows[-1]["text"] = "7"
    path = write_as(kind, rows, tmp_path)
    with pytest.raises(ValueError, match=r"column 'text': .* is an empty text; source.empty=drop"):
        texts(path)
    with caplog.at_level(logging.WARNING):
        data = texts(path, empty="drop")
    assert "dropped 1 rows, their text is empty" in caplog.text
    assert sorted(data.texts.texts)[:2] == ["7", "NA"]


def test_labels_are_read_as_in_tables(write, caplog):
    rows = [*ROWS, {"text": "a", "label": " yes "}, {"text": "b", "label": None}, {"text": "c", "label": "NA"}]
    with caplog.at_level(logging.WARNING):
        data = texts(write(lines(rows), "a.jsonl"))
    assert data.classes == ("no", "yes")
    assert "dropped 2 rows without a target" in caplog.text
    with pytest.raises(ValueError, match=r"a.jsonl, line 22, column 'label'.*missing_labels"):
        texts(write(lines(rows), "a.jsonl"), missing_labels="error")


def test_classes_of_dropped_texts_are_no_classes(write):
    data = texts(write(lines([*ROWS, {"text": "", "label": "maybe"}]), "a.jsonl"), empty="drop")
    assert data.classes == ("no", "yes")


def test_numbers_are_targets_in_double_precision(write):
    rows = [{"text": f"a {i}", "label": 1e9 + i / 8} for i in range(10)]
    data = texts(write(lines(rows), "a.jsonl"), kind="regression")
    assert data.train.targets.dtype == torch.float64
    assert len({*data.train.targets.flatten().tolist(), *data.test.targets.flatten().tolist()}) == 10
    assert texts(write(lines(rows), "a.jsonl"), threshold=1e9 + 0.5).train.targets.unique().tolist() == [0, 1]


# ---- splits


def test_a_column_or_groups_split_texts_as_they_split_tables(write):
    rows = [row | {"author": i // 2, "part": "test" if i < 4 else "train"} for i, row in enumerate(ROWS)]
    path = write(lines(rows), "a.jsonl")
    assert read(texts(path, split=SPLIT), "test") == [row["text"] for row in rows[:4]]
    data = texts(path, split={"group": "author"})
    authors = [{rows[int(text.split()[2])]["author"] for text in read(data, part)} for part in data.splits]
    assert sum(map(len, authors)) == len(set.union(*authors)) == 10
    assert read(texts(path, split={"time": "author"}), "test") == [row["text"] for row in rows[-4:]]
    with pytest.raises(ValueError, match=says("source.split.group", value="writer")):
        texts(path, split={"group": "writer"})


def test_texts_of_a_group_that_is_written_in_two_ways_stay_in_one_split(write):
    rows = ["text,author,label", *(f"word {i},{i // 2}{'.0' * (i % 2)},{'pn'[i % 3 % 2]}" for i in range(40))]
    data = texts(write("\n".join(rows), "a.csv"), split={"group": "author"})
    authors = [{int(text.split()[1]) // 2 for text in read(data, part)} for part in data.splits]
    assert sum(map(len, authors)) == len(set.union(*authors)) == 20


def test_files_of_any_kind_are_the_validation_and_test_splits(write, folder):
    val = write("text,label\nfine,good\n", "val.csv")
    test = write(lines([{"text": "awful", "label": "bad"}]), "test.jsonl")
    data = texts(str(folder), val_path=val, test_path=test)
    assert (len(data.train), read(data, "val"), read(data, "test")) == (20, ["fine"], ["awful"])
    assert [split.targets.tolist() for split in (data.val, data.test)] == [[1], [0]]
    task = build_task("a", data)
    assert [len(split) for split in task.splits.values()] == [20, 1, 1]


def test_texts_in_several_splits_are_reported(write, caplog):
    test = write(lines([ROWS[3], {"text": "new", "label": "no"}]), "b.jsonl")
    with caplog.at_level(logging.WARNING):
        texts(write(lines(ROWS), "a.jsonl"), test_path=test)
    assert "1 of 2 texts of the test split are also training texts: " in caplog.text
    assert f"b.jsonl, line 1 is {test.replace('b.jsonl', 'a.jsonl')}, line 4" in caplog.text


def test_settings_are_checked_together_before_any_text_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    settings = {"empty": "drp", "split": {"group": "a"}, "test_path": "b", "unicode": "NFX", "length": 0}
    with pytest.raises(ValueError, match="4 problems") as caught:
        texts(str(tmp_path / "a.jsonl"), **settings)
    for key in ("source.empty", "source.split", "source.unicode", "source.length"):
        assert key in str(caught.value)


def test_a_tokenizer_file_is_a_setting_of_a_source(write, tmp_path):
    path = byte_pairs(tmp_path)
    task = build_task("a", texts(write(lines(ROWS), "a.jsonl"), tokenizer=path, length=30))
    assert (task.padding, task.input_shape) == (1, (30,))
    assert task.splits["train"].inputs.max() < task.vocabulary
    with pytest.raises(FileNotFoundError, match="no file"):
        texts(write(lines(ROWS), "a.jsonl"), tokenizer=str(tmp_path / "b.json"))
