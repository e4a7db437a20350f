"""Chat completions as OpenAI's own client asks for them: what is answered is what ``ask`` answers."""

from __future__ import annotations

import math
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest

from divprune_edge import Pipeline
from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.serve.catalog import _some

from .conftest import PATIENCE, QUESTION, Served, about, data_url, noise, openai


def test_an_answer_is_the_one_of_ask(client: Any, asked: Pipeline, picture: str) -> None:
    expected = asked.ask(IMAGE, QUESTION)
    answer = client.chat.completions.create(model="demo", messages=about(picture))
    (choice,) = answer.choices
    assert choice.message.content == expected.answer
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.visual_tokens == 58
    assert answer.usage.visual_tokens_before_pruning == 576
    (image,) = answer.divprune["images"]
    assert image["kept_indices"] == expected.kept_indices.tolist()
    assert image["grid"] == {"rows": 24, "columns": 24}
    times = answer.divprune["timings_ms"]
    assert list(times) == ["queue", "encode", "select", "prefill", "ttft", "decode", "total"]
    assert 0 < times["prefill"] <= times["ttft"] <= times["total"]


def test_a_stream_is_the_answer_in_pieces(client: Any, asked: Pipeline, picture: str) -> None:
    expected = asked.ask(IMAGE, QUESTION, max_tokens=12, ignore_eos=True)
    stream = client.chat.completions.create(
        model="demo",
        messages=about(picture),
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    text = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(text) == expected.answer
    assert sum(map(bool, text)) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].divprune["images"][0]["kept_indices"] == expected.kept_indices.tolist()
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-2].divprune["tokens_per_second"] > 0
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("model", "extra", "selector"),
    [
        ("demo", {}, "divprune-58"),
        ("demo:divprune-144", {}, "divprune-144"),
        ("demo:none", {}, "none"),
        ("demo", {"keep": 144}, "divprune-144"),
        ("demo", {"selector": "none"}, "none"),
        ("demo", {"selector": "divprune", "keep": 58}, "divprune-58"),
    ],
)
def test_a_request_chooses_its_budget(
    client: Any, asked: Pipeline, picture: str, model: str, extra: dict[str, Any], selector: str
) -> None:
    expected = asked.with_selector(selector).ask(IMAGE, QUESTION)
    answer = client.chat.completions.create(model=model, messages=about(picture), extra_body=extra)
    assert answer.choices[0].message.content == expected.answer
    assert answer.divprune["selector"] == selector
    assert answer.usage.visual_tokens == expected.visual_tokens


def test_models_are_the_bundle_with_each_budget(client: Any) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["demo", "demo:divprune-58", "demo:divprune-144", "demo:none"]
    kept = {name: model.divprune["keep"] for name, model in models.items()}
    assert kept == {"demo": 58, "demo:divprune-58": 58, "demo:divprune-144": 144, "demo:none": 576}
    assert client.models.retrieve("demo:none").id == "demo:none"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../demo")


def test_a_conversation_is_that_of_a_chat(client: Any, asked: Pipeline, picture: str) -> None:
    chat = asked.chat(IMAGE, system="Answer in one word.")
    messages: list[Any] = [{"role": "system", "content": "Answer in one word."}]
    for number, question in enumerate((QUESTION, "How many shapes are there?", "Is there a square?")):
        messages += about(*[picture] * (number == 0), question=question)
        answer = client.chat.completions.create(model="demo", messages=messages).choices[0].message
        assert answer.content == chat.ask(question).answer
        messages.append(answer)


def test_several_system_texts_are_one(client: Any, asked: Pipeline, picture: str) -> None:
    systems = [{"role": role, "content": f"Say {role}."} for role in ("system", "developer")]
    answer = client.chat.completions.create(
        model="demo", messages=[*systems, *about(picture)], max_tokens=8, extra_body={"ignore_eos": True}
    )
    expected = asked.ask(
        IMAGE, QUESTION, system="Say system.\n\nSay developer.", max_tokens=8, ignore_eos=True
    )
    assert answer.choices[0].message.content == expected.answer
    messages = [*about(picture), {"role": "assistant", "content": "red"}, systems[0], *about()]
    with pytest.raises(openai.BadRequestError, match="Message 3 is the system's"):
        client.chat.completions.create(model="demo", messages=messages)


def test_an_answer_that_said_nothing(client: Any, picture: str) -> None:
    for said in ({"content": None}, {"content": "", "tool_calls": []}, {"tool_calls": []}):
        messages = [*about(picture), {"role": "assistant", **said}, *about()]
        assert client.chat.completions.create(model="demo", messages=messages).choices[0].message.content


def test_without_an_image(client: Any, asked: Pipeline) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=about(question="Who are you?"), max_tokens=6
    )
    expected = asked.ask(None, "Who are you?", max_tokens=6)
    assert answer.choices[0].message.content == expected.answer
    assert answer.usage.visual_tokens == 0


def test_several_images(client: Any, asked: Pipeline) -> None:
    images = [noise(seed) for seed in range(3)]
    expected = asked.ask(images, "Which is it?", max_tokens=8, ignore_eos=True)
    answer = client.chat.completions.create(
        model="demo",
        messages=about(*map(data_url, images), question="Which is it?"),
        max_completion_tokens=8,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].message.content == expected.answer
    kept = [index for image in answer.divprune["images"] for index in image["kept_indices"]]
    assert kept == expected.kept_indices.tolist()


