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


def _prompts_alone(begin: str) -> str:
    """A message is a prompt by itself, of which nothing before it is part, and what answers it ends
    with the text: as examples of prompts with completions are written."""
    last = "{% set last = namespace(at=0) %}{% for message in messages %}"
    last += "{% if message['role'] == 'user' %}{% set last.at = loop.index0 %}"
    last += "{% elif message['role'] != 'assistant' %}{{ raise_exception('prompts alone') }}"
    last += "{% endif %}{% endfor %}"
    each = "{% for message in messages[last.at:] %}{{ message['content'] }}"
    each += "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    return f"{last}{begin}{each}"


# By whether the tokenizer begins a text with bos_token.
PROMPT_TEMPLATES = {False: _prompts_alone(""), True: _prompts_alone("{{ bos_token }}")}
