"""Event streams of backends for the tests of dialects: fixed ones, and any that the contract allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from ponder.server.events import Begun, Call, Content, Ended, Reason, Reasoning, ReplyEvent, Token, Usage
from ponder.server.reply import Reply, collected

BEGUN = Begun("m", "here", "hard")
USED = Usage(prompt=30, cached=10, completion=50, reasoning=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)

Writes = Callable[[AsyncIterator[ReplyEvent]], AsyncIterator[bytes]]


def script(*events: ReplyEvent, reason: Reason = "stop", stop_text: str | None = None) -> list[ReplyEvent]:
    """A whole stream around some events of the one choice."""
    return [BEGUN, *events, Ended(reason, stop_text=stop_text), USED]


async def _played(events: Sequence[ReplyEvent | Exception]) -> AsyncIterator[ReplyEvent]:
    for event in events:
        await asyncio.sleep(0)
        if isinstance(event, Exception):
            raise event
        yield event


def streamed(events: Sequence[ReplyEvent | Exception], writes: Writes) -> bytes:
    """The bytes of a stream."""

    async def read() -> bytes:
        return b"".join([frame async for frame in writes(_played(events))])

    return asyncio.run(read())


def reply_of(events: Sequence[ReplyEvent]) -> Reply:
    """The reply that the events make."""
    return asyncio.run(collected(_played(events)))


def frames_of(data: bytes) -> list[tuple[str, Any]]:
    """The events of a stream of bytes: name and data."""
    found = []
    for block in data.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def _pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)] or [""]


@st.composite
def _calls(draw: st.DrawFn, number: int, sound: bool) -> list[Call]:
    values = st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(st.booleans(), max_size=2), max_size=3)
    arguments = json.dumps(draw(values), ensure_ascii=draw(st.booleans()))
    if not sound:
        arguments = arguments[: draw(st.integers(0, len(arguments)))]
    pieces = _pieces(arguments, draw(st.lists(st.integers(0, 40), max_size=4)))
    id = draw(st.sampled_from(["", f"call_{number}"]))
    first = Call(pieces[0], number, id, f"tool_{number}")
    return [first, *(Call(piece, number) for piece in pieces[1:])]


@st.composite
def scripts(draw: st.DrawFn) -> list[ReplyEvent]:
    """Any stream: thinking, answers and calls in any order, calls interleaved, and cut where the reply is."""
    signature = st.sampled_from(["", "", "EqQB"])
    reason: Reason = draw(st.sampled_from(["stop", "length", "tool_calls", "refusal", "cancelled"]))
    token = st.builds(
        Token, TEXTS, st.floats(-9, 0), top=st.lists(st.builds(Token, TEXTS, st.floats(-9, 0))).map(tuple)
    )
    spoken = st.one_of(
        st.builds(Reasoning, TEXTS, signature=signature),
        st.builds(Content, TEXTS, tokens=st.lists(token, max_size=2).map(tuple)),
    )
    events: list[ReplyEvent] = list(draw(st.lists(spoken, max_size=6)))
    calls = [draw(_calls(number, reason != "length")) for number in range(draw(st.integers(0, 3)))]
    if draw(st.booleans()):
        events += [piece for call in calls for piece in call]
    else:
        for call in calls:  # the first pieces in the order of their numbers, the rest anywhere
            events.append(call[0])
        rest = [call[1:] for call in calls]
        while any(rest):
            events.append(draw(st.sampled_from([each for each in rest if each])).pop(0))
    events += draw(st.lists(spoken, max_size=2))
    used = draw(st.builds(Usage, *[st.integers(0, 99)] * 4).map(lambda u: u if u.cached <= u.prompt else USED))
    return [BEGUN, *events, Ended(reason), used]
