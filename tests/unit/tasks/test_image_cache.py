"""Test that images on disk are decoded once, whole or not at all, and train as those in memory do."""

import json
import logging
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from messages import says
from msh.tasks import RawData, Split, build_task, image_cache
from msh.tasks.image_step import ReadImages
from msh.tasks.images import image_folder
from msh.tasks.lazy import LazyInputs, StoredTensor, chunks, equal
from msh.tasks.loaders import measuring_loader, train_loader


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(generator.integers(0, 256, (6, 5, 3), np.uint8))
            image.save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def load(folder, tmp_path):
    def call(cache="disk", **settings):
        return image_folder(str(folder), cache=cache, cache_dir=str(tmp_path / "cache"), **settings)

    return call


@pytest.fixture
def decoded(monkeypatch):
    """Note which files are decoded."""
    files, pixels = [], ReadImages.pixels

    def noted(step, image, name):
        files.append(name)
        return pixels(step, image, name)

    monkeypatch.setattr(ReadImages, "pixels", noted)
    return files


def cached(tmp_path):
    return sorted(file.suffix for file in (tmp_path / "cache").iterdir())


def test_images_on_disk_are_bitwise_those_in_memory(load):
    disk, memory = load("disk"), load("memory")
    for one, other in ((disk.train, memory.train), (disk.test, memory.test)):
        assert isinstance(one.inputs, LazyInputs)
        assert isinstance(other.inputs, torch.Tensor)
        assert torch.equal(one.inputs[:], other.inputs)
        assert torch.equal(one.targets, other.targets)
    assert disk.steps == memory.steps
    one, other = (build_task("a", data, normalize="none", augment=[{"shift": 2}]) for data in (disk, memory))
    for loader in (
        lambda task: measuring_loader(task.splits["val"], batch_size=3),
        lambda task: train_loader(task.splits["train"], 8, 0, augmentation=task.augmentation),
    ):
        for a, b in zip(loader(one), loader(other), strict=True):
            assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("normalize", ["feature", "channel", "all", "minmax", "none"])
def test_scales_of_images_on_disk_are_those_in_memory(normalize, load, monkeypatch):
    monkeypatch.setattr("msh.tasks.lazy.CHUNK", 7)
    disk, memory = (build_task("a", load(cache), normalize=normalize) for cache in ("disk", "memory"))
    for name in ("shift", "scale"):
        a, b = (getattr(task.steps[-1], name) for task in (disk, memory))
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(disk.splits["test"].inputs[:], memory.splits["test"].inputs, atol=1e-5, rtol=1e-5)


def test_images_on_disk_are_scaled_per_channel_unless_told_otherwise(load):
    task = build_task("a", load())
    assert task.steps[-1].shift.shape == (3, 1, 1)
    train = task.splits["train"].inputs[:]
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert build_task("a", load("memory")).steps[-1].shift.shape == (3, 6, 5)


def test_a_constant_channel_is_not_scaled_by_its_rounding_error(folder, load):
    for file in folder.glob("*/*.png"):
        pixels = np.array(Image.open(file))
        pixels[..., 1] = 77
        Image.fromarray(pixels).save(file)
    assert build_task("a", load()).splits["train"].inputs[:][:, 1].abs().max() < 1e-6


def test_images_are_decoded_once(load, decoded, tmp_path, folder, caplog):
    with caplog.at_level(logging.INFO):
        first = load()
        assert len(decoded) == 40
        again = load()
    assert len(decoded) == 40
    assert "decoding 40 images once" in caplog.text
    assert "reading 40 images from" in caplog.text
    assert equal(first.train.inputs, again.train.inputs)
    load(size=4)
    assert len(decoded) == 80
    Image.new("RGB", (5, 6)).save(folder / "a" / "0.png")
    load()
    assert len(decoded) == 120
    assert cached(tmp_path) == [".json"] * 3 + [".lock"] * 3 + [".pixels"] * 3


