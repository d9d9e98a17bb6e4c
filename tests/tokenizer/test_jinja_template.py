"""Chat templates that are programs: rendered as transformers renders them, and nobody but the
template marks a turn."""

import importlib.util
import json
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import refused, talk
from tokenizer.chat_formats import TEXT, message

from numgpt import Tokenizer
from numgpt.tokenizer import load_tokenizer
from numgpt.tokenizer.chat_template import ChatTemplate

pytest.importorskip("jinja2")


def each(turn: str) -> str:
    """For each message, this."""
    return "{%- for message in messages %}" + turn + "{% endfor %}"


def begun(text: str) -> str:
    """Where an answer is asked for, this."""
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


IM = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
ROLE = "<|im_start|>{{ message.role }}\n"
# What published templates do, each in a few words of its own.
TEMPLATES = {
    "thinking in the prompt": each(IM) + begun("<|im_start|>assistant\n<think>\n"),
    "another prompt": each(IM) + begun("<|im_start|>model\n"),
    "a system prompt of its own": "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    "You're kind.<|im_end|>\n{% endif %}" + each(IM),
    "trimmed": each(ROLE + "{{ message.content | trim }}<|im_end|>{{ '\\n' }}"),
    "stripped": each(
        "{% set said = message.content.strip() %}"
        "<|im_start|>{{ message.role ~ '\n' ~ said ~ '<|im_end|>' }}"
    ),
    "roles renamed": each(
        "{% set who = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + who + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    )
    + begun("{{ '<start_of_turn>model\n' }}"),
    "the system in the first question": "{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}"
    + each(ROLE + "{{ (first if loop.first else '') + message.content }}<|im_end|>"),
    "the text's end after an answer": "{{ bos_token }}"
    + each(
        "{% if message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}{% else %}"
        "{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}"
    ),
    "no line's end": each(
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}"
    )
    + begun("{{ '<|im_start|>assistant' }}"),
    "a date": "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + each(IM),
    "a macro": "{% macro turn(who, what) %}<|im_start|>{{ who }}\n{{ what }}<|im_end|>\n"
    "{% endmacro %}" + each("{{ turn(message.role, message['content']) }}"),
    "a block that is set": each(
        "{% set text %}" + ROLE + "{{ message.content }}{% endset %}{{ text }}<|im_end|>"
    ),
    "a namespace": "{% set ns = namespace(text='') %}"
    + each(
        "{% set ns.text = ns.text + '<|im_start|>' + message.role + '\n' + message.content"
        " + '<|im_end|>' %}"
    )
    + "{{ ns.text }}",
    "joined": "{{ messages | map(attribute='content') | join('<|im_end|>') }}",
    "joined by a method": "{{ '<|im_end|>'.join([messages[0].content, messages[-1].content]) }}",
    "cut at a mark": each(
        ROLE + "{{ message.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    ),
    "replaced": each("<|im_start|>{{ message.content.replace('b', '(b)') | upper }}<|im_end|>"),
    "formatted": each(
        "{{ '<|im_start|>%s\n%s<|im_end|>' % (message.role, message.content) }}"
        "{{ '{}<|im_end|>'.format(message.content) }}"
        "{{ '<|im_start|>%s' | format(message.content) }}"
    ),
    "as JSON": each("<|im_start|>{{ message | tojson }}<|im_end|>")
    + "{{ messages | tojson(indent=2) }}",
    "in a list": each(
        "<|im_start|>{{ [message.content] | first }}<|im_end|>"
        "{{ message.content[:3] ~ message.content[3:] }}"
    ),
    "letter by letter": each(
        "<|im_start|>{% for c in message.content %}{{ c }}{% endfor %}<|im_end|>"
    ),
    "only the last": "<|im_start|>{% for message in messages %}{% if not loop.last %}"
    "{% continue %}{% endif %}{{ message.content }}{% break %}{% endfor %}<|im_end|>",
    "what is to be learnt": each(
        "{% if message.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
        "{{ message.content }}<|im_end|>{% endgeneration %}{% else %}"
        + ROLE
        + "{{ message.content }}<|im_end|>{% endif %}\n"
    ),
}
SPECIAL = ("<s>", "</s>", "<|im_end|>")
ADDED = ("<|im_start|>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<tool_call>")


def tokenizer_of(template: str, special=SPECIAL, added=ADDED) -> Tokenizer:
    """A tokenizer with these tokens and this template."""
    small = Tokenizer.train([TEXT * 5], 300, special_tokens=special)
    first = small.vocab_size
    return Tokenizer(
        small.vocabulary,
        small.merges,
        small.special_tokens,
        added_tokens={token: first + n for n, token in enumerate(added)},
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
    )


def tokens_of(template: str) -> dict[str, tuple[str, ...]]:
    """The tokens that a published template writes, some of them special, the others not."""
    found = sorted(set(re.findall(r"<[|｜][^|｜<>\s']{1,40}[|｜]>|</?[a-z_]{3,20}>", template)))
    special = tuple(t for t in found[1::2] if t.startswith(("<|", "<｜")))
    return {
        "special": ("<s>", "</s>", *special),
        "added": tuple(token for token in found if token not in special),
    }


def published() -> dict[str, str]:
    """The templates that come with trl, where that is installed."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    paths = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


PUBLISHED = published()
TALK = talk(" Hi there,\nhow are you? ", "Fine.\n", "Count: 1, 2")
THOUGHT = talk("Hi", "<think>\nhm\n</think>\n\nHello!", "Bye", system="Be kind. ")
CALL = {"name": "get", "arguments": {"city": 'Köln "x"', "n": 1}}
CALLED = [
    message("user", "Weather?"),
    message("assistant", "")
    | {"tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": CALL}]},
    message("tool", '{"t": 3}') | {"name": "get", "tool_call_id": "a1b2c3d4e"},
    message("assistant", "It is 3."),
]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get", "description": "Gets", "parameters": CITY}}
]
TALKS = {
    "parts": ([m | {"content": [{"type": "text", "text": m["content"]}]} for m in TALK], {}),
    "talk": (TALK, {}),
    "thought": (THOUGHT, {"enable_thinking": False}),
    "answered": (TALK[:2], {}),
    "called": (CALLED, {"tools": TOOLS}),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By its template: our tokenizer and transformers', from the same files."""
    import transformers

    made = {}

    def pair(template: str):
        if template not in made:
            directory = tmp_path_factory.mktemp("template")
            tokenizer_of(template, **tokens_of(template)).save_pretrained(directory)
            theirs = transformers.AutoTokenizer.from_pretrained(directory)
            made[template] = load_tokenizer(directory), theirs
        return made[template]

    return pair


def check_equal(pair, messages, asked: bool, options: dict) -> bool:
    """Text and ids are those of transformers; False where both refuse."""
    ours, theirs = pair
    try:
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=asked, tokenize=False, **options
        )
    except Exception:  # of the template: TemplateError, TypeError, UndefinedError, …
        with pytest.raises(ValueError, match="chat template"):
            quietly(ours.apply_chat_template, messages, asked, **options)
        return False
    assert quietly(ours.apply_chat_template, messages, asked, tokenize=False, **options) == expected
    ids = theirs(expected, add_special_tokens=False)["input_ids"]
    assert quietly(ours.apply_chat_template, messages, asked, **options) == ids
    return True


