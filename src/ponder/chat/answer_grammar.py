"""Grammars for answers: JSON of a schema, any JSON, a regular expression, calls of offered tools, calls or JSON.

Each is text for `SamplingParams.grammar` and `Model.answer_grammar`, in llguidance's JSON form or its dialect of Lark,
with `@"text"` for a text that is one token where the model has one.
What they let through is valid, and narrower than what would be valid where more room only lets a small model get lost:
objects have the properties that their schema names, in that order, and JSON stands on one line, without white space or
with a space after commas and colons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ponder.chat.formats import ThinkingFormat
from ponder.errors import InputError

Style = Literal["hermes", "granite", "llama", "mistral", "mistral-named", "harmony"]
"""How a model writes a call. Gemma's own notation is no JSON: it writes as Hermes does, which is read as well."""

MOST_CALLS = 8
"""Calls in one reply, where several may come."""

_CALLS = "// calls of tools\n"
_EITHER = f"{_CALLS}// or JSON\n"
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_COMBINED = ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas")
_DEFINITIONS = ("$defs", "definitions")
_NAMING = ("additionalProperties", "unevaluatedProperties", "patternProperties")


def json_schema(schema: Mapping[str, Any]) -> str:
    """JSON that `schema` validates. Raises InputError for what is no schema; `check` tells what is not supported."""
    return json.dumps({"grammars": [{"json_schema": _with_options(schema)}]})


def any_json() -> str:
    """Any JSON object, as "JSON mode" means it."""
    return json_schema({"type": "object"})


def regular(pattern: str) -> str:
    """Text that `pattern` matches from its beginning to its end, in the syntax of Rust's regex crate."""
    whole = pattern.removeprefix("^")
    if whole.endswith("$") and (len(whole) - len(whole[:-1].rstrip("\\"))) % 2 == 1:
        whole = whole[:-1]
    return f"start: /{_slashed(whole)}/"


def _slashed(pattern: str) -> str:
    """A pattern as it stands between slashes, on one line."""
    spelled = re.sub(r"\\.|/", lambda m: "\\/" if m[0] == "/" else m[0], pattern, flags=re.DOTALL)
    return spelled.replace("\n", "\\n").replace("\r", "\\r") or "()"


