"""The way of a request through the server: what is reserved is settled, whatever happens on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from ponder.chat.model import model_of
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.ops.ledger import Ledger
from ponder.ops.ledger_values import Entry
from ponder.ops.limits import parse_limits
from ponder.ops.prices import Prices
from ponder.ops.store import Store
from ponder.server.admission import Admission
from ponder.server.backend import Served
from ponder.server.books import LedgerBooks
from ponder.server.desk import Desk, Tally
from ponder.server.events import Begun, Content, Ended, ReplyEvent, Usage
from ponder.server.failures import Refusal
from ponder.server.local import Local
from ponder.server.reply import Reply
from ponder.server.request import Caller, Request, Sampling
from ponder.server.traces import BATCH, FLUSH, Traces
from ponder.types import Budget, Question, user

SAID = "0123456789"


class Seen:
    """What a watch is told."""

    def __init__(self) -> None:
        self.arrivals: list[str] = []
        self.ended: list[Tally] = []

    def arrived(self, tally: Tally) -> None:
        self.arrivals.append(tally.request.id)

    def finished(self, tally: Tally) -> None:
        self.ended.append(tally)

    def flush(self) -> None:
        pass


class Told:
    """A backend that tells these events and raises these errors."""

    def __init__(self, *events: ReplyEvent | Exception, name: str = "m") -> None:
        self._events, self.name = events, name

    def models(self) -> tuple[Served, ...]:
        return (Served(self.name, "told", 4096),)

    async def reply(self, request: Request, stop: asyncio.Event) -> AsyncGenerator[ReplyEvent, None]:
        for event in self._events:
            await asyncio.sleep(0)
            if isinstance(event, Exception):
                raise event
            yield event

    async def count(self, request: Request) -> int:
        return 1

    async def close(self) -> None:
        pass


def slowly(seconds: float = 0.01) -> ScriptedEngine:
    return ScriptedEngine(says(SAID), faults=[Fault("delay", at=1, every=True, seconds=seconds, times=None)])


def asked(number: int = 0, **more: object) -> Request:
    question = Question((user("count"),))
    return replace(Request(f"r{number}", "m", question, budget=Budget(tokens=20)), **more)  # type: ignore[arg-type]


class Office:
    """A desk with a ledger."""

    def __init__(self, home: Path, *backends: object, limits: str = "", running: int = 4, waiting: int = 4) -> None:
        self.ledger = Ledger.open(home / "ledger.db")
        parsed = parse_limits(limits) if limits else ()
        books = LedgerBooks(self.ledger, Prices.read(), lambda caller: (parsed, ()))
        self.seen = Seen()
        self.desk = Desk(
            backends,
            admission=Admission(running, waiting),
            books=books,
            watches=[self.seen],  # type: ignore[arg-type]
        )

    async def take(self, request: Request, leave_after: int | None = None) -> Reply:
        """The reply to a request whose client leaves after so many events."""
        gone, reply = asyncio.Event(), Reply()
        async with aclosing(self.desk.answer(request, gone)) as events:
            async for event in events:
                reply.add(event)
                leave_after = None if leave_after is None else leave_after - 1
                if leave_after == 0:
                    gone.set()
        return reply

    @property
    def entries(self) -> list[Entry]:
        return self.ledger.entries()


@pytest.fixture
def office(ponder_home: Path, request: pytest.FixtureRequest) -> Callable[..., Office]:
    def make(*backends: object, **settings: object) -> Office:
        made = Office(ponder_home, *backends, **settings)  # type: ignore[arg-type]
        request.addfinalizer(made.ledger.close)
        return made

    return make


def local(engine: ScriptedEngine) -> Local:
    return Local(model_of(engine), name="m")


def test_what_was_generated_is_settled(office: Callable[..., Office]) -> None:
    engine = slowly(0)
    made = office(local(engine))
    reply = asyncio.run(made.take(asked()))
    [entry] = made.entries
    assert reply.choices[0].content == SAID
    assert (entry.state, entry.completion) == ("done", engine.generated)
    assert made.ledger.spent().tokens == (entry.prompt or 0) + engine.generated
    [tally] = made.seen.ended
    assert (tally.answer, tally.reasons, tally.failure, tally.disconnected) == (SAID, ["stop"], None, False)


def test_an_answer_goes_on_to_its_bound_where_its_end_is_ignored(office: Callable[..., Office]) -> None:
    made = office(local(slowly(0)))
    ends, goes_on = (
        asyncio.run(made.take(asked(number, sampling=Sampling(ignore_eos=goes))))
        for number, goes in enumerate((False, True))
    )
    assert [reply.choices[0].reason for reply in (ends, goes_on)] == ["stop", "length"]
    assert {entry.request: entry.completion for entry in made.entries} == {"r0": len(SAID) + 1, "r1": 20}


def test_what_was_generated_for_a_client_that_left_is_settled(office: Callable[..., Office]) -> None:
    engine = slowly()
    made = office(local(engine))
    asyncio.run(made.take(asked(), leave_after=4))
    [entry] = made.entries
    assert (entry.state, entry.completion) == ("partial", engine.generated)
    assert 0 < engine.generated < len(SAID)
    assert engine.open_streams == 0
    assert made.seen.ended[0].disconnected


def test_a_server_that_stops_tells_what_there_is(office: Callable[..., Office]) -> None:
    made = office(local(slowly(0.05)))

    async def work() -> Reply:
        asyncio.get_running_loop().call_later(0.15, made.desk.drain, 0)
        return await made.take(asked())

    reply = asyncio.run(work())
    assert reply.choices[0].reason == "cancelled"
    assert SAID.startswith(reply.choices[0].content)
    assert made.entries[0].state == "partial"
    assert not made.seen.ended[0].disconnected, "the client was there"


def test_whoever_comes_after_the_end_is_refused(office: Callable[..., Office]) -> None:
    made = office(local(slowly(0)))

    async def work() -> None:
        made.desk.drain(10)
        await made.take(asked())

    with pytest.raises(Refusal) as refused:
        asyncio.run(work())
    assert (refused.value.status, refused.value.retry_after) == (503, 1.0)
    assert made.entries[0].state == "void"
    assert made.ledger.spent().tokens == 0
    assert made.seen.ended[0].failure is refused.value


BROKEN = Refusal(502, "api_error", "it broke")


@pytest.mark.parametrize(
    ("events", "state", "completion"),
    [
        ([BROKEN], "void", 0),
        ([Begun("m"), BROKEN], "unknown", 0),
        ([Begun("m"), Content("a"), Usage(5, 0, 3), BROKEN], "partial", 3),
        ([Usage(5, 0, 3), BROKEN], "partial", 3),
        ([Begun("m"), Content("a"), ZeroDivisionError()], "unknown", 0),
        ([Begun("m"), Content("a"), Ended(), Usage(5, 0, 3)], "done", 3),
        ([Begun("m"), Content("a"), Ended("length"), Usage(5, 9, -3)], "done", 0),
        ([Begun("m"), Content("a"), Ended("cancelled"), Usage(5, 0, 3)], "partial", 3),
        ([Begun("m"), Content("a"), Ended()], "unknown", 0),
    ],
)
def test_every_end_is_booked(
    office: Callable[..., Office], events: Sequence[ReplyEvent | Exception], state: str, completion: int
) -> None:
    made = office(Told(*events))
    error = next((each for each in events if isinstance(each, Exception)), None)
    if error is None:
        asyncio.run(made.take(asked()))
    else:
        with pytest.raises(type(error)):
            asyncio.run(made.take(asked()))
    [entry] = made.entries
    assert (entry.state, entry.completion) == (state, completion)
    charged = made.ledger.spent().tokens
    if state == "unknown":
        assert charged == entry.tokens_most > 20, "it counts with its worst case"
    else:
        assert charged == (0 if state == "void" else 5 + completion)
    [tally] = made.seen.ended
    status = {Refusal: 502, ZeroDivisionError: 500}.get(type(error))
    assert (tally.failure.status if tally.failure else None) == status


def test_a_limit_stops_before_anything_is_sent(office: Callable[..., Office]) -> None:
    engine = slowly(0)
    made = office(local(engine), limits="2 requests/day")

    async def work() -> int:
        for number in range(2):
            await made.take(asked(number))
        calls = engine.calls
        with pytest.raises(Refusal) as refused:
            await made.take(asked(2))
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        return calls

    assert asyncio.run(work()) == engine.calls
    assert made.desk.admission.running == 0


def test_many_at_once_spend_no_more_than_a_limit(office: Callable[..., Office]) -> None:
    engine = slowly(0)
    made = office(local(engine), limits="1000 tokens/day", running=8, waiting=64)

    async def one(number: int) -> bool:
        try:
            await made.take(asked(number, caller=Caller("k", "k")))
        except Refusal as refused:
            return refused.status != 429
        return True

    async def work() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(40)))

    answered = asyncio.run(work())
    assert 0 < sum(answered) < 40
    assert made.ledger.spent("k").tokens <= 1000
    assert sum((entry.completion or 0) for entry in made.entries) == engine.generated


def test_models_are_found_by_name(office: Callable[..., Office]) -> None:
    first, second = Told(name="a"), Told(name="b")
    made = office(first, second, Told(name="a"))
    assert made.desk.find("")[0] is first
    assert made.desk.find("a")[0] is first
    assert made.desk.find("b")[0] is second
    with pytest.raises(Refusal, match="a, b") as refused:
        made.desk.find("c")
    assert refused.value.status == 404


def test_without_models_there_is_nothing_to_ask(ponder_home: Path) -> None:
    with pytest.raises(Refusal) as refused:
        Desk([]).find("")
    assert refused.value.status == 503


# ---------------------------------------------------------------- traces


def test_traces_are_written_some_together_and_at_the_end(ponder_home: Path) -> None:
    with Store.open(ponder_home / "ponder.db") as store:
        traces = Traces(store)

        async def work(number: int) -> int:
            desk = Desk([local(slowly(0))], watches=[traces])
            for each in range(number):
                [_ async for _ in desk.answer(asked(each + 1000 * number), asyncio.Event())]
            before = len(store.list(None))
            await desk.close()
            return before

        assert asyncio.run(work(3)) == 0
        assert len(store.list(None)) == 3
        assert asyncio.run(work(BATCH + 2)) == 3 + BATCH
        assert len(store.list(None)) == 3 + BATCH + 2
        assert traces.lost == 0


def test_a_trace_is_there_after_a_moment(ponder_home: Path) -> None:
    async def work(store: Store) -> int:
        desk = Desk([local(slowly(0))], watches=[Traces(store)])
        [_ async for _ in desk.answer(asked(), asyncio.Event())]
        await asyncio.sleep(4 * FLUSH)
        return len(store.list(None))

    with Store.open(ponder_home / "ponder.db") as store:
        assert asyncio.run(work(store)) == 1


def test_a_store_that_cannot_be_written_fails_no_request(ponder_home: Path) -> None:
    async def work(desk: Desk) -> None:
        for _ in range(2):  # the same id, which a store takes once
            [_ async for _ in desk.answer(asked(), asyncio.Event())]
        await desk.close()

    with Store.open(ponder_home / "ponder.db") as store:
        traces = Traces(store)
        asyncio.run(work(Desk([local(slowly(0))], watches=[traces])))
        assert traces.lost == 2
