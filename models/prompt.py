"""How a checkpoint turns text into ids: its special tokens, stop ids and chat template, wherever they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.ids import MOST_IDS, Ids
from divprune_edge.manifest import Prompt
from divprune_edge.models.files import CheckpointFiles, Config

TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"
"""Names in the bundle, and in checkpoints."""


@dataclass(frozen=True)
class PromptFacts:
    """Everything about the prompt but the tokenizer itself: the manifest's entry, and the template that it names.

    ``template_source`` names the file that the template came from, or says that it is the family's default.
    """

    entry: Prompt
    template: str
    template_source: str


def read_prompt(
    files: CheckpointFiles, config: Config, image_token_id: int, vocabulary: int, default: str
) -> PromptFacts:
    """Return the prompt facts of a checkpoint.

    Args:
        files: the checkpoint folder.
        config: its ``config.json``.
        image_token_id: id of the image placeholder.
        vocabulary: number of logits; ids that no token has are never sampled.
        default: the family's chat template, for checkpoints that carry none.

    Raises:
        UserError: no ``tokenizer.json``, or a placeholder id that the tokenizer does not know.
    """
    tokens = _tokens(files)
    if image_token_id not in tokens:
        raise UserError(
            f"config.json names {image_token_id} as the image placeholder, but tokenizer.json has no token with "
            "that id: the tokenizer does not belong to this checkpoint.",
            code="tokenizer-foreign",
        )
    special = _special_tokens(files)
    template, source = _chat_template(files, default)
    entry = Prompt(
        tokenizer=TOKENIZER_FILE,
        chat_template=TEMPLATE_FILE,
        image_token=tokens[image_token_id],
        image_token_id=image_token_id,
        bos_token=special["bos_token"],
        eos_token=special["eos_token"],
        pad_token=special["pad_token"],
        unk_token=special["unk_token"],
        stop_ids=_stop_ids(files, config, {text: i for i, text in tokens.items()}, special["eos_token"]),
        forbidden_ids=Ids(i for i in range(vocabulary) if i == image_token_id or i not in tokens),
    )
    return PromptFacts(entry, template, source)


def _tokens(files: CheckpointFiles) -> dict[int, str]:
    """Return id -> token of ``tokenizer.json``."""
    data = files.json(TOKENIZER_FILE)
    if data is None:
        raise UserError(
            f"'{files.folder}' has no tokenizer.json: make one with transformers' "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
            code="tokenizer-missing",
        )
    try:
        vocabulary = (data.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, dict):
            tokens = {_id(i): token for token, i in vocabulary.items()}
        else:
            tokens = {i: _text(entry[0]) for i, entry in enumerate(vocabulary)}
        return tokens | {_id(a["id"]): _text(a["content"]) for a in data.get("added_tokens") or []}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{files.folder / TOKENIZER_FILE}' is not a tokenizer ({type(error).__name__}: {error}): download it "
            "again.",
            code="tokenizer-unreadable",
        ) from None


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_IDS:
        raise ValueError(f"{str(value)[:60]} is not an id")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]} is not a token")
    return value


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
        if len(given) > 1000 or not all(type(i) is int and -1 <= i < MOST_IDS for i in given):
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
    return default, "the family's default"


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
