"""The queue: bounds, fairness among keys, refusals that tell when to come back, and requests that go away."""

from __future__ import annotations

import asyncio
import random

import pytest

from ponder.server.admission import Admission
from ponder.server.failures import Refusal


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Worker:
    """A request that works until it is told to end."""

    def __init__(self, admission: Admission, key: str, entered: list[str]) -> None:
        self.admission, self.key, self.entered = admission, key, entered
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self.work())

    async def work(self) -> None:
        async with self.admission.place(self.key):
            self.entered.append(self.key)
            await self.end.wait()


def test_a_key_with_one_request_waits_one_turn_and_not_a_hundred() -> None:
    async def run() -> list[str]:
        admission, entered = Admission(running=1), list[str]()
        workers = [Worker(admission, "many", entered) for _ in range(20)]
        await settle()
        workers.append(Worker(admission, "one", entered))
        await settle()
        for worker in (*workers[:2], workers[-1], *workers[2:-1]):  # in the order in which they should be let in
            worker.end.set()
            await settle()
        await asyncio.gather(*(worker.task for worker in workers))
        return entered

    entered = asyncio.run(run())
    assert len(entered) == 21
    assert "one" in entered[:3]


def test_no_more_run_or_wait_than_allowed_and_a_full_queue_tells_when_to_come_back() -> None:
    async def run() -> None:
        admission, entered = Admission(running=2, waiting=3), list[str]()
        workers = [Worker(admission, str(number), entered) for number in range(5)]
        await settle()
        assert (admission.running, admission.waiting) == (2, 3)
        with pytest.raises(Refusal) as refused:
            async with admission.place("late"):
                pass
        assert refused.value.status == 503
        assert (refused.value.retry_after or 0) >= 1
        for worker in workers:
            worker.end.set()
        await asyncio.gather(*(worker.task for worker in workers))
        assert (admission.running, admission.waiting) == (0, 0)
        assert len(entered) == 5

    asyncio.run(run())


def test_a_key_has_its_own_bound() -> None:
    async def run() -> None:
        admission, entered = Admission(running=8, of_key=2), list[str]()
        workers = [Worker(admission, "a", entered) for _ in range(2)]
        await settle()
        with pytest.raises(Refusal) as refused:
            async with admission.place("a"):
                pass
        assert refused.value.status == 429
        async with admission.place("b"):
            pass
        for worker in workers:
            worker.end.set()
        await asyncio.gather(*(worker.task for worker in workers))

    asyncio.run(run())


def test_requests_that_go_away_while_they_wait_leave_nothing_behind() -> None:
    async def run(seed: int) -> None:
        chance = random.Random(seed)
        admission, entered = Admission(running=2, waiting=100), list[str]()
        workers = [Worker(admission, chance.choice("abc"), entered) for _ in range(40)]
        for worker in chance.sample(workers, 40):
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                worker.task.cancel()
            worker.end.set()
            assert admission.running <= 2
        await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)
        assert (admission.running, admission.waiting, admission._keys) == (0, 0, {})

    for seed in range(30):
        asyncio.run(run(seed))


def test_draining_refuses_those_that_wait_and_lets_those_at_work_end() -> None:
    async def run() -> None:
        admission, entered = Admission(running=1), list[str]()
        working = Worker(admission, "a", entered)
        await settle()
        waiting = Worker(admission, "b", entered)
        await settle()
        admission.close()
        await settle()
        assert isinstance(waiting.task.exception(), Refusal)
        assert not working.task.done()
        working.end.set()
        await working.task
        with pytest.raises(Refusal):
            async with admission.place("c"):
                pass
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(run())


def test_a_client_that_leaves_while_it_waits_is_out_of_the_queue_at_once() -> None:
    async def run() -> None:
        admission, entered, gone = Admission(running=1), list[str](), asyncio.Event()
        working = Worker(admission, "a", entered)
        await settle()

        async def waits() -> None:
            async with admission.place("b", gone):
                raise AssertionError("it left")

        task = asyncio.create_task(waits())
        await settle()
        assert admission.waiting == 1
        gone.set()
        await settle()
        assert isinstance(task.exception(), Refusal)
        assert admission.waiting == 0
        working.end.set()
        await working.task
        assert admission.running == 0

    asyncio.run(run())
