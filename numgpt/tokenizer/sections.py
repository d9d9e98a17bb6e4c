"""The sections of Hugging Face's tokenizer.json and tokenizer_config.json, to our terms and back.

Each reader takes a section as it stands in the file and raises ValueError, naming the setting, for
what would be tokenised differently here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from numgpt.messages import shown
from numgpt.tokenizer.pattern import PATTERNS

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DECODER = _BYTE_LEVEL | {"use_regex": True}
# What every tokenizer.json has, in this order.
WHOLE: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
WHOLE |= dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"))
TOKEN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def require(value: Any, expected: Any, name: str) -> None:
    """Raises ValueError where a setting has another value than the one we know."""
    if value != expected:
        raise ValueError(f"{name}={shown(value)} is not supported, only {shown(expected)}")


# --- pre_tokenizer ---


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


CHARACTERS = _split(r"[\s\S]")  # how a text falls into its characters


def pattern_name(section: dict[str, Any] | None) -> str:
    """The name of the pattern that a pre_tokenizer splits by."""
    section = section or {}
    if section.get("type") != "Sequence":
        _require_byte_level(section | {"add_prefix_space": False}, True)
        return "gpt2"
    steps = section["pretokenizers"]
    types = [step.get("type") for step in steps]
    if types == ["Split", "ByteLevel"]:
        split, byte_level = steps
        require(split.get("behavior"), "Isolated", "pre_tokenizer.behavior")
        require(split.get("invert", False), False, "pre_tokenizer.invert")
        _require_byte_level(byte_level, False)
        return _known_pattern(split.get("pattern"))
    if types == ["Digits", "ByteLevel"]:
        digits, byte_level = steps
        require(digits.get("individual_digits"), True, "pre_tokenizer.individual_digits")
        _require_byte_level(byte_level, True)
        return "smollm"
    raise ValueError(
        f"a pre_tokenizer of the steps {shown(types)} is not supported, only Split or Digits and"
        " then ByteLevel"
    )


def adds_prefix_space(section: dict[str, Any] | None, config: dict[str, Any]) -> bool:
    """Whether a space is put before a text: the classes GPT2Tokenizer and Qwen2Tokenizer do as
    tokenizer_config.json says, others as the pre_tokenizer (not given, it does)."""
    said = config.get("add_prefix_space")
    if said is not None and not isinstance(said, bool):
        raise ValueError(f"add_prefix_space={shown(said)}: expected true or false")
    kind = str(config.get("tokenizer_class") or "GPT2")
    by_class = kind.startswith(("GPT2", "Qwen2")) and (said is not None or kind != "GPT2")
    if section is not None and section.get("type") == "Sequence":
        require(bool(by_class and said), False, "add_prefix_space")
        return False
    if by_class or section is None:
        return bool(said)
    return bool(section.get("add_prefix_space", True))


def pre_tokenizer(name: str, prefix_space: bool = False) -> dict[str, Any]:
    """The pre_tokenizer that splits by a pattern."""
    if name == "gpt2":
        return _BYTE_LEVEL | {"use_regex": True, "add_prefix_space": prefix_space}
    digits = {"type": "Digits", "individual_digits": True}
    first = digits if name == "smollm" else _split(PATTERNS[name])
    steps = [first, _BYTE_LEVEL | {"use_regex": name == "smollm"}]
    return {"type": "Sequence", "pretokenizers": steps}


def _known_pattern(pattern: Any) -> str:
    source = pattern.get("Regex") if isinstance(pattern, dict) else pattern
    for name, known in PATTERNS.items():
        if source == known:
            return name
    raise ValueError(
        f"the pre_tokenizer's pattern {shown(source)} is not one of those known:"
        f" {', '.join(PATTERNS)}"
    )


def _require_byte_level(section: dict[str, Any], use_regex: bool) -> None:
    # Where a setting is not given, Hugging Face takes True.
    require(section.get("type"), "ByteLevel", "pre_tokenizer.type")
    require(section.get("add_prefix_space", True), False, "pre_tokenizer.add_prefix_space")
    require(section.get("use_regex", True), use_regex, "pre_tokenizer.use_regex")


# --- normalizer, post_processor ---


def normalizer_name(section: dict[str, Any] | None) -> str | None:
    """ "NFC", or None for none."""
    if not section:
        return None
    if section.get("type") == "Sequence" and len(section["normalizers"]) <= 1:
        return normalizer_name(*section["normalizers"]) if section["normalizers"] else None
    if section.get("type") != "NFC":
        kind = shown(section.get("type"))
        raise ValueError(f"the normalizer {kind} is not supported, only 'NFC'")
    return "NFC"


def first_token(section: dict[str, Any] | None) -> str | None:
    """The special token that a post_processor puts before a text, if any."""
    if not section or section.get("type") == "ByteLevel":  # which only moves offsets
        return None
    if section.get("type") == "Sequence":
        tokens = [token for token in map(first_token, section["processors"]) if token is not None]
        if len(tokens) > 1:
            raise ValueError(f"a post_processor that begins a text with {shown(tokens)} twice")
        return tokens[0] if tokens else None
    require(section.get("type"), "TemplateProcessing", "post_processor.type")
    single = section["single"]
    kinds = [kind for part in single for kind in part]
    if kinds not in (["Sequence"], ["SpecialToken", "Sequence"]):
        raise ValueError(
            f"post_processor.single={shown(single)} is not supported, only the text with at most a"
            " special token before it"
        )
    return single[0]["SpecialToken"]["id"] if len(single) == 2 else None


def post_processor(token: str, id: int) -> dict[str, Any]:
    """The post_processor that puts a special token before each text."""
    first = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    other = [{"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + other,
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


# --- tokenizer_config.json ---

# Tokens with a part that is none here, and lists of special tokens.
NAMED = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
# What changes nothing here, and is saved again.
KEPT = frozenset(NAMED) | {"padding_side", "truncation_side", "model_max_length"}
NAMED_TEMPLATES = "chat_templates"  # our name for those that are not the default
KEPT |= {NAMED_TEMPLATES, "model_input_names", "clean_up_tokenization_spaces"}


def config_options(config: dict[str, Any]) -> dict[str, Any]:
    """bos_token, eos_token, add_bos_token, chat_template and the settings that are kept, as far as
    the file gives them."""
    options: dict[str, Any] = {**ends(config)}
    if (add := config.get("add_bos_token")) is not None:
        if not isinstance(add, bool):
            raise ValueError(f"add_bos_token={shown(add)}: expected true or false")
        options["add_bos_token"] = add
    if (template := config.get("chat_template")) is not None:
        named: dict[str, str] = {}  # one is for plain chat, others for tools or documents
        if isinstance(template, list):
            for entry in template:
                name = text_of(entry, "chat_template", "name")
                named[name] = text_of(entry, "chat_template", "template")
            template = named.pop("default", None)
        if template is not None:
            options["chat_template"] = text_of(template, "chat_template", "template")
        if named:
            config = config | {NAMED_TEMPLATES: named}
    settings = {name: config[name] for name in sorted(KEPT) if config.get(name) is not None}
    settings |= named_tokens(config)
    return options | ({"settings": settings} if settings else {})


def ends(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and eos_token, as far as the file names them."""
    named = {name: config.get(name) for name in ("bos_token", "eos_token")}
    return {name: text_of(token, name) for name, token in named.items() if token is not None}


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The tokens that the file gives a part, beyond bos_token and eos_token: the usual ones, and
    others (image_token) that a chat template may read."""
    more = config.get("extra_special_tokens")
    given = (config | more) if isinstance(more, dict) else config
    return {
        name: text_of(value, name)
        for name, value in given.items()
        if value is not None
        and (name in NAMED or (name.endswith("_token") and isinstance(value, (str, dict))))
        and name not in ("bos_token", "eos_token")
    }


def named_specials(config: dict[str, Any]) -> list[str]:
    """The tokens that the file names as special, beyond bos_token and eos_token."""
    found = list(named_tokens(config).values())
    for name in LISTED:
        listed = config.get(name) or []
        if not isinstance(listed, (list, dict)):
            raise ValueError(f"{name}={shown(listed)}: expected a list of tokens")
        texts = listed.values() if isinstance(listed, dict) else listed
        found += [text_of(token, name) for token in texts]
    return list(dict.fromkeys(found))


def config_added_tokens(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens that the file lists, as entries of tokenizer.json."""
    added = config.get("added_tokens_decoder") or {}
    return [
        {"content": text_of(entry, "added_tokens_decoder"), "id": int(id)}
        | (entry if isinstance(entry, dict) else {})
        for id, entry in added.items()
    ]


