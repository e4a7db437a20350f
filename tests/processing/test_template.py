"""Chat templates render as in transformers, and can do no harm."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from processing.templates import HOSTILE, USUAL
from raising import refused
from yardstick import LONG, unit

from divprune_edge.errors import UserError
from divprune_edge.processing import bounded
from divprune_edge.processing.template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": 'What is "<b>é</b>" here?'}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A tag."}]},
    {"role": "user", "content": [{"type": "text", "text": "And {{ 7 * 7 }}?"}]},
]
LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATES = [
    LLAVA_HF,
    "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m | tojson }}\n    {% endif %}\n"
    "{% endfor %}\n",
    "{%- for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m['role'] }}{% break %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ eos_token }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }}",
    "{{ strftime_now('%Y') }}{% if pad_token is defined %}pad{% endif %}",
    "  {% if true %}  \nindented\n  {% endif %}\nend\n",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_renders_as_transformers_does(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = utils.render_jinja_template(
        [CHAT], chat_template=source, add_generation_prompt=True, **TOKENS
    )
    assert ChatTemplate(source, TOKENS).render(CHAT) == expected[0]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[9].content }}", "no element 9|undefined"),
        ("{{ 1 / 0 }}", "division"),
        ("{% for i in range(10000000) %}{% endfor %}", "too big|[Rr]ange"),
    ],
)
def test_failure_is_one_sentence(source: str, reason: str) -> None:
    with refused("template-refuses") as error:
        ChatTemplate(source, TOKENS).render(CHAT)
    assert re.search(reason, str(error.value))


def test_invalid_source_is_one_sentence() -> None:
    with refused("template-invalid"):
        ChatTemplate("{% for %}", TOKENS)


@pytest.mark.parametrize("name", USUAL)
def test_templates_in_use_render_as_in_transformers(name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = utils.render_jinja_template(
        [CHAT], chat_template=USUAL[name], add_generation_prompt=True, **TOKENS
    )
    assert ChatTemplate(USUAL[name], TOKENS).render(CHAT) == expected[0]


def test_a_long_conversation_is_no_attack() -> None:
    said = [{**turn, "content": "a word, " * 200} for turn in CHAT[:2]] * 100
    for name in ("llama-3", "mistral", "qwen3", "deepseek"):
        assert len(ChatTemplate(USUAL[name], TOKENS).render(said)) > 100_000


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_no_template_takes_long_or_much(number: int) -> None:
    before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(UserError):
        assert len(ChatTemplate(HOSTILE[number], TOKENS).render(CHAT)) < 10_000_000
    assert time.process_time() - before < LONG * unit(), HOSTILE[number][:200]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 << 10, HOSTILE[number][:200]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (HOSTILE[0], "template-too-much-work"),
        ("{{ 's' * 99999999999 }}", "template-too-much-work"),
        ("{{ 'x'.encode() }}", "template-refuses"),
        ("{% if 1 %}" * 9_000, "template-invalid"),
        ("x" * 200_000, "template-invalid"),
    ],
)
def test_what_is_told_of_them(source: str, code: str) -> None:
    with refused(code):
        ChatTemplate(source, TOKENS).render(CHAT)


def test_the_second_limit_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "ALLOWANCE", 1 << 40)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ChatTemplate(HOSTILE[0], TOKENS).render, CHAT)
        with refused("template-too-much-work", "processor time"):
            answer.result(timeout=60)


def test_a_template_says_nothing_to_the_terminal() -> None:
    with refused("template-refuses", "gone") as told:
        ChatTemplate("{{ raise_exception('\x1b[2J\x07gone\r\n' + 'x' * 9999) }}", TOKENS).render(CHAT)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 600
