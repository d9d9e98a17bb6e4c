"""Chat templates as published models have them: programs in Jinja, rendered in jinja2's sandbox.

What such a program may call is what transformers gives it: raise_exception, strftime_now, tojson,
{% generation %}, {% break %} and {% continue %}. A conversation is rendered twice: as it is, and
with texts that know who wrote them (traced.py). Both must come out equal.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from numgpt.messages import one_line, shown
from numgpt.options import OptionError

try:
    import jinja2
    from jinja2 import ext, meta, nodes, runtime, sandbox
    from jinja2.compiler import CodeGenerator
except ImportError:
    raise OptionError(
        "the tokenizer's chat template is a program in Jinja, which jinja2 renders:"
        " pip install 'numgpt[chat]', or choose a format that ships ({chat_format})",
        chat_format="chatml",
    ) from None

from numgpt.tokenizer.traced import (
    GENERATED,
    OTHERS,
    TEMPLATE,
    Traced,
    as_traced,
    filtered,
    joined,
    of_message,
    through,
    to_json,
    traced,
)

OLDEST = (3, 1, 6)  # earlier sandboxes can be left
MOST_CHARACTERS, MOST_STEPS = 1 << 24, 1 << 20
# Fields that reasoning is given as, the one that templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class JinjaTemplate:
    """A program that writes conversations down."""

    name = "its template's"

    def __init__(self, source: str):
        """Raises ValueError where it is no Jinja."""
        version = importlib.metadata.version("jinja2")
        if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST:
            raise ValueError(
                f"jinja2 {version} has a sandbox that programs can leave:"
                " pip install 'numgpt[chat]' brings a newer one"
            )
        self.source = source
        try:
            self._plain = _PlainEnvironment().from_string(source)
            self._followed = _FollowingEnvironment().from_string(source)
            self.variables = meta.find_undeclared_variables(self._plain.environment.parse(source))
        except (RecursionError, MemoryError):
            raise ValueError("the chat template is too much of a program to compile") from None
        except Exception as error:  # of jinja2, or of Python, which compiles what it makes
            raise ValueError(
                f"the chat template is no program in Jinja ({one_line(error)})"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tokens: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> Traced:
        """The text of a conversation.  Raises ValueError with the template's own words where it
        refuses the conversation, and where it can't be followed."""
        said = [_for_templates(message) for message in messages]
        # (Roles are words that the template asks for, and names a turn by.)
        followed = [
            traced(message, of_message(number)) | {"role": message["role"]}
            for number, message in enumerate(said)
        ]
        usual: dict[str, Any] = {"tools": None, "documents": None} | dict(tokens)
        usual |= {"add_generation_prompt": add_generation_prompt}
        usual |= {"strftime_now": datetime.datetime.now().strftime}
        theirs = {name: traced(value, OTHERS) for name, value in variables.items()}
        try:
            limited = usual | {"range": _Ranges()} | theirs | {"messages": followed}
            text = as_traced(self._followed.render(limited))  # first what has limits
            plain = self._plain.render(usual | dict(variables) | {"messages": said})
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template says: {one_line(error)}") from None
        except (RecursionError, MemoryError):
            raise ValueError("the chat template takes more time or memory than it may") from None
        except Exception as error:  # a program from a stranger can fail in any way
            raise ValueError(f"the chat template fails here: {one_line(error)}") from None
        if text != plain:
            raise ValueError(
                "the chat template does what can't be followed: who wrote which of its characters"
            )
        return text


def _for_templates(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it over: without what is None; reasoning, under whatever name
    it came, as reasoning_content."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is not None:
        given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
    return given


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
    dumps: Callable[..., str] = json.dumps,
) -> str:
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "sort_keys": sort_keys}
    return dumps(value, separators=separators and tuple(separators), **options)


