"""Peers that the benchmarks compare with."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks import peers
from benchmarks.timing import Settings


def test_score_masks_keep_the_budget_and_train_weights_and_scores():
    torch.manual_seed(0)
    layer = peers.ScoredLinear(20, 10)
    outputs = layer(torch.eye(20)) - layer.bias
    assert int((outputs != 0).sum()) == 20
    outputs.square().sum().backward()
    assert int((layer.weight.grad != 0).sum()) == 20
    assert bool(layer.scores.grad.any())


def test_a_missing_peer_is_named_in_the_record(monkeypatch):
    monkeypatch.setattr(peers, "drawn", lambda *_: None)
    monkeypatch.setattr(peers, "of_units", lambda *_: torch.nn.Identity())

    def missing():
        return peers.peer_module("no_such_library.part")

    [record] = peers._against(Settings(), "21-pruning", "unit", "a library", missing)
    assert record.value is None
    assert record.what.startswith("not measured: no_such_library is not installed")


def test_an_import_that_fails_inside_a_peer_is_no_missing_peer(monkeypatch, tmp_path):
    (tmp_path / "a_library.py").write_text("import another_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_library"):
        peers.peer_module("a_library")