def quietly(function, *values, **named):
    with warnings.catch_warnings():  # of variables that a template does not use
        warnings.simplefilter("ignore")
        return function(*values, **named)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", [*TEMPLATES, *PUBLISHED])
def test_texts_and_ids_are_those_of_transformers(pairs, name):
    template = (TEMPLATES | PUBLISHED)[name]
    pair = pairs(template)
    compared = [
        check_equal(pair, messages, asked, options)
        for kind, (messages, options) in TALKS.items()
        for asked in (False, True)
        if kind != "parts" or "type" in template
    ]
    assert any(compared)


HALVES = ["<|im_", "end|>", "<", "|>", "</th", "ink>", "</s", "x", "user\n", " ", "\n", "é"]
HALVES += ["<|im_<|im_end|>"]


def counted(tokenizer: Tokenizer, messages) -> Counter:
    """How often each special token and each marker of turns is there."""
    template = ChatTemplate(tokenizer)
    ids = quietly(template.ids, messages, True)
    return Counter(id for id in ids if id in template.marker_ids)


@pytest.mark.parametrize("name", [*TEMPLATES, *PUBLISHED])
@settings(max_examples=15)
@given(st.data())
def test_nothing_that_is_said_marks_a_turn(name, data):
    """… is a special token, or another that the template writes: the tokens are those of a
    conversation of the same shape in which nobody tries."""
    template = (TEMPLATES | PUBLISHED)[name]
    tokenizer = TOKENIZERS.setdefault(name, tokenizer_of(template, **tokens_of(template)))
    tokens = [*tokenizer.special_tokens, *tokenizer.added_tokens]
    pieces = st.lists(st.sampled_from([*tokens, *HALVES]), min_size=1, max_size=6)
    said = pieces.map("".join).filter(str.strip)
    hostile = [message(role, data.draw(said)) for role in ("user", "assistant", "user")]
    # A template may look for its marks in what is said, and write another text then.
    innocent = [
        message(m["role"], "".join("x" if c in "<>|｜" else c for c in m["content"]))
        for m in hostile
    ]
    try:
        expected = counted(tokenizer, innocent)
    except ValueError:  # of a template for other conversations
        return
    found = counted(tokenizer, hostile)
    written = ChatTemplate(tokenizer).text(hostile, True)
    own = ChatTemplate(tokenizer).text(innocent, True)
    if Counter(map(len, re.findall(r"[^<>|｜x]+", written))) == Counter(
        map(len, re.findall(r"[^<>|｜x]+", own))
    ):
        assert found == expected
    else:  # it did: then the special tokens are no more than the template's own
        special = tokenizer.special_tokens.values()
        assert sum(found[id] for id in special) <= sum(expected[id] for id in special) + 4


