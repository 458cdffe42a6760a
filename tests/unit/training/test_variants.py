"""Expand one config block into many tasks; tasks with one source share its data."""

from types import MappingProxyType

import pytest
import torch
from toys import make_run

import msh.training.build as build
from messages import says
from msh.backbones import MLP, Transformer
from msh.tasks import RawData, Split, build_task
from msh.tasks.tokens import Texts
from msh.training.build import build_tasks, check_inputs
from msh.training.config import RunConfig
from msh.training.typed import convert

LOADED = []


class Requiring(MLP):
    """Lets its inputs require gradients, as wav2vec2 does."""

    def forward(self, inputs):
        inputs.requires_grad = self.training
        return super().forward(inputs)


def test_no_stem_comes_before_a_backbone_that_lets_its_inputs_require_gradients():
    data = Split(torch.zeros(20, 3), torch.arange(20) % 2)
    task = build_task("t", RawData("classification", data, data, 2))
    assert check_inputs(Requiring([3], 4, 1), task) is None
    with pytest.raises(ValueError, match=r"task 't' would have a stem .* Requiring.* set backbone.input_shape=\[3\]"):
        check_inputs(Requiring([5], 4, 1), task)


def source(name="", examples=40):
    """Ten classes of 2x2 images; notes that it was called."""
    LOADED.append(name)
    split = Split(torch.rand(examples, 1, 2, 2), torch.arange(examples) % 10)
    return RawData("classification", split, split, 10)


def config_of(settings=MappingProxyType({}), **tasks):
    here = {"_target_": f"{__name__}.source"}
    return make_run({name: {"source": here, **task} for name, task in tasks.items()}, **settings)


def names_and_transforms(config):
    return {name: task.transforms for name, task in config.tasks.items()}


def test_each_argument_in_a_list_makes_a_task():
    config = config_of(first={}, many={"variants": {"rotate": [0, 30]}, "batch_size": 7}, last={})
    assert names_and_transforms(config) == {
        "first": [],
        "many_0": [{"rotate": 0}],
        "many_1": [{"rotate": 30}],
        "last": [],
    }
    assert config.tasks["many_1"].batch_size == 7
    assert {task.variants for task in config.tasks.values()} == {None}


def test_a_number_stands_for_the_arguments_from_0():
    config = config_of(many={"variants": {"permute_pixels": 3}, "transforms": [{"rotate": 9}]})
    assert names_and_transforms(config) == {f"many_{i}": [{"rotate": 9}, {"permute_pixels": i}] for i in range(3)}


def test_a_number_alone_makes_that_many_tasks_on_the_same_data():
    config = config_of(many={"variants": 3, "transforms": [{"rotate": 9}], "batch_size": 7})
    assert names_and_transforms(config) == {f"many_{i}": [{"rotate": 9}] for i in range(3)}
    LOADED.clear()
    tasks = build_tasks(config)
    assert LOADED == [""]
    assert [(name, task.name) for name, task in tasks.items()] == [(f"many_{i}", f"many_{i}") for i in range(3)]
    for name in ("train", "val", "test"):
        assert len({id(task.splits[name]) for task in tasks.values()}) == 1


def test_tasks_that_differ_in_a_setting_do_not_share_their_splits():
    tasks = build_tasks(config_of(one={"val_fraction": 0.5}, other={"val_fraction": 0.25}))
    assert [len(task.splits["val"]) for task in tasks.values()] == [20, 10]


def test_a_validation_share_of_the_run_replaces_the_tasks_own():
    config = config_of({"val_fraction": 0.25}, one={"val_fraction": 0.5}, other={})
    assert [len(task.splits["val"]) for task in build_tasks(config).values()] == [10, 10]


@pytest.fixture
def folders(tmp_path):
    for name in ("big cats", "dogs", ".hidden", "__MACOSX"):
        (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / "readme").mkdir()
    return tmp_path


def test_each_folder_makes_a_task(folders):
    source = {"_target_": f"{__name__}.source", "name": f"{folders}/*/test"}
    config = config_of(many={"source": source, "variants": {"path": f"{folders}/*/train"}, "batch_size": 7}, last={})
    assert list(config.tasks) == ["many_big_cats", "many_dogs", "last"]
    task = config.tasks["many_big_cats"]
    assert task.source == {**source, "path": f"{folders}/big cats/train", "name": f"{folders}/big cats/test"}
    assert (task.batch_size, task.variants) == (7, None)


def test_each_file_makes_a_task_named_without_its_suffix(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).touch()
    assert list(config_of(many={"variants": {"path": f"{tmp_path}/*"}}).tasks) == ["many_a", "many_b"]


@pytest.mark.parametrize("pattern", ["data", "data/*/*", 7, None])
def test_a_path_without_one_asterisk_is_refused(pattern):
    with pytest.raises(ValueError, match=says("tasks.many.variants.path", "a path with one *", pattern)):
        config_of(many={"variants": {"path": pattern}})


