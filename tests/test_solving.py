"""The Python API: traces with their cost, events in order, budgets, failures, stopping, threads and event loops."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import THINKS, scripted, slowly
from servers import FakeServer

import ponder
from ponder import solving
from ponder.chat.model import Model, Price, model_of
from ponder.engine.llamacpp import LlamaEngine
from ponder.engine.scripted import Fault, ScriptedEngine, says
from ponder.errors import BudgetTooSmall, GarbledReply, InputError
from ponder.ops.store import Store
from ponder.protocols import SamplingParams
from ponder.strategies.direct import direct
from ponder.types import (
    AnswerDelta,
    BestAnswer,
    Budget,
    Done,
    Event,
    Question,
    SampleFinished,
    ThinkingDelta,
    Trace,
    ask,
    assistant,
    user,
)

REPLY = "<think>\nTwo and two.\n</think>\n\nIt is 4."


def engine(*texts: str, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(says(*texts or (REPLY,)), chat_template=THINKS, **options)


def opened(*texts: str, **options: Any) -> Model:
    return model_of(engine(*texts, **options))


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(tmp_path / "traces.db") as store:
        yield store


async def collect(**options: Any) -> list[Event]:
    return [event async for event in ponder.stream("2 + 2?", **options)]


def wait_until(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------- traces and events


def test_a_trace_tells_answer_thinking_and_cost():
    trace = ponder.solve("2 + 2?", model=opened(), budget=500)
    assert isinstance(trace, Trace)
    assert (trace.answer, trace.thinking, trace.state, trace.error) == ("It is 4.", "Two and two.", "done", None)
    sample = trace.samples[0]
    assert trace.cost.tokens == trace.cost.thinking + trace.cost.answer == len(sample.ids)
    assert trace.cost.prompt == len(sample.prompt_ids)
    assert trace.cost.calls == 1
    assert trace.cost.seconds > 0
    assert trace.question == ask("2 + 2?")
    assert trace.budget == Budget(tokens=500)
    assert trace.created.endswith("+00:00")


def test_provenance_tells_how_to_make_it_again():
    params = SamplingParams(max_tokens=1, temperature=0.25, top_p=0.9, top_k=7, seed=11)
    model = replace(opened(name="tiny"), params=params)
    made = ponder.solve("2 + 2?", model=model).provenance
    assert (made.model, made.strategy, made.seed) == ("tiny", "chain_of_thought('auto')", 11)
    assert made.settings == {"temperature": 0.25, "top_p": 0.9, "top_k": 7}
    assert made.software == f"ponder {ponder.__version__}"
    assert (
        ponder.solve("2 + 2?", model=opened("<think>\n\n</think>\n\n4"), strategy=direct()).provenance.strategy
        == "direct()"
    )


def test_events_come_in_order_and_end_with_the_trace():
    events = asyncio.run(collect(model=opened()))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[ThinkingDelta, AnswerDelta, SampleFinished, BestAnswer, Done].index)
    assert kinds.count(AnswerDelta) > 1
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)).strip() == "Two and two."
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)).strip() == "It is 4."
    trace = events[-1].trace
    assert [type(event) for event in trace.events] == [ThinkingDelta, AnswerDelta, SampleFinished, BestAnswer]
    assert trace.events[-2:] == tuple(events[-3:-1])
    assert trace.samples == (events[-3].sample,)


def test_events_come_while_the_model_speaks():
    async def first() -> tuple[float, float]:
        started = time.monotonic()
        slow = opened(faults=[Fault("delay", at=20, seconds=0.5)])
        times = [time.monotonic() - started async for _ in ponder.stream("2 + 2?", model=slow)]
        return times[0], times[-1]

    first_event, last = asyncio.run(first())
    assert last - first_event > 0.45


def test_any_form_of_question_will_do():
    turns = [user("I am Ann."), assistant("Hello Ann."), user("Who am I?")]
    for question in (turns, tuple(turns), Question(tuple(turns), reference="Ann")):
        trace = ponder.solve(question, model=opened())
        assert trace.question.messages == tuple(turns)
        prompt = bytes(i for i in trace.samples[0].prompt_ids if i < 256).decode()
        assert prompt.index("I am Ann.") < prompt.index("Hello Ann.") < prompt.index("Who am I?")
    assert trace.question.reference == "Ann"


@pytest.mark.parametrize("question", ["", " \n", Question(()), []])
def test_an_empty_question_is_refused(question, store):
    with pytest.raises(InputError, match="the question is empty"):
        ponder.solve(question, model=opened(), store=store)
    assert store.list() == []


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("budget", [16, 40, 100])
def test_a_budget_in_tokens_bounds_everything(budget):
    model = opened("<think>\n" + "I wonder. " * 50 + "\n</think>\n\n" + "It is 4. " * 50)
    trace = ponder.solve("2 + 2?", model=model, budget=budget)
    assert trace.answer
    assert budget - 8 <= trace.cost.tokens <= budget
    assert trace.budget == ponder.solve("2 + 2?", model=model, budget=Budget(tokens=budget)).budget


def test_a_budget_has_other_sides():
    model = opened("<think>\n" + "I wonder. " * 50 + "\n</think>\n\n" + "It is 4. " * 50)
    trace = ponder.solve("2 + 2?", model=model, budget=Budget(tokens=300, thinking=20, answer=50))
    assert 0 < trace.cost.thinking <= 20
    assert trace.cost.answer >= 50
    price = Price(prompt=1, cached=1, output=10)
    cheap = ponder.solve("2 + 2?", model=replace(model, price=price), budget=Budget(dollars=0.0008))
    assert 0.0006 < cheap.cost.dollars <= 0.0008


def test_without_a_budget_the_context_bounds(store):
    trace = ponder.solve("2 + 2?", model=opened("<think>\n" + "I wonder. " * 200, context=512))
    assert trace.budget == Budget()
    assert len(trace.samples[0].prompt_ids) + len(trace.samples[0].ids) <= 512
    assert trace.answer


def test_a_budget_too_small_is_stored_as_a_failure(store):
    with pytest.raises(BudgetTooSmall):
        ponder.solve("2 + 2?", model=opened(), budget=2, store=store)
    assert [summary.state for summary in store.list()] == ["failed"]
    with pytest.raises(ValueError, match="above 0"):
        ponder.solve("2 + 2?", model=opened(), budget=0, store=store)


# ---------------------------------------------------------------- what is stored


def test_a_trace_is_stored_as_it_is_returned(store):
    trace = ponder.solve("2 + 2?", model=opened(), store=store)
    assert store.get(trace.id) == trace


def test_each_event_is_on_disk_before_it_is_handed_out(store, tmp_path):
    async def watch() -> None:
        said = ""
        with Store.open(tmp_path / "traces.db") as another:
            async for event in ponder.stream("2 + 2?", model=opened(), store=store):
                trace = another.get(another.list()[0].id)
                assert trace.state == ("done" if isinstance(event, Done) else "running")
                if isinstance(event, AnswerDelta):
                    said += event.text
                    assert trace.answer == said

    asyncio.run(watch())


def test_a_failing_engine_leaves_a_failed_trace(store):
    model = opened(faults=[Fault("garbage", at=len(REPLY) - 2)])
    with pytest.raises(GarbledReply):
        ponder.solve("2 + 2?", model=model, store=store)
    trace = store.get(store.list()[0].id)
    assert (trace.state, trace.answer.strip()) == ("failed", "It is")
    assert trace.error.startswith("the scripted engine sent something that is no reply")
    assert trace.events[0].text.strip() == "Two and two."
    assert "".join(event.text for event in trace.events if isinstance(event, AnswerDelta)).strip() == "It is"


def test_a_bug_in_a_strategy_is_a_failure_too(store):
    async def buggy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        yield AnswerDelta("4")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ponder.solve("2 + 2?", model=opened(), strategy=buggy, store=store)
    trace = store.get(store.list()[0].id)
    assert (trace.state, trace.answer, trace.error) == ("failed", "4", "ZeroDivisionError")
    assert trace.provenance.strategy == "test_a_bug_in_a_strategy_is_a_failure_too"


def test_a_strategy_may_be_any_iterator():
    class Two:
        """No generator: there is nothing to close."""

        def __init__(self, *_: object) -> None:
            self.left: list[Event] = [BestAnswer("4"), AnswerDelta("4")]

        def __aiter__(self) -> Two:
            return self

        async def __anext__(self) -> Event:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    assert ponder.solve("2 + 2?", model=opened(), strategy=Two).answer == "4"


# ---------------------------------------------------------------- stopping


def test_stop_ends_softly_with_what_there_is(store):
    async def stopped() -> tuple[Trace, ScriptedEngine]:
        slow = engine(faults=[Fault("hang", at=len(REPLY) - 2)])
        model = replace(model_of(slow), stop=asyncio.Event())
        async for event in ponder.stream("2 + 2?", model=model, store=store):
            if isinstance(event, AnswerDelta) and "s" in event.text:
                model.stop.set()
        return event.trace, slow

    trace, slow = asyncio.run(stopped())
    assert (trace.state, trace.answer) == ("interrupted", "It is")
    assert trace.samples[0].finish == "cancelled"
    assert trace.cost.tokens == slow.generated
    assert slow.open_streams == 0
    assert store.get(trace.id) == trace


def test_a_stop_that_was_set_before_asks_nothing():
    async def stopped() -> tuple[Trace, int]:
        idle = engine()
        model = replace(model_of(idle), stop=asyncio.Event())
        model.stop.set()
        return await ponder.asolve("2 + 2?", model=model), idle.generated

    trace, generated = asyncio.run(stopped())
    assert (trace.state, trace.answer, trace.cost.tokens, generated) == ("interrupted", "", 0, 0)


def test_closing_the_stream_cancels_the_work(store):
    async def closed() -> ScriptedEngine:
        slow = engine(faults=[Fault("hang", at=len(REPLY) - 2)])
        events = ponder.stream("2 + 2?", model=model_of(slow), store=store)
        async for event in events:
            if isinstance(event, AnswerDelta):
                break
        await events.aclose()
        trace = store.get(store.list()[0].id)
        assert (trace.state, trace.answer[:1]) == ("interrupted", "I")
        for _ in range(20):  # the strategies below are closed by the event loop
            await asyncio.sleep(0)
        return slow

    assert asyncio.run(closed()).open_streams == 0


def test_cancelling_the_task_leaves_an_interrupted_trace(store):
    async def cancelled() -> None:
        model = opened(faults=[Fault("hang", at=3)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ponder.asolve("2 + 2?", model=model, store=store)

    asyncio.run(cancelled())
    assert [summary.state for summary in store.list()] == ["interrupted"]


@pytest.fixture
def interruptible():
    """A shell starts what runs in its background with SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_solve(store):
    hanging = engine(faults=[Fault("hang", at=len(REPLY) - 2)])

    def press() -> None:
        wait_until(lambda: hanging.generated == len(REPLY) - 2)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        ponder.solve("2 + 2?", model=model_of(hanging), store=store)
    pressing.join()
    wait_until(lambda: store.list()[0].state == "interrupted")
    wait_until(lambda: hanging.open_streams == 0)
    assert store.list()[0].answer.strip() == "It is"
    assert ponder.solve("2 + 2?", model=opened()).answer == "It is 4."


