"""Runs, results and kept samples: what is stored stays, whatever happens to the process or the disk."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ponder.errors import InputError, StoreError
from ponder.ops import store as store_module
from ponder.ops.results import Background, Pruned, Results
from ponder.ops.store import MIGRATIONS, Store
from ponder.types import Trace, ask


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ponder.db") as opened:
        yield opened


@pytest.fixture
def results(store: Store) -> Results:
    return Results(store)


def begin(results: Results, run: str, document: str = "{}") -> None:
    results.begin_run(run, "gsm8k/test", "toy", "vote(8)", document)


def raw(store: Store, query: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(store.path, isolation_level=None)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# ---------------------------------------------------------------- runs and results


def test_results_come_back_by_question_and_seed(results: Results) -> None:
    begin(results, "aaaa1111", '{"é": 1}')
    begin(results, "bbbb2222")
    results.add_result("aaaa1111", "q1", 0, "first")
    results.add_result("aaaa1111", "q1", 1, "é" * 1000)
    results.add_result("bbbb2222", "q1", 0, "other")
    assert results.results_of("aaaa1111") == {("q1", 0): "first", ("q1", 1): "é" * 1000}
    assert results.results_of("nothing") == {}
    assert results.run("aaaa") == ("aaaa1111", '{"é": 1}')
    assert [(run.id, run.strategy, run.results) for run in results.runs()] == [
        ("bbbb2222", "vote(8)", 1),
        ("aaaa1111", "vote(8)", 2),
    ]
    assert [run.id for run in results.runs(1)] == ["bbbb2222"]


def test_what_is_there_stays(results: Results) -> None:
    begin(results, "aaaa1111", "before")
    results.add_result("aaaa1111", "q1", 0, "first")
    begin(results, "aaaa1111", "after")
    results.add_result("aaaa1111", "q1", 0, "second")
    assert results.run("aaaa1111")[1] == "before"
    assert results.results_of("aaaa1111") == {("q1", 0): "first"}


def test_a_beginning_has_to_be_that_of_one_run(results: Results) -> None:
    with pytest.raises(InputError, match=r"there is no run 'aa'\. there are none"):
        results.run("aa")
    begin(results, "aaaa1111")
    begin(results, "aaaa2222")
    begin(results, "aaaa")
    assert results.run("aaaa")[0] == "aaaa"
    with pytest.raises(InputError, match="'aa' is the beginning of several runs: aaaa, aaaa11, aaaa22"):
        results.run("aa")
    for wrong in ("", "x", "%"):
        with pytest.raises(InputError, match=r"the newest are aaaa \(vote\(8\) on gsm8k/test\)"):
            results.run(wrong)


def test_a_run_takes_its_results_along(store: Store, results: Results) -> None:
    begin(results, "aaaa1111")
    results.add_result("aaaa1111", "q1", 0, "first")
    assert results.remove_run("aa") == "aaaa1111"
    assert raw(store, "SELECT count(*) FROM results") == [(0,)]
    with pytest.raises(InputError, match="was removed while it went on"):
        results.add_result("aaaa1111", "q1", 0, "first")


def test_a_result_and_its_trace_are_stored_both_or_neither(store: Store, results: Results) -> None:
    begin(results, "aaaa1111")
    results.add_result("aaaa1111", "q1", 0, "first", Trace("t1", ask("?"), answer="7"))
    assert store.get("t1").answer == "7"
    store._connection.execute("PRAGMA max_page_count = " + str(raw(store, "PRAGMA page_count")[0][0]))
    with pytest.raises(StoreError, match="full"):
        results.add_result("aaaa1111", "q2", 0, "second", Trace("t2", ask("?"), answer="7" * 10**6))
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert list(results.results_of("aaaa1111")) == [("q1", 0)]
    assert [summary.id for summary in store.list()] == ["t1"]


def test_documents_take_little_room(store: Store, results: Results) -> None:
    begin(results, "aaaa1111")
    results.add_result("aaaa1111", "q1", 0, '{"index": 1, "answer": "7", "correct": 1.0}' * 100)
    assert raw(store, "SELECT length(document) FROM results")[0][0] < 200


# ---------------------------------------------------------------- samples


def test_a_complete_sample_stays_and_a_part_gives_way(results: Results) -> None:
    results.keep({b"a": (False, b"1"), b"b": (True, b"2")})
    results.keep({b"a": (False, b"11"), b"b": (True, b"22")})
    assert results.kept([b"a", b"b", b"c"]) == {b"a": (False, b"11"), b"b": (True, b"2")}
    results.keep({b"a": (True, b"111")})
    results.keep({b"a": (False, b"1"), b"b": (False, b"2")})
    assert results.kept([b"a", b"b"]) == {b"a": (True, b"111"), b"b": (True, b"2")}


def test_many_keys_at_once(results: Results) -> None:
    rows = {number.to_bytes(2, "big"): (True, b"x") for number in range(1200)}
    results.keep(rows)
    assert results.kept(rows) == rows
    assert results.kept([]) == {}


def test_pruning_takes_what_is_old(store: Store, results: Results) -> None:
    begin(results, "aaaa1111")
    results.keep({b"old": (True, b"1"), b"new": (True, b"2")})
    store._connection.execute("UPDATE samples SET made = made - 10 * 86400 WHERE key = ?", (b"old",))
    assert results.prune(days=9, runs=True) == Pruned(samples=1, runs=0)
    assert list(results.kept([b"old", b"new"])) == [b"new"]
    time.sleep(0.002)
    assert results.prune(days=0) == Pruned(samples=1, runs=0)
    assert results.prune(days=0, runs=True) == Pruned(samples=0, runs=1)
    for wrong in (-1, float("nan")):
        with pytest.raises(InputError, match="are no age"):
            results.prune(wrong)


# ---------------------------------------------------------------- an older, a damaged, a full, a held database


def test_a_database_of_traces_alone_gets_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", MIGRATIONS[:1])
        with Store.open(tmp_path / "ponder.db") as older:
            older.begin(Trace("t1", ask("?")))
    with Store.open(tmp_path / "ponder.db") as store:
        begin(Results(store), "aaaa1111")
        assert store.get("t1").id == "t1"


def test_a_damaged_document_is_a_store_error(store: Store, results: Results) -> None:
    begin(results, "aaaa1111")
    results.add_result("aaaa1111", "q1", 0, "first")
    store._connection.execute("UPDATE results SET document = x'00'")
    with pytest.raises(StoreError, match="is damaged") as caught:
        results.results_of("aaaa1111")
    assert f"mv '{store.path}'" in caught.value.mend


def test_a_full_disk_stores_all_of_a_batch_or_none(store: Store, results: Results) -> None:
    results.keep({b"a": (True, b"1")})
    store._connection.execute("PRAGMA max_page_count = " + str(raw(store, "PRAGMA page_count")[0][0]))
    with pytest.raises(StoreError, match="full"):
        results.keep({b"b": (True, b"2"), b"c": (True, b"3" * 10**6)})
    assert list(results.kept([b"a", b"b", b"c"])) == [b"a"]


def test_a_database_that_is_held_by_another_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with Store.open(store.path) as other:
        holder = sqlite3.connect(store.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match="held by another process"):
                Results(other).keep({b"a": (True, b"1")})
            assert Results(other).kept([b"a"]) == {}  # readers need not wait
        finally:
            holder.close()


def test_texts_that_are_no_unicode_are_refused(results: Results) -> None:
    with pytest.raises(InputError, match="no UTF-8"):
        begin(results, "aaaa1111", "caf\udce9")
    assert results.runs() == []


CHILD = """
    import sys
    from pathlib import Path
    from ponder.ops.results import Results
    from ponder.ops.store import Store

    name, count = sys.argv[2], int(sys.argv[3])
    with Store.open(Path(sys.argv[1])) as store:
        results = Results(store)
        results.begin_run(name, "task", "toy", "vote", "{}")
        for i in range(count):
            results.keep({f"{name} {i}".encode(): (True, b"x" * 3000)})
            results.add_result(name, f"q{i}", 0, f"{i}")
            print(i, flush=True)
