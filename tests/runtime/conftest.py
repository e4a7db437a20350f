"""Fixtures of the runtime's tests: pictures, tokenizers of the three common kinds, the command line in process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from divprune_edge.console import run
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.cli import app
from divprune_edge.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def pipeline(demo_bundle: Path) -> Pipeline:
    """The demo bundle, pruned to 58 tokens, opened once."""
    return Pipeline(Bundle.open(demo_bundle, "always"))


@pytest.fixture
def bundle_copy(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy landscape picture as PNG."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(7).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


RunCommand = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """``python -m runtime …`` without starting a process."""

    def call(*arguments: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(app, [str(argument) for argument in arguments], program="python -m runtime")
        code = stopped.value.code
        captured = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 1, captured.out, captured.err)

    return call


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


@pytest.fixture(scope="session", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One tokenizer of each kind."""
    return KINDS[request.param]()
