"""Grammars for answers: what they let through is valid, and is read back as what it is."""

from __future__ import annotations

import contextlib
import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.answer_grammar import (
    MOST_CALLS,
    any_json,
    call_or_json,
    check,
    constrained,
    json_schema,
    literal,
    of_calls,
    regular,
    style_of,
    tool_call,
)
from ponder.chat.formats import FAMILIES
from ponder.chat.parse import Parser
from ponder.chat.tool_calls import parse_tool_calls
from ponder.engine._script import ByteTokenizer
from ponder.engine.constraint import Vocabulary
from ponder.errors import InputError

BYTES = ByteTokenizer(("<|channel|>", "<|message|>", "<tool_call>"))
GRAMMARS = Vocabulary(BYTES)
STYLES = ("hermes", "granite", "llama", "mistral", "mistral-named")
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 8},
                    "days": {"type": "integer", "maximum": 9, "minimum": 1},
                },
                "required": ["city"],
            },
        },
    },
    {"name": "x.add-1", "input_schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
    {"name": "now"},
)


def babble(grammar: str, seed: int, most: int = 3000) -> str:
    """A text that the grammar allows, by chance; it tends to its end."""
    chance, state = random.Random(seed), GRAMMARS.begin(grammar)
    said: list[int] = []
    while not state.complete and len(said) < most:
        options = [int(token) for token in state.allowed().nonzero()[0]]
        ends = [token for token in options if token in (256, *b'"]}')]
        token = chance.choice(ends if ends and chance.random() < 0.3 else options)
        if token == 256:
            break
        state.take(token)
        said.append(token)
    assert len(said) < most
    return BYTES.decode(said).decode()


def accepts(grammar: str, text: str) -> bool:
    try:
        return bool(GRAMMARS.begin(grammar, list(text.encode())).allowed()[256])
    except InputError:
        return False


# ---------------------------------------------------------------- JSON and regular expressions

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}},
    {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"const": 3}}, "required": ["b"]}}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "object", "properties": {"k": {"enum": ["x", "y"]}}, "required": ["k"]}},
    {"type": "string", "maxLength": 5, "minLength": 2},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": -5, "maximum": 17},
    {"type": "integer", "exclusiveMinimum": 0, "maximum": 1000},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", 3, None, True, ["x"], {"a": 1}]},
    {"const": {"a": [1, "</think>", "<|im_end|>", "é🤔"]}},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
    {"$ref": "#/$defs/t",
     "$defs": {"t": {"type": "object", "properties": {"v": {"type": "integer"}}, "required": ["v"]}}},
    {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["v", "next"],
    },
    {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/point"}, "q": {"type": "array", "items": {"$ref": "#/$defs/point"}}},
        "required": ["p", "q"],
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    },
    {"type": "object", "properties": {'"quoted"\\ \n é': {"type": "integer"}}, "required": ['"quoted"\\ \n é']},
    {"type": "object", "properties": {"a": {"type": "string", "description": "x", "title": "y"}}, "title": "z"},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_whatever_a_schema_lets_through_is_valid(schema: dict[str, Any]) -> None:
    grammar = json_schema(schema)
    check(grammar)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    said = {babble(grammar, seed) for seed in range(12)}
    for text in said:
        validator.validate(json.loads(text))
        assert "\n" not in text


SCALARS = st.sampled_from(
    [{"type": "string", "maxLength": 6}, {"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "é", None, 2.5]}]
)


def deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda properties, count, more: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:count],
            **more,
        },
        st.dictionaries(st.text('abé"\\ ', min_size=1, max_size=3), inner, max_size=3),
        st.integers(0, 3),
        st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]),
    )
    arrays = st.builds(
        lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)
    )
    return st.one_of(objects, arrays, st.builds(lambda *each: {"anyOf": list(each)}, inner, inner))


@settings(max_examples=60)
@given(st.recursive(SCALARS, deeper, max_leaves=6), st.integers(0, 99))
def test_any_schema(schema: dict[str, Any], seed: int) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(babble(json_schema(schema), seed)))


def test_objects_have_the_properties_that_are_named_unless_the_schema_speaks_of_others() -> None:
    named = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert not accepts(json_schema(named), '{"b": 1}')
    assert accepts(json_schema({**named, "additionalProperties": True}), '{"b": 1}')
    assert accepts(json_schema({**named, "required": ["b"]}), '{"b": 1}')
    assert accepts(json_schema({"type": "object"}), '{"b": 1}')
    inner = {"type": "object", "properties": {"o": named}}
    assert accepts(json_schema(inner), '{"o": {"a": 1}}')
    assert not accepts(json_schema(inner), '{"o": {"b": 1}}')
    assert not accepts(json_schema({"$ref": "#/$defs/o", "$defs": {"o": named}}), '{"b": 1}')
    both = {"allOf": [named, {"type": "object", "properties": {"b": {}}}]}
    assert accepts(json_schema(both), '{"a": 1, "b": 2}')


