"""The demo checkpoint's tokenizer: whole words it was taught, letters for everything else."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..questions import REGIONS, TEMPLATES, plural
from ..scenes import COLORS, SHAPES

# CLIP's own normalisation, as its image processor states it.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
UNK, BOS, EOS, PAD, IMAGE = range(5)

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
    found = {"user", "assistant", "yes", "no", "shapes", "things", "object", "objects", "colors", "it", "and"}
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


def vocabulary(special: Sequence[str] = SPECIAL, more: Sequence[str] = ()) -> dict[str, int]:
    """Token to id: special tokens, words and `more`, then single characters and their `##` continuations."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*special, *sorted({*words(), *more}), *string.punctuation, *characters]
    pieces += ["##" + c for c in characters]
    return {piece: index for index, piece in enumerate(pieces)}


def build_tokenizer(special: Sequence[str] = SPECIAL, more: Sequence[str] = ()) -> Any:
    """The `tokenizers.Tokenizer`: lower-casing WordPiece that puts `<s>` first, if there is one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordPiece(vocabulary(special, more), unk_token="<unk>", max_input_chars_per_word=64)
    )
    plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(plain)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if "<s>" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", special.index("<s>"))]
        )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def save_processor(folder: Path, image_size: int, patch_size: int) -> None:
    """Write tokenizer, chat template and image preprocessing in the Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", names | {"image_token": "<image>"})
    write_json(
        folder / "tokenizer_config.json",
        names
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
            "padding_side": "left",
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": image_size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
        },
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": patch_size,
            "vision_feature_select_strategy": "default",
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as all files of a checkpoint have it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
