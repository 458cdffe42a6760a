"""Image folders: values read, and errors that name the file."""

import random
import re

import pytest
import torch
from PIL import Image

from messages import says
from msh.tasks.images import image_folder


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


def test_mixed_sizes_are_rejected_with_both_files(folder):
    path = folder()
    Image.new("L", (4, 6)).save(path / "b" / "9.png")
    with pytest.raises(ValueError, match=r"a/0.png is 4x6 L, but .*b/9.png is 6x4 L: .*source.size and source.mode"):
        image_folder(str(path))


def test_mixed_modes_are_rejected_with_both_files(folder):
    path = folder()
    Image.new("RGB", (6, 4)).save(path / "b" / "9.png")
    with pytest.raises(ValueError, match=r"a/0.png is 4x4 L, but .*b/9.png is 4x4 RGB"):
        image_folder(str(path), size=4)


def test_a_mode_that_is_neither_grey_nor_rgb_is_rejected(folder):
    path = folder()
    Image.new("P", (6, 4)).save(path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"a/0.png has the mode P: .*source.mode"):
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
    with pytest.raises(FileNotFoundError, match=r"nowhere: paths.data_dir=DIR"):
        image_folder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"class folder in .*empty"):
        image_folder(str(tmp_path / "empty"))
    path = folder()
    (path / "zero").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images: .*no valid file for the classes zero"):
        image_folder(str(path))


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
    ],
)
def test_invalid_settings_are_rejected(settings, message, folder):
    with pytest.raises(ValueError, match=message):
        image_folder(str(folder()), **settings)
