"""Frames that decoders read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.engine.sse import SseDecoder
from ponder.server.sse import DONE, PING, frame


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.sampled_from(["", "message_stop"]))
def test_a_frame_is_read_back_whatever_is_in_it(data: dict[str, str], event: str) -> None:
    decoder = SseDecoder()
    read = decoder.feed(PING + frame(data, event) + PING + DONE)
    assert [json.loads(read[0]), read[1]] == [data, "[DONE]"]
    assert frame(data, event).startswith(b"event: message_stop\n" if event else b"data: ")


@pytest.mark.parametrize("number", [float("-inf"), float("inf"), float("nan")])
def test_what_is_no_number_in_json_is_null(number: float) -> None:
    assert frame({"logprob": number}) == b'data: {"logprob":null}\n\n'


def test_no_character_of_a_text_ends_a_line() -> None:
    text = "a\u0085b\u2028c\u2029d\né"
    made = frame({"text": text}).decode()
    assert made.splitlines() == [made.splitlines()[0], ""]
    assert json.loads(made.splitlines()[0].removeprefix("data: ")) == {"text": text}