"""


def child(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_several_processes_write_and_kill_9_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "ponder.db"
    other = child(path, "bbbb", 100)
    with child(path, "aaaa", 10**6) as victim:
        assert victim.stdout
        reported = [int(victim.stdout.readline()) for _ in range(100)]
        victim.send_signal(signal.SIGKILL)
        reported += [int(line) for line in victim.stdout.read().splitlines()]
    other.communicate(timeout=60)
    assert other.returncode == 0
    with Store.open(path) as store:
        results = Results(store)
        stored = results.results_of("aaaa")
        assert {(f"q{i}", 0): str(i) for i in reported}.items() <= stored.items()
        assert len(stored) - len(reported) in (0, 1)
        assert len(results.kept([f"aaaa {i}".encode() for i in reported])) == len(reported)
        assert len(results.results_of("bbbb")) == 100
        assert raw(store, "PRAGMA integrity_check") == [("ok",)]


# ---------------------------------------------------------------- in the background


def test_work_is_done_in_order_in_another_thread(tmp_path: Path) -> None:
    async def work() -> None:
        async with Background(tmp_path / "ponder.db") as database:
            done: list[int] = []
            threads: set[int] = set()

            def note(number: int) -> None:
                threads.add(threading.get_ident())
                done.append(number)

            await asyncio.gather(*(database.do(lambda results, i=i: note(i)) for i in range(50)))  # type: ignore[misc]
            assert done == list(range(50))
            assert len(threads) == 1
            assert threading.get_ident() not in threads

    asyncio.run(work())
    assert "ponder-results" not in "".join(thread.name for thread in threading.enumerate())


def test_what_was_begun_is_done_though_nobody_waits(tmp_path: Path) -> None:
    async def work() -> None:
        async with Background(tmp_path / "ponder.db") as database:

            def slowly(results: Results) -> None:
                time.sleep(0.1)
                results.keep({b"a": (True, b"1")})

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(database.do(slowly), 0.02)
        async with Background(tmp_path / "ponder.db") as database:
            assert await database.do(lambda results: results.kept([b"a"])) == {b"a": (True, b"1")}

    asyncio.run(work())


def test_errors_come_through(tmp_path: Path) -> None:
    (tmp_path / "ponder.db").write_bytes(b"this was never a database" * 100)

    async def work() -> None:
        async with Background(tmp_path / "ponder.db"):
            pass

    with pytest.raises(StoreError, match="is damaged"):
        asyncio.run(work())
    assert "ponder-results" not in "".join(thread.name for thread in threading.enumerate())
