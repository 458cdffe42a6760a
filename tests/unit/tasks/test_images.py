"""Image folders: values read, and errors that name the file."""

import logging
import random
import re

import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms

from messages import says
from msh.tasks import build_task
from msh.tasks.image_step import ReadImages
from msh.tasks.images import image_folder
from msh.tasks.outputs import outputs_from_data


@pytest.fixture
def folder(tmp_path):
    """Write eight grey 4x6 PNGs in two classes; class "b" is brighter, and one pixel is the file's number."""

    def make(name="images", classes=("a", "b"), mode="L", size=(6, 4), suffix="png", each=4):
        for i_class, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(each):
                image = Image.new(mode, size, 100 * i_class if mode == "L" else (100 * i_class, 0, 255))
                if mode == "L":
                    image.putpixel((5, 0), i)
                image.save(tmp_path / name / label / f"{i}.{suffix}")
        return tmp_path / name

    return make


def test_classes_are_the_folders_in_order(folder):
    path = folder()
    data = image_folder(str(path), test_fraction=0.25)
    assert (data.kind, data.outputs, data.classes) == ("classification", 2, ("a", "b"))
    assert data.train.inputs.shape == (6, 1, 4, 6)
    assert data.test.inputs.shape == (2, 1, 4, 6)
    for split in (data.train, data.test):
        torch.testing.assert_close(split.inputs[:, 0, 3, 0] * 255, 100.0 * split.targets)
    numbers = torch.cat([data.train.inputs, data.test.inputs])[:, 0, 0, 5].mul(255).round()
    assert sorted(numbers.tolist()) == sorted([0.0, 1.0, 2.0, 3.0] * 2)


def test_a_test_folder_is_the_test_split(folder):
    data = image_folder(str(folder()), test_path=str(folder("tests", each=1)))
    assert (len(data.train), data.test.targets.tolist()) == (8, [0, 1])


def test_colour_jpegs_have_three_channels(folder):
    data = image_folder(str(folder(mode="RGB", suffix="jpg")))
    assert data.train.inputs.shape[1:] == (3, 4, 6)
    torch.testing.assert_close(data.train.inputs[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.03, rtol=0)


def test_images_are_converted_to_a_size_and_a_mode(folder):
    path = folder()
    Image.new("RGBA", (9, 9), (100, 100, 100, 255)).save(path / "b" / "other.png")
    for size, shape in ((5, (5, 5)), ([2, 3], (2, 3))):
        data = image_folder(str(path), size=size, mode="RGB")
        assert data.train.inputs.shape[1:] == (3, *shape)
        bright = data.train.inputs[data.train.targets == 1]
        torch.testing.assert_close(bright[:, :, -1, 0] * 255, torch.full((len(bright), 3), 100.0), atol=1.5, rtol=0)


def test_mixed_sizes_become_their_median_and_the_log_says_so(folder, caplog):
    path = folder()
    for i in range(4, 11):
        Image.new("L", (30, 10 + i)).save(path / "b" / f"{i}.png")
    data = image_folder(str(path), test_fraction=0.1)
    height, width = data.train.inputs.shape[2:]
    assert (width, 10 < height < 20) == (30, True)
    assert f"from 4x6 to 20x30: all are resized to {height}x{width}, the median" in caplog.text
    assert "source.size" in caplog.text
    assert data.steps[0].size == (height, width)


def test_large_images_of_mixed_sizes_are_reduced(folder, caplog):
    path = folder(size=(1000, 500))
    Image.new("L", (1000, 400)).save(path / "b" / "9.png")
    assert image_folder(str(path)).train.inputs.shape[2:] == (128, 256)
    assert "the median reduced to 256 pixels" in caplog.text


def test_test_images_do_not_choose_the_size(folder):
    data = image_folder(str(folder()), test_path=str(folder("tests", size=(50, 50), mode="RGB")))
    assert data.train.inputs.shape[1:] == data.test.inputs.shape[1:] == (1, 4, 6)


def test_mixed_modes_become_rgb_and_the_log_says_so(folder, caplog):
    path = folder()
    for i in range(4, 14):
        Image.new("RGB", (6, 4), (0, 0, 255)).save(path / "b" / f"{i}.png")
    data = image_folder(str(path))
    assert data.train.inputs.shape[1] == 3
    assert "images are grey, such as" in caplog.text
    assert "source.mode" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_corrupt_jpeg_is_named(share, folder):
    path = folder(mode="RGB", size=(40, 40), suffix="jpg")
    file = path / "b" / "2.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"b/2.jpg cannot be read: cut short or damaged, or not an image"):
        image_folder(str(path))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(40), b"no image"])