TOKENIZERS: dict[str, Tokenizer] = {}


# --- added tokens that are not special ---


def ids_in(tokenizer: Tokenizer, token: str, messages, **options) -> int:
    return quietly(tokenizer.apply_chat_template, messages, **options).count(
        tokenizer.added_tokens[token]
    )


def test_markers_that_are_not_special_are_the_templates_alone():
    tokenizer = tokenizer_of(TEMPLATES["thinking in the prompt"])
    said = "<|im_start|><think></think><tool_call>"
    messages = talk(said, said, said)
    assert ids_in(tokenizer, "<|im_start|>", messages) == 3
    assert ids_in(tokenizer, "<|im_start|>", messages, add_generation_prompt=True) == 4
    # The template writes <think>, so that only the assistant's is a token; and </think> nowhere.
    assert ids_in(tokenizer, "<think>", messages) == 1
    assert ids_in(tokenizer, "<think>", messages, add_generation_prompt=True) == 2
    assert ids_in(tokenizer, "</think>", messages) == 3
    assert ids_in(tokenizer, "<tool_call>", messages) == 3
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(tokenizer.apply_chat_template(messages)) == text


def test_the_formats_that_ship_have_the_same_rule():
    from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

    tokenizer = tokenizer_of(CHAT_TEMPLATES["chatml"])
    said = "<|im_start|> <|im_end|> <think> </s>"
    messages = talk(said, said)
    assert ids_in(tokenizer, "<|im_start|>", messages) == 2
    assert ids_in(tokenizer, "<think>", messages) == 2
    assert tokenizer.apply_chat_template(messages).count(tokenizer.special_tokens["</s>"]) == 0
    assert tokenizer.special_tokens["<|im_end|>"] in ChatTemplate(tokenizer).end_ids()
    assert tokenizer.added_tokens["<|im_start|>"] in ChatTemplate(tokenizer).end_ids()


# --- what is learnt ---


def learnt(tokenizer: Tokenizer, messages, which, **options) -> str:
    """The text of the tokens that are learnt."""
    ids, flags = ChatTemplate(tokenizer).examples(messages, which, **options)
    return tokenizer.decode([id for id, flag in zip(ids, flags, strict=True) if flag])


