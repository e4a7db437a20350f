"""Chat templates as they are in use, and others that want all of the machine."""

# ruff: noqa: E501

from __future__ import annotations

USUAL = {
    "vicuna": "{% for message in messages %}{{ message['role'] | upper }}: {{ message['content'] | string }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + (message['content'] | string) "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' "
    "+ message['role'] + '<|end_header_id|>\n\n'+ message['content'] | string | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-3.2-vision": "{{- bos_token }}\n{%- if not date_string is defined %}\n  {%- if strftime_now is defined %}\n"
    '    {%- set date_string = strftime_now("%d %b") %}\n  {%- else %}\n    {%- set date_string = "26 Jul 2024" %}\n'
    "  {%- endif %}\n{%- endif %}\n{%- set image_ns = namespace(has_images=false) %}\n{%- for message in messages %}\n"
    "  {%- for content in message['content'] %}\n    {%- if content['type'] == 'image' %}\n"
    "      {%- set image_ns.has_images = true %}\n    {%- endif %}\n  {%- endfor %}\n{%- endfor %}\n"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    '{%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}{{- date_string }}'
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}{%- else %}{%- for content in "
    "message['content'] %}{%- if content['type'] == 'image' %}{{- '<|image|>' }}{%- elif content['type'] == 'text' %}"
    "{{- content['text'] | trim }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|eot_id|>' }}{%- endfor %}",
    "mistral": "{%- if messages[0]['role'] == 'system' %}{%- set loop_messages = messages[1:] %}{%- else %}"
    "{%- set loop_messages = messages %}{%- endif %}{%- set ns = namespace() %}{%- set ns.index = 0 %}"
    "{%- for message in loop_messages %}{%- if (message.role == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- set ns.index = ns.index + 1 %}{%- endfor %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}{%- if loop.last %}"
    "{{- '[INST] last ' + message['content'] | string + '[/INST]' }}{%- else %}{{- '[INST] ' ~ message['content'] ~ "
    "'[/INST]' }}{%- endif %}{%- else %}{{- ' ' ~ message['content'] ~ eos_token }}{%- endif %}{%- endfor %}",
    "qwen2-vl": "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in "
    "messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == "
    "'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "qwen2.5": "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{%- else %}{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{%- endif %}{%- endif %}"
    '{%- for message in messages %}{%- if (message.role == "user") or (message.role == "system" and not '
    "loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}{{- '<|im_start|>' + message.role + "
    "'\\n' + message.content | string + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}",
    "qwen3": "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if "
    "ns.multi_step_tool and message.role == 'user' and message.content is string and not("
    "message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
    "{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content | string %}{%- set reasoning_content = '' %}"
    "{%- if '</think>' in content %}{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n')"
    ".split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query_index or loop.last %}{{- '<|im_start|>' + message.role + '\\n<think>\\n' + "
    "reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{- '<|im_start|>' + "
    "message.role + '\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "phi-3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] | string + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] | string + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "gemma-3": "{{ bos_token }}\n{%- for message in messages -%}\n    {%- if (message['role'] == 'user') != (loop.index0 "
    '% 2 == 0) -%}\n        {{ raise_exception("Conversation roles must alternate") }}\n    {%- endif -%}\n    {%- if '
    "(message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n    {%- else -%}\n        {%- set role "
    "= message['role'] -%}\n    {%- endif -%}\n    {{ '<start_of_turn>' + role + '\n' }}{%- for item in "
    "message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' "
    "-%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}{%- endfor -%}",
    "deepseek": "{% set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}{%- for message in messages "
    "%}{%- if message['role'] == 'user' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + "
    "message['content'] | string %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = "
    "ns.system_prompt + '\\n\\n' + message['content'] | string %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}"
    "{{ ns.system_prompt }}",
    "macros": "{% macro render(content) -%}{% for c in content %}{{ c.get('text', '<image>') }}{{ ', ' if not loop.last }}"
    "{% endfor %}{%- endmacro %}{% macro twice() %}{{ caller('x') }}{{ caller('y') }}{% endmacro %}"
    "{% for m in messages | rejectattr('role', 'equalto', 'system') %}{{ loop.index }}/{{ loop.length }} "
    "{{ loop.cycle('a', 'b') }} {{ render(m.content) }}{% call(x) twice() %}[{{ x }}]{% endcall %}{% endfor %}",
    "texts": "{% for m in messages %}{% for k, v in m.items() %}{{ k.title().ljust(12) }}{{ '%-8s|%03d' % (k, loop.index)"
    " }}{{ '{:>6}|{}'.format(k, v) }}{{ k | replace('o', '00') | center(14) | indent(2) }}{% endfor %}{% endfor %}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ ['b', 'a'] | sort | list }}{{ {'z': 1}['z'] ** 2 }}"
    "{% if messages | selectattr('role', 'equalto', 'nobody') %}a generator is true{% endif %}{{ '-' * 20 }}"
    "{{ dict(a=1) }}{{ (1, 2) + (3,) }}{{ messages[0].role ~ 1 ~ [1] }}{% set x, y = 1, 2 %}{{ x + y }}",
    "tree": "{% for x in [{'n': 'a', 'c': [{'n': 'b', 'c': []}]}] recursive %}{{ loop.depth }}{{ x.n }}{{ loop(x.c) }}"
    "{% endfor %}{% set long %}{{ messages[0].role }}{% endset %}{{ long }}{% block b %}{{ self.a() if false }}"
    "{% endblock %}{% filter upper %}abc{% endfilter %}",
}
"""What llava-hf's and Vicuna's, Llama's, Mistral's, Qwen's and other templates do, and everything else at once."""

