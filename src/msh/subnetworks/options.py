"""Names of the choices that settings offer, readable without torch."""

from __future__ import annotations

from typing import Literal

GranularityName = Literal["weight", "block", "nm", "unit", "neuron", "channel"]
GRANULARITIES: tuple[GranularityName, ...] = ("weight", "block", "nm", "unit", "neuron", "channel")
"""Tasks keep single weights; blocks of them; N of each M neighbouring ones; whole units of linear layers and
convolutions; or, as in earlier releases, whole units of linear layers alone ("neuron") or of both ("channel"), computed
with matrices of full size."""

Reuse = Literal["none", "all", "learned"]
"""Which earlier tasks' weights a task reads: none, all, or the ones it selects."""

Scope = Literal["tensor", "erk", "epl", "network"]
LAYERED: tuple[Scope, ...] = ("erk", "epl")
"""Scopes that fix a number of weights per tensor: small tensors give a larger share than large ones."""

ScoreStart = Literal["magnitude", "random"]
"""What learned scores start from."""
