"""What is said of a body that is no request: the field as it stands there, and what was expected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from divprune_edge.runtime.serve.schema import FieldError, read_request


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ([1], None, "The body is a list, expected an object."),
        ({}, "messages", "'messages' is missing."),
        ({"messages": ["a"]}, "messages.0", """'messages.0' is "a", expected an object."""),
        ({"stream_options": []}, "stream_options", "'stream_options' is a list, expected an object."),
        ({"user": "u" * 300}, "user", "'user': String should have at most 256 characters."),
        ({"messages": []}, "messages", "'messages' is empty."),
        (
            part(type="image_url", image_url="data:image/png;base64,AAAA"),
            "messages.0.content.0.image_url",
            """'messages.0.content.0.image_url' is "data:image/png;base64,AAAA", expected an object, {"url": …}.""",
        ),
        (
            part(type="image_url", image_url="data:" + "A" * 99),
            "messages.0.content.0.image_url",
            """'messages.0.content.0.image_url' is a long text, expected an object, {"url": …}.""",
        ),
        (
            part(type="image_url", image_url={"detail": "low"}),
            "messages.0.content.0.image_url.url",
            "'messages.0.content.0.image_url.url' is missing.",
        ),
        (part(type="text"), "messages.0.content.0.text", "'messages.0.content.0.text' is missing."),
        (part(text="a"), "messages.0.content.0", "'messages.0.content.0.type' is missing."),
        (
            part(type="input_image", image_url="a"),
            "messages.0.content.0",
            """'messages.0.content.0.type' is "input_image", expected one of text, image_url, video.""",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages.0.content",
            "'messages.0.content' is null, expected a text.",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "user": 1}]},
            "messages.0.user",
            "This server does not know the field 'messages.0.user': leave it out.",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages.0.content",
            "'messages.0.content' is missing.",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "messages.0",
            "'messages.0.role' is \"tool\", expected one of system, developer, user, assistant.",
        ),
        ({"messages": [{"content": "a"}]}, "messages.0", "'messages.0.role' is missing."),
        (
            part(type="text", text="hi", foo=1),
            "messages.0.content.0.foo",
            "This server does not know the field 'messages.0.content.0.foo': leave it out.",
        ),
        (
            part(type="image_url", image_url={"url": "x", "foo": 1}),
            "messages.0.content.0.image_url.foo",
            "This server does not know the field 'messages.0.content.0.image_url.foo': leave it out.",
        ),
        (
            part(type="video", video=["x"], foo=1),
            "messages.0.content.0.foo",
            "This server does not know the field 'messages.0.content.0.foo': leave it out.",
        ),
        (
            part(type="video", video=["x", 2]),
            "messages.0.content.0.video.1",
            "'messages.0.content.0.video.1' is 2, expected a text.",
        ),
        (
            part(type="text", text=1),
            "messages.0.content.0.text",
            "'messages.0.content.0.text' is 1, expected a text.",
        ),
        (
            {"tool_choice": "required"},
            "tool_choice",
            """'tool_choice' is "required", expected "none" or "auto".""",
        ),
        (
            {"max_token": 5},
            "max_token",
            "This server does not know the field 'max_token' (did you mean 'max_tokens'?): leave it out.",
        ),
        ({"keep": "144"}, "keep", """'keep' is "144", expected a whole number."""),
        ({"n": 2}, "n", "'n' is 2, expected 1."),
        ({"top_logprobs": 99}, "top_logprobs", "'top_logprobs' is 99, expected less than or equal to 20."),
        ({"tools": [{}]}, "tools", "This server does nothing with 'tools': leave it out."),
        ({"logit_bias": {"1": 5}}, "logit_bias", "This server does nothing with 'logit_bias': leave it out."),
        (
            {"response_format": {"type": "json_object"}},
            "response_format.type",
            """'response_format.type' is "json_object", expected "text".""",
        ),
    ],
)
def test_what_is_wrong_is_named(body: Any, param: str | None, sentence: str) -> None:
    if isinstance(body, dict) and body and "messages" not in body:
        body = {"messages": [{"role": "user", "content": "a"}], **body}
    with pytest.raises(FieldError) as caught:
        read_request(json.dumps(body).encode(), 1000)
    assert (str(caught.value), caught.value.param) == (sentence, param)


def test_both_forms_of_a_content() -> None:
    request = read_request(json.dumps(part(type="text", text="a")).encode(), 1000)
    assert request.messages[0].text == "a"
    request = read_request(b'{"messages": [{"role": "user", "content": "b"}]}', 1000)
    assert request.messages[0].text == "b"


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": None, "stream_options": None, "ignore_eos": None},
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
        {"tool_choice": "none", "tools": [], "parallel_tool_calls": False},
        {"tool_choice": "auto", "modalities": ["text"], "service_tier": "auto", "metadata": {}},
        {"reasoning_effort": "none", "min_p": 0, "top_k": -1, "presence_penalty": 0.0},
        {"min_p": 0.0, "logprobs": None, "top_logprobs": 0, "n": 1},
    ],
)
def test_what_happens_anyway_may_be_said(fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **fields}
    request = read_request(json.dumps(body).encode(), 1000)
    assert {name: getattr(request, name) for name in fields if name != "stream_options"} == {
        name: value for name, value in fields.items() if name != "stream_options"
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function"}},
        {"min_p": 0.1},
        {"modalities": ["text", "audio"]},
        {"modalities": []},
        {"service_tier": "priority"},
        {"metadata": {"a": "b"}},
        {"reasoning_effort": "low"},
        {"stream_options": {"include_obfuscation": True}},
    ],
)
def test_what_would_not_happen_may_not(fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **fields}
    with pytest.raises(FieldError) as caught:
        read_request(json.dumps(body).encode(), 1000)
    assert next(iter(fields)) in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "content": "b", "reasoning_content": None, "refusal": None, "annotations": []},
        {"role": "user", "content": "b", "name": "c"},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "u", "detail": None}, "cache_control": None}
            ],
        },
    ],
)
def test_what_clients_send_with_a_message(message: dict[str, Any]) -> None:
    request = read_request(json.dumps({"messages": [message]}).encode(), 1000)
    assert request.messages[0].text in ("", "b")
