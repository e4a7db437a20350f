"""What a request may say: OpenAI's chat completions, as far as this server does what they ask, and our own fields.

A field that would be passed over is refused by name, unless it says what happens anyway.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.strict_json import JsonError, parse_json


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Kept(_Strict):
    """That the prompt so far is to be kept for the next question, as it is anyway."""

    type: Literal["ephemeral"]


class _Part(_Strict):
    cache_control: Kept | None = None


class TextPart(_Part):
    """Some text of a message."""

    type: Literal["text"]
    text: str


class Address(_Strict):
    """Where an image or a clip is; ``detail`` changes nothing, a model's budget says how much is looked at."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: Address


class ClipPart(_Part):
    """A clip, by its frames; ``fps`` is their rate."""

    type: Literal["video"]
    video: list[str]
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None


Part = Annotated[TextPart | ImagePart | ClipPart, Field(discriminator="type")]


def _form(content: object) -> str:
    """Tell the two forms apart, so that what is wrong with one is not said of the other."""
    return "parts" if isinstance(content, list) else "text"


Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")], Discriminator(_form)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None


class Message(_Strict):
    """Who says what; what clients send back of an answer may be there, and empty. No model sees a ``name``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    reasoning: None = None
    reasoning_content: None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | ClipPart]:
        """What it consists of."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """All of its text."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def urls(self) -> list[str]:
        """Where its images and frames are."""
        clips = [url for part in self.parts if isinstance(part, ClipPart) for url in part.video]
        return [part.image_url.url for part in self.parts if isinstance(part, ImagePart)] + clips


class Said(Message):
    """A message that has a content."""

    role: Literal["system", "developer", "user"]
    content: Content


class Answered(Message):
    """An answer, of which there may be nothing."""

    role: Literal["assistant"]


class StreamOptions(_Strict):
    """Whether a last chunk says how many tokens there were."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class PlainText(_Strict):
    """The only form of an answer."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A request's body."""

    messages: Annotated[list[Annotated[Said | Answered, Field(discriminator="role")]], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: Annotated[float, Field(le=100)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(le=1 << 31)] | None = None
    repetition_penalty: Annotated[float, Field(le=100)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    selector: Annotated[str, Field(max_length=200)] | None = None
    keep: int | None = None
    schedule: Annotated[str, Field(max_length=200)] | None = None

    # What happens anyway.
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: PlainText | None = None
    store: Literal[False] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    min_p: Literal[0] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    reasoning_effort: Literal["none"] | None = None

    @property
    def calls_out(self) -> bool:
        """Whether an image lies at an address of another host."""
        return any(url[:6].lower() == "https:" for message in self.messages for url in message.urls)


def read_request(body: bytes, json_items: int) -> ChatRequest:
    """Return what a body says.

    Raises:
        UserError: it is not JSON, holds more than so many items, or is no such request.
    """
    items = sum(map(body.count, (b",", b"[", b"{")))
    if items > json_items:
        raise UserError(
            f"The body has {items} commas and brackets, at most {json_items} are read.",
            code="request-too-large",
        )
    try:
        data = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError("The body is not UTF-8.", code="request-invalid") from None
    except JsonError as error:
        raise UserError(f"The body is not valid JSON ({error}).", code="request-invalid") from None
    try:
        return ChatRequest.model_validate(data)
    except ValidationError as error:
        raise _sentence(error, data) from None


class FieldError(UserError):
    """A field that cannot be taken as it is; ``param`` is its name."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message, code="request-invalid")
        self.param = param


_EXPECTED = "Input should be "
_WORDS = {
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid list": "a list",
    "a valid boolean": "true or false",
    "a valid dictionary": "an object",
    "a valid dictionary or object to extract fields from": "an object",
    "a valid dictionary or instance of Address": 'an object, {"url": …}',
    "None": "null",
}


def _sentence(error: ValidationError, data: Any) -> FieldError:
    """Return what is wrong with the first field that is."""
    first = error.errors(include_url=False)[0]
    path, value = _place(first["loc"], data, missing=first["type"] == "missing")
    name = f"'{path}'" if path else "The body"
    limits, message = first.get("ctx", {}), first["msg"]
    match first["type"]:
        case "extra_forbidden":
            known = did_you_mean(path, ChatRequest.model_fields) if len(first["loc"]) == 1 else ""
            said = f"This server does not know the field {name}{known}: leave it out"
        case "missing":
            said = f"{name} is missing"
        case "union_tag_not_found":
            said = f"'{path}.{_tag(limits)}' is missing"
        case "union_tag_invalid":
            kinds = limits["expected_tags"].replace("'", "")
            said = f"'{path}.{_tag(limits)}' is {_shown(value[_tag(limits)])}, expected one of {kinds}"
        case "too_short":
            said = f"{name} is empty"
        case "too_long" if limits["max_length"] == 0:
            said = f"This server does nothing with {name}: leave it out"
        case _ if message.startswith(_EXPECTED):
            expected = message.removeprefix(_EXPECTED).replace("'", '"')
            words = _WORDS.get(expected) or _WORDS.get(expected.partition(" or instance of ")[0], expected)
            said = f"{name} is {_shown(value)}, expected {words}"
        case _:
            said = f"{name}: {message[:200]}"
    return FieldError(f"{said}.", path or None)


def _tag(limits: dict[str, Any]) -> str:
    """Return the field that says which of a union's members something is."""
    return str(limits["discriminator"]).strip("'")


def _place(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> tuple[str, Any]:
    """Return where in a body an error is, and what is there; names of a union's members are no part of it."""
    steps: list[str] = []
    for at, step in enumerate(loc):
        # Items of lists are unions, whose members are called like some of their fields.
        if at and isinstance(loc[at - 1], int) and isinstance(step, str):
            continue
        there = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if there:
            data = data[step]
        elif not (missing and at == len(loc) - 1):
            continue
        steps.append(str(step)[:60])
    return ".".join(steps), data


def _shown(value: Any) -> str:
    """Return a value as it stands in the body, or of what kind it is where that is long."""
    for kind, words in ((dict, "an object"), (list, "a list")):
        if isinstance(value, kind):
            return words
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else "a long text"
