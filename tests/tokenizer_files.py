"""Tokenizers of Hugging Face's library as files, trained on a few words; tests make them."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

WORDS = ["the film is good", "the film is bad", "a café, naïve and well made"] * 5


def byte_pairs(folder, padding="<pad>", dropout=0.5):
    """Pairs of bytes, as RoBERTa has, merged at random: padding is token 1, or has no token (None)."""
    special = ["<s>", *([padding] if padding else []), "</s>"]
    tokenizer = Tokenizer(models.BPE(dropout=dropout))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return saved(tokenizer, folder)


def word_pieces(folder):
    """Pieces of words, as BERT has: padding is token 3, on the left."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.enable_padding(direction="left", pad_id=3, pad_token="[PAD]")
    tokenizer.enable_truncation(4, direction="left")
    return saved(tokenizer, folder)


def unigrams(folder):
    """Pieces with probabilities, as T5 has: padding is token 0, unknown token 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return saved(tokenizer, folder)


def saved(tokenizer, folder):
    """Save a tokenizer; return its path."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)
