"""Words come back as words, anything else as pieces, nothing crashes."""

from __future__ import annotations

import pytest

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.demo.questions import REGIONS, TEMPLATES
from divprune_edge.models.demo.trainer.tokenizer import BOS, EOS, IMAGE, PAD, UNK, build_tokenizer, vocabulary

pytest.importorskip("tokenizers")


def test_special_ids() -> None:
    tokenizer = build_tokenizer()
    for token, index in (("<unk>", UNK), ("<s>", BOS), ("</s>", EOS), ("<pad>", PAD), ("<image>", IMAGE)):
        assert tokenizer.token_to_id(token) == index
    assert tokenizer.encode("user: <image>\nhi</s>").ids.count(IMAGE) == 1


@pytest.mark.parametrize("text", ["red circle", "47", "0", "109", "yes", *REGIONS])
def test_answers_survive_the_round_trip(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_templates_are_whole_words_in_any_case() -> None:
    tokenizer = build_tokenizer()
    for templates in TEMPLATES.values():
        for template in templates:
            slots = dict.fromkeys(("shape", "color", "a", "b", "thing", "things", "region"), "red")
            text = template.format(**slots)
            encoded = tokenizer.encode(text)
            assert not any(token.startswith("##") or token == "<unk>" for token in encoded.tokens)
            assert tokenizer.encode(text.upper()).ids == encoded.ids


@pytest.mark.parametrize(
    "text", ["zebra crossing 1984!", "Où est l'étoile?", "日本", "", "a" * 500, "\x00\n\t"]
)
def test_any_text_is_encoded(text: str) -> None:
    assert build_tokenizer().encode(text).ids[0] == BOS


def test_the_checkpoint_has_this_tokenizer() -> None:
    from tokenizers import Tokenizer

    saved = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert saved.get_vocab() == vocabulary()
    assert saved.to_str() == build_tokenizer().to_str()
