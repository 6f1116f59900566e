"""What a route tried and got nothing from: whether an upstream may have made tokens, and what of it is booked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from faults import CUT, HANG, Fault, Wait, cut_after, end_after, hang, refuse, reset
from servers import FakeServer
from upstreams import Heard, Says, chunk, heard, request, upstream

from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Entry
from ponder.ops.prices import Prices
from ponder.server.backend import Backend
from ponder.server.books import LedgerBooks
from ponder.server.desk import Desk
from ponder.server.failures import Refusal
from ponder.server.request import Request
from ponder.server.routing import Target, fallback
from ponder.server.upstream import Price, Retries, Upstream
from ponder.server.upstream_answer import Timeouts
from ponder.server.upstream_openai import OpenAI

NOWHERE = "http://127.0.0.1:9/v1"
"""Nothing listens there."""
LOST: dict[str, Fault] = {
    "reset": reset(),
    "cut": cut_after(0),
    "ended": end_after(0),
    "silent": hang(0),
    "broken": refuse(500, "broken"),
    "gateway": refuse(504, "late"),
}
REFUSED: dict[str, Fault] = {"busy": refuse(429, "later"), "full": refuse(503, "later"), "wrong": refuse(400, "no")}


def place(url: str, name: str = "up", price: float = 1.0) -> Upstream:
    prices = {"tiny": Price(price, price)}
    timeouts = Timeouts(connect=5, first=0.2, silence=0.2)
    return upstream(url, name=name, prices=prices, timeouts=timeouts, retries=Retries(attempts=1))


async def routed(urls: Sequence[str], ask: Callable[[Backend], object]) -> object:
    """What asking a route over these places gives; the first costs 1, the next 2 dollars a million tokens, ..."""
    places = [place(url, f"up{number}", number + 1.0) for number, url in enumerate(urls)]
    try:
        return await ask(fallback("r", [Target(each, "tiny") for each in places]))  # type: ignore[misc]
    finally:
        await asyncio.gather(*(each.close() for each in places))


def refusal(*faults: Fault | None) -> Refusal:
    """What a route raises whose places have these faults; None: one where nothing listens."""

    async def work() -> Heard:
        servers = [FakeServer(faults=[fault, fault]) for fault in faults if fault is not None]
        for server in servers:
            await server.__aenter__()
        try:
            left = iter(servers)
            urls = [NOWHERE if fault is None else next(left).url for fault in faults]
            found = await routed(urls, lambda route: heard(route, request(model="r")))
            assert isinstance(found, Heard)
            return found
        finally:
            for server in servers:
                await server.__aexit__()

    found = asyncio.run(work())
    assert found.refusal is not None
    assert not found.events
    return found.refusal


@pytest.mark.parametrize("name", LOST)
def test_what_was_sent_and_not_answered_may_have_made_tokens(name: str) -> None:
    assert refusal(LOST[name]).lost


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_refused_has_made_none(name: str) -> None:
    assert not refusal(REFUSED[name]).lost


def test_where_nothing_was_sent_nothing_is_lost() -> None:
    assert not refusal(None).lost
    assert not refusal(None, REFUSED["busy"]).lost


@pytest.mark.parametrize("last", [None, REFUSED["busy"], REFUSED["wrong"]])
def test_the_last_place_tells_what_was_lost_at_the_first(last: Fault | None) -> None:
    said = refusal(LOST["reset"], last)
    assert said.lost
    assert said.code != "upstream_failed"  # it is still told what the last one said


# ---------------------------------------------------------------- several choices


def fan(*faults: Fault) -> Heard:
    """What comes of a choice for each of these faults, from a server that gives one at a time."""

    async def work() -> Heard:
        async with FakeServer(faults=list(faults)) as server:
            backend = upstream(server.url, OpenAI("qwen"), retries=Retries(attempts=1))
            try:
                return await heard(backend, request(n=len(faults)))
            finally:
                await backend.close()

    return asyncio.run(work())


@pytest.mark.parametrize("name", REFUSED)
def test_where_one_choice_is_refused_the_others_may_have_made_tokens(name: str) -> None:
    found = fan(REFUSED[name], hang(0))
    assert found.refusal is not None
    assert found.refusal.lost
    assert not found.events
    assert found.seconds < 5


@pytest.mark.parametrize("name", REFUSED)
def test_where_every_choice_is_refused_nothing_is_lost(name: str) -> None:
    found = fan(*[REFUSED[name]] * 3)
    assert found.refusal is not None
    assert not found.refusal.lost


# ---------------------------------------------------------------- the ledger


def booked(home: Path, *faults: Fault | None) -> Entry:
    """What the ledger has of a request over a route whose places have these faults; None: one that is well."""

    async def work() -> None:
        servers = [FakeServer(faults=[fault] if fault else []) for fault in faults]
        for server in servers:
            await server.__aenter__()
        with Ledger.open(home / "ledger.db") as ledger:

            async def ask(route: Backend) -> None:
                await through_desk(ledger, route, request(model="r"))

            await routed([server.url for server in servers], ask)
        for server in servers:
            await server.__aexit__()

    asyncio.run(work())
    return only_entry(home)


def booked_choices(home: Path, server: FakeServer) -> Entry:
    """What the ledger has of a request for two choices, from a server that gives one at a time."""

    async def work() -> None:
        async with server:
            prices = {"tiny": Price(1.0, 1.0)}
            backend = upstream(server.url, OpenAI("qwen"), prices=prices, retries=Retries(attempts=1))
            with Ledger.open(home / "ledger.db") as ledger:
                await through_desk(ledger, backend, request(n=2))
            await backend.close()

    asyncio.run(work())
    return only_entry(home)


async def through_desk(ledger: Ledger, backend: Backend, asked: Request) -> None:
    desk = Desk([backend], books=LedgerBooks(ledger, Prices.read()))
    with suppress(Refusal):
        async for _ in desk.answer(asked, asyncio.Event()):
            pass


def only_entry(home: Path) -> Entry:
    with Ledger.open(home / "ledger.db") as ledger:
        (entry,) = ledger.entries()
    return entry


def test_the_tokens_of_a_choice_that_another_one_ended_are_paid(tmp_path: Path) -> None:
    told = {"usage": {"prompt_tokens": 7, "completion_tokens": 40}}
    entry = booked_choices(tmp_path, Says([chunk({"content": "x"}, **told), HANG], [Wait(0.2), CUT]))
    assert (entry.state, entry.completion) == ("partial", 40)
    assert entry.prompt > 7  # and the prompt of the one that was lost
    assert entry.charged_micro == entry.prompt + 40


def test_choices_of_which_one_was_refused_are_charged_with_their_worst_case(tmp_path: Path) -> None:
    entry = booked_choices(tmp_path, FakeServer(faults=[REFUSED["busy"], hang()]))
    assert entry.state == "unknown"
    assert entry.charged_tokens == entry.tokens_most > 0


def test_each_attempt_is_paid_at_the_price_of_its_own_place(tmp_path: Path) -> None:
    """Not all of them at the highest, at which they were reserved."""
    entry = booked(tmp_path, LOST["reset"], None)
    alone = booked(tmp_path / "alone", None)
    first, second = entry.prompt - alone.prompt, alone.prompt + alone.completion
    assert first > 0
    assert second > 0
    assert entry.micro == math.ceil(first * 1.0 + second * 2.0)
    assert alone.micro == second
    assert entry.micro_most is not None
    assert entry.micro < entry.micro_most


@pytest.mark.parametrize(
    "faults", [(LOST["silent"],), (LOST["cut"], REFUSED["busy"]), (REFUSED["busy"], LOST["ended"])]
)
def test_what_may_have_made_tokens_is_charged_with_its_worst_case(tmp_path: Path, faults: Sequence[Fault]) -> None:
    entry = booked(tmp_path, *faults)
    assert entry.state == "unknown"
    assert entry.charged_tokens == entry.tokens_most > 0
    assert entry.charged_micro == entry.micro_most


def test_what_came_to_nothing_is_free(tmp_path: Path) -> None:
    entry = booked(tmp_path, REFUSED["busy"], REFUSED["full"])
    assert (entry.state, entry.charged_tokens, entry.charged_micro) == ("void", 0, 0)
