"""Tokenizers of every chat format, small, with templates as published models have them."""

from numgpt import CharTokenizer, Tokenizer
from numgpt.tokenizer import BaseTokenizer

TEXT = "The system and the user said to the assistant: what is it, and who are you? User: I am.\n"

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou\\'re kind.\\nAlways.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TRIMMING = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system = false %}"
    "{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    "{% set content = message['content'] %}{% if loop.first and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
INST = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
SAID = ("System:", "User:", "Assistant:")  # where a line begins

# name -> template, special tokens, bos_token, eos_token
FORMS = {
    "chatml": (CHATML, ("<|endoftext|>", *IM), None, "<|im_end|>"),
    "chatml_trimming": (CHATML_TRIMMING, ("<s>", *IM), "<s>", "<|im_end|>"),
    "chatml_in_text": (CHATML, ("</s>",), None, "</s>"),  # a vocabulary without the markers
    "llama3": (LLAMA3, ("<|begin_of_text|>", *HEADERS), "<|begin_of_text|>", "<|eot_id|>"),
    "llama2": (LLAMA2, ("<s>", "</s>"), "<s>", "</s>"),
    "llama2_special": (LLAMA2, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"),
    "zephyr": (ZEPHYR, ("</s>",), None, "</s>"),
    "zephyr_special": (ZEPHYR, ("</s>", *ROLES), None, "</s>"),
}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def trained(name: str) -> Tokenizer:
    """A tokenizer of one of the forms."""
    template, special, bos, eos = FORMS[name]
    tokenizer = Tokenizer.train([TEXT * 5], 256 + 40 + len(special), special_tokens=special)
    tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token = template, bos, eos
    return tokenizer


def ascii_only(template: str | None = None) -> Tokenizer:
    """A vocabulary of nothing but printable ASCII and the line's end: what else a text holds is
    left out of the ids."""
    vocabulary = {bytes([byte]): id for id, byte in enumerate([10, *range(32, 127)])}
    return Tokenizer(vocabulary, [], {"</s>": 96}, eos_token="</s>", chat_template=template)


def every_tokenizer() -> dict[str, BaseTokenizer]:
    """Those above, and what chats in plain text."""
    tokenizers: dict[str, BaseTokenizer] = {name: trained(name) for name in FORMS}
    tokenizers["plain"] = Tokenizer.train([TEXT * 5], 300)
    tokenizers["plain_characters"] = CharTokenizer([chr(code) for code in (10, *range(32, 127))])
    tokenizers["plain_ascii"] = ascii_only()
    tokenizers["zephyr_ascii"] = ascii_only(ZEPHYR)
    tokenizers["llama2_ascii"] = ascii_only(LLAMA2.replace("bos_token + ", ""))  # it has none
    return tokenizers


def marks_in_text(name: str) -> tuple[str, ...]:
    """What marks a turn in the text of a format; as a special token it is none."""
    special = FORMS[name][1] if name in FORMS else ()
    marks = {"chatml": IM, "llama3": HEADERS, "llama2": INST, "zephyr": ROLES, "plain": SAID}
    return tuple(mark for mark in marks[name.split("_")[0]] if mark not in special)


def every_marker() -> list[str]:
    """What only a template may write, of any format."""
    return sorted({*IM, *HEADERS, *ROLES, *INST, *SAID} | {t for f in FORMS.values() for t in f[1]})
