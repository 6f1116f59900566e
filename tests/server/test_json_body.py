"""Strict JSON, and checks that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_client import refused

from ponder.server.failures import Refusal
from ponder.server.json_body import DEEPEST, Fields, opened, parsed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_reads_every_object(value: dict[str, Any]) -> None:
    assert parsed(json.dumps(value)).values == value
    assert opened(opened(json.dumps(value).encode())).values == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\u0dDeE1.-', max_size=40).map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    refusal = refused(lambda: parsed(body))
    if refusal is not None:
        assert (refusal.status, refusal.kind, refusal.code) == (400, "invalid_request_error", "invalid_json")
        assert "\n" not in str(refusal)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "Expecting value"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": 1} {}', "Extra data"),
        (b"[1]", "the body is a list"),
        (b"null", "the body is null"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "UTF-8"),
        (b'{"\\uDC00": 1}', "UTF-8"),
        (b'{"a":' * 100_000, "nested deeper than 64"),
        (b'{"a":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "nested deeper than 64"),
    ],
)
def test_refuses_what_is_no_json(body: bytes, problem: str) -> None:
    with pytest.raises(Refusal, match=problem):
        parsed(body)


def test_takes_the_deepest_surrogate_pairs_equal_keys_and_a_byte_order_mark() -> None:
    deepest = b'{"a":' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    assert "a" in parsed(deepest).values
    assert parsed(b'{"a": "\\ud83d\\ude00"}').values == {"a": "\U0001f600"}
    assert parsed(b'{"a": 1, "a": 2}').values == {"a": 2}
    assert parsed('\ufeff{"a": 1}').values == {"a": 1}


FIELDS = Fields(
    {"text": "t", "whole": 3, "real": 1.5, "flag": True, "null": None, "empty": "", "list": [1, "x"]}, "p[2]"
)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda f: f.text("whole"), "p[2].whole: must be a string, not a number"),
        (lambda f: f.need_text("null"), "p[2].null: is missing"),
        (lambda f: f.need_text("empty"), "p[2].empty: is empty"),
        (lambda f: f.flag("whole"), "p[2].whole: must be a boolean, not a number"),
        (lambda f: f.whole("flag"), "p[2].flag: must be a whole number, not a boolean"),
        (lambda f: f.whole("real"), "p[2].real: must be a whole number, not a number"),
        (lambda f: f.whole("whole", 4), "p[2].whole: must be at least 4, not 3"),
        (lambda f: f.whole("whole", 0, 2), "p[2].whole: must be from 0 to 2, not 3"),
        (lambda f: f.number("text"), "p[2].text: must be a number, not a string"),
        (lambda f: f.number("flag"), "p[2].flag: must be a number, not a boolean"),
        (lambda f: f.number("whole", above=3), "p[2].whole: must be above 3, not 3"),
        (lambda f: f.one_of("text", ("a", "b")), "p[2].text: 't' is not known. choose from a, b."),
        (lambda f: f.object("list"), "p[2].list: must be an object, not a list"),
        (lambda f: f.need_object("null"), "p[2].null: is missing"),
        (lambda f: f.items("text"), "p[2].text: must be a list, not a string"),
        (lambda f: f.objects("list"), "p[2].list[0]: must be an object, not a number"),
        (lambda f: f.texts("list"), "p[2].list[0]: must be a string, not a number"),
    ],
)
def test_names_the_field_and_what_is_wrong(read: Any, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(FIELDS)
    assert str(caught.value) == message
    assert caught.value.param == message.partition(":")[0]


def test_refuses_unknown_fields_by_name() -> None:
    with pytest.raises(Refusal, match=r"p\[2\].colour: is no field") as caught:
        Fields({"colour": 1}, "p[2]").only("shape")
    assert caught.value.code == "unknown_parameter"
    assert caught.value.param == "p[2].colour"


def test_null_is_left_out() -> None:
    fields = Fields({"a": None})
    assert (fields.text("a"), fields.whole("a"), fields.number("a"), fields.flag("a"), fields.items("a")) == (None,) * 5
    assert fields.text("a", "x") == "x"
    assert fields.whole("a", default=7) == 7
    assert fields.flag("a", True) is True
    assert fields.objects("a") == fields.texts("a") == ()


def test_whole_floats_are_whole_and_huge_numbers_are_refused() -> None:
    assert Fields({"a": 8.0}).whole("a") == 8
    for huge in (10**400, -(10**400), 10**5000):
        with pytest.raises(Refusal):
            Fields({"a": huge}).whole("a")
        with pytest.raises(Refusal):
            Fields({"a": huge}).number("a")


def test_paths_go_into_lists_of_objects() -> None:
    inner = opened({"messages": [{}, {"content": [{"image_url": 5}]}]}).objects("messages")[1].objects("content")[0]
    with pytest.raises(Refusal) as caught:
        inner.object("image_url")
    assert caught.value.param == "messages[1].content[0].image_url"