def check(grammar: str) -> None:
    """Raises InputError, in one line, for what cannot be used as a grammar."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    plain = [line if "%json" in line else line.replace('@"', '"') for line in grammar.split("\n")]
    wrong, told = LLMatcher.validate_grammar_with_warnings("\n".join(plain), None, limits=limits)
    if wrong:
        first = told[0].strip().splitlines()[0][:300].rstrip(". ")
        raise InputError(f"the answer's grammar cannot be used: {first}", "leave out what is not supported")


def of_calls(grammar: str) -> bool:
    """Whether an answer under this grammar is, or may be, calls of tools, to be read as such."""
    return grammar.startswith(_CALLS)


# ---------------------------------------------------------------- what is around an answer and how it is read


def constrained(form: ThinkingFormat, grammar: str) -> ThinkingFormat:
    """The format of a model whose answer is bound: thinking surely begins, and leaves no word of the answer behind."""
    closing, skip = form.closing, form.skip
    if form.keep_close:
        closing = f"{closing}\n"
    if form.channels and of_calls(grammar):  # the call names its own channel
        closing, skip = "<|end|><|start|>assistant", ""
    start = form.start or (form.open and form.open + ("" if form.channels else "\n"))
    return replace(form, start=start, closing=closing, skip=skip, answer_opener="", keep_close=False)


def literal(form: ThinkingFormat, grammar: str) -> ThinkingFormat:
    """How a bound answer is read: no markers but those of calls, since a string of JSON may hold anything."""
    return replace(
        form,
        open="",
        opens=(),
        close="",
        closes=(),
        ends=(),
        answer_opener="",
        keep_close=False,
        channels=form.channels and of_calls(grammar),
        calls_first=grammar.startswith(_EITHER),
    )


# ---------------------------------------------------------------- calls of tools


def tool_call(style: Style, tools: Sequence[Mapping[str, Any]], name: str = "", parallel: bool = True) -> str:
    """Calls of `tools`, or of the one called `name` alone; `parallel` lets several come.

    Raises InputError for a name that is not offered, and where no tool is.
    """
    return _CALLS + "\n".join([f"start: {_reply(style, parallel)}", *_calls(style, tools, name)])


def call_or_json(
    style: Style, tools: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None = None, parallel: bool = True
) -> str:
    """Calls of `tools`, or else JSON: that `schema` validates, without one any object. Raises InputError.

    A call is marked even where the family writes it bare: JSON with a name and arguments may be what was asked for.
    """
    before = f"{_text('<|python_tag|>')} " if style == "llama" else ""
    header = f"{_text('<|channel|>')} {_text('final')} {_text('<|message|>')} " if style == "harmony" else ""
    rules = [
        "start: calls | answer",
        f"calls: {before}{_reply(style, parallel)}",
        f"answer: {header}document",
        f"document: %json {_json({'type': 'object'} if schema is None else schema)}",
        *_calls(style, tools),
    ]
    return _EITHER + "\n".join(rules)


def _calls(style: Style, tools: Sequence[Mapping[str, Any]], name: str = "") -> list[str]:
    """The rule `call`, and those that it needs."""
    offered = dict(_function(tool) for tool in tools)
    if name and name not in offered:
        raise InputError(f"no tool {name!r} is offered", f"choose from {', '.join(offered) or 'none'}")
    if not offered:
        raise InputError("a call is required and no tool is offered", "offer one")
    chosen = {name: offered[name]} if name else offered
    calls = " | ".join(f"call_{number}" for number in range(len(chosen)))
    rules = [f"call: {calls}"]
    for number, (each, schema) in enumerate(chosen.items()):
        rules += [f"call_{number}: {_call(style, each, number)}", f"args_{number}: %json {_json(schema)}"]
    return rules


def style_of(template: str, channels: bool = False) -> Style:
    """How a model with this chat template writes its calls."""
    if channels:
        return "harmony"
    if "[TOOL_CALLS]" in template:
        return "mistral-named" if "[ARGS]" in template else "mistral"
    if "<tool_call>" in template or "<|tool_call>" in template:
        return "hermes"
    if "<|tool_call|>" in template:
        return "granite"
    return "llama" if "<|python_tag|>" in template or "<|eot_id|>" in template else "hermes"


def _reply(style: Style, parallel: bool) -> str:
    """The rule of all calls."""
    if style == "harmony":
        return "call"  # a message is addressed to one tool
    before, call, between, after = {
        "hermes": ("", f"{_text('<tool_call>')} {_LINE} call {_LINE} {_text('</tool_call>')}", _LINE, ""),
        "granite": (f"{_text('<|tool_call|>')} {_text('[')}", "call", _text(", "), _text("]")),
        "mistral": (f"{_text('[TOOL_CALLS]')} {_text('[')}", "call", _text(", "), _text("]")),
        "mistral-named": ("", "call", "", ""),
        "llama": ("", "call", _text("; "), ""),
    }[style]
    more = f"({between} {call}){{0,{MOST_CALLS - 1}}}" if parallel else ""
    return " ".join(part for part in (before, call, more, after) if part)


def _call(style: Style, name: str, number: int) -> str:
    """The rule of a call of one tool."""
    if style == "harmony":
        named = (_text("<|channel|>"), _text(f"commentary to=functions.{name} "), _text("<|constrain|>"), _text("json"))
        return " ".join((*named, _text("<|message|>"), f"args_{number}"))
    if style == "mistral-named":
        return " ".join((_text("[TOOL_CALLS]"), _text(name), _text("[ARGS]"), f"args_{number}"))
    key = "parameters" if style == "llama" else "arguments"
    return " ".join((_text(f'{{"name": {json.dumps(name)}, "{key}": '), f"args_{number}", _text("}")))


_MARKER = re.compile(r"[<\[].+[>\]]")


def _text(text: str) -> str:
    """A terminal; markers are one token where the model has one."""
    return ("@" if _MARKER.fullmatch(text) else "") + json.dumps(text, ensure_ascii=False)


_LINE = _text("\n")


def _function(tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and schema of a tool, as OpenAI writes them, as Anthropic does, or bare."""
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]+", name):
        raise InputError(f"a tool is called {name!r}", "give it a name of letters, digits, _ and -")
    schema = inner.get("parameters", inner.get("input_schema")) or {}
    if not isinstance(schema, Mapping):
        raise InputError(f"the tool {name!r} has no schema for its arguments", "give a JSON schema of an object")
    empty = {"properties": {}, "additionalProperties": False} if not schema else {}
    return name, {"type": "object", **empty, **schema}


def _json(schema: Mapping[str, Any]) -> str:
    return json.dumps(_with_options(schema))


# ---------------------------------------------------------------- schemas


def _with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise InputError(f"a schema must be an object, not {type(schema).__name__}", 'such as {"type": "object"}')
    closed = _closed(schema)
    if '"allOf"' not in json.dumps(schema):  # which may add properties to those of a definition
        definitions = {key: schema[key] for key in _DEFINITIONS if isinstance(schema.get(key), Mapping)}
        closed |= {key: {name: _closed(each) for name, each in found.items()} for key, found in definitions.items()}
    return {**closed, "x-guidance": _OPTIONS}


def _closed(schema: Any) -> Any:
    """The schema with objects that have no properties but those named, where it does not speak of others itself.

    What stands below a combination of schemas is left as it is: there, others may name more.
    """
    if not isinstance(schema, Mapping):
        return schema
    closed, properties = dict(schema), schema.get("properties")
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if not isinstance(properties, Mapping):
        if isinstance(schema.get("anyOf"), list) and properties is None:
            closed["anyOf"] = [_closed(each) for each in schema["anyOf"]]
        return closed
    if not any(key in schema for key in _COMBINED):
        closed["properties"] = {name: _closed(each) for name, each in properties.items()}
        required = schema.get("required") or []
        whole = isinstance(required, list) and all(each in properties for each in map(str, required))
        whole = whole and not schema.get("minProperties")
        if whole and not any(key in schema for key in _NAMING):
            closed["additionalProperties"] = False
    return closed