def test_json_stands_on_one_line() -> None:
    grammar = json_schema({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]})
    for text in (json.dumps({"a": [1, 2]}), '{"a":[1,2]}'):
        assert accepts(grammar, text)
    for text in ('{ "a": [] }', '{"a":  []}', '{"a": [1 , 2]}', '{\n"a": []}', '{"a": []} '):
        assert not accepts(grammar, text)


def test_the_schema_s_own_settings_of_the_compiler_are_ignored() -> None:
    own = {"type": "object", "properties": {"a": {}}, "required": ["a"], "x-guidance": {"whitespace_pattern": "x*"}}
    assert not accepts(json_schema(own), '{xx"a": 1}')


def test_any_json_is_an_object() -> None:
    for seed in range(20):
        assert isinstance(json.loads(babble(any_json(), seed)), dict)
    assert not accepts(any_json(), "[1]")


@pytest.mark.parametrize(
    "pattern", ["[0-9]{3}", "^a|b$", r"a/b\/c", r"x\$", "é+🤔", "a\nb", r"\w{1,3}( \d)?", "", r"(yes|no)\.", r"a\\$"]
)
def test_a_pattern_matches_from_beginning_to_end(pattern: str) -> None:
    check(regular(pattern))
    for seed in range(8):
        assert re.fullmatch(pattern.replace("\\/", "/"), babble(regular(pattern), seed))
    assert not accepts(regular("[0-9]{3}"), "1234")


@pytest.mark.parametrize(
    "schema", [{"not": {}}, {"type": "nothing"}, {"type": "string", "pattern": "(?=a)b"}, {"$ref": "#/x"}]
)
def test_what_is_not_supported_is_told_in_one_line(schema: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cannot be used") as raised:
        check(json_schema(schema))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("schema", [3, [], "x", None])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(InputError, match="schema must be an object"):
        json_schema(schema)


@pytest.mark.parametrize(
    "schema", [{"properties": 3}, {"required": 3, "properties": {"a": 3}}, {"$defs": [1]}, {"items": 3}]
)
def test_a_schema_that_makes_no_sense_is_an_input_error_at_the_worst(schema: Any) -> None:
    with contextlib.suppress(InputError):
        check(json_schema(schema))


# ---------------------------------------------------------------- calls


def schema_of(name: str) -> dict[str, Any]:
    tools = {tool.get("function", tool)["name"]: tool.get("function", tool) for tool in TOOLS}
    return tools[name].get("parameters") or tools[name].get("input_schema") or {"maxProperties": 0}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", ["", "x.add-1", "now", "get_weather"])
def test_calls_are_read_back_as_calls_of_offered_tools(style: Any, parallel: bool, name: str) -> None:
    grammar = tool_call(style, TOOLS, name, parallel)
    check(grammar)
    assert of_calls(grammar)
    counts = set()
    for seed in range(15):
        text = babble(grammar, seed)
        calls = parse_tool_calls(text)
        counts.add(len(calls))
        for call in calls:
            assert call.name in ([name] if name else ["get_weather", "x.add-1", "now"])
            jsonschema.validate(json.loads(call.arguments), schema_of(call.name))
        form = literal(FAMILIES["qwen3"], grammar)
        parser = Parser(form, tools=True)
        pieces = [*parser.feed(text), *parser.finish()]
        assert tuple(piece.call for piece in pieces if piece.call) == calls
        assert not any(piece.kind == "answer" for piece in pieces)
    assert counts <= set(range(1, MOST_CALLS + 1)) if parallel else counts == {1}
    assert len(counts) > 1 or not parallel


@pytest.mark.parametrize("name", ["", "now"])
def test_calls_of_channels_are_read_back(name: str) -> None:
    grammar = tool_call("harmony", TOOLS, name)
    for seed in range(10):
        parser = Parser(literal(FAMILIES["gpt-oss"], grammar), tools=True)
        pieces = [*parser.feed(babble(grammar, seed)), *parser.finish()]
        (call,) = [piece.call for piece in pieces if piece.call]
        assert call.name == name or not name
        jsonschema.validate(json.loads(call.arguments), schema_of(call.name))


def read(grammar: str, text: str, form: Any) -> tuple[list[Any], str]:
    """The calls and the answer, whatever pieces the text comes in."""
    found = []
    for size in (1, 3, len(text)):
        parser = Parser(literal(form, grammar), tools=of_calls(grammar))
        pieces = [piece for at in range(0, len(text), size) for piece in parser.feed(text[at : at + size])]
        pieces += parser.finish()
        calls = [piece.call for piece in pieces if piece.call]
        found.append((calls, "".join(piece.text for piece in pieces if piece.kind == "answer")))
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.parametrize("style", [*STYLES, "harmony"])
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_or_json_are_read_back_as_what_they_are(style: Any, parallel: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", 22]}}, "required": ["a"]}
    grammar = call_or_json(style, TOOLS, schema, parallel)
    check(grammar)
    form = FAMILIES["gpt-oss" if style == "harmony" else "qwen3"]
    kinds = set()
    for seed in range(30):
        calls, answer = read(grammar, babble(grammar, seed), form)
        kinds.add("call" if calls else "json")
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), schema_of(call.name))
        if not calls:
            jsonschema.validate(json.loads(answer), schema)
        assert not (calls and answer)
        assert parallel or len(calls) <= 1
    assert kinds == {"call", "json"}


