"""The automaton says what a search through the whole text says, however the text is cut into tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.engine.torch_markers import automaton

LETTERS = st.binary(min_size=1, max_size=5).map(lambda text: bytes(byte % 3 + ord("a") for byte in text))


@given(st.lists(LETTERS, min_size=1, max_size=3), st.lists(LETTERS | st.just(b""), min_size=1, max_size=6), st.data())
def test_it_completes_where_a_search_finds(texts: list[bytes], pieces: list[bytes], data: st.DataObject) -> None:
    table = automaton(texts, pieces)
    tokens = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=12))
    state, said = 0, b""
    for token in tokens:
        state, said = int(table[state, token]), said + pieces[token]
        assert (state == len(table) - 1) == any(text in said for text in texts)


def test_a_marker_across_tokens_and_inside_one() -> None:
    table = automaton([b"</think>"], [b"x<", b"/thi", b"nk>\n", b"a</think>b", "é".encode()[:1], b"<"])
    assert table.shape == (9, 6)
    assert table[0, 3] == 8
    assert list(table[8]) == [8] * 6
    state = 0
    for token in (5, 0, 1, 2):  # "<x</think>": a beginning that fails is no hindrance
        state = int(table[state, token])
    assert state == 8


def test_overlapping_texts() -> None:
    table = automaton([b"abab", b"bb"], [b"a", b"b"])
    state, reached = 0, []
    for token in (0, 1, 0, 0, 1, 0, 1):
        state = int(table[state, token])
        reached.append(state == len(table) - 1)
    assert reached == [False] * 6 + [True]


def test_a_whole_vocabulary_at_once() -> None:
    random = np.random.default_rng(0)
    pieces = [
        random.choice(list(b"</think> abc"), size=random.integers(0, 9)).astype(np.uint8).tobytes() for _ in range(5000)
    ]
    table = automaton([b"</think>"], pieces)
    for token in range(0, 5000, 97):
        assert (table[0, token] == 8) == (b"</think>" in pieces[token])


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        automaton([b"a", b""], [b"a"])
