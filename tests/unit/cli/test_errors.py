"""Errors as a user reads them: the error's own words, and the nearest valid name."""

import logging
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException, MissingConfigException
from hydra.utils import instantiate

from helpers import make_network
from msh.cli import train
from msh.cli.configs import config_folder
from msh.cli.errors import LAUNCHERS, JobError, known_keys, message_of, recorded, user_errors
from msh.errors import one_of, suggestion
from msh.files.state_file import save_network
from msh.runs.results import UNFINISHED
from msh.training.config import register
from msh.training.preemption import PreemptedError

register()
ROOT = Path(__file__).resolve().parents[3]


def test_known_keys_are_the_schemas_and_the_groups():
    keys = known_keys()
    assert {"seed", "pruning.density", "trainer.max_epochs", "pruning/criterion", "experiment"} <= set(keys)


# ---- messages


def error_of(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_folder(), version_base="1.3"), pytest.raises(Exception, match=r".") as caught:
        compose("config", list(overrides))
    return message_of(caught.value)


@pytest.mark.parametrize(
    ("word", "example"),
    [("digits", "tasks=digits"), ("foo.bar", "tasks=digits"), ("+wine", "tasks=digits"), ("wine", "tasks=wine")],
)
def test_an_argument_without_a_value_is_explained(word, example):
    assert error_of(word) == f"{word} is no setting: arguments are KEY=VALUE, such as {example}"


def test_a_run_folder_among_the_arguments_is_explained(tmp_path):
    assert f"such as resume={tmp_path} to resume a run, or run={tmp_path} in msh evaluate" in error_of(str(tmp_path))


def test_a_value_that_is_no_value_is_named_with_its_key():
    assert error_of("seed=1", "tasks=[digits").startswith("tasks=[digits: ")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sede=1", "seed"),
        ("pruning.densty=0.5", "pruning.density"),
        ("trainer.max_epoch=1", "trainer.max_epochs"),
        ("optimiser=sgd", "optimizer"),
        ("optimizer=sdg", "sgd"),
        ("experiment=sequental", "sequential"),
        ("pruning/schedule=cubik", "cubic"),
        ("tasks=[wine,digts]", "digits"),
    ],
)
def test_hydras_errors_get_the_nearest_name(override, nearest):
    message = error_of(override)
    assert message.endswith(f"did you mean {nearest!r}?")
    assert override.split("=")[0].split(".")[-1] in message


def test_a_value_of_a_wrong_type_is_named():
    assert "'one' of type 'str' could not be converted to Integer" in error_of("seed=one")


def test_an_instantiated_objects_own_error_is_what_is_told():
    with pytest.raises(InstantiationException) as caught:
        instantiate({"_target_": "msh.tasks.bundled.bundled", "name": "digit"})
    assert message_of(caught.value).startswith("source.name must be one of")


def test_other_errors_are_told_in_their_own_words():
    assert message_of(ValueError("  x = 3 is not allowed ")) == "x = 3 is not allowed"
    assert message_of(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("error", [ValueError("mend me"), FileNotFoundError("mend me"), OSError(28, "mend me")])
def test_an_error_to_mend_is_one_message_and_exit_code_1(error, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    assert printed.startswith("error: ")
    assert "mend me" in printed
    assert "Traceback" not in printed
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_the_traceback_is_in_the_log_file(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    handler = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(SystemExit), user_errors():
            raise ValueError("mend me")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    logged = (tmp_path / "train.log").read_text()
    assert "Traceback" in logged
    assert "ValueError: mend me" in logged


def test_the_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="mend me"), user_errors():
        raise ValueError("mend me")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_zero_asks_for_no_traceback(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit), user_errors():
        raise ValueError("mend me")
    assert capsys.readouterr().err == "error: mend me\n"
    assert os.environ["HYDRA_FULL_ERROR"] == "0"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["inspect", "FILE"]])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(arguments, tmp_path):
    network = make_network()
    save_network(tmp_path / "net", network)
    command = [sys.executable, "-m", "msh.cli.app", *(str(tmp_path / "net") if a == "FILE" else a for a in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert found.stderr == ""
    assert found.returncode in (1, 128 + signal.SIGPIPE)  # 1 is how Rich exits


def test_a_bug_of_ours_is_no_users_error(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(AssertionError), user_errors():
        raise AssertionError
    assert "HYDRA_FULL_ERROR" not in os.environ


# ---- names


def test_one_of_names_key_value_what_is_allowed_and_the_nearest():
    one_of("reuse", "all", ("none", "all"))
    with pytest.raises(ValueError, match=r"reuse must be one of .*, got 'al'; did you mean 'all'"):
        one_of("reuse", "al", ("none", "all"))


def test_a_suggestion_is_near_or_none():
    assert suggestion("wnie", ["wine", "digits"]) == "; did you mean 'wine'?"
    assert suggestion("qqqq", ["wine", "digits"]) == ""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher, monkeypatch):
    GlobalHydra.instance().clear()
    Plugins.instance()  # adds the launchers that are installed
    with initialize_config_dir(config_folder(), version_base="1.3"):
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{launcher}.yaml", raising=False)
        with pytest.raises(MissingConfigException) as caught:
            compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert f"pip install 'msh[{LAUNCHERS[launcher]}]'" in message_of(caught.value)


def test_the_extras_of_launchers_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(LAUNCHERS.values()) <= extras.keys()


@pytest.mark.parametrize(
    ("executor", "fate", "signum", "expected"),
    [
        ("slurm", "cancelled", signal.SIGTERM, JobError),
        ("slurm", "requeued", signal.SIGTERM, PreemptedError),
        ("slurm", None, signal.SIGTERM, PreemptedError),
        ("slurm", "cancelled", signal.SIGUSR2, PreemptedError),
        (None, "cancelled", signal.SIGTERM, PreemptedError),
    ],
)
def test_a_cancelled_job_of_submitit_has_a_result_and_a_requeued_one_none(
    executor, fate, signum, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("msh.cli.errors.fate", lambda: fate)
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    if executor:
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    with pytest.raises(expected), recorded(tmp_path):
        raise PreemptedError(signum)
    assert (tmp_path / UNFINISHED).exists()


# ---- the user's own options


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["tasks=bird"], "birds"),
        (["tasks=[wine,bird]"], "birds"),
        (["+experiment=migratio"], "migration"),
        (["+zoo=pengin"], "penguin"),
        (["zooo=penguin"], "zoo"),
        (["+zooo=penguin"], "zoo"),
    ],
)
@pytest.mark.parametrize("form", ["--config-dir {}", "--config-dir={}", "-cd {}"])
def test_names_in_the_users_folder_are_suggested(arguments, nearest, form, tmp_path, monkeypatch, capsys):
    for path in ("tasks/birds.yaml", "experiment/migration.yaml", "zoo/penguin.yaml"):
        (tmp_path / "own" / path).parent.mkdir(parents=True)
        (tmp_path / "own" / path).write_text("seed: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, *form.format("own").split()])
    with pytest.raises(SystemExit, match="1"):
        train.main()
    assert capsys.readouterr().err.strip().endswith(f"did you mean {nearest!r}?")
