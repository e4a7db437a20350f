"""A request's body to a question: within the limits, with its images as bytes and its selector found."""

from __future__ import annotations

from collections.abc import Callable

from divprune_edge.errors import UserError
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.job import Conversation, Medium, Utterance
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.media import bytes_of
from divprune_edge.runtime.serve.schema import (
    Answered,
    ChatRequest,
    ClipPart,
    ImagePart,
    Message,
    Said,
    TextPart,
)

Fetch = Callable[[str], bytes]
_SYSTEM = ("system", "developer")
_LONGEST_STOP = 256
_DEFAULT_TOKENS = 256


def question_of(asked: ChatRequest, catalog: Catalog, limits: ServerLimits, fetch: Fetch) -> Conversation:
    """Return the question of a request; ``fetch`` gets an image from an address.

    Raises:
        UserError: it asks for more than the limits, or for what there is not.
    """
    selector = catalog.selector(asked.model, asked.selector, asked.keep)
    catalog.check_schedule(asked.schedule)
    _check_messages(asked.messages, limits)
    decoding = _decoding(asked, limits)
    wanted = (asked.top_logprobs or 0) if asked.logprobs else None
    if asked.top_logprobs and not asked.logprobs:
        raise UserError('top_logprobs needs logprobs: say "logprobs": true as well.', code="logprobs-missing")
    utterances = _utterances(asked.messages, limits, fetch)
    return Conversation(utterances, selector, decoding, wanted)


def _check_messages(messages: list[Said | Answered], limits: ServerLimits) -> None:
    if len(messages) > limits.messages:
        raise UserError(
            f"The conversation has {len(messages)} messages, this server takes {limits.messages}: leave out the first "
            "ones.",
            code="conversation-too-long",
        )
    parts = [part for message in messages for part in message.parts]
    text = sum(len(message.text) for message in messages)
    clips = [part for part in parts if isinstance(part, ClipPart)]
    for what, count, most, code in (
        ("characters of text", text, limits.text, "text-too-long"),
        ("images", sum(isinstance(part, ImagePart) for part in parts), limits.images, "too-many-images"),
        ("frames of clips", sum(len(clip.video) for clip in clips), limits.frames, "too-many-frames"),
    ):
        if count > most:
            raise UserError(
                f"The conversation has {count} {what}, this server takes {most}: send fewer.", code=code
            )
    if messages[-1].role != "user":
        raise UserError(
            f"The last message is the {messages[-1].role}'s, expected the user's: end with a question.",
            code="conversation-order",
        )
    for place, message in enumerate(messages):
        if message.role in _SYSTEM and place and messages[place - 1].role not in _SYSTEM:
            raise UserError(
                f"Message {place + 1} is the system's: what it says goes before all others.",
                code="conversation-order",
            )
        if message.role != "user" and any(not isinstance(part, TextPart) for part in message.parts):
            raise UserError(
                f"Message {place + 1} is the {message.role}'s and holds an image: only the user's may.",
                code="conversation-order",
            )


def _decoding(asked: ChatRequest, limits: ServerLimits) -> Decoding:
    both = (asked.max_tokens, asked.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise UserError(
            f"max_tokens is {both[0]} and max_completion_tokens {both[1]}: leave one of the two out.",
            code="decoding-out-of-range",
        )
    most = next((value for value in both if value is not None), _DEFAULT_TOKENS)
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stop) > limits.stops or any(len(text) > _LONGEST_STOP for text in stop):
        raise UserError(
            f"There may be at most {limits.stops} stop strings of {_LONGEST_STOP} characters.",
            code="stop-invalid",
        )
    options = {
        # As clients ask for thousands where the answer has ten: a cut one says that it is.
        "max_tokens": min(most, limits.max_tokens),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": 0 if asked.top_k == -1 else asked.top_k,  # all, as vLLM says it
        "repetition_penalty": asked.repetition_penalty,
        "seed": asked.seed,
        "stop": tuple(stop),
        "ignore_eos": asked.ignore_eos,
    }
    return Decoding(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]


def _utterances(messages: list[Said | Answered], limits: ServerLimits, fetch: Fetch) -> tuple[Utterance, ...]:
    """Return the conversation, what the system says first in one."""
    systems = [message.text for message in messages if message.role in _SYSTEM]
    others = [_utterance(message, limits, fetch) for message in messages[len(systems) :]]
    return (*([Utterance("system", "\n\n".join(systems))] if systems else ()), *others)


def _utterance(message: Message, limits: ServerLimits, fetch: Fetch) -> Utterance:
    images, clips = [], []
    for part in message.parts:
        if isinstance(part, ImagePart):
            images.append(Medium((bytes_of(part.image_url.url, limits, fetch),)))
        elif isinstance(part, ClipPart):
            frames = tuple(bytes_of(url, limits, fetch) for url in part.video)
            if not frames:
                raise UserError("A clip has no frames: send at least one.", code="clip-empty")
            clips.append(Medium(frames, clip=True, fps=part.fps))
    return Utterance(message.role, message.text, (*images, *clips))