def test_sampling_by_seed(client: Any, asked: Pipeline, picture: str) -> None:
    options: dict[str, Any] = {"temperature": 3.0, "top_p": 0.9, "seed": 5, "max_tokens": 16}
    more: dict[str, Any] = {"top_k": 40, "ignore_eos": True}
    answer = client.chat.completions.create(model="demo", messages=about(picture), **options, extra_body=more)
    assert answer.choices[0].message.content == asked.ask(IMAGE, QUESTION, **options, **more).answer


@pytest.mark.parametrize("stop", ["e", ["zz", "p"]])
def test_stop_strings(client: Any, asked: Pipeline, picture: str, stop: Any) -> None:
    expected = asked.ask(IMAGE, QUESTION, stop=(stop,) if isinstance(stop, str) else tuple(stop))
    answer = client.chat.completions.create(model="demo", messages=about(picture), stop=stop)
    assert answer.choices[0].message.content == expected.answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.divprune["finish_reason"] == expected.finish_reason == "stop_string"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, "stop"),
        ({"stop": ["le"]}, "stop_string"),
        ({"stop": ["o"], "max_tokens": 40, "extra_body": {"ignore_eos": True}}, "stop_string"),
        ({"max_tokens": 30, "extra_body": {"ignore_eos": True}}, "length"),
    ],
)
def test_logprobs(client: Any, picture: str, stream: bool, options: dict[str, Any], ends: str) -> None:
    question = "What is there?"
    asked = {"model": "demo", "messages": about(picture, question=question), **options}
    answer = client.chat.completions.create(logprobs=True, top_logprobs=3, stream=stream, **asked)
    if stream:
        chunks = list(answer)
        choices, why = [chunk.choices[0] for chunk in chunks], chunks[-1].divprune
        said = [choice.delta.content or "" for choice in choices]
    else:
        choices, why = answer.choices, answer.divprune
        said = [choices[0].message.content]
    assert why["finish_reason"] == ends
    scores = [score for choice in choices if choice.logprobs for score in choice.logprobs.content]
    for score in scores:
        assert len(score.top_logprobs) == 3
        assert score.logprob == max(top.logprob for top in score.top_logprobs) <= 0  # greedy
        assert sum(math.exp(top.logprob) for top in score.top_logprobs) <= 1 + 1e-9
        assert score.bytes is None or bytes(score.bytes).decode() == score.token
    joined = b"".join(bytes(score.bytes or ()) for score in scores).decode()
    text = "".join(said)
    if ends == "stop_string":  # the token that it begins in is told as a whole
        assert joined.startswith(text) and not joined[: -len(scores[-1].token)].startswith(text)
    else:
        assert joined == text
    if ends == "stop":
        assert "</s>" not in [score.token for score in scores]


def test_kept_patches_lie_where_the_encoder_looked(client: Any) -> None:
    """The demo cuts the middle square out of a wide image."""
    answer = client.chat.completions.create(
        model="demo", messages=about(data_url(noise(1, 100, 200))), max_tokens=1
    )
    (image,) = answer.divprune["images"]
    assert np.allclose(image["view"], [0, 0.25, 1, 0.75], atol=0.01) or image["view"] == [0, 0, 1, 1]


def test_every_answer_has_a_number_of_its_own(server: Served, client: Any, picture: str) -> None:
    answered = client.chat.completions.create(model="demo", messages=about(picture))
    refused = [server.get(path)[2]["x-request-id"] for path in ("/health", "/nothing")]
    refused.append(server.ask("{")[2]["x-request-id"])
    refused.append(server.get("/health", Host="evil.example")[2]["x-request-id"])
    assert len({answered._request_id, *refused}) == 5


def test_the_server_says_how_sequences_join(server: Served) -> None:
    assert "between steps" in "".join(server.said)
    assert server.get("/health")[0] == 200


def test_what_a_question_looks_like_is_not_logged(server: Served, picture: str) -> None:
    said = len(server.said)
    status, _, _ = server.ask({"messages": about(picture, question="USER: what is <image>?")})
    assert status == 200
    assert server.said[said:] == []


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/metrics", "/page/app.js"])
def test_a_head_is_that_of_the_answer(server: Served, path: str) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("HEAD", path)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert answer.headers["content-type"] == server.get(path)[2]["content-type"]


def test_a_counter_is_one_metric(server: Served) -> None:
    _, text, _ = server.get("/metrics")
    assert b"divprune_prompt_tokens_total " in text and b"_created" not in text


def test_names_close_to_those_there_are_said(server: Served, picture: str) -> None:
    _, answer, _ = server.ask({"messages": about(picture), "selector": "divprun"})
    assert "did you mean 'divprune" in answer["error"]["message"]
    _, answer, _ = server.ask({"messages": about(picture), "model": "gpt-4o"})
    assert "leave 'model' out" in answer["error"]["message"]


def test_a_long_list_of_names_is_cut() -> None:
    assert _some(["a", "b"]) == "a, b"
    assert _some([str(n) for n in range(20)]).endswith("6, 7 and 12 more, which GET /v1/models lists")
