"""Chat templates render as in transformers, and can do no harm."""

from __future__ import annotations

import re
from typing import Any

import pytest
from raising import refused

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
