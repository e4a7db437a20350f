"""What a manifest says of prompts and answers: how text becomes ids, and how the checkpoint would decode."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from divprune_edge.manifest.fields import BundlePath, ForbiddenIds, Id, Positive, Strict

DEFAULT_TEMPLATE = "the family's default"
"""``Prompt.template_source`` where a checkpoint brings no template."""


class GenerationDefaults(Strict):
    """How the checkpoint would have its answers decoded: what its ``generation_config.json`` says, used where asked.

    None where it says nothing. ``unsupported`` are settings that this runtime has no counterpart of, as they stand.
    The ids that end an answer are the prompt's ``stop_ids``.
    """

    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Positive | None = None
    stop: tuple[str, ...] = ()
    unsupported: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        """Return the settings in one line, those without a counterpart marked."""
        stated = self.model_dump(exclude={"unsupported"}, exclude_none=True, exclude_defaults=True)
        shown = [f"{name} {value}" for name, value in stated.items()]
        return ", ".join(
            [*shown, *(f"{name} {value} (not supported)" for name, value in self.unsupported.items())]
        )


class Prompt(Strict):
    """How text becomes ids: ``tokenizer.json``, a chat template, and the ids with a meaning.

    ``forbidden_ids`` are never sampled: the placeholders of images and clips, and rows without a token; ``video_token``
    is None where there are no clips. ``template_source`` says which file of the checkpoint the template came from, or
    that it is the family's default; None in bundles of older exports, as ``generation`` is.
    """

    tokenizer: BundlePath
    chat_template: BundlePath
    image_token: str
    image_token_id: Id
    video_token: str | None = None
    video_token_id: Id | None = None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    stop_ids: tuple[Id, ...]
    forbidden_ids: ForbiddenIds
    template_source: str | None = None
    generation: GenerationDefaults | None = None