def test_the_message_of_a_damaged_image_has_its_name_once_and_no_object(content, tmp_path):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    step = ReadImages("RGB", (4, 4))
    for image, name in ((file, str(file)), (content, "image 0")):
        with pytest.raises(ValueError, match="cut short or damaged, or not an image") as caught:
            step.pixels(image, "image 0")
        message = str(caught.value)
        assert message.startswith(f"{name} cannot be read")
        assert message.count(str(file)) == (name != "image 0")
        assert "object at 0x" not in message
    with pytest.raises(ValueError, match=r"cannot be read.*\(No such file or directory\)$"):
        step.pixels(tmp_path / "none.png", "")


def damaged(content, seed):
    """Overwrite 30 bytes in the last half of a JPEG's content."""
    draw = random.Random(seed)
    at = draw.randrange(len(content) // 2, len(content) - 40)
    return content[:at] + draw.randbytes(30) + content[at + 30 :]


def test_a_jpeg_damaged_in_the_middle_is_named_or_with_strict_off_accepted(folder):
    path = folder(mode="RGB", size=(40, 40), suffix="jpg")
    file = path / "b" / "2.jpg"
    noise = Image.frombytes("RGB", (40, 40), random.Random(0).randbytes(4800))
    noise.save(file)
    content, named = file.read_bytes(), 0
    for seed in range(40):
        file.write_bytes(damaged(content, seed))
        try:
            image_folder(str(path))
        except ValueError as error:
            named += 1
            assert re.search(r"b/2.jpg (cannot be read|is damaged)", str(error))  # noqa: PT017 # some damage goes unnoticed
            if "is damaged" in str(error):
                assert "source.strict=false" in str(error)  # noqa: PT017
                assert image_folder(str(path), strict=False).train.inputs.shape[1:] == (3, 40, 40)
    assert named >= 20


def test_intact_jpegs_in_all_modes_pass_the_strict_decoder(folder):
    path = folder(mode="RGB", size=(40, 40), suffix="jpg")
    for i, mode in enumerate(("L", "CMYK", "RGB")):
        Image.new(mode, (40, 40)).save(path / "a" / f"{i}.jpg", progressive=i == 2)
    assert len(image_folder(str(path), mode="RGB").train) == 6


def test_a_corrupt_png_is_named(folder):
    path = folder()
    file = path / "a" / "1.png"
    content = bytearray(file.read_bytes())
    content[45] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a/1.png cannot be read"):
        image_folder(str(path))


def test_a_missing_folder_a_folder_without_classes_and_an_empty_class_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        image_folder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"class folder in .*empty"):
        image_folder(str(tmp_path / "empty"))
    path = folder()
    for name in ("zero", "none"):
        (path / name).mkdir()
    (path / "none" / ".hidden.png").write_bytes(b"never read")
    with pytest.raises(FileNotFoundError, match=r"images: the class folders 'none', 'zero' have no images"):
        image_folder(str(path))


def test_all_images_that_cannot_be_read_are_named(folder):
    path = folder(each=15)
    for i in range(15):
        (path / "a" / f"{i}.png").write_bytes(b"no image")
    (path / "b" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"16 of 30 images cannot be read; source.unreadable=skip") as caught:
        image_folder(str(path), size=4)
    assert str(caught.value).count("png cannot be read: cut short") == 16
    for i in range(15):
        (path / "b" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"24 of 24 (.*\n)*- and 4 more"):
        image_folder(str(path), size=4, unreadable="skip")