# ---------------------------------------------------------------- threads and event loops


def test_asolve_inside_a_running_loop(tmp_path):
    async def both() -> list[Trace]:
        uri = scripted(tmp_path, "It is 4.")
        return await asyncio.gather(*(ponder.asolve(f"{i} + 2?", model=uri) for i in range(3)))

    answers = asyncio.run(both())
    assert [trace.answer for trace in answers] == ["It is 4."] * 3
    assert [trace.question.text for trace in answers] == ["0 + 2?", "1 + 2?", "2 + 2?"]


def test_solve_inside_a_running_loop(tmp_path):
    async def notebook() -> Trace:
        return ponder.solve("2 + 2?", model=scripted(tmp_path, "It is 4."))

    assert asyncio.run(notebook()).answer == "It is 4."


def test_solve_from_many_threads_shares_the_model(tmp_path, store):
    path = tmp_path / "script.json"
    uri = scripted(tmp_path, "It is 4.", faults=slowly(0.002))
    assert ponder.solve("2 + 2?", model=uri).answer == "It is 4."
    path.unlink()  # whoever opened it again would fail

    def solved(number: int) -> Trace:
        with Store.open(store.path) as mine:
            return ponder.solve(f"{number} + 2?", model=uri, store=mine)

    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(solved, range(8)))
    together = time.monotonic() - started
    assert [trace.question.text for trace in found] == [f"{number} + 2?" for number in range(8)]
    assert {trace.answer for trace in found} == {"It is 4."}
    assert {summary.id for summary in store.list()} == {trace.id for trace in found}
    # They ran side by side.
    assert together < 0.8 * sum(trace.cost.seconds for trace in found)