@pytest.mark.parametrize("style", STYLES)
def test_json_that_looks_like_a_call_stays_json(style: Any) -> None:
    """A schema may ask for just that, and a string may hold a whole call."""
    grammar = call_or_json(style, TOOLS)
    whole_call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for document in (
        {"name": "now", "arguments": {}},
        {"name": "now", "parameters": {}},
        {"a": whole_call},
        {whole_call: "[TOOL_CALLS][]"},
    ):
        text = json.dumps(document)
        assert accepts(grammar, text)
        assert read(grammar, text, FAMILIES["qwen3"]) == ([], text)
    assert not accepts(grammar, "[]")
    assert not accepts(grammar, "words")


def test_a_call_needs_an_offered_tool_also_beside_json() -> None:
    with pytest.raises(InputError, match="no tool is offered"):
        call_or_json("hermes", ())
    assert not of_calls(any_json())
    assert of_calls(call_or_json("hermes", TOOLS))


def test_only_offered_tools_can_be_named() -> None:
    with pytest.raises(InputError, match=r"no tool 'other' is offered.* choose from get_weather, x.add-1, now"):
        tool_call("hermes", TOOLS, "other")
    with pytest.raises(InputError, match="no tool is offered"):
        tool_call("hermes", ())
    for tool in ({"name": 'a"b'}, {"name": ""}, {}, {"function": {"name": 3}}, {"function": 3}):
        with pytest.raises(InputError, match="a tool is called"):
            tool_call("hermes", (tool,))
    with pytest.raises(InputError, match="no schema for its arguments"):
        tool_call("hermes", ({"name": "a", "parameters": [1]},))


@pytest.mark.parametrize(
    ("template", "channels", "style"),
    [
        ("... <tool_call> ...", False, "hermes"),
        ("", False, "hermes"),
        ("<|tool_call|>", False, "granite"),
        ("<|tool_call>call:", False, "hermes"),
        ("<|eot_id|> <|python_tag|>", False, "llama"),
        ("[TOOL_CALLS]", False, "mistral"),
        ("[TOOL_CALLS] [ARGS]", False, "mistral-named"),
        ("<|channel|>", True, "harmony"),
    ],
)
def test_the_style_is_that_of_the_template(template: str, channels: bool, style: str) -> None:
    assert style_of(template, channels) == style


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("form", FAMILIES.values(), ids=lambda form: form.name)
@pytest.mark.parametrize(
    "grammar",
    [any_json(), tool_call("hermes", TOOLS), call_or_json("hermes", TOOLS)],
    ids=["json", "calls", "either"],
)
def test_thinking_surely_begins_and_its_end_leaves_nothing_in_the_answer(form: Any, grammar: str) -> None:
    bound = constrained(form, grammar)
    assert bound.inside(f"prompt{bound.begin('prompt', True)}")
    parser = Parser(bound, inside=True, tools=False)
    pieces = [*parser.feed(f"Thought.{bound.closing}"), *parser.finish()]
    assert parser.state == "answer"
    assert {piece.kind for piece in pieces} == {"thinking", "marker"}
    assert "".join(piece.text for piece in pieces if piece.kind == "thinking") == "Thought."