def test_other_classes_in_the_test_folder_are_rejected(folder):
    with pytest.raises(ValueError, match=r"need the same classes; .* b, c"):
        image_folder(str(folder()), test_path=str(folder("tests", classes=("a", "c"))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "RBG"}, says("source.mode", value="RBG", meant="RGB")),
        ({"size": 0}, says("source.size", value=0)),
        ({"size": [3, 4, 5]}, says("source.size", value=[3, 4, 5])),
        ({"size": "wide"}, says("source.size", value="wide")),
        ({"test_fraction": 0.0}, says("source.test_fraction", "in (0, 1)", 0.0)),
        ({"fit": "strech"}, says("source.fit", value="strech", meant="stretch")),
        ({"background": 256}, says("source.background", value=256)),
        ({"range": [1, 0]}, says("source.range", value=[1, 0])),
        ({"unreadable": "ignore"}, says("source.unreadable", value="ignore")),
        ({"cache": "dsik"}, says("source.cache", value="dsik", meant="disk")),
        ({"kind": "regression"}, "source.kind = regression needs source.labels"),
        ({"test_labels": "t.csv"}, "source.test_labels needs source.labels"),
    ],
)
def test_invalid_settings_are_rejected(settings, message, folder):
    with pytest.raises(ValueError, match=message):
        image_folder(str(folder()), **settings)


# ---- files that are no images of a class


@pytest.mark.parametrize("place", [".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints", "a/__MACOSX", "a/x/.y"])
@pytest.mark.parametrize("with_tests", [False, True])
def test_hidden_folders_are_ignored_at_every_level(place, with_tests, folder):
    path = folder()
    (path / place).mkdir(parents=True)
    Image.new("L", (6, 4)).save(path / place / "copy.png")
    data = image_folder(str(path), test_path=str(folder("tests")) if with_tests else None)
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.test) == (16 if with_tests else 8)


def test_system_files_are_ignored_and_other_files_are_named(folder, caplog):
    path = folder()
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (path / "a" / name).write_bytes(b"never read")
    data = image_folder(str(path))
    assert len(data.train) + len(data.test) == 8
    assert "1 files are no images, and ignored, such as" in caplog.text
    assert "notes.txt" in caplog.text


def test_unreadable_images_can_be_left_out(folder, caplog):
    path = folder()
    for name in ("a/1.png", "b/3.png"):
        (path / name).write_bytes(b"never read")
    data = image_folder(str(path), unreadable="skip")
    assert len(data.train) + len(data.test) == 6
    for split in (data.train, data.test):
        torch.testing.assert_close(split.inputs[:, 0, 3, 0] * 255, 100.0 * split.targets)
    assert "left out 2 of 8 images" in caplog.text
    assert "b/3.png" in caplog.text


def test_a_class_of_unreadable_images_is_named(folder):
    path = folder()
    for file in (path / "b").iterdir():
        file.write_bytes(b"never read")
    with pytest.raises(ValueError, match="no image of b can be read"):
        image_folder(str(path), unreadable="skip")


def test_an_animation_s_first_frame_is_read_and_the_log_says_so(folder, caplog):
    path = folder()
    frames = [Image.new("L", (6, 4), 255), Image.new("L", (6, 4), 0)]
    for name in ("a/first.gif", "b/first.gif"):
        frames[0].save(path / name, save_all=True, append_images=frames[1:], duration=9)
    with caplog.at_level(logging.INFO):
        data = image_folder(str(path), mode="L", test_path=str(folder("tests")))
    assert (data.train.inputs.amin((1, 2, 3)) == 1).sum() == 2
    assert "2 images have several frames" in caplog.text


# ---- labels in a table


def with_labels(folder, text):
    path = folder()
    (path / "labels.csv").write_text(text)
    return {"path": str(path), "labels": str(path / "labels.csv"), "test_fraction": 0.5}


FILES = ("a/0.png", "b/1.png", "a/2.png", "b/3.png")


def by_file(data):
    """Return both splits' targets in the order of FILES; a pixel holds each file's number."""
    inputs = torch.cat([data.train.inputs, data.test.inputs])[:, 0, 0, 5]
    return torch.cat([data.train.targets, data.test.targets])[inputs.argsort()].tolist()


