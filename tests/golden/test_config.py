"""Settings and commands only grow: all that users could type, they can, with the same defaults."""

import pytest

from golden.recording import read
from golden.settings import default_settings, help_texts, option_settings, promises

CONFIG, HELP = read("config.json"), read("help.json")


def changed(recorded, found):
    """(key, recorded value, value now) of settings that are gone or differ."""
    return [(key, value, found.get(key, "gone")) for key, value in recorded.items() if found.get(key, "gone") != value]


@pytest.fixture(scope="module")
def help_now():
    return help_texts()


def test_every_setting_is_there_with_its_default():
    found = default_settings()
    for name, recorded in CONFIG["defaults"].items():
        assert changed(recorded, found[name]) == [], name


def test_every_option_of_a_group_sets_what_it_did():
    found = option_settings()
    missing = CONFIG["options"].keys() - found.keys()
    assert missing == set()
    for name, recorded in CONFIG["options"].items():
        assert changed(recorded, found[name]) == [], name


@pytest.mark.parametrize("name", HELP)
def test_help_names_all_that_it_did(name, help_now):
    assert promises(HELP[name]) - promises(help_now[name]) == set()


def test_flags_overrides_and_subcommands_are_found_in_help():
    assert {"--allow-missing", "-o"} <= promises(HELP["msh merge"])
    assert {"command train", "command merge", "run=", "pruning="} <= promises(HELP["msh"])
    assert "pruning=lottery" in promises(HELP["train.py"])