def test_requests_at_once_open_the_model_once():
    async def opened_by_many() -> list[str]:
        async with FakeServer() as server:
            uri = f"openai:{server.url}"
            params = SamplingParams(max_tokens=1, temperature=0)
            impatient = asyncio.ensure_future(ponder.open_model(uri))
            await asyncio.sleep(0)
            others = [ponder.open_model(uri), ponder.open_model(uri, params=params)]
            # Whoever gives up waiting leaves it to the others.
            asyncio.get_running_loop().call_soon(impatient.cancel)
            first, second = await asyncio.gather(*others)
            assert impatient.cancelled()
            assert first.engine is second.engine is (await ponder.open_model(uri)).engine
            assert (first.params.temperature, second.params.temperature) == (0.6, 0)
            await first.engine.close()
            return [request.path for request in server.requests]

    paths = asyncio.run(opened_by_many())
    assert len([path for path in paths if path.endswith("/models")]) == 1


def test_a_model_that_could_not_be_opened_is_tried_again(tmp_path):
    async def twice() -> Trace:
        with pytest.raises(InputError, match="cannot be read"):
            await ponder.asolve("2 + 2?", model=f"scripted:{tmp_path / 'script.json'}")
        return await ponder.asolve("2 + 2?", model=scripted(tmp_path, "It is 4."))

    assert asyncio.run(twice()).answer == "It is 4."


