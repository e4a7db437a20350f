"""Messages to the ids of the token table: chat template, tokenizer, and the places of images in between."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.manifest import Prompt
from divprune_edge.processing.image_input import ONE_SPAN, Captions, ImageInput
from divprune_edge.processing.layout import PlacedImage, PromptIds, lay_out
from divprune_edge.processing.template import ChatTemplate, Message
from divprune_edge.processing.tokenizer import PromptTokenizer, stand_in, without_stand_ins
from divprune_edge.strict_json import well_formed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One utterance: ``role`` is ``user``, ``assistant`` or, for the first one, ``system``.

    ``images`` of them stand in front of its text, and then ``clips``: of each what is written around its spans.
    """

    role: str
    text: str
    images: int = 0
    clips: tuple[Captions, ...] = ()

    @property
    def media(self) -> int:
        """Its images and clips."""
        return self.images + len(self.clips)


def system_turns(text: str | None) -> list[Turn]:
    """Return the turns that a conversation with the instruction ``text`` begins with.

    Raises:
        UserError: the instruction is empty.
    """
    if text is None:
        return []
    if not text.strip():
        raise UserError(
            "The system text is empty: leave --system out or say what the model is to do.",
            code="system-empty",
        )
    return [Turn("system", text)]


def user_turn(question: str, new: Sequence[ImageInput]) -> Turn:
    """Return a question with the images and clips that it brings."""
    clips = tuple(image.captions for image in new if image.captions is not None)
    return Turn("user", question, images=len(new) - len(clips), clips=clips)


