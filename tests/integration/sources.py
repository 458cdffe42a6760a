"""Sources of data that only tests use, good and bad; configs name them by `_target_`."""

import torch

from msh.tasks import RawData, Split


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


def _split(examples, shape, seed, classes):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(examples) % classes
    shift = targets.float().view(-1, *[1] * len(shape))
    return Split(torch.randn(examples, *shape, generator=generator) + 3 * shift, targets)


def instead_of(task, **arguments):
    """Overrides that give a task these data instead of its own."""
    given = [f"+tasks.{task}.source.{key}={value}" for key, value in arguments.items()]
    return [f"tasks.{task}.source._target_=sources.blobs", *given]
