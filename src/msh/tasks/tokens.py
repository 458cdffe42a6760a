"""Tokenize texts, with the training split's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from msh.errors import Problems, at_least

PADDING, UNKNOWN = 0, 1
"""Token ids of the padding after short texts, and of words outside the vocabulary."""


@dataclass(frozen=True)
class Texts:
    """Texts that become tokens once the training split is known.

    Attributes:
        texts: not empty.
        vocabulary: number of token ids: padding, unknown, and the training split's most frequent words.
        length: tokens per text; longer texts are cut, shorter ones padded.
        fitted: a `tokenizers.Tokenizer` as JSON, to be used instead of one made of the texts.
        padding: its padding id.
    Raises:
        ValueError: vocabulary or length is too small.
    """

    texts: list[str]
    vocabulary: int
    length: int
    fitted: str | None = None
    padding: int = PADDING

    def __post_init__(self) -> None:
        with Problems() as problems:
            problems.check(at_least, "source.vocabulary", 3, self.vocabulary)
            problems.check(at_least, "source.length", 1, self.length)

    def tokenizer(self, rows: Tensor) -> Any:
        """Build a tokenizer whose vocabulary comes from some texts, by falling frequency, then by letter.

        Args:
            rows: int64, (examples,), indices of `texts`.
        Returns:
            A `tokenizers.Tokenizer`: `fitted`, or lower case, split at white space and punctuation.
        """
        from tokenizers import (  # slow to import, and only texts need it
            Tokenizer,
            models,
            normalizers,
            pre_tokenizers,
            trainers,
        )

        if self.fitted is not None:
            tokenizer = Tokenizer.from_str(self.fitted)
            tokenizer.enable_truncation(self.length)
            tokenizer.enable_padding(
                length=self.length, pad_id=self.padding, pad_token=tokenizer.id_to_token(self.padding) or "[PAD]"
            )
            return tokenizer
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.vocabulary, special_tokens=["[PAD]", "[UNK]"], show_progress=False
        )
        tokenizer.train_from_iterator(self.take(rows), trainer)
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length, pad_id=PADDING)
        return tokenizer

    def take(self, rows: Tensor) -> list[str]:
        """Return the texts at these indices, int64 (examples,)."""
        return [self.texts[row] for row in rows.tolist()]
