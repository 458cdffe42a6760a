"""Tokenize texts: with the training split's vocabulary, or a tokenizer of Hugging Face's library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from msh.errors import Problems, at_least, one_of
from msh.tasks.checks import existing
from msh.tasks.options import TOKEN_KINDS, Kind

if TYPE_CHECKING:
    from torch import Tensor

PADDING, UNKNOWN = 0, 1
"""Token ids of the padding after short texts, and of words outside the vocabulary; a tokenizer file has its own."""
MARKS = ("[BOS]", "[EOS]")
"""Tokens before and after each text of a language model; a tokenizer file has its own, or none."""
PADDING_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
"""Names of padding in tokenizer files that do not pad."""
CHUNK = 1000
"""Texts whose tokens are counted at once."""

Unicode = Literal["NFC", "NFD", "NFKC", "NFKD", "none"]
"""Forms of Unicode to which texts are normalized."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer of Hugging Face's library.

    Attributes:
        content: the file's, which is JSON.
        vocabulary: number of token ids, with the padding's.
        padding: the padding's token id.
        special: number of tokens that it adds to each text, such as [CLS].
    """

    content: str
    vocabulary: int
    padding: int
    special: int


def read_tokenizer(path: str) -> TokenizerFile:
    """Read a tokenizer.json.

    Without a padding token, the id after its last one is padding. Random merges (dropout) are switched off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tokenizer.
    """
    from tokenizers import Tokenizer  # slow to import, and only texts need it

    file = existing(path, "file")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other type
        raise ValueError(f"source.tokenizer: {file} is no tokenizer.json of Hugging Face ({error})") from error
    if not tokenizer.get_vocab():
        raise ValueError(f"source.tokenizer: {file} has no tokens: train it first")
    return described_tokenizer(tokenizer)


def described_tokenizer(tokenizer: Any, padding: int | None = None) -> TokenizerFile:
    """Describe a `tokenizers.Tokenizer`, without random merges (dropout).

    Args:
        tokenizer: has tokens.
        padding: the padding's token id; None: the tokenizer's, or the id after its last one.
    """
    tokens = tokenizer.get_vocab()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    after = max(tokens.values()) + 1
    if padding is None and tokenizer.padding is not None:
        padding = int(tokenizer.padding["pad_id"])
    elif padding is None:
        padding = next((tokens[name] for name in PADDING_TOKENS if name in tokens), after)
    special = tokenizer.num_special_tokens_to_add(False)
    return TokenizerFile(tokenizer.to_str(), max(after, padding + 1), padding, special)


@dataclass(frozen=True)
class TokenCounts:
    """Count the tokens of texts, without those that a tokenizer adds to each text.

    Attributes:
        texts: number of texts.
        longer: number of texts with more tokens than are kept.
        tokens: tokens of all texts.
        cut: tokens beyond those kept.
        unknown: tokens that stand for words outside the vocabulary.
    """

    texts: int
    longer: int
    tokens: int
    cut: int
    unknown: int

    @property
    def facts(self) -> list[tuple[str, str]]:
        """List (name, value): the share of tokens that are cut off, and of unknown ones."""
        cut, unknown = (f"{100 * part / max(self.tokens, 1):.1f}% of all tokens" for part in (self.cut, self.unknown))
        longer = f"{self.longer:,} of {self.texts:,} texts"
        return [("longer than source.length", longer), ("cut off", cut), ("unknown", unknown)]


@dataclass(frozen=True)
class WindowCounts:
    """Count the tokens of texts in windows; see `msh.tasks.windows`.

    Attributes:
        texts: number of texts.
        windows: number of windows.
        length: tokens per window.
        tokens: tokens in all windows, with the marks that a tokenizer adds.
        unknown: of these, the ones that stand for words outside the vocabulary.
    """

    texts: int
    windows: int
    length: int
    tokens: int
    unknown: int

    @property
    def facts(self) -> list[tuple[str, str]]:
        """List (name, value): texts, windows, and the shares of padding and of unknown tokens."""
        room = self.windows * self.length
        windows = f"{self.windows:,} of {self.length} tokens, from {self.texts:,} texts"
        padding = f"{100 * (room - self.tokens) / max(room, 1):.1f}% of all windows"
        return [
            ("windows", windows),
            ("padding", padding),
            ("unknown", f"{100 * self.unknown / max(self.tokens, 1):.1f}% of all tokens"),
        ]


@dataclass(frozen=True)
class Texts:
    """Texts that become tokens once the training split is known.

    Attributes:
        texts: not empty; tuples of words, where each word has a class.
        vocabulary: number of token ids: padding, unknown, and the training split's most frequent words. None: 10,000,
            or the tokenizer file's, beside which it cannot be set.
        length: tokens per text; longer texts are cut, shorter ones padded. Where each token has an answer: tokens per
            window, of which a text has as many as it needs.
        file: the tokenizer; None: one with the training split's words.
        unicode: the form to which texts are normalized.
        files: each text is a file.
    Raises:
        ValueError: a setting is invalid.
    """

    texts: list[Any]
    vocabulary: int | None
    length: int
    file: TokenizerFile | None = None
    unicode: Unicode = "NFC"
    files: bool = False

    def __post_init__(self) -> None:
        check_tokens(self.vocabulary, self.length, self.file, self.unicode)

    @property
    def ids(self) -> int:
        """Number of token ids."""
        if self.file is not None:
            return self.file.vocabulary
        return 10_000 if self.vocabulary is None else self.vocabulary

    @property
    def padding(self) -> int:
        """The padding's token id."""
        return PADDING if self.file is None else self.file.padding

    def tokenizer(self, rows: Tensor, kind: Kind = "classification") -> Any:
        """Build the tokenizer; without a file, its vocabulary comes from some texts, by falling frequency and letter.

        Args:
            rows: int64, (examples,), indices of `texts`.
            kind: the task's; where tokens have answers, the tokenizer neither pads nor cuts. For a language model
                without a file, it marks where each text begins and ends.
        Returns:
            A `tokenizers.Tokenizer`; without a file: lower case, split at white space and punctuation.
        """
        from tokenizers import Tokenizer, normalizers

        form = [] if self.unicode == "none" else [getattr(normalizers, self.unicode)()]
        side = "right"
        if self.file is None:
            tokenizer = self._of_words(rows, [*form, normalizers.Lowercase()], MARKS if kind == "lm" else ())
            name = "[PAD]"
        else:
            tokenizer = Tokenizer.from_str(self.file.content)
            own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
            if form:
                tokenizer.normalizer = normalizers.Sequence([*form, *own])
            name = tokenizer.id_to_token(self.padding) or "[PAD]"
            side = (tokenizer.padding or {}).get("direction", side)
        if kind in TOKEN_KINDS:
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        cut_at = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(self.length, direction=cut_at)
        tokenizer.enable_padding(length=self.length, pad_id=self.padding, pad_token=name, direction=side)
        return tokenizer

    def _of_words(self, rows: Tensor, steps: list[Any], marks: tuple[str, ...]) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        special = ["[PAD]", "[UNK]", *marks]
        trainer = trainers.WordLevelTrainer(vocab_size=self.ids, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator([t if isinstance(t, str) else " ".join(t) for t in self.take(rows)], trainer)
        if marks:
            begin, end = marks
            ids = [(mark, tokenizer.token_to_id(mark)) for mark in marks]
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
            tokenizer.decoder = decoders.WordPiece()  # no white space before punctuation
        return tokenizer

    def take(self, rows: Tensor) -> list[Any]:
        """Return the texts at these indices, int64 (examples,)."""
        return [self.texts[row] for row in rows.tolist()]


def check_tokens(vocabulary: int | None, length: int, file: TokenizerFile | None, unicode: str) -> None:
    """Raise unless settings of `Texts` are valid; all problems together."""
    with Problems() as problems:
        if vocabulary is not None:
            problems.check(at_least, "source.vocabulary", 3, vocabulary)
        if file is not None and vocabulary is not None:
            problems.add(f"source.vocabulary = {vocabulary} cannot be set beside source.tokenizer: remove one")
        problems.check(at_least, "source.length", 1 if file is None else file.special + 1, length)
        problems.check(one_of, "source.unicode", unicode, get_args(Unicode))


def unknown_of(content: str) -> int | None:
    """Return the id of the token for words outside the vocabulary; None if there is none.

    Args:
        content: a `tokenizers.Tokenizer`, as JSON.
    """
    from tokenizers import Tokenizer

    model = json.loads(content)["model"]
    name = model.get("unk_token")
    found: int | None = model.get("unk_id") if name is None else Tokenizer.from_str(content).token_to_id(name)
    return found


def count_tokens(content: str, texts: Sequence[str]) -> TokenCounts:
    """Count the tokens of texts.

    Args:
        content: a `tokenizers.Tokenizer` that cuts texts, as JSON.
        texts: any number.
    """
    from tokenizers import Tokenizer

    whole: Any = Tokenizer.from_str(content)
    room = whole.truncation["max_length"] - whole.num_special_tokens_to_add(False)
    whole.no_truncation()
    whole.no_padding()
    unknown = unknown_of(content)
    longer = tokens = cut = strange = 0
    for start in range(0, len(texts), CHUNK):
        for encoded in whole.encode_batch(list(texts[start : start + CHUNK]), add_special_tokens=False):
            tokens += len(encoded)
            longer += len(encoded) > room
            cut += max(0, len(encoded) - room)
            strange += encoded.ids.count(unknown)
    return TokenCounts(len(texts), longer, tokens, cut, strange)
