"""The demo checkpoint's tokenizer: whole words it was taught, letters for everything else."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from .questions import REGIONS, TEMPLATES, plural
from .scenes import COLORS, SHAPES

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
UNK, BOS, EOS, PAD, IMAGE = range(5)

# Tags of a turn are lower-cased with the rest: "USER:" is the two tokens "user" and ":".
TURN = "USER: {text} ASSISTANT:"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set tag = '' -%}
{%- else -%}
{%- set tag = message['role'] | upper + ': ' -%}
{%- endif -%}
{%- if message['content'] is string -%}
{%- set images = '' -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set parts = namespace(images='', text='') -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{%- set parts.images = parts.images + '<image>\\n' -%}
{%- elif item['type'] == 'text' -%}
{%- set parts.text = parts.text + (' ' if parts.text else '') + item['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set images = parts.images -%}
{%- set text = parts.text -%}
{%- endif -%}
{{- tag + images + text -}}
{%- if message['role'] == 'assistant' -%}
{{- '</s>' -}}
{%- elif not loop.last or add_generation_prompt -%}
{{- ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def words() -> list[str]:
    """Every word of the templates and answers, sorted."""
    found = {"user", "assistant", "yes", "no", "red", "thing", "object", "color", "colour", "middle", "a", "an"}
    texts = [t for templates in TEMPLATES.values() for t in templates] + list(REGIONS)
    for text in texts:
        plain = "".join(c if c.isalpha() else " " for c in _without_slots(text).lower())
        found.update(plain.split())
    found.update(COLORS)
    for shape in SHAPES:
        found.update((shape, plural(shape)))
    return sorted(word for word in found if len(word) > 1)


def _without_slots(text: str) -> str:
    while "{" in text:
        text = text[: text.index("{")] + text[text.index("}") + 1 :]
    return text


def vocabulary() -> dict[str, int]:
    """Token to id: special tokens, words, then single characters and their `##` continuations."""
    characters = string.ascii_lowercase + string.digits
    pieces = list(SPECIAL) + words() + list(string.punctuation) + list(characters)
    pieces += ["##" + c for c in characters]
    return {piece: index for index, piece in enumerate(pieces)}


def build_tokenizer() -> Any:
    """The `tokenizers.Tokenizer`: lower-casing WordPiece that puts `<s>` first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token="<unk>", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_processor(folder: Path, image_size: int, patch_size: int) -> None:
    """Write tokenizer, chat template and image preprocessing in the Hugging Face layout."""
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
