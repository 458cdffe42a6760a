"""Sources of data that only tests use, good and bad; configs name them by `_target_`."""

import torch

from msh.tasks import RawData, Split
from msh.tasks.tokens import Texts


def blobs(name="", bad="", examples=60, shape=(4,), classes=3, **of_the_real_source):
    """Classes that a line tells apart; what is wrong with them is said by `bad`."""
    train, test = _split(examples, tuple(shape), 0, classes), _split(examples // 2, tuple(shape), 1, classes)
    if bad == "missing":
        train.inputs.view(-1)[:5] = float("nan")
    if bad == "infinite":
        test.inputs.view(-1)[:2] = float("inf")
    if bad == "class":
        train.targets[7] = 3
    if bad == "huge":
        train.inputs[:] *= 1e36
    return RawData("classification", train, test, classes)


def numbers(examples=60, features=13, **of_the_real_source):
    """A table with a numeric target, the sum of its features."""
    rows = torch.randn(examples, features, generator=torch.Generator().manual_seed(0))
    split = Split(rows, rows.sum(1, keepdim=True))
    return RawData("regression", split, split, 1)


def words(examples=60, vocabulary=100, length=8, classes=2, **of_the_real_source):
    """Texts whose first word tells their class."""
    texts = [f"class{i % classes} text number {i}" for i in range(2 * examples)]
    places, targets = torch.arange(2 * examples).split(examples), torch.arange(examples) % classes
    train, test = (Split(place, targets) for place in places)
    return RawData("classification", train, test, classes, Texts(texts, vocabulary, length))


def sentences(examples=60, vocabulary=100, length=8, **of_the_real_source):
    """Texts of a language model."""
    texts = [f"sentence {i} is after sentence {i - 1}" for i in range(2 * examples)]
    train, test = (Split(rows, torch.zeros(examples, 0)) for rows in torch.arange(2 * examples).split(examples))
    return RawData("lm", train, test, vocabulary, Texts(texts, vocabulary, length))


def _split(examples, shape, seed, classes):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(examples) % classes
    shift = targets.float().view(-1, *[1] * len(shape))
    return Split(torch.randn(examples, *shape, generator=generator) + 3 * shift, targets)


def instead_of(task, source="blobs", **arguments):
    """Overrides that give a task these data instead of its own."""
    given = [f"++tasks.{task}.source.{key}={value}" for key, value in arguments.items()]
    return [f"tasks.{task}.source._target_=sources.{source}", *given]
