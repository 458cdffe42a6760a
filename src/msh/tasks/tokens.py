"""Texts as token ids; the vocabulary is that of the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1
"""Token ids of what fills up short texts, and of words that the vocabulary does not have."""


@dataclass(frozen=True)
class Texts:
    """Texts that become tokens once it is known which of them are the training split.

    Attributes:
        texts: none of them empty.
        vocabulary: number of token ids, with padding and unknown: the most frequent words of the training split.
        length: tokens per text; longer ones are cut off, shorter ones filled up with padding.
    Raises:
        ValueError: vocabulary or length are too small.
    """

    texts: list[str]
    vocabulary: int
    length: int

    def __post_init__(self) -> None:
        for key, value, least in (("vocabulary", self.vocabulary, 3), ("length", self.length, 1)):
            if value < least:
                raise ValueError(f"source.{key} = {value} is not allowed: at least {least} is")

    def tokenizer(self, rows: Tensor) -> Any:
        """A tokenizer with the vocabulary of some of the texts, by falling frequency, then by letters.

        Args:
            rows: int64, (examples,), places in `texts`.
        Returns:
            A `tokenizers.Tokenizer`: lower case, split at white space and punctuation.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # only texts need it

        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.vocabulary, special_tokens=["[PAD]", "[UNK]"], show_progress=False
        )
        tokenizer.train_from_iterator([self.texts[row] for row in rows.tolist()], trainer)
        tokenizer.enable_truncation(self.length)
        tokenizer.enable_padding(length=self.length, pad_id=PADDING)
        return tokenizer

    def tokens(self, tokenizer: Any, rows: Tensor) -> Tensor:
        """int64, (examples, length): token ids of the texts at these places."""
        encoded = tokenizer.encode_batch([self.texts[row] for row in rows.tolist()], add_special_tokens=False)
        return torch.tensor([one.ids for one in encoded])
