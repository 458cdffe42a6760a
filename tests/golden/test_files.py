"""Files that an earlier release wrote are read, and predict what they did then."""

import pytest
import torch
from safetensors.torch import load_file

from golden.files import CASES, FILES, NETWORK, command, read_case, read_network, resume_stopped
from golden.recording import all_weights, differences, digest, effective_weights, environment, outputs, read

RECORDED = read("files.json")
EXACT = environment() == RECORDED["environment"]
TENSORS = load_file(FILES / "expected.safetensors")


def differing(name, tasks, network):
    """Tasks of a network that do not compute what is recorded of a case."""
    found = []
    for task in tasks:
        now, then = outputs(network, task, TENSORS[f"inputs/{task}"]), TENSORS[f"{name}/{task}"]
        same = torch.equal(now, then) if EXACT else torch.allclose(now, then, rtol=1e-5, atol=1e-5)
        weights = digest(effective_weights(network, task)) == RECORDED["weights"][name][task]
        found += [] if same and weights else [task]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_file_predicts_what_it_did(name, tmp_path):
    _, network = read_case(name, tmp_path / "run")
    assert network.tasks == list(RECORDED["weights"][name])
    assert differing(name, network.tasks, network) == []
    if EXACT or name == "network with free weights":  # the seed draws them otherwise
        assert digest(all_weights(network)) == RECORDED["all weights"][name]


def test_files_of_several_formats_hold_the_same_task():
    weights = RECORDED["weights"]
    for base, others in (
        ("network", ["network with free weights", "network of state version 1", "subnetwork 3", "subnetwork 2"]),
        ("reads all", ["reads all, subnetwork 3", "reads all, subnetwork 2"]),
        ("reads some", ["reads some, subnetwork 3"]),
    ):
        for other in others:
            assert weights[other] == weights[base], other
            assert all(torch.equal(TENSORS[f"{other}/{task}"], TENSORS[f"{base}/{task}"]) for task in weights[base])


def test_a_released_task_is_gone_and_the_other_stays(tmp_path):
    def release(source, out):
        command("release", source / NETWORK, "iris", "-o", out, cwd=out.parent)

    _, network = read_network(FILES / "two", tmp_path / "run", release)
    assert network.tasks == ["wine"]
    assert differing("network", ["wine"], network) == []


def test_a_run_stopped_within_a_fit_ends_as_one_that_was_not(tmp_path):
    found = resume_stopped(tmp_path / "run")
    assert list(differences(RECORDED["undisturbed"], found, EXACT)) == []
