"""Server-sent events of upstreams, however their bytes are cut."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.server.upstream_sse import SseReader, TooLong

LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20)


def read(data: bytes, cuts: list[int]) -> list[bytes]:
    reader, found, places = SseReader(), [], sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in pairwise(places):
        found += reader.feed(data[start:end])
    return found + reader.rest()


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b" ", b""]),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_payloads_come_whole_wherever_the_bytes_are_cut(
    events: list[list[str]], end: bytes, space: bytes, cuts: list[int]
) -> None:
    spaced = [[line.encode() if space else line.lstrip(" ").encode() or b"x" for line in lines] for lines in events]
    data = b"".join(
        b": ping" + end + b"event: x" + end + b"".join(b"data:" + space + line + end for line in lines) + end
        for lines in spaced
    )
    assert read(data, cuts) == [b"\n".join(lines) for lines in spaced]


@given(
    st.lists(st.sampled_from([b"data: a", b"data:b", b"data", b": c", b"event: x", b"\n", b"\n\n"]), max_size=12),
    st.lists(st.integers(0, 80), max_size=4),
)
def test_events_of_one_line_are_read_like_all_others(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    assert read(data, cuts) == read(data, list(range(len(data))))  # byte by byte


def test_a_byte_order_mark_is_skipped_and_the_last_empty_line_may_be_missing() -> None:
    assert read(b"\xef\xbb\xbfdata: a\n\ndata: b", []) == [b"a", b"b"]


def fed(reader: SseReader, data: bytes) -> None:
    for place in range(0, len(data), 50):
        reader.feed(data[place : place + 50])


def test_an_event_that_is_too_long_is_refused_in_one_line_or_in_many() -> None:
    for data in (b"data: " + b"x" * 2000, b"data: 0123456789\n" * 200):
        reader = SseReader(1000)
        with pytest.raises(TooLong):
            fed(reader, data)


def test_pings_without_end_are_no_event_that_grows() -> None:
    reader = SseReader(1000)
    for _ in range(1000):
        assert reader.feed(b": ping\n") == []
    assert reader.feed(b"data: a\n\n") == [b"a"]


def test_a_long_line_in_small_pieces_takes_time_in_proportion() -> None:
    def seconds(size: int) -> float:
        reader, began = SseReader(), time.process_time()
        for _ in range(size):
            reader.feed(b"x" * 16)
        reader.feed(b"\n\n")
        return time.process_time() - began

    seconds(1000)
    assert seconds(80_000) < 60 * max(seconds(4000), 0.0005)  # 20 times the bytes; quadratic would be 400
