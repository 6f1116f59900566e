"""Tool calls in every notation: names, arguments as written, ids, and what is no call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat.tool_calls import Style, bare_calls, identify, may_become_bare, parse_tool_calls
from ponder.types import ToolCall


def read(text: str, style: Style | None = None) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in parse_tool_calls(text, style)]


CALLS = [
    ('<tool_call>\n{"name": "f", "arguments": {"x":  1}}\n</tool_call>', [("f", '{"x":  1}')]),
    ('<tool_call>{"arguments": {}, "name": "f"}</tool_call>', [("f", "{}")]),
    ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", '{"x": 1}')]),
    ('<tool_call>{"type": "function", "function": {"name": "f", "arguments": {}}}</tool_call>', [("f", "{}")]),
    ('<tool_call>[{"name": "f", "arguments": {}},\n{"name": "g"}]</tool_call>', [("f", "{}"), ("g", "{}")]),
    ('<tool_call>{"name": "f"}\n{"name": "g"}</tool_call>', [("f", "{}"), ("g", "{}")]),
    ('<|tool_call|>[{"name": "f", "arguments": {"x": "é"}}]', [("f", '{"x": "é"}')]),
    ('<|python_tag|>{"name": "f", "parameters": {"x": [1]}}', [("f", '{"x": [1]}')]),
    ('<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [("f", "{}"), ("g", "{}")]),
    ('[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]', [("f", '{"x": 1}')]),
    ('[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]my-tool.g[ARGS]{}', [("f", '{"x": 1}'), ("my-tool.g", "{}")]),
    ('<|tool_call>call:f{x:<|"|>a "b", c:d<|"|>,n:2,ok:true,m:{k:[1]}}<tool_call|>', None),
    ('{"name": "f", "parameters": {"x": 1}}', [("f", '{"x": 1}')]),
    ('[{"name": "f", "arguments": {"x": 1}}]', [("f", '{"x": 1}')]),
    ("[f(a=1, b='x'), geo.find(at=(1, 2.5), deep={'k': None})]", None),
    ("[now()]", [("now", "{}")]),
]


@pytest.mark.parametrize(("text", "expected"), [(text, found) for text, found in CALLS if found is not None])
def test_calls_are_read_with_their_arguments_as_written(text: str, expected: list[tuple[str, str]]) -> None:
    assert read(text) == expected


def test_pythonic_arguments_become_json() -> None:
    found = read("[f(a=1, b='x \"y\"'), geo.find(at=(1, 2.5), deep={'k': None})]")
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        ("f", {"a": 1, "b": 'x "y"'}),
        ("geo.find", {"at": [1, 2.5], "deep": {"k": None}}),
    ]


def test_gemma_arguments_become_json() -> None:
    ((name, arguments),) = read('<|tool_call>call:f{x:<|"|>a "b", c:d\n<|"|>,n:2,ok:true,m:{k:[1]}}<tool_call|>')
    assert name == "f"
    assert json.loads(arguments) == {"x": 'a "b", c:d\n', "n": 2, "ok": True, "m": {"k": [1]}}


def test_calls_are_found_among_other_text() -> None:
    text = 'See:\n<tool_call>{"name": "f"}</tool_call> and <tool_call>{"name": "g"}</tool_call>. Done.'
    assert read(text) == [("f", "{}"), ("g", "{}")]


NO_CALLS = [
    "",
    "The answer is 4.",
    "Write <tool_call> first.",
    "<tool_call></tool_call>",
    "<tool_call>",
    "[1, 2, 3]",
    "[]",
    "[f]",
    "[f(1)]",
    "[f(**x)]",
    "[f(a=b)]",
    "[f(a={1})]",
    "[f(a=1e999)]",
    "[f(a=b'x')]",
    "[(f)(a=1)()]",
    "[f(a=1)][0]",
    "[f(a=1), 2]",
    "[f(a=1) and more",
    "[os.system(cmd=open('x'))]",
    '{"name": "Ann"}',
    '{"name": "Ann", "parameters": "none"}',
    '{"name": 3, "parameters": {}}',
    '{"name": "", "parameters": {}}',
    '{"name": "f", "parameters": {}} is a call',
    '{"answer": {"name": "f", "parameters": {}}}',
    '[{"name": "f", "arguments": {}}, 2]',
    '[{"name": "f", "arguments": {}}',
    '[{"name": "f", "arguments": {}} {"name": "g", "arguments": {}}]',
    "[" * 100_000,
    '[{"name": ' + "[" * 100_000,
    "[f(a=" + "(" * 10_000,
    "[f(a='\ud800\0')",
]


@pytest.mark.parametrize("text", NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_is_no_call(text: str) -> None:
    assert parse_tool_calls(text) == ()


MALFORMED = [
    ('<tool_call>{"name": "f", "arguments": {</tool_call>', '{"name": "f", "arguments": {'),
    ('<tool_call>{"name": "f"} or so</tool_call>', '{"name": "f"} or so'),
    ("<|python_tag|>print(2)", "print(2)"),
    ('[TOOL_CALLS]f[ARGS]{"x": ', 'f[ARGS]{"x":'),
    ("[TOOL_CALLS]nothing", "nothing"),
    ("<|tool_call>call:f{x:}<tool_call|>", "call:f{x:}"),
    ("<|tool_call>f{}<tool_call|>", "f{}"),
    ('<tool_call>{"arguments": {}}</tool_call>', '{"arguments": {}}'),
    ("<tool_call>[[[]]]</tool_call>", "[[[]]]"),
    ("<tool_call>" + "[" * 100_000, "[" * 100_000),
]


@pytest.mark.parametrize(("text", "raw"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_marked_call_that_cannot_be_read_is_kept_raw(text: str, raw: str) -> None:
    assert read(text) == [("", raw)]


def test_an_unreadable_call_does_not_take_the_next_with_it() -> None:
    text = '<tool_call>{"name": }</tool_call><tool_call>{"name": "g"}</tool_call>'
    assert read(text) == [("", '{"name": }'), ("g", "{}")]
    assert read('<tool_call>{"name": "f"}<tool_call>{"name": "g"}</tool_call>') == [("f", "{}"), ("g", "{}")]


def test_a_style_looks_for_nothing_else() -> None:
    both = '<tool_call>{"name": "f"}</tool_call>[TOOL_CALLS]g[ARGS]{}'
    assert read(both, "hermes") == [("f", "{}")]
    assert read(both, "mistral") == [("g", "{}")]
    assert read("[f()]", "pythonic") == [("f", "{}")]
    assert read("[f()]", "hermes") == []


def test_ids_tell_equal_calls_apart_and_are_the_same_every_time() -> None:
    text = '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "f"}</tool_call>'
    first, second = parse_tool_calls(text)
    assert first.id != second.id
    assert all(len(call.id) == 9 and call.id.isalnum() for call in (first, second))
    assert parse_tool_calls(text) == (first, second)
    assert identify([ToolCall("f", "{}")], first=1)[0].id == second.id


def test_an_id_that_the_model_gave_stays() -> None:
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]'
    assert parse_tool_calls(text)[0].id == "abcdefghi"
    assert parse_tool_calls("[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}")[0].id == "123456789"


# ---------------------------------------------------------------- properties

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: (
        name not in ("and", "as", "def", "del", "for", "from", "if", "in", "is", "not", "or", "try", "with")
        and name not in ("elif", "else", "pass", "while", "yield", "assert", "async", "await", "break", "class")
        and name not in ("continue", "except", "finally", "global", "import", "lambda", "nonlocal", "raise", "return")
    )
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
requests = st.lists(st.tuples(names, st.dictionaries(names, values, max_size=3)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(requests)
def test_what_was_asked_for_is_what_is_read(asked: list[tuple[str, dict[str, Any]]]) -> None:
    spelled = [{"name": name, "arguments": arguments} for name, arguments in asked]
    dumped = [json.dumps(call) for call in spelled]
    notations = [
        "".join(f"<tool_call>\n{call}\n</tool_call>" for call in dumped),
        f"<|tool_call|>{json.dumps(spelled)}",
        f"[TOOL_CALLS]{json.dumps(spelled)}",
        "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in asked),
        "<|python_tag|>" + "; ".join(dumped).replace('"arguments"', '"parameters"'),
        json.dumps(spelled),
        "[" + ", ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in asked) + "]",
    ]
    for notation in notations:
        calls = parse_tool_calls(notation)
        assert [(call.name, json.loads(call.arguments)) for call in calls] == asked
        assert len({call.id for call in calls}) == len(calls)


heads = st.lists(
    st.sampled_from(["[", "{", '"', "name", "parameters", "f", "(", ")", "]", "}", ":", " ", ",", "x=1", "1", "{}"]),
    max_size=14,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(heads | st.sampled_from([text for text, _ in CALLS]) | st.text(max_size=20))
def test_what_can_be_no_call_never_becomes_one(text: str) -> None:
    hopes = [may_become_bare(text[:length]) for length in range(len(text) + 1)]
    assert hopes == sorted(hopes, reverse=True)
    if bare_calls(text):
        assert all(hopes)


@settings(max_examples=300, deadline=None)
@given(st.text() | heads.map("<tool_call>{}".format) | heads.map("[TOOL_CALLS]{}".format))
def test_no_text_breaks_it(text: str) -> None:
    assert all(isinstance(call.arguments, str) for call in parse_tool_calls(text))