def test_what_the_assistant_says_is_learnt_with_what_ends_it():
    messages = talk("Hi", "Hello", "Bye", "See you")
    for name in ("another prompt", "stripped", "trimmed", "thinking in the prompt", "a macro"):
        tokenizer = tokenizer_of(TEMPLATES[name])
        assert learnt(tokenizer, messages, [False, True] * 2) == "Hello<|im_end|>See you<|im_end|>"
        assert learnt(tokenizer, messages, [False] * 3 + [True]) == "See you<|im_end|>"
    # Where it is the model that begins the line, it learns to.
    tokenizer = tokenizer_of(TEMPLATES["no line's end"])
    assert learnt(tokenizer, messages, [False, True] * 2) == "\nHello<|im_end|>\nSee you<|im_end|>"
    tokenizer = tokenizer_of(TEMPLATES["the text's end after an answer"])
    assert learnt(tokenizer, messages, [False, True] * 2) == " Hello</s> See you</s>"
    # The whole is the prompt, and what the model is to go on with.
    ids, flags = ChatTemplate(tokenizer).examples(messages, [False, True] * 2)
    prompt = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt
    assert (flags[len(prompt) - 1], flags[len(prompt)]) == (False, True)


def test_a_token_that_reaches_over_the_border_is_learnt_if_its_end_is():
    tokenizer = Tokenizer.train(["user: Hi.assistant: Hi.Hi. " * 9], 280)
    tokenizer.chat_template = each("{{ message.role + ': ' + message.content + '.' }}")
    messages = talk("Hi", "Hi")
    ids, flags = ChatTemplate(tokenizer).examples(messages, [False, True])
    pieces = [tokenizer.decode([id]) for id in ids]
    reaching = [n for n, piece in enumerate(pieces) if piece != "Hi" and piece.endswith("Hi")]
    assert reaching  # else this shows nothing
    assert flags[reaching[-1]]
    assert ids[:-1] == tokenizer.encode("user: Hi.assistant: Hi.")  # one text, and the end of it


def test_generation_marks_what_is_learnt():
    tokenizer = tokenizer_of(TEMPLATES["what is to be learnt"])
    messages = [message("user", "Hi"), message("assistant", "Hello"), message("assistant", "Bye")]
    assert learnt(tokenizer, messages, [False, True, True]) == "Hello<|im_end|>Bye<|im_end|>"
    assert learnt(tokenizer, messages, [False, False, True]) == "Bye<|im_end|>"


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("_training")])
def test_what_generation_marks_is_what_transformers_masks(pairs, name):
    ours, theirs = pairs(PUBLISHED[name])
    messages = [*TALK, message("assistant", "Done <x>.")]
    if "['type']" in PUBLISHED[name]:
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    try:
        expected = theirs.apply_chat_template(messages, **options)
    except Exception:
        pytest.skip("transformers renders no mask for it")
    ids, flags = ChatTemplate(ours).examples(messages, [m["role"] == "assistant" for m in messages])
    mask = expected["assistant_masks"]
    if ids != expected["input_ids"]:  # where no token ends a turn, the text's end is ours
        assert ids[:-1] == expected["input_ids"]
        flags = flags[:-1]
    # Theirs takes in a token that reaches out of the block at its end; ours, one at its beginning.
    different = [n for n, (a, b) in enumerate(zip(flags, mask, strict=True)) if a != bool(b)]
    assert len(different) <= 2 * sum(m["role"] == "assistant" for m in messages)
    inside = [n for n in range(1, len(mask) - 1) if mask[n - 1] == mask[n] == mask[n + 1]]
    assert not set(inside) & set(different)


def test_tools_are_learnt_as_they_are_called():
    calls = "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}"
    turn = ROLE + "{{ message.content }}" + calls + "{% endfor %}<|im_end|>"
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}"
    tokenizer = tokenizer_of(tools + each(turn) + begun("<|im_start|>assistant\n"))
    said = learnt(tokenizer, CALLED, [False, True, False, False], tools=TOOLS)
    assert said == f"<tool_call>{json.dumps(CALL, ensure_ascii=False)}<|im_end|>"
    other = tokenizer_of(TEMPLATES["trimmed"])
    with pytest.raises(ValueError, match="no place for tools"):
        ChatTemplate(other).examples(CALLED, [True] * 4, tools=TOOLS)


# --- variables, and what a template says ---


def test_variables_are_the_templates():
    tokenizer = tokenizer_of(
        "{{ messages[0].content }}{% if thinks is false %} no{% endif %}{{ x }}"
    )
    messages = talk("Hi")
    text = tokenizer.apply_chat_template(messages, tokenize=False, thinks=False, x="</s>")
    assert text == "Hi no</s>"
    ids = tokenizer.apply_chat_template(messages, x="</s>")
    assert tokenizer.special_tokens["</s>"] not in ids  # nor is a variable ever a marker
    with pytest.warns(UserWarning, match="does not use documents, other"):
        tokenizer.apply_chat_template(messages, other=1, documents=[{"text": "a"}])
    with pytest.raises(ValueError, match="expected texts, numbers"):
        tokenizer.apply_chat_template(messages, x=object())