class _Generation(ext.Extension):
    """{% generation %} … {% endgeneration %}: what the model is to learn of a conversation."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generated"), [], [], body).set_lineno(line)

    def _generated(self, caller: Callable[[], str]) -> str:
        text = caller()
        if not isinstance(text, Traced):
            return text
        return Traced(text, "".join([chr(ord(origin) | GENERATED) for origin in text.origin]))


class _PlainEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, as transformers sets it up."""

    intercepted_binops = frozenset(("%", "*", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        self.globals["raise_exception"] = _raise_exception
        # (Filters of constants run as a template is compiled.)
        self.filters["tojson"] = _to_json
        self.filters = {name: _limited(filter) for name, filter in self.filters.items()}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """What takes the machine's memory, or its time, is refused."""
        numbers = [n for n in (left, right) if isinstance(n, int)]
        if operator == "*" and len(numbers) == 1:
            sequence = right if numbers[0] is left else left
            size = numbers[0] * len(sequence) if hasattr(sequence, "__len__") else 0
        elif operator == "**" and len(numbers) == 2:
            size = left.bit_length() * abs(right)
        else:
            size = 0
            _check_sizes((), left if operator == "%" else "")
        if size > MOST_CHARACTERS:
            raise jinja2.TemplateError(f"{shown(left)} {operator} {shown(right)} is too much")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *values: Any, **named: Any) -> Any:  # type: ignore[override]
        _check_call(function, values, named)
        return super().call(context, function, *values, **named)


def _check_call(function: Any, values: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raises TemplateError where a method of a text is told to make a huge one."""
    method = getattr(function, "__wrapped__", function)  # format, as the sandbox has it
    formats = getattr(method, "__name__", "") in ("format", "format_map")
    pattern = getattr(method, "__self__", "") if formats else ""
    if not isinstance(function, _Ranges):  # which have a limit of their own
        _check_sizes((*values, *named.values()), pattern)


def _check_sizes(values: Sequence[Any], pattern: Any = "") -> None:
    """Raises TemplateError for a large number, among values or as a width in a pattern."""
    widths = re.findall(r"\d{7,}", pattern) if isinstance(pattern, str) else ()
    sizes = [value for value in values if isinstance(value, int)] + list(map(int, widths))
    if max(sizes, default=0) > MOST_CHARACTERS:
        raise jinja2.TemplateError(f"{shown(max(sizes))} is too much")


class _Ranges:
    """range(…), with a limit on all of them together."""

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def __call__(self, *values: int) -> range:
        numbers = range(*values)
        self.left -= len(numbers)
        if self.left < 0:
            raise jinja2.TemplateError(f"range{values} is too much")
        return numbers


class _FollowingCode(CodeGenerator):
    """a ~ b of texts that are followed."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _FollowingEnvironment(_PlainEnvironment):
    """The sandbox for texts that know who wrote them."""

    code_generator_class = _FollowingCode
    concat = staticmethod(joined)  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.finalize = _written
        self.filters = {name: _following(filter) for name, filter in self.filters.items()}
        self.filters["tojson"] = _limited(functools.partial(_to_json, dumps=to_json))

    def joined(self, parts: Iterable[Any]) -> Traced:
        return joined([str(_written(part)) for part in parts])

    def call(self, context: Any, function: Any, *values: Any, **named: Any) -> Any:  # type: ignore[override]
        bound = getattr(function, "__wrapped__", function)  # format, as the sandbox has it
        owner = getattr(bound, "__self__", None)
        if type(owner) is str:  # a method of one of the template's own texts: ", ".join(…)
            owner = as_traced(owner)
            function = self.getattr(owner, bound.__name__)
        if isinstance(owner, Traced):  # (what its own methods return is followed)
            owner = "" if owner.origin == TEMPLATE * len(owner) else _OPAQUE
        _check_call(function, values, named)
        call = functools.partial(super().call, context)
        return through(lambda _, *v, **n: call(function, *v, **n), (owner, *values), named, _KNOWN)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return through(
            functools.partial(super().call_binop, context, operator), (left, right), known=_KNOWN
        )


_OPAQUE = object()
# What holds no text of people's, or hands it out as it is.
_KNOWN = (
    jinja2.Undefined,
    jinja2.Environment,
    nodes.EvalContext,
    runtime.Context,
    runtime.Macro,
    runtime.LoopContext,
    datetime.datetime,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    type,
)


def _limited(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is not told to make a huge text; what it is applied to may have any numbers."""
    given = 1 + hasattr(filter, "jinja_pass_arg")  # the context comes before it

    @functools.wraps(filter)
    def limited(*values: Any, **named: Any) -> Any:
        pattern = values[0] if getattr(filter, "__name__", "") == "do_format" else ""
        _check_sizes((*values[given:], *named.values()), pattern)
        return filter(*values, **named)

    return limited


def _following(filter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter)
    def followed(*values: Any, **named: Any) -> Any:
        return through(lambda *v, **n: filtered(filter, v, n), values, named, _KNOWN)

    return followed


def _written(value: Any) -> Any:
    """What is written where a value is no text: a list, say, with texts in it."""
    if isinstance(value, (str, int, float, jinja2.Undefined)) or value is None:
        return value
    return through(str, (value,), known=_KNOWN)
