"""Two replicas on Ray Serve: the answers of ``ask``, equal images with equal replicas, and what becomes of failures."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.runtime.serve.schema import ChatRequest

from .conftest import QUESTION, about, data_url, noise, openai

ray = pytest.importorskip("ray", reason="unproven: the server on Ray Serve, without ray[serve]")
from ray import serve  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402

from divprune_edge.runtime.serve.ray import application, session_of  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
KEY = "correct horse battery"


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIVPRUNE_API_KEY", KEY)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
            runtime_env={"env_vars": {"DIVPRUNE_API_KEY": KEY}},
        )
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        arguments = {"bundle": str(bundle), "threads": "1", "replicas": "2", "limit": "slots=2,queue=4"}
        serve.run(application(arguments), name="divprune", route_prefix="/")
        yield port
        serve.shutdown()
        ray.shutdown()


def send(port: int, body: Any, key: str = KEY, path: str = "/v1/chat/completions", **headers: str) -> Any:
    """Return status, JSON, and the replica's name."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, data, answer.getheader("x-replica")


def test_answers_are_those_of_ask(port: int, asked: Pipeline) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=120)
    assert {"demo", "demo:none"} <= {model.id for model in client.models.list()}
    image = noise(1)
    for model, pipeline in (("demo", asked), ("demo:none", asked.with_selector("none"))):
        expected = pipeline.ask(image, QUESTION).answer
        messages = about(data_url(image))
        whole = client.chat.completions.create(model=model, messages=messages)
        assert whole.choices[0].message.content == expected
        stream = client.chat.completions.create(model=model, messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_an_image_meets_the_replica_that_knows_it(port: int) -> None:
    replicas = {}
    for number in range(10, 20):
        first, again = (
            send(port, {"messages": about(data_url(noise(number)), question=text), "max_tokens": 2})
            for text in ("What is it?", "Which colour?")
        )
        assert first[0] == again[0] == 200
        assert first[2] == again[2]
        cached = [
            answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, answer, _ in (first, again)
        ]
        assert cached[0] < 58 <= cached[1]  # nothing but the beginning was known, then the image was, too
        replicas[number] = first[2]
    assert len(set(replicas.values())) == 2  # and each has some of the images


def test_who_may_ask(port: int) -> None:
    status, answer, replica = send(port, {"messages": about()}, key="wrong")
    assert (status, answer["error"]["code"], replica) == (401, "api-key-wrong", None)
    status, answer, _ = send(port, {"messages": about(), "top_p": 0})
    assert (status, answer["error"]["code"]) == (400, "decoding-out-of-range")  # a replica's own word
    status, answer, replica = send(port, {"messages": []})
    assert (status, answer["error"]["code"], replica) == (400, "request-invalid", None)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {17 << 20}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(100)  # before any of the body is there


def test_who_leaves_is_let_go_of(port: int) -> None:
    body = {"messages": about(data_url(noise(1))), "max_tokens": 900, "ignore_eos": True, "stream": True}
    for _ in range(12):  # many more than the slots of both
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        assert answer.status == 200 and answer.readline()
        answer.close()
        connection.close()
    began = time.monotonic()
    assert send(port, {"messages": about(data_url(noise(1))), "max_tokens": 2})[0] == 200
    assert time.monotonic() - began < 60


def test_a_replica_that_dies(port: int) -> None:
    body = {"messages": about(data_url(noise(1))), "max_tokens": 2}
    _, answer, replica = send(port, body)
    actor = next(
        one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if str(replica) in one["name"]
    )
    ray.kill(ray.get_actor(actor, namespace="serve"))
    ends = time.monotonic() + 120
    while (found := send(port, body))[0] != 200 and time.monotonic() < ends:
        time.sleep(0.5)
    assert found[1]["choices"] == answer["choices"] and found[2] != replica


@pytest.mark.parametrize(
    ("given", "named"),
    [({}, "bundle"), ({"bundle": "b", "replica": 3}, "replica"), ({"bundle": "b", "keep": "x"}, "keep")],
)
def test_arguments_that_cannot_be_meant(given: dict[str, Any], named: str) -> None:
    with refused("serve-arguments", named):
        application(given)


def test_what_requests_have_in_common() -> None:
    def session(*urls: str, question: str = "a") -> str:
        return session_of(ChatRequest.model_validate({"messages": about(*urls, question=question)}))

    png, again = data_url(noise(1)), data_url(noise(1)).replace("image/png", "image/PNG")
    assert session(png) == session(again, question="b") == session(png, data_url(noise(2)))
    assert session(png) != session(data_url(noise(2)))
    assert session("https://a.example/1.png") != session("https://a.example/2.png")
    assert session(question="a") != session(question="b")