def test_numbers_that_people_write_are_texts():
    tokenizer = tokenizer_of("{{ messages[0].content.strip() | trim }}{{ 1700000000 | string }}")
    messages = talk("call 99999999999 ")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "call 999999999991700000000"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ raise_exception('No, ' + messages[0].role) }}", "says: No, user"),
        ("{{ nothing + 'a' }}", "'nothing' is undefined"),
        ("{{ messages[9].content.x }}", "says: "),
        ("{{ messages[0].content + 1 }}", "fails here: "),
        ("{{ 1 / 0 }}", "fails here: "),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'a' * 99999999999 }}", "too much"),
        ("{{ 9 ** 99999999 }}", "too much"),
        ("{{ 'x'|center(30000000) }}", "too much"),
        ("{{ 'x'|center(width=30000000) }}", "too much"),
        ("{{ 'a\nb'|indent(width=30000000) }}", "too much"),
        ("{{ '%30000000d'|format(1) }}", "too much"),
        ("{{ [1]|tojson(indent=30000000) }}", "too much"),
        ("{{ 'x'.ljust(30000000) }}", "too much"),
        ("{{ '%999999999d' % 1 }}", "too much"),
        ("{{ '{:>999999999}'.format(1) }}", "too much"),
        (
            "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}"
            "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "time or memory",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "too much",
        ),
        ("{% break %}", "no program in Jinja"),
        ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "no program in Jinja"),
        ("{{ messages[0].content|truncate(1) }}", "fails here"),
        ("{% set x = 1e999 %}{{ x }}", "no program|fails here"),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "too much"),
        ("{% for a in range(999999999) %}{% endfor %}", "fails here|says"),
        ("{% include 'a' %}", "says|fails"),
        ("{{ messages[0].content.origin }}", "can't be followed|fails here|says"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(template, expected):
    tokenizer = tokenizer_of(template)
    refused(lambda: tokenizer.apply_chat_template(talk("Hi")), expected)


def test_what_can_not_be_followed_is_refused_where_it_matters():
    """Turned round letter by letter, a text may still be read, but it marks nothing."""
    backwards = "{{ messages[0].content | reverse | join }}"
    messages = talk("Hi")
    assert tokenizer_of(backwards).apply_chat_template(messages, tokenize=False) == "iH"
    centred = "{{ ('<|im_start|>' + messages[0].content) | center(40) }}"
    with pytest.raises(ValueError, match="a way that can't be followed"):
        tokenizer_of(centred).apply_chat_template(messages)
    unmarked = tokenizer_of("{{ messages[0].content | center(40) }}")
    assert "Hi" in unmarked.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    "expression",
    [
        *("c.encode().decode()", "c|e", "c|safe", "c|center(99)", "c|indent(2)", "c|string"),
        *("c|list|join", "[c]|string", "{'a': c}|string", "messages|string", "c|pprint"),
        *("messages[0].items()|list|string", "messages[0].values()|join(',')", "(c, c)|join"),
        *("c.zfill(99)", "c.format()", "'{}'.format(c)", "'{x}'.format_map({'x': c})"),
        *("'%s' % c", "'%(a)s' % {'a': c}", "c ~ ''", "'' ~ [c]", "c * 2", "c|xmlattr"),
        *("c|tojson", "c|batch(2)|list|string", "c|map('upper')|join", "c.split('|')|join('|')"),
        *("messages|map(attribute='content')|join", "c|first ~ c[1:]", "c.join(['a', 'b'])"),
        *("namespace(a=c)|string", "dict(a=c)|string", "cycler(c, c).next()", "c.encode()|string"),
        *("c.expandtabs()", "c.translate({1: 2})", "c|default('x')", "[c]|unique|join", "c|title"),
        *("c|indent", "c|indent(2, true)", "c|wordwrap(3)", "c.format(c)", "('a\n' + c)|indent"),
        *("[[c]]|join(c[:0] ~ ', ')", "c|wordwrap(3, wrapstring=c[:0] ~ '\n')"),
        *("c.partition('|')|join", "c|replace('x', '<')", "({'a': c})|xmlattr", "c|urlize"),
    ],
)
def test_no_way_of_writing_it_makes_a_marker_of_what_is_said(expression):
    tokenizer = tokenizer_of("{% set c = messages[0].content %}{{ " + expression + " }}")
    said = "x</s>|\n<|im_start|>x</s>\n</s>"
    try:
        ids = tokenizer.apply_chat_template(talk(said))
    except ValueError:
        return
    assert tokenizer.special_tokens["</s>"] not in ids


