"""Windows of texts: the steps of tasks that answer each token, which cut no text short."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from msh.errors import invalid
from msh.tasks.outputs import IGNORED
from msh.tasks.steps import CONFIG, Dtype, is_text
from msh.tasks.tokens import unknown_of


@plain_dataclass(frozen=True)
class Windows:
    """Several texts as windows of one length, text after text; a window belongs to one text.

    Attributes:
        tokens: int64 (windows, length); a text's last window is padded on the right.
        targets: int64 (windows, length), what each token is asked for, IGNORED where it is asked for nothing: the id of
            the next token, or the number of the word in its text whose class it has.
        texts: int64 (windows,), the position of the text of each window.
        number: of texts.
    """

    tokens: Tensor
    targets: Tensor
    texts: Tensor
    number: int

    def sums(self, values: Tensor) -> Tensor:
        """Sum values (windows,) over the windows of each text: (texts,)."""
        return values.new_zeros(self.number).index_add(0, self.texts, values)


@dataclass(frozen=True, config=CONFIG)
class Windowed(ABC):
    """Turn texts into windows of token ids: each text becomes one or more.

    Attributes:
        tokenizer: a fitted `tokenizers.Tokenizer`, which neither pads nor cuts, as JSON.
        length: tokens per window.
        padding: id of the token that fills windows; it counts nowhere.
    """

    tokenizer: str
    length: Annotated[int, Field(ge=1)]
    padding: Annotated[int, Field(ge=0)]
    least: ClassVar[str] = "a text"
    """The shortest text that has a window, in words."""

    @abstractmethod
    def _of_one(self, text: Any) -> tuple[Tensor, Tensor]:
        """Return the tokens and targets of a text, both int64 (windows, length); no windows if it asks for nothing.

        Raises:
            ValueError: it cannot be read.
        """

    @property
    def shape(self) -> tuple[int]:
        """Shape of a window: its tokens."""
        return (self.length,)

    @property
    def dtype(self) -> Dtype:
        """Type of the token ids."""
        return "int64"

    def windows(self, texts: Sequence[Any], strict: bool = True) -> Windows:
        """Cut texts into windows.

        Args:
            texts: any number.
            strict: refuse texts that ask for nothing; else they have no windows.
        Raises:
            ValueError: an input cannot be read, or is refused.
        """
        parts = [self._of_one(text) for text in texts]
        if strict and (empty := [text for text, (tokens, _) in zip(texts, parts, strict=True) if not len(tokens)]):
            raise invalid("a text", self.least, empty[0])
        tokens = torch.cat([tokens for tokens, _ in parts])
        counts = torch.tensor([len(tokens) for tokens, _ in parts])
        rows = torch.arange(len(parts)).repeat_interleave(counts)
        return Windows(tokens, torch.cat([targets for _, targets in parts]), rows, len(parts))

    def __call__(self, inputs: Sequence[Any]) -> Tensor:
        """Return the windows of all texts, int64 (windows, length); see `windows`."""
        return self.windows(inputs).tokens

    def names(self, tokens: Tensor) -> list[str]:
        """Return the tokens of a window, int64 (length,), without padding."""
        return [self.built.id_to_token(token) for token in tokens.tolist() if token != self.padding]

    @cached_property
    def marks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids that the tokenizer puts before and after each text."""
        encoded = self.built.encode("a")
        special = encoded.special_tokens_mask
        first = special.index(0) if 0 in special else len(special)
        last = len(special) - special[::-1].index(0) if 0 in special else len(special)
        return tuple(encoded.ids[:first]), tuple(encoded.ids[last:])

    @cached_property
    def built(self) -> Any:
        """The `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer  # slow to import, and only texts need it

        try:
            return Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises no other type
            raise ValueError(f"the tokenizer cannot be read: {error}") from error


@dataclass(frozen=True, config=CONFIG)
class NextTokens(Windowed):
    """Windows in which each token is asked for the next one.

    The first window of a text has its first `length` tokens, the second one the tokens after them, and so on: every
    token but the text's first is asked for once. The last token of a window is asked for the first one of the next.
    """

    step: Literal["next_tokens"] = "next_tokens"
    least: ClassVar[str] = "at least 2 tokens, as the first one is not predicted"

    def _of_one(self, text: Any) -> tuple[Tensor, Tensor]:
        ids = self._ids(text, True)
        tokens = _filled(ids[:-1], self.length, self.padding)
        targets = _filled(ids[1:], self.length, IGNORED)
        targets = torch.where(targets == self.padding, IGNORED, targets)
        some = slice(0 if (targets == IGNORED).all() else None)
        return tokens[some], targets[some]

    def unmarked(self, text: Any) -> list[int]:
        """Return the token ids of a text without marks."""
        return self._ids(text, False)

    def _ids(self, text: Any, marks: bool) -> list[int]:
        if not is_text(text):
            raise invalid("inputs", "texts", text)
        ids: list[int] = self.built.encode(text, add_special_tokens=marks).ids
        return ids


@dataclass(frozen=True, config=CONFIG)
class TaggedWords(Windowed):
    """Windows in which the first token of each word is asked for the word's class.

    A text is a list of words, or a string, whose words are parted by white space. A window has as many whole words as
    fit between the tokenizer's marks; the next word begins the next window. Of a word that is longer than a window,
    the first tokens are read. `Windows.targets` holds the numbers of the words in their text.
    """

    step: Literal["tagged_words"] = "tagged_words"
    least: ClassVar[str] = "at least one word"

    def words(self, text: Any) -> tuple[str, ...]:
        """Return the words of a text.

        Raises:
            ValueError: it is neither a text nor a list of words.
        """
        found = text.split() if isinstance(text, str) else text
        if not isinstance(found, list | tuple) or not all(is_text(word) and word.strip() for word in found):
            raise invalid("inputs", "texts, or lists of words", text)
        return tuple(found)

    def _of_one(self, text: Any) -> tuple[Tensor, Tensor]:
        begin, end = self.marks
        room = self.length - len(begin) - len(end)
        rows: list[tuple[list[int], list[int]]] = []
        for number, word in enumerate(self.words(text)):
            ids = self.built.encode([word], is_pretokenized=True, add_special_tokens=False).ids[:room]
            ids = ids or [self._unknown]
            if not rows or len(rows[-1][0]) + len(ids) > room:
                rows.append(([], []))
            rows[-1][0].extend(ids)
            rows[-1][1].extend([number, *[IGNORED] * (len(ids) - 1)])
        tokens = [_filled([*begin, *ids, *end], self.length, self.padding) for ids, _ in rows]
        targets = [_filled([*[IGNORED] * len(begin), *numbers], self.length, IGNORED) for _, numbers in rows]
        empty = torch.empty(0, self.length, dtype=torch.int64)
        return torch.cat([empty, *tokens]), torch.cat([empty, *targets])

    @cached_property
    def _unknown(self) -> int:
        """The token of words that have none, such as invisible characters."""
        found = unknown_of(self.tokenizer)
        return self.padding if found is None else found


def _filled(values: Sequence[int], length: int, filler: int) -> Tensor:
    """Cut numbers into rows of a length, the last one filled: int64 (rows, length)."""
    short = -len(values) % length
    return torch.tensor([*values, *[filler] * short], dtype=torch.int64).view(-1, length)
