"""What is written of an answer: chat completions and their chunks as OpenAI writes them, and errors."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import UNPRUNED, SelectorInfo
from divprune_edge.runtime.generate import FinishReason
from divprune_edge.runtime.serve.job import Ended, Event, PromptReady, TextPiece
from divprune_edge.runtime.serve.scores import Likely, TokenScore

_STATUS = {
    "api-key-wrong": (401, "authentication_error"),
    "model-unknown": (404, "not_found_error"),
    "path-unknown": (404, "not_found_error"),
    "method-unknown": (405, "invalid_request_error"),
    "request-timeout": (504, "timeout_error"),
    "body-timeout": (408, "timeout_error"),
    "request-too-large": (413, "invalid_request_error"),
    "image-too-large": (413, "invalid_request_error"),
    "content-type": (415, "invalid_request_error"),
    "content-encoding": (415, "invalid_request_error"),
    "host-unknown": (421, "invalid_request_error"),
    "server-busy": (429, "rate_limit_error"),
    "head-too-large": (431, "invalid_request_error"),
    "server-stopping": (503, "server_error"),
}


def status_of(error: DivpruneError) -> tuple[int, str]:
    """Return the HTTP status of an error, and its type as OpenAI calls it."""
    fallback = (400, "invalid_request_error") if isinstance(error, UserError) else (500, "server_error")
    return _STATUS.get(error.code, fallback)


def error_fields(error: DivpruneError) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    param = getattr(error, "param", None)
    return {"error": {"message": str(error), "type": status_of(error)[1], "param": param, "code": error.code}}


def advice(error: DivpruneError, retry_after: int) -> dict[str, str]:
    """Return the headers that tell a client when to ask again, or not to: what took too long would do so again."""
    if status_of(error)[0] in (429, 503):
        return {"retry-after": str(retry_after)}
    return {"x-should-retry": "false"} if error.code == "request-timeout" else {}


@dataclass
class Writing:
    """An answer as it is written, event after event.

    Attributes:
        id: of the answer.
        model: as it was asked for.
        selector: what prunes.
        scored: whether the probabilities of tokens are reported.
        says_usage: whether a stream ends with how many tokens there were.
    """

    id: str
    model: str
    selector: SelectorInfo | None = None
    scored: bool = False
    says_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _seen: PromptReady | None = None
    _ended: Ended | None = None
    _text: list[str] = field(default_factory=list)
    _scores: list[TokenScore] = field(default_factory=list)

    def take(self, event: Event) -> list[dict[str, Any]]:
        """Count an event of the answer, and return the chunks that it makes of a stream."""
        if isinstance(event, PromptReady):
            self._seen = event
            return [self._chunk({"role": "assistant", "content": ""}, None) | {"divprune": self._looked()}]
        if isinstance(event, TextPiece):
            self._text.append(event.text)
            self._scores += event.scores
            return [self._chunk({"content": event.text}, None, self._logprobs(event.scores))]
        if isinstance(event, Ended):
            self._ended = event
            last = self._chunk({}, _reason(event.reason)) | {"divprune": self._looked() | self._took()}
            usage = {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}
            return [last, usage] if self.says_usage else [last]
        return []

    def whole(self) -> dict[str, Any]:
        """Return the answer, which has ended."""
        assert self._ended is not None
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(self._text), "refusal": None},
            "finish_reason": _reason(self._ended.reason),
            "logprobs": self._logprobs(self._scores),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(),
            "divprune": self._looked() | self._took(),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], reason: str | None, scores: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": scores}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _usage(self) -> dict[str, Any]:
        assert self._seen is not None and self._ended is not None
        prompt, tokens = self._seen.prompt_tokens, self._ended.tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": self._ended.reused},
            "visual_tokens": sum(len(one.kept) for one in self._seen.media),
            "visual_tokens_before_pruning": sum(one.candidates for one in self._seen.media),
        }

    def _looked(self) -> dict[str, Any]:
        assert self._seen is not None
        return {
            "selector": UNPRUNED if self.selector is None else self.selector.id,
            "images": [one.fields() for one in self._seen.media],
        }

    def _took(self) -> dict[str, Any]:
        """Return the times, and why the answer ended where OpenAI knows no word for that."""
        assert self._ended is not None
        times = self._ended.timings_ms
        further = self._ended.tokens - 1
        speed = further / times["decode"] * 1000 if further > 0 and times["decode"] > 0 else None
        return {
            "finish_reason": self._ended.reason,
            "timings_ms": {stage: round(value, 3) for stage, value in times.items()},
            "tokens_per_second": None if speed is None else round(speed, 2),
        }

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.scored:
            return None
        return {
            "content": [
                {**_scored(one), "top_logprobs": [_scored(other) for other in one.top]} for one in scores
            ],
            "refusal": None,
        }


def event_text(data: dict[str, Any] | str) -> bytes:
    """Return a server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _scored(one: Likely) -> dict[str, Any]:
    data = None if one.data is None else list(one.data)
    return {"token": one.token, "logprob": max(one.logprob, -9999.0), "bytes": data}


def _reason(reason: FinishReason) -> str:
    return "length" if reason in ("length", "context") else "stop"
