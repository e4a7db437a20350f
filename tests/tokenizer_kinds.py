"""Small tokenizers of the kinds that language models have."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """Llama's kind: spaces as U+2581, byte tokens for what the vocabulary lacks."""
    pieces = [
        *SPECIAL,
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz<>:\n.?/",
    ]
    pieces += ["\u2581a", "\u2581the", "th", "he", "the", "\u2581t", "USER", "\u00e9"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ("t", "h"), ("h", "e"), ("th", "e"), ("\u2581", "t"), ("\u2581", "the")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finish(tokenizer)


def metaspace_like() -> Tokenizer:
    """Llama's newer kind: only the beginning of the whole text gets a U+2581."""
    tokenizer = sentencepiece_like()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2's kind (Qwen, Llama 3): bytes as printable characters, no leading space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet, "th", "the", "\u0120the"]
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finish(tokenizer)


def word_piece() -> Tokenizer:
    """BERT's kind: words, continued by ``##``."""
    pieces = [
        *SPECIAL,
        "what",
        "is",
        "in",
        "the",
        "a",
        "<",
        ">",
        "image",
        "?",
        ".",
        ":",
        "##s",
        "##ing",
        "user",
    ]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _finish(tokenizer)


KINDS = {
    "sentencepiece": sentencepiece_like,
    "metaspace": metaspace_like,
    "byte_level": byte_level,
    "word_piece": word_piece,
}
