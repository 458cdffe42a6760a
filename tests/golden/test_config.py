"""Help only grows: all that users could type, they can."""

import pytest

from golden.recording import read
from golden.settings import help_texts, promises

HELP = read("help.json")


@pytest.fixture(scope="module")
def help_now():
    return help_texts()


@pytest.mark.parametrize("name", HELP)
def test_help_names_all_that_it_did(name, help_now):
    assert promises(HELP[name]) - promises(help_now[name]) == set()


def test_flags_overrides_and_subcommands_are_found_in_help():
    assert {"--allow-missing", "-o"} <= promises(HELP["msh merge"])
    assert {"command train", "command merge", "run=", "pruning="} <= promises(HELP["msh"])
    assert "pruning=lottery" in promises(HELP["train.py"])
