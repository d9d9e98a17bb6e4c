"""The formats that ship (chat_formats.py) as chat templates, for models that have none: programs in
Jinja, for transformers to run."""

from __future__ import annotations


def _program(turn: str, asked: str) -> str:
    each, after = "{% for message in messages %}", "{% endfor %}{% if add_generation_prompt %}"
    return f"{each}{turn}{after}{{{{ '{asked}' }}}}{{% endif %}}"


CHAT_TEMPLATES = {
    "chatml": _program(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
        "<|im_start|>assistant\n",
    ),
    "llama3": "{{ bos_token }}"
    + _program(
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "plain": _program(
        "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% else %}"
        "{{ message['role'].capitalize() + ': ' + message['content'] + '\n' }}{% endif %}",
        "Assistant:",
    ),
}