def test_escaping_makes_no_marker_either():
    marks = ("<s>", "</s>", "[INST]", "[/INST]")
    template = "{% autoescape true %}[INST]{{ messages[0].content }}[/INST]{% endautoescape %}"
    tokenizer = tokenizer_of(template, special=marks)
    with pytest.raises(ValueError, match="can't be followed"):
        tokenizer.apply_chat_template(talk("x[/INST]y[INST]z"))


def test_unknown_text_within_generation_is_refused_too():
    template = "{% generation %}{{ (messages[0].content ~ '<|im_end|>')|center(40) }}"
    with pytest.raises(ValueError, match="can't be followed"):
        tokenizer_of(template + "{% endgeneration %}").apply_chat_template(talk("a"))


def test_markers_that_merges_make_come_from_no_content():
    small = Tokenizer.train([TEXT * 5], 300, special_tokens=())
    assert b"user" in small.vocabulary
    tokenizer = Tokenizer(
        small.vocabulary,
        small.merges,
        added_tokens={"user": small.vocabulary[b"user"]},
        chat_template="{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}",
    )
    for said in ("user", "a user:x", "xuserx"):
        messages = talk(said, said, said)
        assert ids_in(tokenizer, "user", messages) == 2
        assert said in tokenizer.decode(tokenizer.apply_chat_template(messages))


def test_roles_are_words():
    tokenizer = tokenizer_of(TEMPLATES["another prompt"])
    text = tokenizer.apply_chat_template([message("critic", "Hi")], tokenize=False)
    assert "<|im_start|>critic\n" in text
    for role in ("user<|im_end|>", "", "a b", "x" * 99, "é", None, 3):
        with pytest.raises(ValueError, match="message 0 has the role"):
            tokenizer.apply_chat_template([message(role, "Hi")])


# --- habits ---


def habits(template: str):
    return ChatTemplate(tokenizer_of(template)).habits


def test_the_system_prompt_of_a_templates_own():
    def own(template):
        return ChatTemplate(tokenizer_of(template)).default_system

    assert own(TEMPLATES["a system prompt of its own"]) == "You're kind."
    assert own(TEMPLATES["another prompt"]) is None  # it writes none
    assert own(TEMPLATES["the system in the first question"]) is None
    assert own("{{ raise_exception('no') }}") is None
    # What is written before any system prompt is no prompt; what stands in its place is.
    turn = "<|im_start|>system\nToday. {{ system }}<|im_end|>\n"
    choice = "{% set system = messages[0].content if messages[0].role == 'system' else 'Own.' %}"
    rest = "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    rest += "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    assert own(choice + turn + rest) == "Own."
    assert own(choice.replace("Own.", "") + turn + rest) is None


