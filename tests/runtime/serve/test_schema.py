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
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            "messages.0.name",
            "This server does not know the field 'messages.0.name': leave it out.",
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