def test_paths_that_match_nothing_or_give_one_name_twice_are_refused(folders):
    with pytest.raises(ValueError, match="must be a pattern that matches files or folders"):
        config_of(many={"variants": {"path": f"{folders}/*/none"}})
    (folders / "big-cats" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"several matches of .* would be the task 'many_big_cats': rename them"):
        config_of(many={"variants": {"path": f"{folders}/*/train"}})


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"rotat": [1]}, r"the transform of tasks.many.variants must be one of .*, got 'rotat'; did you mean 'rotate'"),
        ({"rotate": []}, says("tasks.many.variants.rotate", value=[])),
        ({"permute_pixels": 0}, says("tasks.many.variants.permute_pixels", value=[])),
        ({"rotate": "all"}, says("tasks.many.variants.rotate", value="all")),
        ({"rotate": [1], "permute_pixels": 2}, says("tasks.many.variants")),
        (0, says("tasks.many.variants", value=0)),
        (-2, says("tasks.many.variants", value=-2)),
        (True, says("tasks.many.variants", value=True)),
        (2.0, says("tasks.many.variants", value=2.0)),
    ],
)
def test_invalid_variants_are_refused(variants, message):
    with pytest.raises(ValueError, match=message):
        config_of(many={"variants": variants})


@pytest.mark.parametrize("variants", [10**9, {"permute_pixels": 10**9}, {"rotate": [0] * 32767}])
def test_more_variants_than_owner_ids_are_refused_before_they_are_made(variants):
    with pytest.raises(ValueError, match="the number of tasks must be <= 32766"):
        config_of(many={"variants": variants})


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"tasks.many.variants: there is already a task 'many_1'"):
        config_of(many_1={}, many={"variants": {"rotate": [0, 1]}})


def test_tasks_of_one_source_load_it_once_and_share_it():
    LOADED.clear()
    config = config_of(many={"variants": {"permute_pixels": 3}}, other={"transforms": [{"split_classes": [0, 1]}]})
    config.tasks["other"].source["name"] = "other"
    tasks = build_tasks(config)
    assert LOADED == ["", "other"]
    assert len({tasks[f"many_{i}"].splits["train"].inputs.base.data_ptr() for i in range(3)}) == 1
    assert tasks["other"].outputs == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "a.csv"}, r"tasks.a.source: it has no _target_; `_target_` must name a function"),
        ({"_target_": "collections.Counter"}, r"tasks.a.source: collections.Counter returns a Counter; `_target_`"),
    ],
)
def test_a_source_that_gives_no_data_is_named(source, message):
    config = config_of(a={"source": source})
    with pytest.raises(ValueError, match=message):
        build_tasks(config)


def test_a_missing_class_names_the_task():
    with pytest.raises(ValueError, match=says("tasks.many_1.transforms.split_classes[1]", value=12)):
        build_tasks(config_of(many={"variants": {"split_classes": [[0, 1], [0, 12]]}}))


# ---- tokens and backbones


TOKEN_STEM = {"_target_": "msh.tasks.stems.TokenStem"}


def text_task(stem=None, vocabulary=20, length=4):
    rows = Split(torch.arange(20), torch.arange(20) % 2)
    texts = Texts(["good", "bad"] * 10, vocabulary, length)
    return build_task("reviews", RawData("classification", rows, rows, 2, texts), stem=stem)


def test_tokens_need_a_backbone_or_a_stem_that_reads_them():
    transformer = Transformer([4], vocabulary=20, width=4, heads=2, hidden=4)
    assert check_inputs(transformer, text_task()) is None
    assert text_task().build_stem((4,)) is None
    assert check_inputs(MLP([3], 4, 1), text_task(TOKEN_STEM)) is None
    stem = text_task(TOKEN_STEM).build_stem((3,))
    assert stem(text_task().splits["train"].inputs[:5]).shape == (5, 3)


@pytest.mark.parametrize(
    ("backbone", "task", "message"),
    [
        (lambda: MLP([4], 4, 1), text_task, r"task 'reviews' has texts, and the backbone MLP reads numbers: .*stem"),
        (
            lambda: Transformer([4], 20, 4, 2, 4),
            lambda: text_task(TOKEN_STEM),
            r"gives it numbers.*reviews.stem=null",
        ),
        (lambda: Transformer([4], 19, 4, 2, 4), text_task, r"20 token ids, but backbone.vocabulary is 19"),
        (lambda: Transformer([5], 20, 4, 2, 4), text_task, r"4 tokens per text, but the backbone reads 5"),
        (
            lambda: Transformer([4], 20, 4, 2, 4),
            lambda: build_task("images", source()),
            r"the backbone Transformer reads the tokens of texts; task 'images' gives it numbers",
        ),
    ],
)
def test_inputs_that_a_backbone_cannot_read_are_refused(backbone, task, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(backbone(), task())


def test_inputs_are_checked_before_any_training():
    backbone = {"_target_": "msh.backbones.Transformer", "input_shape": [4], "width": 4, "heads": 2}
    config = config_of({"backbone": backbone}, images={})
    with pytest.raises(ValueError, match="reads the tokens of texts"):
        build.build_backbone(config, build_tasks(config))


def test_a_task_without_a_source_is_named():
    with pytest.raises(ValueError, match=r"tasks.lost.source is missing"):
        convert(RunConfig, {"backbone": {}, "optimizer": {}, "tasks": {"lost": {"batch_size": 3}}})


def test_a_task_is_augmented_as_its_config_says():
    config = config_of(plain={}, shifted={"augment": [{"shift": 1}, {"flip": "horizontal"}]})
    tasks = build_tasks(config)
    assert tasks["plain"].augmentation is None
    assert [change.draws for change in tasks["shifted"].augmentation.changes] == [2, 1]