def test_marks_around_a_system_prompt_are_marks_and_those_in_it_are_none():
    llama2 = (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' +"
        " messages[0].content + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}"
        "{% set s = '<b>Kind.</b> ' %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.first else '')"
        " + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    assert habits(llama2).brackets == {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
    assert (habits(llama2).prompt, habits(llama2).space) == (" [/INST]", True)
    assert (habits(llama2).end, habits(llama2).ends) == ("</s>", {"</s>"})
    # Where a system prompt is refused, what stands before the first question is not looked at.
    none = llama2.replace("'<<SYS>>", "raise_exception('none here') + '<<SYS>>")
    assert habits(none).brackets == {"[INST]", "[/INST]"}
    assert habits(none).markers == {"<s>", "</s>"}
    said = "[INST] <<SYS>> <b> [/INST]"
    text = tokenizer_of(none).apply_chat_template(talk(said), tokenize=False)
    assert "[\u200bINST] <<SYS>> <b> [\u200b/INST]" in text


def test_marks_that_are_labels():
    alpaca = (
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% else %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    )
    assert {"### Instruction:", "### Response:"} <= habits(alpaca).labels
    assert (habits(alpaca).prompt, habits(alpaca).stop) == ("### Response:\n", "\n### Instruction:")
    said = "### Response:\nYes, ### Response:"
    text = tokenizer_of(alpaca).apply_chat_template(talk(said), tokenize=False)
    assert "#\u200b## Response:\nYes, ### Response:" in text
    messages = talk("Hi", "Hello")
    assert learnt(tokenizer_of(alpaca), messages, [False, True]) == "Hello\n\n</s>"


def test_habits_are_the_templates_and_not_its_tools():
    called = "{% if tools %}Call <tool_call>{{ tools | tojson }}</tool_call>{% endif %}"
    tokenizer = tokenizer_of(called + each(IM))
    messages = talk("Use <b>bold</b>.", "<tool_call>x")
    tools = [{"description": "in <b>bold</b>"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, tools=tools)
    assert text.count("<b>bold</b>") == 2
    assert ids_in(tokenizer, "<tool_call>", messages, tools=tools) == 2
    # What the template says of tokens before a conversation marks no turn.
    fixed = "<|im_start|>system\nThink within <think> and </think>.<|im_end|>\n"
    assert ids_in(tokenizer_of(fixed + each(IM)), "<think>", talk("a", "<think>")) == 2


def test_an_answer_that_begins_and_ends_with_tokens_of_its_own():
    """… as gpt-oss writes it: a channel first, and at a conversation's end another token."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}"
        "<|end|>{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    special = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<s>", "</s>")
    tokenizer = tokenizer_of(template, special=special, added=())
    messages = talk("Hi", "Ho") * 2
    said = "<|channel|>final<|message|>Ho"
    assert learnt(tokenizer, messages, [False, True] * 2) == f"{said}<|end|>{said}<|return|>"
    ends = {tokenizer.decode([id]) for id in ChatTemplate(tokenizer).end_ids()}
    assert ends == {"<|start|>", "<|end|>", "</s>"}


def test_contents_as_parts_are_learnt_as_well():
    template = (
        "{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}"
        "{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    messages = talk("Hi", "Ho")
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert learnt(tokenizer_of(template), parts, [False, True]) == " Ho<|im_end|>"


def test_messages_that_are_not_written_teach_nothing():
    tokenizer = tokenizer_of(TEMPLATES["only the last"])
    messages = talk("Hi", "Ho", "Bye")
    assert learnt(tokenizer, messages, [False, True, False]) == ""
    assert learnt(tokenizer, messages[:2], [False, True]) == "Ho</s>"
    # Two answers one after another, with nothing between them.
    bare = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    both = [message("assistant", "ab"), message("assistant", "cd")]
    assert learnt(bare, both, [True, False]) == "ab"
    assert learnt(bare, both, [False, True]) == "cd</s>"


@pytest.mark.live("transformers", "torch")
@pytest.mark.parametrize("layout", ["config", "files"])
def test_a_template_for_tools_is_used_with_tools(layout, tmp_path):
    import transformers

    default = "{{ messages[0].content }}!"
    with_tools = "{{ tools | tojson }}{{ messages[0].content }}"
    tokenizer_of(default).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    if layout == "config":
        named = {"default": default, "tool_use": with_tools, "rag": "{{ documents }}"}
        config["chat_template"] = [{"name": n, "template": text} for n, text in named.items()]
    else:
        (tmp_path / "chat_template.jinja").write_text(default)
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(with_tools)
    path.write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    ours.save_pretrained(tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = talk("Hi")
    for options in ({}, {"tools": TOOLS}):
        expected = theirs.apply_chat_template(messages, tokenize=False, **options)
        for tokenizer in (ours, load_tokenizer(tmp_path / "again")):
            assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == expected


def test_a_sandbox_that_can_be_left_is_not_used(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.1.5")
    with pytest.raises(ValueError, match=r"jinja2 3\.1\.5 has a sandbox .* 'numgpt\[chat\]'"):
        tokenizer_of("{{ 1 }} of an older one").apply_chat_template(talk("Hi"))
