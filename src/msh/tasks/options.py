"""Names of the choices that settings offer for tasks, readable without torch."""

from __future__ import annotations

from typing import Literal, get_args

ExampleKind = Literal["classification", "multilabel", "regression"]
"""Kinds of task that answer each example once."""
TokenKind = Literal["lm", "token_classification"]
"""Kinds of task that answer each token of a text: with the next token, or with a class."""
Kind = Literal["classification", "multilabel", "regression", "lm", "token_classification"]
TOKEN_KINDS: tuple[Kind, ...] = get_args(TokenKind)

Normalize = Literal["feature", "channel", "all", "minmax", "none", "robust", "quantile"]
"""feature: scale each input to mean 0, variance 1; channel: all inputs of an image's channel together; all: all inputs
together; minmax: each input to [0, 1]; robust: each input to median 0, interquartile range 1; quantile: each input to a
normal distribution."""

Uneven = Literal["cycle", "shortest"]
"""Length of an epoch in which tasks train together: the longest task's, or the shortest one's."""
