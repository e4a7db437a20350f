"""How a checkpoint turns text into ids: its special tokens, stop ids and chat template, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.generation import read_generation
from divprune_edge.export.tokenizer import TOKENIZER_FILE, read_tokenizer
from divprune_edge.ids import MOST_IDS, Ids
from divprune_edge.manifest import DEFAULT_TEMPLATE, Prompt
from divprune_edge.models.files import CheckpointFiles, Config

TEMPLATE_FILE = "chat_template.jinja"
"""Name in the bundle, and in checkpoints."""


@dataclass(frozen=True)
class PromptFacts:
    """Everything about the prompt but the tokenizer itself: the manifest's entry, and the template that it names.

    ``template_source`` names the file that the template came from, or says that it is the family's default.
    ``tokenizer`` is the content of the bundle's ``tokenizer.json``, and ``token_ids`` the ids of its added tokens as
    the checkpoint states them.
    """

    entry: Prompt
    template: str
    template_source: str
    tokenizer: str
    token_ids: Mapping[str, int] = field(default_factory=dict)


def read_prompt(
    files: CheckpointFiles,
    config: Config,
    image_token_id: int,
    vocabulary: int,
    default: str,
    video_token_id: int | None = None,
    embedding_rows: int | None = None,
) -> PromptFacts:
    """Return the prompt facts of a checkpoint.

    Args:
        files: the checkpoint folder.
        config: its ``config.json``.
        image_token_id: id of the image placeholder.
        vocabulary: number of logits; ids that no token has are never sampled.
        default: the family's chat template, for checkpoints that carry none.
        video_token_id: id of the placeholder of a clip, None where there are no clips.
        embedding_rows: number of ids that can be fed, where it is not that of logits; others are never sampled either.

    Raises:
        UserError: no ``tokenizer.json``, or a placeholder id that the tokenizer does not know.
    """
    tokenizer = read_tokenizer(files)
    ids = tokenizer.ids()
    tokens = {i: text for text, i in ids.items()}
    placeholders = {"image": image_token_id} | ({} if video_token_id is None else {"video": video_token_id})
    for kind, token in placeholders.items():
        if token not in tokens:
            raise UserError(
                f"config.json names {token} as the {kind} placeholder, but tokenizer.json has no token with that id, "
                "and no file beside it names one: the tokenizer does not belong to this checkpoint.",
                code="tokenizer-foreign",
            )
    sampled = tokens.keys() - {ids[token] for token in tokenizer.invented}
    if embedding_rows is not None:
        sampled = {i for i in sampled if i < embedding_rows}
    special = _special_tokens(files)
    template, source = _chat_template(files, default)
    entry = Prompt(
        tokenizer=TOKENIZER_FILE,
        chat_template=TEMPLATE_FILE,
        image_token=tokens[image_token_id],
        image_token_id=image_token_id,
        video_token=None if video_token_id is None else tokens[video_token_id],
        video_token_id=video_token_id,
        bos_token=special["bos_token"],
        eos_token=special["eos_token"],
        pad_token=special["pad_token"],
        unk_token=special["unk_token"],
        stop_ids=_stop_ids(files, config, ids, special["eos_token"]),
        forbidden_ids=Ids(i for i in range(vocabulary) if i in placeholders.values() or i not in sampled),
        template_source=source,
        generation=read_generation(files),
    )
    text = tokenizer.text if tokenizer.changed else files.text(TOKENIZER_FILE)
    return PromptFacts(entry, template, source, text or "", tokenizer.added_ids())


def _special_tokens(files: CheckpointFiles) -> dict[str, str | None]:
    """Return the named special tokens; ``tokenizer_config.json`` outranks ``special_tokens_map.json``."""
    sources = [files.json("tokenizer_config.json") or {}, files.json("special_tokens_map.json") or {}]
    found: dict[str, str | None] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        values = (source.get(name) for source in sources)
        texts = (value.get("content") if isinstance(value, dict) else value for value in values)
        found[name] = next((text for text in texts if isinstance(text, str)), None)
    return found


def _stop_ids(
    files: CheckpointFiles, config: Config, ids: dict[str, int], eos: str | None
) -> tuple[int, ...]:
    generation = files.json("generation_config.json") or {}
    for source in (generation, config.get("text_config"), config):
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        if value is None or value == []:
            continue
        given = value if isinstance(value, list) else [value]
        if len(given) > 1000 or not all(type(i) is int and 0 <= i < MOST_IDS for i in given):
            raise UserError(
                f"'{files.folder}' says that eos_token_id is {str(value)[:60]}, expected an id or a list of ids.",
                code="config-value-invalid",
            )
        return tuple(given)
    if eos in ids:
        return (ids[eos],)
    raise UserError(
        f"'{files.folder}' does not say which token ends an answer: add eos_token_id to generation_config.json.",
        code="stop-token-missing",
    )


def _chat_template(files: CheckpointFiles, default: str) -> tuple[str, str]:
    """Return (template, where it was found), in transformers' order of precedence."""
    for name in ("processor_config.json", "chat_template.json", TEMPLATE_FILE, "tokenizer_config.json"):
        if name == TEMPLATE_FILE:
            template = files.text(name)
        else:
            template = _default_of((files.json(name) or {}).get("chat_template"))
        if template is not None:
            return template, name
    return default, DEFAULT_TEMPLATE


def _default_of(template: Any) -> str | None:
    """A template is a string, or a list (or mapping) of named ones of which 'default' counts."""
    if isinstance(template, str):
        return template
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        chosen = template.get("default")
        return chosen if isinstance(chosen, str) else None
    return None
