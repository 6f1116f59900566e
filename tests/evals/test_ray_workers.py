"""An evaluation on a Ray cluster of two nodes comes to what it comes to here, workers that are killed included."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ponder.errors import EngineError, InputError, NoAnswer, RateLimited
from ponder.evals.ray_workers import Memory, _absolute, _error, _told

ON_TWO_NODES = """
    import asyncio, dataclasses, json, os, signal, sys
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    from ponder.chat.model import model_of
    from ponder.engine import open_engine
    from ponder.errors import EngineError
    from ponder.evals.cached import Account
    from ponder.evals.ray_workers import RayWorkers
    from ponder.evals.results import Setting
    from ponder.evals.run import evaluate
    from ponder.ops.store import Store
    from ponder.tasks import load
    from ponder.types import Budget

    task, uri = load("sums.jsonl"), "scripted:model.json"
    setting = Setting("vote(2)", Budget(tokens=400))
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}

    def on_ray(uri):
        return RayWorkers(uri, address=cluster.address)

    def plain(run):
        def cost(cost):
            return dataclasses.replace(cost, seconds=0.0, prompt_computed=0, prompt_cached=cost.prompt, recomputed=0)

        def result(each):
            samples = tuple(
                dataclasses.replace(sample, cost=cost(sample.cost))
                for sample in sorted(each.samples, key=lambda sample: sample.index)
            )
            return dataclasses.replace(each, cost=cost(each.cost), samples=samples)

        return [result(each) for each in run.results]

    async def main():
        model = model_of(await open_engine(uri))
        here = await evaluate(task, model, setting, seeds=2)
        with Store.open("ponder.db") as store:
            workers, pids, killed = on_ray(uri), [], []

            def progress(done, total):
                if done == 0:
                    asyncio.ensure_future(find())
                if done >= 3 and pids and not killed:
                    killed.append(pids[0])
                    os.kill(pids[0], signal.SIGKILL)

            async def find():
                while len(workers._actors) < 2:
                    await asyncio.sleep(0.05)
                pids.extend([(await actor.opened.remote())["pid"] for actor in workers._actors])

            account = Account()
            how = {"seeds": 2, "at_once": 4, "store": store, "progress": progress, "account": account}
            there = await evaluate(task, model, setting, workers=workers, **how)
            assert len(set(pids)) == 2 and killed and os.getpid() not in pids
            assert there.id == here.id
            assert plain(there) == plain(here)
            assert account.samples >= 2 * len(there.results)

            # What the workers handed over is in the database: nothing is asked again, on Ray or here.
            again = Account()
            assert await evaluate(task, model, setting, seeds=2, store=store, workers=on_ray(uri)) == there
            other = dataclasses.replace(task, verifier="exact_text")
            await evaluate(other, model, setting, seeds=2, store=store, account=again)
            assert (again.samples, again.cached_samples) == (0, 2 * len(there.results))

        broken = on_ray("scripted:broken.json")
        try:
            await evaluate(task, model_of(await open_engine("scripted:broken.json")), setting, workers=broken)
        except EngineError as error:
            print(type(error).__name__, error.problem)

        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, stop.set)
        part = await evaluate(task, model, setting, seed=1, at_once=1, workers=on_ray(uri), stop=stop)
        assert len(part.results) < len(task.questions)

    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    try:
        asyncio.run(main())
        print("done", flush=True)
    finally:
        cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ponder[ray]")
def test_two_nodes_come_to_the_same_and_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "answer": i + 3} for i in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    replies = [
        {"when": f"What is {i} ", "say": [f"Well.\nThe answer is {i + 3}.", f"So, {i}.\nThe answer is {i + i % 2}."]}
        for i in range(8)
    ]
    slow = [{"kind": "delay", "seconds": 0.01, "every": True, "times": None}]
    gone = [{"kind": "garbage", "times": None}]
    for name, faults in (("model", slow), ("broken", gone)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"version": 1, "replies": replies, "faults": faults}))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_TWO_NODES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "GarbledReply the scripted engine sent something that is no reply\ndone\n"


def test_memory_keeps_what_is_complete_until_it_is_handed_over() -> None:
    memory = Memory()
    memory.keep({b"a": (False, b"1"), b"b": (True, b"2")})
    memory.keep({b"a": (False, b"11"), b"b": (False, b"22")})
    assert memory.kept([b"a", b"b", b"c"]) == {b"a": (False, b"11"), b"b": (True, b"2")}
    assert memory.handed_over() == {b"a": (False, b"11"), b"b": (True, b"2")}
    assert memory.handed_over() == {}


@pytest.mark.parametrize(
    "error", [NoAnswer("none", "ask"), RateLimited("busy", "wait", 3.0), InputError("wrong"), EngineError("x", "y")]
)
def test_errors_come_over_as_they_are(error: EngineError) -> None:
    again = _error(_told(error))
    assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


def test_files_are_named_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert _absolute("scripted:m.json") == f"scripted:{tmp_path}/m.json"
    assert _absolute("m.json") == f"{tmp_path}/m.json"
    assert _absolute("ponder-135m") == "ponder-135m"
    assert _absolute("openai:http://127.0.0.1:8000/v1#m") == "openai:http://127.0.0.1:8000/v1#m"
