"""Folders of images: what is read, and what is refused by name."""

import random
import re

import pytest
import torch
from PIL import Image

from msh.tasks.images import image_folder


@pytest.fixture
def folder(tmp_path):
    """Eight grey PNGs of 4x6 in two classes; those of class "b" are brighter, each has its own number as a pixel."""

    def make(name="images", classes=("a", "b"), mode="L", size=(6, 4), suffix="png", each=4):
        for place, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(each):
                image = Image.new(mode, size, 100 * place if mode == "L" else (100 * place, 0, 255))
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


def test_images_are_brought_to_a_size_and_a_mode(folder):
    path = folder()
    Image.new("RGBA", (9, 9), (100, 100, 100, 255)).save(path / "b" / "other.png")
    for size, shape in ((5, (5, 5)), ([2, 3], (2, 3))):
        data = image_folder(str(path), size=size, mode="RGB")
        assert data.train.inputs.shape[1:] == (3, *shape)
        bright = data.train.inputs[data.train.targets == 1]
        torch.testing.assert_close(bright[:, :, -1, 0] * 255, torch.full((len(bright), 3), 100.0), atol=1.5, rtol=0)


def test_mixed_sizes_are_refused_with_both_files(folder):
    path = folder()
    Image.new("L", (4, 6)).save(path / "b" / "9.png")
    with pytest.raises(ValueError, match=r"a/0.png is 4x6 L, but .*b/9.png is 6x4 L: .*source.size and source.mode"):
        image_folder(str(path))


def test_mixed_modes_are_refused_with_both_files(folder):
    path = folder()
    Image.new("RGB", (6, 4)).save(path / "b" / "9.png")
    with pytest.raises(ValueError, match=r"a/0.png is 4x4 L, but .*b/9.png is 4x4 RGB"):
        image_folder(str(path), size=4)


def test_a_mode_that_is_neither_grey_nor_colour_is_refused(folder):
    path = folder()
    Image.new("P", (6, 4)).save(path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"a/0.png has the mode P: convert it with source.mode, to one of L, RGB"):
        image_folder(str(path))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_corrupt_jpeg_is_named(share, folder):
    path = folder(mode="RGB", size=(40, 40), suffix="jpg")
    file = path / "b" / "2.jpg"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"b/2.jpg cannot be read: cut short or damaged, or not an image"):
        image_folder(str(path))


def damaged(content, seed):
    """A JPEG's content with 30 bytes of its last half overwritten."""
    draw = random.Random(seed)
    at = draw.randrange(len(content) // 2, len(content) - 40)
    return content[:at] + draw.randbytes(30) + content[at + 30 :]


def test_a_jpeg_that_is_damaged_in_its_middle_is_named_or_taken_as_it_comes(folder):
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
            assert re.search(r"b/2.jpg (cannot be read|is damaged)", str(error))  # noqa: PT017 # some are not noticed
            if "is damaged" in str(error):
                assert "source.strict=false takes what can be decoded" in str(error)  # noqa: PT017
                assert image_folder(str(path), strict=False).train.inputs.shape[1:] == (3, 40, 40)
    assert named >= 20


def test_whole_jpegs_of_all_modes_pass_the_strict_decoder(folder):
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
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere: paths.data_dir=DIR"):
        image_folder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"class folder in .*empty"):
        image_folder(str(tmp_path / "empty"))
    path = folder()
    (path / "zero").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images: .*no valid file for the classes zero"):
        image_folder(str(path))


def test_other_classes_in_the_test_folder_are_refused(folder):
    with pytest.raises(ValueError, match="need the same classes; only one of them has b, c"):
        image_folder(str(folder()), test_path=str(folder("tests", classes=("a", "c"))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "RBG"}, r"source.mode must be one of .*, got 'RBG'; did you mean 'RGB'"),
        ({"size": 0}, r"source.size = 0 is not allowed"),
        ({"size": [3, 4, 5]}, r"source.size = \[3, 4, 5\] is not allowed"),
        ({"test_fraction": 0.0}, r"source.test_fraction = 0.0 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(settings, message, folder):
    with pytest.raises(ValueError, match=message):
        image_folder(str(folder()), **settings)
