"""Answer the tokens of texts: their loss, the classes of words, and the tokens that follow a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msh.errors import Problems, at_least, invalid
from msh.subnetworks.tensors import widened
from msh.tasks.outputs import IGNORED, Outputs
from msh.tasks.seeds import derive_seed
from msh.tasks.tokens import unknown_of
from msh.tasks.windows import NextTokens, Windowed, Windows


def text_losses(module: nn.Module, windows: Windows, batch_size: int, device: torch.device) -> Tensor:
    """Compute the mean cross-entropy of each text's tokens, float64 (texts,).

    Args:
        module: tokens (batch, length) to logits (batch, length, vocabulary).
        windows: of the texts; each has a target.
        batch_size: windows per batch.
        device: the module's.
    """
    sums = []
    for tokens, targets in zip(windows.tokens.split(batch_size), windows.targets.split(batch_size), strict=True):
        logits = widened(module(tokens.to(device))).cpu().flatten(0, 1)  # (batch * length, vocabulary)
        losses = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
        sums.append(losses.double().view_as(targets).sum(1))  # (batch,)
    counts = (windows.targets != IGNORED).sum(1).double()  # (windows,)
    return windows.sums(torch.cat(sums)) / windows.sums(counts)


def word_logits(module: nn.Module, windows: Windows, batch_size: int, device: torch.device) -> Tensor:
    """Compute the head's outputs at the first token of each word, text after text: float (words, outputs).

    Args:
        module, windows, batch_size, device: as in `text_losses`.
    """
    pairs = zip(windows.tokens.split(batch_size), windows.targets.split(batch_size), strict=True)
    return torch.cat([widened(module(tokens.to(device))).cpu()[targets != IGNORED] for tokens, targets in pairs])


def token_answers(
    module: nn.Module, outputs: Outputs, step: Windowed, texts: Sequence[Any], batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Answer texts: (raw, numbers), as `Predictions` has them.

    Args:
        module: tokens (batch, length) to logits (batch, length, outputs).
        outputs: the task's.
        step: the task's.
        texts: at least one, each with a window.
        batch_size: windows per batch.
        device: the module's.
    """
    windows = step.windows(texts)
    if outputs.kind == "lm":
        losses = text_losses(module, windows, batch_size, device)[:, None]
        return losses, losses.exp()
    logits = word_logits(module, windows, batch_size, device)
    return logits, outputs.values(logits)


@dataclass(frozen=True)
class Sampling:
    """Settings by which the next token is chosen.

    Attributes:
        max_new_tokens: most tokens after each prompt.
        temperature: divides the logits; 0: always the most probable token.
        top_k: choose among the k most probable tokens; None: among all.
        seed: of the draws. A prompt's draws follow from it and from the prompt's position.
    Raises:
        ValueError: a setting is out of its bounds.
    """

    max_new_tokens: int = 50
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        with Problems() as problems:
            problems.check(at_least, "max_new_tokens", 1, self.max_new_tokens)
            if not 0 <= self.temperature < float("inf"):
                problems.add(invalid("temperature", ">= 0", self.temperature))
            if self.top_k is not None:
                problems.check(at_least, "top_k", 1, self.top_k)
            problems.check(at_least, "seed", 0, self.seed)

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """Choose a token by its logits (vocabulary,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        best, ids = logits.double().topk(min(self.top_k or len(logits), len(logits)))
        return int(ids[torch.multinomial((best / self.temperature).softmax(0), 1, generator=generator)])


def continued(
    module: nn.Module, step: NextTokens, prompts: Sequence[str], sampling: Sampling, device: torch.device
) -> list[str]:
    """Continue prompts, token by token: each text with its prompt, as the tokenizer writes it.

    A text ends with the mark that the tokenizer puts after each text, or after `sampling.max_new_tokens`. Padding, the
    token for unknown words and marks of a beginning are never chosen. The model reads at most a window's last tokens.

    Args:
        module: tokens (batch, length) to logits (batch, length, vocabulary); causal.
        step: the task's.
        prompts: any number.
        sampling: how to choose.
        device: the module's.
    Raises:
        ValueError: a prompt is no text, or has no token where the tokenizer marks no beginning.
    """
    begin, end = step.marks
    rows = [[*begin, *step.unmarked(prompt)] for prompt in prompts]
    if [] in rows:
        raise invalid("prompt", "at least one token, as the tokenizer does not mark where a text begins", "")
    never = [*{step.padding, unknown_of(step.tokenizer), *begin} - {None, *end}]
    generators = [torch.Generator().manual_seed(derive_seed(sampling.seed, place)) for place in range(len(rows))]
    unfinished = list(range(len(rows)))
    for _ in range(sampling.max_new_tokens):
        if not unfinished:
            break
        read = [rows[place][-step.length :] for place in unfinished]
        tokens = torch.tensor([[*ids, *[step.padding] * (step.length - len(ids))] for ids in read])
        outputs = widened(module(tokens.to(device)))  # (prompts, length, vocabulary)
        logits = outputs[torch.arange(len(read)), torch.tensor([len(ids) - 1 for ids in read])].cpu()
        logits[:, never] = -torch.inf
        for place, row in zip(list(unfinished), logits, strict=True):
            token = sampling.choose(row, generators[place])
            if token in end:
                unfinished.remove(place)
            else:
                rows[place].append(token)
    return [step.built.decode(ids) for ids in rows]