class PromptEncoder:
    """Turns to :class:`PromptIds` for one language model.

    Args:
        prompt: what is known of its prompts.
        template: source of the chat template.
        tokenizer: its ``tokenizer.json``, or the text of it.
        rows: V of the token table.
        room: most tokens of prompt and answer.
        context: positions that the model has; where there is less room, that is the cache's.
        axes: positions of each token, one or three.

    Raises:
        UserError: a template or tokenizer that cannot be used.
    """

    def __init__(
        self,
        prompt: Prompt,
        template: str,
        tokenizer: Path | str,
        *,
        rows: int,
        room: int,
        context: int,
        axes: int,
    ) -> None:
        self._image_token = prompt.image_token
        self._video_token = prompt.video_token
        self._image_id, self._video_id = prompt.image_token_id, prompt.video_token_id
        self._rows, self._room, self._context, self._axes = rows, room, context, axes
        named = {
            "bos_token": prompt.bos_token,
            "eos_token": prompt.eos_token,
            "pad_token": prompt.pad_token,
            "unk_token": prompt.unk_token,
            "image_token": prompt.image_token,
            "video_token": prompt.video_token,
        }
        self._template = ChatTemplate(
            template, {name: text for name, text in named.items() if text is not None}
        )
        special = [text for text in named.values() if text]
        self.tokenizer = PromptTokenizer(tokenizer, prompt.bos_token, special)
        self._parts = self._system_parts = self._takes_parts()
        self._markers = self._find_markers()

    def encode(self, turns: Sequence[Turn], visual_tokens: Sequence[int]) -> PromptIds:
        """Return the ids of a conversation, ready for the assistant's next answer.

        What the turns say is text: an image placeholder or another special token in it is encoded as the
        words it is written with, and half of a surrogate pair as U+FFFD.

        Args:
            turns: the conversation, the last one the user's. The first may be the system's.
            visual_tokens: of each image that the turns bring, and of each span of a clip; they take its placeholder's
                place.

        Raises:
            UserError: an empty question, a template that has no place for so many images or for a system text, a
                prompt that leaves no room for an answer, or a tokenizer that does not belong to the model.
        """
        turns = [replace(turn, text=well_formed(turn.text)) for turn in turns]
        _check_question(turns)
        marker = self._marker_in(turns[-1].text)
        if marker is not None:
            _log.warning(
                "The question holds '%s' like a ready-made prompt, but it is put into the chat template as plain "
                "text: ask the question alone, or give the whole prompt with --raw-prompt.",
                marker,
            )
        if any(turn.role == "system" for turn in turns):
            self._check_system(turns[0].text)
        if any(self.tokenizer.holds_special(turn.text) for turn in turns):
            ids = self._encode_plain(turns)
        else:
            ids = self.tokenizer.encode(
                self._captioned(self._render(turns, [turn.text for turn in turns]), turns)
            )
        for kind, token, places, wanted in self._placeholders(ids, turns, len(visual_tokens)):
            if places != wanted:
                raise UserError(
                    f"The chat template puts {places} {kind} placeholders into a prompt with {wanted} {kind}s: ask "
                    f"alone and about one {kind}, or export the checkpoint with a template that shows '{token}' once "
                    f"per {kind}.",
                    code="template-unfit",
                )
        return self._with_images(ids, turns, visual_tokens)

    def encode_raw(self, turns: Sequence[Turn], visual_tokens: Sequence[int]) -> PromptIds:
        """Return the ids of a ready-made prompt: no template, special tokens act, BOS only if it does not bring it.

        Args:
            turns: the last one's text is the prompt, with a placeholder in it for each image and clip that they bring,
                images before clips in any stretch of them.
            visual_tokens: of each image or span of a clip, in the order of the placeholders.

        Raises:
            UserError: another number of placeholders, a system turn, or as in :meth:`encode`.
        """
        if any(turn.role == "system" for turn in turns):
            raise UserError(
                "--system does not go with --raw-prompt, which is the whole prompt: write the system text into it.",
                code="raw-prompt-system",
            )
        ids = self.tokenizer.encode(self._captioned(turns[-1].text, turns))
        for kind, token, places, wanted in self._placeholders(ids, turns, len(visual_tokens)):
            if places != wanted:
                raise UserError(
                    f"The ready-made prompt has {places} {kind} placeholder{'s' * (places != 1)} for {wanted} "
                    f"{kind}{'s' * (wanted != 1)}: write '{token}' once for each of them, where it belongs.",
                    code="raw-prompt-placeholder",
                )
        _check_question(turns)
        return self._with_images(ids, turns, visual_tokens)

    def place(self, prompt: PromptIds, images: Sequence[PlacedImage]) -> PromptIds:
        """Return a prompt with its visual tokens where they lie, and at their positions.

        Args:
            prompt: as it was encoded, with at least as many visual tokens of each image.
            images: where those that were kept lie, for each image or clip.

        Raises:
            UserError: positions, those of pruned tokens among them, leave none for an answer.
        """
        placed = prompt.placed(self._rows, images, self._axes)
        # A clip's tokens may lie behind the text that follows it.
        taken = max(placed.next_position, int(placed.positions.max(initial=-1)) + 1)
        if taken >= self._context:
            raise UserError(
                f"The prompt takes {taken} positions, those of pruned tokens among them, but the "
                f"model's context has {self._context} with the answer: ask a shorter question or about fewer images "
                "or frames, or export with --positions compact.",
                code="prompt-too-long",
            )
        return placed

    def encode_seen(self, turns: Sequence[Turn], images: Sequence[PlacedImage]) -> PromptIds:
        """Return the ids of a conversation about images that were seen already, placed; errors as of both."""
        return self.place(self.encode(turns, [count for image in images for count in image.counts]), images)

    def _captioned(self, text: str, turns: Sequence[Turn]) -> str:
        """Return a prompt with the placeholders of clips repeated, once for each span and what is written around it."""
        captions = iter([clip for turn in turns for clip in turn.clips])
        pieces = (
            text.split(self._video_token) if self._video_token and any(t.clips for t in turns) else [text]
        )
        whole = pieces[0]
        for piece in pieces[1:]:
            spans = next(captions, ONE_SPAN)
            whole += "".join(f"{before}{self._video_token}{after}" for before, after in spans) + piece
        return whole

    def _placeholders(
        self, ids: Sequence[int], turns: Sequence[Turn], given: int
    ) -> Iterator[tuple[str, str | None, int, int]]:
        """Yield of images and of clips: how they are called, the placeholder, how many there are and should be."""
        clips = [len(clip) for turn in turns for clip in turn.clips]
        yield "image", self._image_token, ids.count(self._image_id), given - sum(clips)
        if self._video_id is not None:
            left, places = ids.count(self._video_id), 0
            for spans in clips:  # those of a clip count once
                places += left > 0
                left = max(left - spans, 0)
            yield "clip", self._video_token, places + left, len(clips)

    def _with_images(self, ids: list[int], turns: Sequence[Turn], visual_tokens: Sequence[int]) -> PromptIds:
        wanted = [t for turn in turns for t in (*"i" * turn.images, *"c" * sum(map(len, turn.clips)))]
        places = ["c" if t == self._video_id else "i" for t in ids if t in (self._image_id, self._video_id)]
        if "c" in places and places != wanted:
            raise UserError(
                f"The prompt has a clip's placeholder ('{self._video_token}') before that of an image which is asked "
                f"about with it ('{self._image_token}'): write those of images first.",
                code="placeholder-order",
            )
        unknown = [token for token in ids if token >= self._rows]
        if unknown:
            raise UserError(
                f"The tokenizer gives id {unknown[0]}, but the language model has {self._rows} rows: the "
                "tokenizer does not belong to this checkpoint.",
                code="tokenizer-foreign",
            )
        full = lay_out(ids, {self._image_id, self._video_id}, visual_tokens, self._rows)
        if len(full) + 1 > self._room:
            place, remedy = "the model's context", "ask a shorter question"
            if visual_tokens:
                fewer = ", about fewer images or frames," if len(visual_tokens) > 1 else ""
                remedy = f"{remedy}{fewer} or keep fewer tokens"
            if self._room < self._context:
                place, remedy = "the bundle's cache", f"{remedy}, or export with a larger --capacity"
            raise UserError(
                f"The prompt has {len(full)} tokens ({full.visual_tokens} of them visual), but {place} holds "
                f"{self._room} with the answer: {remedy}.",
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
            template = self._captioned(template, turns)
            return self.tokenizer.encode_with_plain(template, dict(zip(marks, found.groups(), strict=True)))
        raise UserError(
            "The question holds a special token, and the bundle's chat template rewrites what is said: "
            "ask without it.",
            code="question-special-token",
        )

    def _check_system(self, text: str) -> None:
        """Find out in which form the template shows a system turn.

        Raises:
            UserError: it refuses or ignores the turn.
        """
        turns = [Turn("system", stand_in(0)), Turn("user", stand_in(1), images=1)]
        refusal: UserError | None = None
        for parts in (self._parts, not self._parts):
            self._system_parts = parts
            try:
                shown = self._render(turns, [turn.text for turn in turns])
            except UserError as error:
                refusal = refusal or error
                continue
            if all(shown.count(turn.text) == 1 for turn in turns) and "'type':" not in shown:
                return
        why = f"refuses system turns ({refusal.__cause__})" if refusal else "does not show system turns"
        raise UserError(
            f"The system text '{_short(text)}' cannot reach the model, because the bundle's chat template {why}: "
            "leave --system out and say it in the question.",
            code="system-refused" if refusal else "system-ignored",
        )

    def _marker_in(self, text: str) -> str | None:
        """Return what of ``text`` looks like a prompt's own marks: a placeholder, or what the template writes."""
        return next((mark for mark in self._markers if _stands_in(mark, text)), None)

    def _find_markers(self) -> list[str]:
        """Return the placeholder, the special tokens that the template writes, and the words before each turn."""
        user, again = Turn("user", stand_in(0), images=1), Turn("user", stand_in(2))
        turns = [user, Turn("assistant", stand_in(1)), again]
        try:
            shown = self._render(turns, [turn.text for turn in turns])
        except UserError:  # a template for single turns
            shown = self._render([user], [user.text])
        written = shown.replace(self._image_token, " ")
        marks = {self._image_token, "<image>", *self.tokenizer.special_in(written)}
        marks |= {self._video_token} if self._video_token else set()
        for piece in re.split("|".join(re.escape(stand_in(i)) for i in range(3)), written):
            word = piece.split()[-1] if piece.strip() else ""
            if len(word) > 2 and re.search(r"[^\w.,]", word):
                marks.add(word)
        return sorted(marks, key=len, reverse=True)

    def _render(self, turns: Sequence[Turn], texts: Sequence[str], parts: bool | None = None) -> str:
        form = self._parts if parts is None else parts
        return self._template.render(
            [self._message(turn, text, form) for turn, text in zip(turns, texts, strict=True)]
        )

    def _message(self, turn: Turn, text: str, parts: bool) -> Message:
        if not (self._system_parts if turn.role == "system" else parts):
            placed = f"{self._image_token}\n" * turn.images + f"{self._video_token}\n" * len(turn.clips)
            return {"role": turn.role, "content": placed + text}
        media = [{"type": "image"}] * turn.images + [{"type": "video"}] * len(turn.clips)
        return {"role": turn.role, "content": [*media, {"type": "text", "text": text}]}

    def _takes_parts(self) -> bool:
        """Find out whether the template understands lists of parts, or only plain text.

        Raises:
            UserError: it understands neither.
        """
        turn = Turn("user", stand_in(0), images=1)
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


def _check_question(turns: Sequence[Turn]) -> None:
    if not turns[-1].text.strip():
        raise UserError("The question is empty: ask something.", code="question-empty")


def _stands_in(mark: str, text: str) -> bool:
    """Whether ``mark`` is in ``text``, and not as the end of a longer word."""
    return re.search(rf"(?<!\w){re.escape(mark)}", text) is not None


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