_DOUBLING = "{% set ns = namespace(s='ab', l=[1]) %}{% for i in range(99999) %}"
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) if range(99999)|sum < 0 %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "{% for a in range(99999) %}{% if range(99999)|max == a %}{% endif %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s * 2 %}{% endfor %}",
    _DOUBLING + "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s|replace('a', 'aa') %}{% endfor %}",
    _DOUBLING + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    _DOUBLING + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    _DOUBLING + "{% set ns.s = '{a}{a}'.format_map({'a': ns.s}) %}{% endfor %}",
    _DOUBLING + "{% set ns.s = '%s%s'|format(ns.s, ns.s) %}{% endfor %}",
    _DOUBLING + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    _DOUBLING + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    _DOUBLING + "{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l|tojson }}",
    _DOUBLING + "{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l == ns.l }}",
    _DOUBLING + "{% set ns.l = ns.l|batch(1)|list + ns.l|batch(1)|list %}{% endfor %}",
    _DOUBLING + "{% set ns.s = ns.s|tojson %}{% endfor %}{{ ns.s }}",
    _DOUBLING + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    _DOUBLING + "{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}{{ ns.l }}",
    "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = [b, b] %}{% set b.x = [a, a] %}{{ a }}",
    "{% set ns = namespace(n=3) %}{% for i in range(99999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(n=3) %}{% for i in range(99999) %}{% set ns.n = ns.n ** ns.n %}{% endfor %}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 2 ** 99999999999 }}",
    "{{ (2 ** 99999999).__class__ }}",
    "{{ 's' * 99999999999 }}",
    "{{ 99999999999 * 's' }}",
    "{{ [0] * 99999999999 }}",
    "{{ ('a', 'b') * 999999999 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%.999999999f' % 1 }}",
    "{{ '%999999999s'|format('a') }}",
    "{{ '{:>999999999}'.format('a') }}",
    "{{ '{:{w}}'.format('a', w=999999999) }}",
    "{{ '{0:{1}}'.format('a', 999999999) }}",
    "{{ 's'|center(999999999) }}",
    "{{ 's'.center(999999999) }}",
    "{{ 's'.ljust(999999999) }}",
    "{{ 's'.zfill(999999999) }}",
    "{{ '\t'.expandtabs(999999999) }}",
    "{{ 's\ns'|indent(999999999) }}",
    "{{ ('s\n' * 9999)|indent(9999) }}",
    "{{ [1]|tojson(indent=999999999) }}",
    "{{ [1]|batch(999999999, 'x')|list }}",
    "{{ [1]|slice(999999999)|list }}",
    "{{ range(99999)|join('s' * 99999) }}",
    "{{ ('s' * 99999).join(range(99999)|map('string')) }}",
    "{{ range(99999)|map('string')|map('center', 9999)|join }}",
    "{{ range(99999)|map('string')|batch(9)|map('join', 's' * 9999)|join }}",
    "{{ 's'|wordwrap(1, wrapstring='x' * 99999) }}",
    "{{ lipsum(n=999999, html=false) }}",
    "{{ (1).to_bytes(999999999, 'big') }}",
    "{{ strftime_now('%999999999d') }}",
    "{{ 1.5|round(999999999, 'ceil') }}",
    "{{ range(99999)|map('string')|list|sum(start=[]) }}",
    "{{ ('a' * 99999).split('') }}",
    "{{ ('ab' * 999999).replace('', 'x' * 9999) }}",
    "{{ ('a ' * 999999).split() | map('center', 999) | list }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{% call f(n - 1) %}{% endcall %}{% call f(n - 1) %}{% endcall %}{% endif %}"
    "{% endmacro %}{% call f(60) %}{% endcall %}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}{% endfor %}"
    "{% endfor %}",
    "{{ '" + "a" * 90_000 + "' * 9999 }}",
    "{{ " + "(" * 40_000 + "1" + ")" * 40_000 + " }}",
    "{{ " + "[" * 40_000 + "]" * 40_000 + " }}",
    "{{ 1" + "+1" * 40_000 + " }}",
    "{{ a" + ".a" * 40_000 + " }}",
    "{% if 1 %}" * 9_000,
    "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "{{a}}" * 19_999,
    "{% set a = 1 %}" * 6_600,
    "{{ 1|" + "|".join(["string"] * 12_000) + " }}",
    "{#" * 49_999,
    "{{ '" * 24_999,
    "{% raw %}" * 11_000,
    "{% macro a() %}" * 3_000 + "{% endmacro %}" * 3_000,
]
"""Each would take minutes, gigabytes or the interpreter itself, were it let."""
