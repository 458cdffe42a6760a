"""Faces whose file names hold their labels."""

import logging

import pytest
import torch
from PIL import Image

from messages import says
from msh.tasks import build_task
from msh.tasks.faces import CLASSES, utkface

LABELS = [(1, 0, 0), (10, 1, 1), (11, 0, 2), (26, 1, 3), (34, 0, 4), (45, 1, 0), (58, 0, 1), (70, 1, 2), (90, 0, 3)]
LABELS += [(116, 1, 4)]
OF_AGE = [0, 0, 1, 2, 3, 4, 5, 6, 8, 9]
"""Classes for the ages above: up to 10 years, up to 20, ..., over 90."""


@pytest.fixture
def faces(tmp_path):
    """Write ten JPEGs with different sizes; each is 20 times as bright as its index in LABELS."""
    for i, labels in enumerate(LABELS):
        name = "_".join(map(str, labels)) + f"_201701{i}.jpg.chip.jpg"
        Image.new("RGB", (8 + i, 12), (20 * i,) * 3).save(tmp_path / name)
    return tmp_path


def by_brightness(data):
    """Return both splits' targets in the order of LABELS."""
    inputs = torch.cat([split.inputs[:] for split in (data.train, data.test)])
    targets = torch.cat([data.train.targets, data.test.targets])
    return targets[inputs[:, 0, 0, 0].argsort()].tolist()


@pytest.mark.parametrize("label", CLASSES)
def test_labels_are_read_from_file_names(label, faces):
    data = utkface(str(faces), label, size=[4, 5], test_fraction=0.3)
    assert (data.kind, data.outputs, len(data.train), len(data.test)) == ("classification", CLASSES[label], 7, 3)
    assert data.train.inputs.shape[1:] == (3, 4, 5)
    column = {"gender": 1, "ethnicity": 2}
    expected = OF_AGE if label == "age" else [labels[column[label]] for labels in LABELS]
    assert by_brightness(data) == expected


def test_pixels_are_from_0_to_1(faces):
    inputs = utkface(str(faces), "age", size=4).train.inputs[:]
    torch.testing.assert_close(inputs.amax((1, 2, 3)), inputs.amin((1, 2, 3)), atol=0.02, rtol=0)
    assert inputs.min() >= 0.0
    assert inputs.max() == pytest.approx(180 / 255, abs=0.1)


def test_the_three_tasks_share_one_test_split_and_one_tensor(faces):
    sets = [utkface(str(faces), label, size=4) for label in CLASSES]
    for data in sets[1:]:
        assert torch.equal(data.test.inputs[:], sets[0].test.inputs[:])
    tasks = [build_task(label, data, normalize="all") for label, data in zip(CLASSES, sets, strict=True)]
    bases = {task.splits[name].inputs.base.data_ptr() for task in tasks for name in ("train", "val", "test")}
    assert len(bases) == 1
    assert tasks[0].splits["train"].inputs[:].mean().abs() < 1e-5


@pytest.mark.parametrize(
    "name", ["39_1_20170116174525125.jpg", "_1_2_3.jpg", "20_2_0_1.jpg", "20_0_5_1.jpg", "151_0_0_1.jpg", "a_0_0_1.jpg"]
)
def test_files_whose_names_miss_a_label_are_dropped_and_logged(name, faces, caplog):
    (faces / name).write_bytes(b"never read")
    with caplog.at_level(logging.WARNING):
        data = utkface(str(faces), "gender", size=4)
    assert len(data.train) + len(data.test) == 10
    assert f"dropped 1 files, their names miss a label, such as {name}" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_corrupt_jpeg_is_named(share, faces):
    file = faces / "33_1_2_20170109.jpg"
    Image.new("RGB", (40, 40), (9, 99, 199)).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"33_1_2_20170109.jpg cannot be read: cut short or damaged, or not an image"):
        utkface(str(faces), "age", size=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "sex"}, says("source.label", "one of age, gender, ethnicity", "sex")),
        ({"label": "etnicity"}, says("source.label", value="etnicity", meant="ethnicity")),
        ({"size": 0}, says("source.size", value=0)),
        ({"size": None}, says("source.size", value=None)),
        ({"test_fraction": 1.0}, says("source.test_fraction", "in (0, 1)", 1.0)),
    ],
)
def test_invalid_settings_are_rejected(settings, message, faces):
    with pytest.raises(ValueError, match=message):
        utkface(str(faces), **({"label": "age", "size": 4} | settings))


def test_a_missing_folder_and_one_without_faces_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        utkface(str(tmp_path / "nowhere"), "age", size=4)
    (tmp_path / "holiday.jpg").write_bytes(b"never read")
    with pytest.raises(FileNotFoundError, match=r"has no file named <age>_<gender>_<ethnicity>_<time>.jpg"):
        utkface(str(tmp_path), "age", size=4)
