"""The progress of a fit: on a terminal, in a notebook, and in a file."""

import io
import logging
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console
from toys import STEPS, begin, fit, make_config, make_module, make_task

from msh.subnetworks import prune
from msh.training.callbacks import progress
from msh.training.callbacks.progress import StageProgress, can_draw, spoken
from msh.training.fitting import steps_per_epoch


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is read: by a second."""
    now = iter(range(10**6))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def use_console(monkeypatch, console):
    """Draw there."""
    monkeypatch.setattr(progress, "get_console", lambda: console)
    return console


def small_module(*tasks):
    module = make_module(*tasks)
    for name, task in module.tasks.items():
        begin(module, name)
        prune(module.network, task.name, {key: size // 4 for key, size in module.network.sizes().items()})
    return module


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == progress.__name__]


# ---- in a file


def test_a_log_has_a_plain_line_for_each_epoch_with_all_there_is_to_know(tmp_path, caplog, clock, monkeypatch):
    console = use_console(monkeypatch, Console(file=io.StringIO()))
    module = small_module()
    with caplog.at_level(logging.INFO):
        fit(module, tmp_path, StageProgress(), epochs=2, steps_to_come=10 * STEPS)
    first, second = lines(caplog)
    numbers = r"a/sparsity 0\.7500  a/train/loss [\d.]+  a/val/loss [\d.]+  a/val/accuracy [\d.]+"
    assert re.fullmatch(rf"toy  epoch 1/2  {numbers}  \d+ (s|min) left", first)
    assert second.startswith("toy  epoch 2/2  ")
    assert console.file.getvalue() == ""
    assert all(character.isprintable() for line in (first, second) for character in line)


def test_the_time_left_is_that_of_all_fits_to_come(tmp_path, monkeypatch):
    module = small_module()
    bar = StageProgress()
    now = {"time": 0.0}
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now["time"]))
    seen = []

    class Look(progress.pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            now["time"] += 3.0
            seen.append(bar.seconds_left(trainer, pl_module))

    fit(module, tmp_path, bar, Look(), epochs=2, steps_to_come=10)
    assert seen == pytest.approx([3.0 * (10 + 2 * STEPS - done) for done in range(1, 2 * STEPS + 1)])


def test_long_epochs_have_lines_in_between(tmp_path, caplog, clock):
    with caplog.at_level(logging.INFO):
        fit(small_module(), tmp_path, StageProgress(every_seconds=0), epochs=1)
    told = [re.search(r"epoch 1/1(, batch \d/\d)?", line).group(1) for line in lines(caplog)]
    assert told == [*(f", batch {n}/{STEPS}" for n in range(1, STEPS)), None]


def test_many_tasks_at_once_are_told_in_few_words(tmp_path, caplog, clock):
    module = small_module(*(make_task(name) for name in "abcde"))
    with caplog.at_level(logging.INFO):
        fit(module, tmp_path, StageProgress(), name=list("abcde"), epochs=1)
    (line,) = lines(caplog)
    assert re.fullmatch(r"toy  epoch 1/1  sparsity 0\.7500  val/loss [\d.]+  \d+ s left", line)


# ---- on a terminal and in a notebook


def drawn_lines(console):
    """Every line that was drawn, without control codes."""
    return [line for line in re.split(r"[\r\n]|\x1b\[[\d?]*[A-Za-z]", console.file.getvalue()) if line.strip()]


def test_a_wide_terminal_has_a_line_with_all_there_is_to_know(tmp_path, monkeypatch, clock):
    console = use_console(monkeypatch, Console(file=Terminal(), force_terminal=True, width=200, color_system=None))
    fit(small_module(), tmp_path, StageProgress(), epochs=2)
    numbers = r"sparsity 0\.75 +val/loss [\d.]+ +val/accuracy [\d.]+"
    assert any(re.fullmatch(rf"toy  epoch 2/2  ━+  {numbers} +\d+ s left", line) for line in drawn_lines(console))


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_narrow_terminal_has_one_line_too(width, tmp_path, monkeypatch, clock):
    console = use_console(monkeypatch, Console(file=Terminal(), force_terminal=True, width=width, color_system=None))
    fit(small_module(), tmp_path, StageProgress(), epochs=2)
    lines = drawn_lines(console)
    assert all(line.startswith("toy  epoch") and len(line) <= width for line in lines)
    assert width < 40 or all(line.endswith(" left") for line in lines)
    assert console.file.getvalue().count("\n") == 1, "at the end, before the line is erased"


def test_the_line_is_drawn_twice_a_second(tmp_path, monkeypatch):
    console = use_console(monkeypatch, Console(file=Terminal(), force_terminal=True, width=80, color_system=None))
    now = {"time": 0.0}
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now["time"]))

    class Work(progress.pl.Callback):
        def on_train_batch_start(self, *_):
            now["time"] += 0.1

    fit(small_module(), tmp_path, Work(), StageProgress(), epochs=5)
    assert len(drawn_lines(console)) <= 2 * now["time"] + 1


def test_a_notebook_has_the_bar_too(tmp_path, monkeypatch, clock):
    console = use_console(monkeypatch, Console(force_jupyter=True, width=200))
    shown = []

    class Output:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def clear_output(self, **_):
            pass

        def close(self):
            pass

    fakes = {"IPython": {}, "IPython.display": {"display": shown.append}, "ipywidgets": {"Output": Output}}
    for name, content in fakes.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    drawn = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: drawn.append(text))
    bar = StageProgress()
    assert bar.is_enabled
    fit(small_module(), tmp_path, bar, epochs=1)
    assert console.is_jupyter
    assert any(isinstance(widget, Output) for widget in shown)
    assert any("toy  epoch 1/1" in text for text in drawn)


def test_a_file_has_no_bar_even_where_the_environment_claims_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console(file=io.StringIO()).is_terminal
    assert not can_draw(Console(file=io.StringIO()))
    assert can_draw(Console(file=Terminal()))
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Console(file=Terminal()))


# ---- numbers


@pytest.mark.parametrize(
    ("limit", "uneven", "steps"), [(None, "cycle", 8), (None, "shortest", 4), (3, "cycle", 3), (0.5, "cycle", 4)]
)
def test_steps_of_an_epoch_are_those_of_its_loaders(limit, uneven, steps):
    tasks = [make_task("a"), make_task("b", examples=80)]
    assert steps_per_epoch(tasks, uneven, make_config(limit_train_batches=limit).trainer) == steps


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (754, "13 min"), (3600, "1 h 0 min")]
)
def test_times_are_told_as_people_say_them(seconds, text):
    assert spoken(seconds) == text


def test_other_ranks_are_silent(caplog):
    bar, trainer = StageProgress(), SimpleNamespace(is_global_zero=False)
    with caplog.at_level(logging.INFO):
        bar._log(trainer, make_module(), "")
    assert lines(caplog) == []