def test_solve_refuses_to_wait_for_itself():
    async def nested(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        yield BestAnswer(ponder.solve(question, model=model).answer)

    with pytest.raises(RuntimeError, match="await asolve"):
        ponder.solve("2 + 2?", model=opened(), strategy=nested)


EXAMPLE = """
import ponder
answer = ponder.solve("2 + 2?", model=MODEL, budget=1000)
print(answer.answer, answer.cost.tokens)
"""


def test_five_lines_are_enough_and_end_cleanly(tmp_path):
    uri = scripted(tmp_path, "It is 4.")
    assert len(EXAMPLE.strip().splitlines()) <= 5
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLE.replace("MODEL", repr(uri))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("It is 4. ")
    assert result.stderr == ""


FORKED = """
import os, ponder
assert ponder.solve("2 + 2?", model=MODEL).answer == "It is 4."
child = os.fork()
answer = ponder.solve("2 + 2?", model=MODEL).answer
if child:
    assert os.waitpid(child, 0)[1] == 0
print(answer, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_solves_too(tmp_path):
    code = FORKED.replace("MODEL", repr(scripted(tmp_path, "It is 4.")))
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert result.stdout == "It is 4.\n" * 2


def test_exit_in_the_middle_of_an_answer_is_clean(tmp_path):
    uri = scripted(tmp_path, "It is 4.", faults=[{"kind": "hang"}])
    code = (
        "import ponder, threading, time\n"
        f"threading.Thread(target=lambda: ponder.solve('hi', model={uri!r}), daemon=True).start()\n"
        "time.sleep(0.5)\n"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert time.monotonic() - started < 5
    assert "Task was destroyed" not in result.stderr


def test_engines_are_closed_at_the_end():
    background = solving._Background()
    model = opened()

    async def known() -> None:
        solving._open[asyncio.get_running_loop()] = {"it": model}

    asyncio.run_coroutine_threadsafe(known(), background.loop).result()
    background._end()
    atexit.unregister(background._end)
    assert not background.thread.is_alive()
    assert model.engine._closed


# ---------------------------------------------------------------- the embedded model


@pytest.mark.model
def test_the_embedded_model_thinks_within_the_budget(llama: LlamaEngine, store):
    trace = ponder.solve("What is 3 + 4?", model=model_of(llama), budget=40, store=store)
    assert trace.answer
    assert 0 < trace.cost.tokens <= 40
    assert trace.provenance.adapters == dict.fromkeys(llama.capabilities.adapters, 1.0)
    assert store.get(trace.id) == trace


def test_a_greedy_model_draws_samples_that_differ():
    from ponder.strategies.self_consistency import self_consistency

    model = model_of(ScriptedEngine(says("The answer is 4.")))
    greedy = replace(model, params=replace(model.params, temperature=0.0))

    def temperature(strategy, asked):
        return ponder.solve("?", model=asked, strategy=strategy, budget=400).provenance.settings["temperature"]

    assert temperature(self_consistency(2), greedy) == 0.7
    assert temperature(self_consistency(1), greedy) == 0.0
    assert temperature(None, greedy) == 0.0
    warm = replace(model, params=replace(model.params, temperature=0.3))
    assert temperature(self_consistency(2), warm) == 0.3