@pytest.mark.parametrize(
    ("rows", "settings", "names", "targets"),
    [
        (["file,label", "bird", " cat", "cat ", "bird"], {}, ("bird", "cat"), [0, 1, 1, 0]),
        (
            ["file,label", "red;round", "round", "", "red ; big"],
            {"kind": "multilabel"},
            ("big", "red", "round"),
            [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]],
        ),
        (
            ["file,red,big", "1,0", "0,0", "1,1", "0,1"],
            {"kind": "multilabel", "target": ["red", "big"]},
            ("red", "big"),
            [[1, 0], [0, 0], [1, 1], [0, 1]],
        ),
        (
            ["file,age", "1000000001", "2", "3.5", "-4"],
            {"kind": "regression", "target": "age"},
            ("age",),
            [[1000000001], [2], [3.5], [-4]],
        ),
        (
            ["file,x,y", "1,10", "2,20", "3,30", "4,40"],
            {"kind": "regression", "target": ["y", "x"]},
            ("y", "x"),
            [[10, 1], [20, 2], [30, 3], [40, 4]],
        ),
    ],
)
def test_labels_are_read_from_a_table(rows, settings, names, targets, folder):
    text = "\n".join([rows[0], *(f"{file},{row}" for file, row in zip(FILES, rows[1:], strict=True))])
    data = image_folder(**with_labels(folder, text), **settings)
    assert (data.kind, data.classes) == (settings.get("kind", "classification"), names)
    assert by_file(data) == targets
    task = build_task("a", data, val_fraction=0.5)
    outputs = outputs_from_data(task.data_recipe()["outputs"])
    assert (outputs.number, outputs.names) == (len(names), names)


@pytest.mark.parametrize(
    ("rows", "settings", "targets"),
    [
        (["file,label", "cat", " NA", "bird", "cat"], {}, [1, 0, 1]),
        (["file,age", "1", "", "2", "3"], {"kind": "regression", "target": "age"}, [[1], [2], [3]]),
        (
            ["file,a,b", "1,0", "0,?", "1,1", "0,1"],
            {"kind": "multilabel", "target": ["a", "b"]},
            [[1, 0], [1, 1], [0, 1]],
        ),
    ],
)
def test_images_without_a_label_are_dropped_and_counted(rows, settings, targets, folder, caplog):
    text = "\n".join([rows[0], *(f"{file},{row}" for file, row in zip(FILES, rows[1:], strict=True))])
    assert by_file(image_folder(**with_labels(folder, text), **settings)) == targets
    assert "labels.csv: dropped 1 rows without a label, such as row 3" in caplog.text


def test_colour_profiles_other_than_srgb_are_warned_of(folder, caplog):
    path, profile = folder(), ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.new("RGB", (6, 6)).save(path / "a" / "0.png", icc_profile=profile)
    data = image_folder(str(path), size=6, test_path=str(folder("tests")))
    assert "1 images have colour profiles other than sRGB, such as " in caplog.text
    assert "a/0.png (Lab identity built-in): they are damaged or for other kinds of images, and ignored" in caplog.text
    assert data.steps[0].profiles


@pytest.mark.parametrize(
    ("text", "settings", "messages"),
    [
        (
            "file,label\nc/0.png,x\na/1.png,\na/0.png,NA\na/2.png,y\n",
            {"missing_labels": "error"},
            ["row 2, column 'file': there is no file", "row 3, column 'label': .*missing, ''.*drop", "row 4, .*'NA'"],
        ),
        ("file,label\na/0.png,\n", {}, ["row 2, column 'label': the label is missing"]),
        ("file,label\na/0.png,x\n", {"missing_labels": "skip"}, [says("source.missing_labels", value="skip")]),
        ("file,label\na/0.png,x\na/1.png,x\n", {}, ["column 'label': every row has 'x'; needs at least two classes$"]),
        (
            "file,label\na/0.png,x\na/1.png,None\na/2.png,NA\n",
            {},
            ["every row with a label has 'x'; .*; 2 of 3 rows have none, but 'NA', 'None', for missing labels; if"],
        ),
        ("file,class\na/0.png,x\n", {}, [says("source.target", value="label")]),
        ("name,label\na/0.png,x\n", {}, [says("source.file", value="file")]),
        ("file,label\na/0.png,x\n", {"kind": "regression"}, ["row 2, column 'label': 'x' is no number"]),
        (
            "file,a,b\na/0.png,1,2\n",
            {"kind": "multilabel", "target": ["a", "b"]},
            ["row 2, column 'b': '2' is neither"],
        ),
        ("file,label\na/0.png,1,2\na/1.png,1\n", {}, ["line 2: 3 cells, but the header names 2"]),
        ("file,label\n", {}, ["has no rows"]),
        ("", {}, ["has no rows"]),
    ],
)
def test_wrong_tables_of_labels_are_refused(text, settings, messages, folder):
    with pytest.raises(ValueError, match=messages[0]) as caught:
        image_folder(**with_labels(folder, text), **settings)
    for message in messages:
        assert re.search(message, str(caught.value))


