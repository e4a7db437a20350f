"""What a request may say: OpenAI's chat completions, as far as this server does what they ask, and our own fields.

A field that would be passed over is refused by name, unless it says what happens anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.strict_json import JsonError, parse_json


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Strict):
    """Some text of a message."""

    type: Literal["text"]
    text: str


class Address(_Strict):
    """Where an image or a clip is; ``detail`` changes nothing, a model's budget says how much is looked at."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: Address


class ClipPart(_Strict):
    """A clip, by its frames; ``fps`` is their rate."""

    type: Literal["video"]
    video: list[str]
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None


class Message(_Strict):
    """Who says what; what clients send back of an answer may be there, and empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart | ClipPart, Field(discriminator="type")]]
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    reasoning: None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | ClipPart]:
        """What it consists of."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """All of its text."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def urls(self) -> list[str]:
        """Where its images and frames are."""
        clips = [url for part in self.parts if isinstance(part, ClipPart) for url in part.video]
        return [part.image_url.url for part in self.parts if isinstance(part, ImagePart)] + clips


class StreamOptions(_Strict):
    """Whether a last chunk says how many tokens there were."""

    include_usage: bool = False


class PlainText(_Strict):
    """The only form of an answer."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A request's body."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: Annotated[float, Field(le=100)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(le=1 << 31)] | None = None
    repetition_penalty: Annotated[float, Field(le=100)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
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
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

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
        raise _sentence(error) from None


class FieldError(UserError):
    """A field that cannot be taken as it is; ``param`` is its name."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message, code="request-invalid")
        self.param = param


def _sentence(error: ValidationError) -> UserError:
    """Return what is wrong with the first field that is."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part)[:60] for part in first["loc"]) or "body"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = [*ChatRequest.model_fields]
        return FieldError(
            f"This server does not know the field '{path}'{did_you_mean(path, known)}: leave it out.", path
        )
    return FieldError(f"'{path}': {first['msg'][:200]}.", path)
