"""Passwords in addresses are shown nowhere, and refused where a run would store them."""

import logging

import pytest
from omegaconf import OmegaConf

from messages import says
from msh.errors import SafeFormatter, refuse_password, requirement, without_secrets

HIDDEN = {
    "http://me:secret@host:5000/a": "http://***@host:5000/a",
    "https://token@host": "https://***@host",
    "postgresql://me:p@ss@host/db and more": "postgresql://***@host/db and more",
    "two: http://a:b@c http://d:e@f": "two: http://***@c http://***@f",
}
SHOWN = [
    "http://host:5000/a@b",
    "sqlite:////tmp/a@b/mlflow.db",
    "abfss://container@account.dfs.core.windows.net/data",
    "me@example.org",
    "a: b@c",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_a_login_in_an_address_is_hidden(text):
    assert without_secrets(text) == HIDDEN[text]


@pytest.mark.parametrize("text", SHOWN)
def test_other_addresses_stay(text):
    assert without_secrets(text) == text


def test_secrets_of_the_environment_are_hidden_unless_any_text_could_have_them(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "long-enough")
    monkeypatch.setenv("WANDB_API_KEY", "a")
    assert without_secrets("a long-enough word") == "a *** word"


def test_log_records_are_formatted_without_secrets_in_their_traceback_too():
    address = "http://me:secret@host"
    try:
        raise ConnectionError(f"{address} is gone")
    except ConnectionError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("msh", logging.ERROR, "", 0, "at %s", (address,), info)
    text = SafeFormatter("%(message)s").format(record)
    assert "me:secret" not in text.replace(f'address = "{address}"', "")
    assert text.splitlines()[0] == "at http://***@host"
    assert text.splitlines()[-1] == "ConnectionError: http://***@host is gone"


def test_errors_for_wrong_values_show_no_password():
    assert requirement("a.b", "a path", "http://me:secret@host") == "a.b must be a path, got 'http://***@host'"


@pytest.mark.parametrize("value", HIDDEN)
def test_a_password_is_refused(value):
    with pytest.raises(ValueError, match=says("logger.mlflow.tracking_uri")) as caught:
        refuse_password("logger.mlflow.tracking_uri", value)
    assert "${oc.env:NAME}" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [*SHOWN, "${oc.env:STORE}", "http://${oc.env:USER}:${oc.env:PASSWORD}@host"])
def test_other_values_are_not(value):
    refuse_password("logger.mlflow.tracking_uri", value)


# ---- configs


@pytest.fixture
def config():
    from hydra import compose, initialize_config_dir

    from msh.cli.configs import config_folder
    from msh.training.config import register

    register()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        return compose("config", ["logger=csv"])


@pytest.mark.parametrize("key", ["logger.csv.url", "tasks.wine.source.urls"])
def test_a_new_run_refuses_a_password_in_any_setting_and_a_resumed_one_keeps_it(key, config):
    from msh.training.config import run_config

    value = "http://me:secret@host"
    OmegaConf.update(config, key, [value] if key.endswith("s") else value, force_add=True)
    with pytest.raises(ValueError, match=says(key, "an address without a password")):
        run_config(config)
    config.resume = "outputs/run"  # an earlier release stored it
    run_config(config)