REPEATED = ["a/0.png,x,1", "a/1.png,y,0", "b/0.png,x,1", "./a/0.png,x,1", "a/../a/1.png, y ,0", "b/0.png,x,0"]


@pytest.mark.parametrize("kind", [{}, {"kind": "multilabel"}, {"kind": "regression", "target": "z"}])
def test_files_that_a_table_lists_twice_are_warned_of(kind, folder, caplog):
    text = "file,label,z\n" + "".join(row + "\n" for row in REPEATED)
    data = image_folder(**with_labels(folder, text), **kind)
    assert (len(data.train), len(data.test)) == (3, 3)
    listed, split = caplog.messages
    assert re.search(r"labels.csv: 3 files are listed more than once, such as .*a/0.png \(rows 2, 5\)$", listed)
    assert re.match(r"\d of 3 images of the test split are also training images, such as .*png$", split)


def test_a_file_in_both_tables_is_warned_of(folder, caplog):
    rows = "a/0.png,x\nb/1.png,x\na/1.png,y\nb/0.png,y\n"
    settings = with_labels(folder, f"file,label\n{rows}") | {"test_fraction": None}
    (folder("tests") / "t.csv").write_text("file,label\na/1.png,y\na/2.png,x\n")
    tests = settings["path"].replace("images", "tests") + "/t.csv"
    image_folder(**settings, test_labels=tests)
    [message] = caplog.messages
    assert re.match(r"1 of 2 images of the test split are also training images, such as .*a/1.png$", message)


def test_an_image_with_several_classes_is_refused(folder):
    rows = ["a/0.png,1", "a/1.png,2", "a/0.png,1.0", "a/1.png,1", "./a/1.png,3", "a/2.png,2", "a/2.png,1", "b/0.png,2"]
    settings = with_labels(folder, "file,label\n" + "".join(row + "\n" for row in rows))
    with pytest.raises(ValueError, match="2 problems") as caught:
        image_folder(**settings)
    for found in ("1.png has several classes, '2' (row 3), '1' (row 5), '3' (row 6)", "'2' (row 7), '1' (row 8)"):
        assert re.search(f"labels.csv, column 'label': .*{re.escape(found)}", str(caught.value))


@pytest.mark.parametrize("name", ["labels.csv", "labels.xlsx", "labels.parquet"])
def test_labels_are_read_from_tables_of_any_program(name, folder, tmp_path):
    path = folder()
    frame = pd.DataFrame({"file": ["a/0.png", "a/1.png", "b/0.png"], "size": ["1.250,5", "2.000,25", "3,75"]})
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, sep=";", encoding="utf-16", index=False)
    else:
        getattr(frame, "to_excel" if name.endswith("xlsx") else "to_parquet")(tmp_path / name, index=False)
    labels = {"labels": str(tmp_path / name), "target": "size", "kind": "regression", "size": 6}
    data = image_folder(str(path), test_path=str(path), test_labels=str(tmp_path / name), **labels)
    assert data.train.targets.flatten().tolist() == [1250.5, 2000.25, 3.75]


def test_a_test_table_has_the_training_tables_labels(folder):
    settings = with_labels(folder, "file,label\na/0.png,x\na/1.png,y\n") | {"test_fraction": None}
    tests = folder("tests")
    (tests / "t.csv").write_text("file,label\na/0.png,y\n")
    data = image_folder(**settings, test_path=str(tests), test_labels=str(tests / "t.csv"))
    assert data.test.targets.tolist() == [1]
    (tests / "t.csv").write_text("file,label\na/0.png,z\n")
    with pytest.raises(ValueError, match="row 2: 'z' is no label of the training images"):
        image_folder(**settings, test_path=str(tests), test_labels=str(tests / "t.csv"))


def test_a_table_of_images_has_each_target_once(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,x\n" + "".join(f"a/{number}.png,1\n" for number in range(4)))
    with pytest.raises(ValueError, match=r"source\.target names 'x' more than once"):
        image_folder(str(folder()), labels=str(table), target=["x", "x"], kind="regression")
