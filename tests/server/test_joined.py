"""Writes of one turn of the loop go out as one, in their order, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ponder.server.joined import MOST, Joined


class Recording(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return f"the {name}"


def told(*steps: Callable[[Joined], object]) -> Recording:
    """What each step writes in a turn of its own."""
    transport = Recording()

    async def turns() -> None:
        joined = Joined(transport)
        for step in steps:
            step(joined)
            await asyncio.sleep(0)

    asyncio.run(turns())
    return transport


def test_a_turn_is_one_write() -> None:
    written = told(lambda to: (to.write(b"a"), to.write(b"b")), lambda to: to.write(b"c")).written
    assert written == [b"ab", b"c"]


def test_what_is_flushed_goes_out_before_the_turn_ends_and_only_once() -> None:
    def step(to: Joined) -> None:
        to.write(b"a")
        to.flush()
        to.write(b"b")

    assert told(step, lambda to: None).written == [b"a", b"b"]


def test_much_goes_out_at_once_so_that_a_slow_reader_is_noticed() -> None:
    transport = Recording()

    async def turn() -> None:
        joined = Joined(transport)
        joined.write(b"x" * MOST)
        assert not transport.written
        joined.write(b"y")
        assert transport.written == [b"x" * MOST + b"y"]

    asyncio.run(turn())


def test_what_was_written_is_sent_before_the_end_and_nothing_after_it() -> None:
    transport = told(lambda to: (to.write(b"a"), to.close(), to.write(b"b")), lambda to: None)
    assert transport.written == [b"a"]
    assert transport.closed


def test_it_is_the_transport_in_all_else() -> None:
    transport = Recording()

    async def turn() -> None:
        joined = Joined(transport)
        assert joined.get_extra_info("peername") == "the peername"
        transport.close()
        assert joined.is_closing()

    asyncio.run(turn())