@pytest.mark.parametrize("damage", ["cut", "no facts", "half facts", "no pixels"])
def test_a_damaged_cache_is_made_again(damage, load, decoded, tmp_path):
    expected = load().train.inputs[:]
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    facts = pixels.with_suffix(".json")
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "half facts":
        facts.write_text(facts.read_text()[:5])
    else:
        (pixels if damage == "no pixels" else facts).unlink()
    assert torch.equal(load().train.inputs[:], expected)
    assert len(decoded) == 80


def test_an_interrupted_decoding_leaves_no_cache(load, tmp_path, monkeypatch):
    def stop(step, image, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReadImages, "pixels", stop)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert cached(tmp_path) == [".lock"]
    assert len(load().train) == 32


def test_deeper_images_keep_their_levels(folder, load, tmp_path):
    for file in folder.glob("*/*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 65536, (6, 5), np.uint16)).save(file)
    Image.new("L", (5, 6), 51).save(folder / "a" / "0.png")
    disk, memory = load("disk"), load("memory")
    assert torch.equal(disk.train.inputs[:], memory.train.inputs)
    (facts,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(facts.read_text())["dtype"] == "float32"


def test_unreadable_images_are_left_out_and_remembered(folder, load, caplog):
    (folder / "a" / "3.png").write_bytes(b"never read")
    for _ in range(2):
        data = load(unreadable="skip")
        assert len(data.train) + len(data.test) == 39
        assert torch.equal(data.train.inputs[:], load("memory", unreadable="skip").train.inputs)
        with pytest.raises(ValueError, match=r"1 of 40 images cannot be read.*\n- .*a/3.png"):
            load()


def test_large_images_go_to_disk_by_themselves(load, monkeypatch):
    monkeypatch.setattr(image_cache, "IN_MEMORY", 40 * 90 * 4)
    assert isinstance(load("auto").train.inputs, torch.Tensor)
    monkeypatch.setattr(image_cache, "IN_MEMORY", 40 * 90 * 4 - 1)
    assert isinstance(load("auto").train.inputs, LazyInputs)


def test_the_cache_is_in_the_users_cache_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    image_folder(str(folder), cache="disk")
    assert len(list((tmp_path / "home" / "msh" / "images").glob("*.pixels"))) == 1


def test_a_full_disk_is_an_error_before_decoding(load, decoded, monkeypatch):
    usage = type("Usage", (), {"free": 3599})
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"need 3,600 bytes in .*cache, which has 3,599: set source.cache_dir=DIR"):
        load()
    assert decoded == []


def _load(path, cache, results):
    results.put(image_folder(path, cache="disk", cache_dir=cache).train.inputs[:].sum().item())


def test_processes_that_start_together_decode_once(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_load, args=(str(folder), str(tmp_path / "c"), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(sums) == 1
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 1


# ---- the stored tensor


@pytest.fixture
def stored(tmp_path):
    expected = torch.arange(60, dtype=torch.int16).view(10, 2, 3)
    (tmp_path / "t").write_bytes(b"head" + expected.numpy().tobytes())
    return StoredTensor(tmp_path / "t", (10, 2, 3), torch.int16, offset=4), expected


def test_rows_are_read_as_a_tensors(stored):
    tensor, expected = stored
    for index in (torch.tensor([7, 0, 7]), slice(2, 5), slice(0, 0), torch.tensor([], dtype=torch.int64), slice(None)):
        assert torch.equal(tensor[index], expected[index])
    copy = pickle.loads(pickle.dumps(tensor))
    assert torch.equal(copy[:], expected)
    lazy = LazyInputs(tensor, torch.arange(9, -1, -1))
    assert torch.equal(torch.cat(list(chunks(lazy))), expected.flip(0))
    assert not equal(lazy, expected)
    assert equal(lazy, expected.flip(0))


def test_a_file_that_is_cut_while_in_use_is_named(stored):
    tensor, _ = stored
    tensor.path.write_bytes(tensor.path.read_bytes()[:-1])
    with pytest.raises(OSError, match="has been cut"):
        tensor[torch.tensor([9])]


def test_channel_scales_need_images():
    split = Split(torch.randn(9, 4), torch.arange(9) % 2)
    with pytest.raises(ValueError, match=says("tasks.a.normalize=channel: the input shape", value=(4,))):
        build_task("a", RawData("classification", split, split, 2), normalize="channel")
