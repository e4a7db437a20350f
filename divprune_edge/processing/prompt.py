"""Messages to the ids of the token table: chat template, tokenizer, and the image's place in between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import Prompt
from divprune_edge.processing.layout import PromptIds, lay_out
from divprune_edge.processing.template import ChatTemplate, Message
from divprune_edge.processing.tokenizer import PromptTokenizer, stand_in, without_stand_ins
from divprune_edge.strict_json import well_formed


@dataclass(frozen=True)
class Turn:
    """One utterance: ``role`` is ``user`` or ``assistant``; ``image`` says that the image comes with it."""

    role: str
    text: str
    image: bool = False


class PromptEncoder:
    """Turns to :class:`PromptIds` for one language model.

    Args:
        prompt: what is known of its prompts.
        template: source of the chat template.
        tokenizer: its ``tokenizer.json``.
        rows: V of the token table.
        room: most tokens of prompt and answer.
        fixed: the room is the cache's, and not the model's own.

    Raises:
        UserError: a template or tokenizer that cannot be used.
    """

    def __init__(
        self, prompt: Prompt, template: str, tokenizer: Path, *, rows: int, room: int, fixed: bool
    ) -> None:
        self._image_token = prompt.image_token
        self._image_id = prompt.image_token_id
        self._rows, self._room, self._fixed = rows, room, fixed
        named = {
            "bos_token": prompt.bos_token,
            "eos_token": prompt.eos_token,
            "pad_token": prompt.pad_token,
            "unk_token": prompt.unk_token,
            "image_token": prompt.image_token,
        }
        self._template = ChatTemplate(
            template, {name: text for name, text in named.items() if text is not None}
        )
        self.tokenizer = PromptTokenizer(tokenizer, prompt.bos_token)
        self._parts = self._takes_parts()

    def encode(self, turns: Sequence[Turn], visual_tokens: int) -> PromptIds:
        """Return the ids of a conversation, ready for the assistant's next answer.

        What the turns say is text: an image placeholder or another special token in it is encoded as the
        words it is written with, and half of a surrogate pair as U+FFFD.

        Args:
            turns: the conversation, the last one the user's; exactly one brings the image.
            visual_tokens: K, the number of visual tokens that take the placeholder's place.

        Raises:
            UserError: an empty question, another number of images than one, a prompt that leaves no room
                for an answer, or a tokenizer that does not belong to the model.
        """
        turns = [replace(turn, text=well_formed(turn.text)) for turn in turns]
        if not turns[-1].text.strip():
            raise UserError("The question is empty: ask something about the image.", code="question-empty")
        images = sum(turn.image for turn in turns)
        if images != 1:
            raise UserError(
                f"The conversation has {images} images, expected exactly one.", code="image-count"
            )
        if any(self.tokenizer.holds_special(turn.text) for turn in turns):
            ids = self._encode_plain(turns)
        else:
            ids = self.tokenizer.encode(self._render(turns, [turn.text for turn in turns]))
        return self._with_image(ids, visual_tokens)

    def _with_image(self, ids: list[int], visual_tokens: int) -> PromptIds:
        places = ids.count(self._image_id)
        if places != 1:
            raise UserError(
                f"The chat template puts {places} image placeholders into the prompt, expected one: "
                f"export the checkpoint with a template that shows '{self._image_token}' once per image.",
                code="template-unfit",
            )
        unknown = [token for token in ids if token >= self._rows]
        if unknown:
            raise UserError(
                f"The tokenizer gives id {unknown[0]}, but the language model has {self._rows} rows: the "
                "tokenizer does not belong to this checkpoint.",
                code="tokenizer-foreign",
            )
        full = lay_out(ids, self._image_id, [visual_tokens], self._rows)
        if len(full) + 1 > self._room:
            place, remedy = "the model's context", "ask a shorter question or keep fewer tokens"
            if self._fixed:
                place, remedy = "the bundle's cache", f"{remedy}, or export with a larger --capacity"
            raise UserError(
                f"The prompt has {len(full)} tokens ({visual_tokens} of them visual), but {place} holds {self._room} "
                f"with the answer: {remedy}.",
                code="prompt-too-long",
            )
        return full

    def _encode_plain(self, turns: Sequence[Turn]) -> list[int]:
        said = {stand_in(i): without_stand_ins(turn.text) for i, turn in enumerate(turns)}
        template = self._render(turns, list(said))
        marks = sorted((mark for mark in said if mark in template), key=template.index)
        pattern = re.escape(template)
        for mark in marks:  # templates may trim what is said
            pattern = pattern.replace(mark, rf"(\s*{re.escape(said[mark].strip())}\s*)")
        found = re.fullmatch(pattern, self._render(turns, list(said.values())))
        if found is not None and all(template.count(mark) == 1 for mark in marks):
            return self.tokenizer.encode_with_plain(template, dict(zip(marks, found.groups(), strict=True)))
        raise UserError(
            "The question holds a special token, and the bundle's chat template rewrites what is said: "
            "ask without it.",
            code="question-special-token",
        )

    def _render(self, turns: Sequence[Turn], texts: Sequence[str], parts: bool | None = None) -> str:
        form = self._parts if parts is None else parts
        return self._template.render(
            [self._message(turn, text, form) for turn, text in zip(turns, texts, strict=True)]
        )

    def _message(self, turn: Turn, text: str, parts: bool) -> Message:
        if not parts:
            return {"role": turn.role, "content": f"{self._image_token}\n{text}" if turn.image else text}
        content = [{"type": "image"}] if turn.image else []
        return {"role": turn.role, "content": [*content, {"type": "text", "text": text}]}

    def _takes_parts(self) -> bool:
        """Find out whether the template understands lists of parts, or only plain text.

        Raises:
            UserError: it understands neither.
        """
        turn = Turn("user", stand_in(0), image=True)
        failure: UserError | None = None
        for parts in (True, False):
            try:
                text = self._render([turn], [turn.text], parts)
            except UserError as error:
                failure = failure or error
                continue
            if text.count(self._image_token) == 1 and text.count(turn.text) == 1 and "'type':" not in text:
                return parts
        raise failure or UserError(
            f"The bundle's chat template does not show '{self._image_token}' once and the question once: "
            "export the checkpoint with another template.",
            code="template-unfit",
        )
