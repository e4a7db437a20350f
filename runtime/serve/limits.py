"""What a server takes at most: of a request, of all of them together, and of anybody's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.processing.images import MAX_BYTES, MAX_PIXELS


@dataclass(frozen=True)
class ServerLimits:
    """All of them; bytes, pixels, tokens and seconds are per request where nothing else is said.

    Attributes:
        slots: sequences that are decoded together; each takes a KV cache.
        queue: requests that wait for a slot; one more is told to come again later.
        body_bytes: of a request's body.
        all_bodies_bytes: of all requests that are not answered yet, with images fetched for them.
        json_items: commas and opening brackets of a body: a megabyte of them is a hundred of memory.
        messages: of a conversation.
        text: characters of all messages.
        images: of a request.
        image_bytes: of an image, or of a frame of a clip.
        image_pixels: of one, before it is decoded.
        frames: of all clips.
        prompt_tokens: of a prompt, visual ones included.
        max_tokens: of an answer, however many are asked for.
        stops: texts that end an answer, each of at most 256 characters.
        connections: open at once; for one more an idle one is closed, of the address with the most, or itself.
        header_bytes: of a request's head.
        header_seconds: until a request's head is there.
        body_seconds: until its body is.
        idle_seconds: that a connection is kept without a request.
        send_seconds: until the client takes a part of its answer.
        request_seconds: from a request to the end of its answer.
        drain_seconds: for what is not answered when the server is told to stop.
    """

    slots: int = 8
    queue: int = 32
    body_bytes: int = 16 << 20
    all_bodies_bytes: int = 256 << 20
    json_items: int = 100_000
    messages: int = 128
    text: int = 65_536
    images: int = 16
    image_bytes: int = 8 << 20
    image_pixels: int = 25_000_000
    frames: int = 64
    prompt_tokens: int = 16_384
    max_tokens: int = 1024
    stops: int = 16
    connections: int = 256
    header_bytes: int = 16 << 10
    header_seconds: int = 10
    body_seconds: int = 60
    idle_seconds: int = 30
    send_seconds: int = 30
    request_seconds: int = 300
    drain_seconds: int = 30

    def __post_init__(self) -> None:
        least = {"queue": 0, "drain_seconds": 0}
        most = {"image_bytes": MAX_BYTES, "image_pixels": MAX_PIXELS, "slots": 1024}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            low, high = least.get(name, 1), most.get(name, 1 << 40)
            if not low <= value <= high:
                raise UserError(
                    f"The limit {name} is {value}, expected {low} to {high}.", code="limit-out-of-range"
                )
        if self.body_bytes > self.all_bodies_bytes:  # such a body would be told to come again for ever
            raise UserError(
                f"The limit body_bytes is {self.body_bytes}, and all_bodies_bytes is {self.all_bodies_bytes}: expected "
                "no more for one body than for all together.",
                code="limit-out-of-range",
            )

    def changed(self, given: Sequence[str]) -> ServerLimits:
        """Return these limits with others in the place of some, each as ``NAME=NUMBER``.

        Raises:
            UserError: there is no limit of a name, or it is no such number.
        """
        known = [field.name for field in fields(self)]
        values: dict[str, int] = {}
        for text in given:
            name, _, number = text.partition("=")
            if name not in known:
                raise UserError(
                    f"There is no limit '{name}'{did_you_mean(name, known)}: known are {', '.join(known)}.",
                    code="limit-unknown",
                )
            if not number.isascii() or not number.isdecimal() or len(number) > 15:
                raise UserError(
                    f"--limit is '{text}', expected {name}=NUMBER, such as {name}={getattr(self, name)}.",
                    code="limit-out-of-range",
                )
            values[name] = int(number)
        return replace(self, **values)