# --- added_tokens ---


def added_token_entries(
    special: dict[str, int], added: dict[str, int], normalized: Collection[str]
) -> list[dict[str, Any]]:
    """added_tokens of tokenizer.json."""
    entries: list[dict[str, Any]] = []
    for tokens in (special, added):
        for text, id in tokens.items():
            own = {"normalized": text in normalized, "special": tokens is special}
            entries.append({"id": id, "content": text} | TOKEN_FLAGS | own)
    return sorted(entries, key=lambda entry: entry["id"])


def split_added_tokens(
    entries: list[dict[str, Any]],
) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """The special ones, and those that are found in any text; and which of both are looked for in
    text that a normalizer has changed."""
    special: dict[str, int] = {}
    added: dict[str, int] = {}
    normalized = {entry["content"] for entry in entries if entry.get("normalized")}
    for entry in entries:
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag):
                token = shown(entry["content"])
                raise ValueError(f"{flag} of the added token {token} is not supported")
        kind = special if entry.get("special", True) else added
        kind[entry["content"]] = entry["id"]
    return special, added, normalized


def text_of(value: Any, name: str, key: str = "content") -> str:
    """A text, or an entry's text: the file may have either."""
    text = value.get(key) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"{name}={shown(value)}: expected a text, or an entry with {shown(key)}")
    return text
