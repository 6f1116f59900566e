"""The database of traces: nothing that was recorded is lost, whatever happens to the process."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import InputError, StoreError
from ponder.ops import store as store_module
from ponder.ops.process import start_of
from ponder.ops.store import MIGRATIONS, Store, TraceSummary, coalesce
from ponder.types import (
    AnswerDelta,
    BestAnswer,
    Budget,
    Cost,
    Done,
    Event,
    Provenance,
    Sample,
    SampleFinished,
    Score,
    Scored,
    ThinkingDelta,
    ToolCall,
    ToolCalled,
    Trace,
    ask,
    from_json,
)


def begun(trace_id: str = "t1", question: str = "What is 7 x 8?", **fields: Any) -> Trace:
    return Trace(trace_id, ask(question), provenance=Provenance(model="toy", strategy="direct"), **fields)


def finished(trace: Trace, answer: str = "56") -> Trace:
    sample = Sample(0, f"<think>hm</think>{answer}", thinking="hm", answer=answer)
    cost = Cost(thinking=3, answer=2, prompt_computed=9, seconds=0.5, dollars=0.25, calls=1)
    events = (ThinkingDelta("hm"), AnswerDelta(answer), SampleFinished(sample, cost))
    return dataclasses.replace(trace, answer=answer, cost=cost, samples=(sample,), events=events, state="done")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ponder.db") as opened:
        yield opened


def raw(store: Store, query: str, *values: Any) -> list[Any]:
    connection = sqlite3.connect(store.path, isolation_level=None)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# ---------------------------------------------------------------- begin, record, finish


def test_a_finished_trace_comes_back_whole_and_its_events_are_dropped(store: Store) -> None:
    trace = begun(created="2026-01-02T03:04:05.000+00:00", budget=Budget(tokens=100))
    recorder = store.begin(trace)
    for event in (ThinkingDelta("h"), ThinkingDelta("m"), AnswerDelta("56")):
        recorder.record(event)
    assert raw(store, "SELECT count(*) FROM events") == [(3,)]
    recorder.finish(finished(trace))
    assert store.get("t1") == finished(trace)
    assert raw(store, "SELECT count(*) FROM events") == [(0,)]
    assert store.list() == [
        TraceSummary(
            "t1", trace.created, "done", "toy", "direct", "What is 7 x 8?", "56", tokens=5, seconds=0.5, dollars=0.25
        )
    ]


def test_the_row_is_there_at_once_and_says_running(store: Store) -> None:
    store.begin(begun(question="x" * 500))
    (summary,) = store.list()
    assert summary.state == "running"
    assert summary.question == "x" * 200
    assert summary.created.startswith("20")
    assert summary.created.endswith("+00:00")
    with Store.open(store.path) as other:  # this process lives: nobody may call it interrupted
        assert other.get("t1").state == "running"


def test_finishing_keeps_the_time_of_the_beginning_and_unknown_prices(store: Store) -> None:
    recorder = store.begin(begun())
    created = store.list()[0].created
    recorder.finish(dataclasses.replace(begun(), cost=Cost(dollars=None), state="failed", error="broke"))
    (summary,) = store.list()
    assert (summary.created, summary.state, summary.dollars) == (created, "failed", None)
    assert store.get("t1").error == "broke"


def test_misuse_is_refused(store: Store) -> None:
    recorder = store.begin(begun())
    with pytest.raises(StoreError, match="t1 is stored already"):
        store.begin(begun())
    with pytest.raises(ValueError, match="needs an id"):
        store.begin(begun(""))
    with pytest.raises(ValueError, match="t2 is to be finished"):
        recorder.finish(begun("t2"))
    with pytest.raises(ValueError, match="says that it is running"):
        recorder.finish(begun(state="running"))
    recorder.record(Done(begun()))
    assert raw(store, "SELECT count(*) FROM events") == [(0,)]
    recorder.finish(begun())
    with pytest.raises(ValueError, match="finished"):
        recorder.record(AnswerDelta("late"))


def test_texts_that_are_no_unicode_are_refused(store: Store) -> None:
    recorder = store.begin(begun())
    with pytest.raises(InputError, match="no UTF-8"):
        store.begin(begun("t2", "caf\udce9"))
    with pytest.raises(InputError, match="no UTF-8"):
        recorder.record(AnswerDelta("caf\udce9"))
    assert [summary.id for summary in store.list()] == ["t1"]


def test_an_unfinished_trace_is_rebuilt_from_its_events(store: Store) -> None:
    recorder = store.begin(begun())
    samples = [Sample(i, f"s{i}", answer=f"s{i}") for i in range(2)]
    recorder.record(ThinkingDelta("hm", 0))
    recorder.record(AnswerDelta("se", 1))
    recorder.record(AnswerDelta("fir", 0))
    recorder.record(AnswerDelta("st", 0))
    so_far = store.get("t1")
    assert so_far.answer == "first"
    assert so_far.state == "running"
    assert so_far.cost == Cost()
    recorder.record(SampleFinished(samples[1], Cost(answer=4, seconds=1.0)))
    recorder.record(Scored(Score(0.5, "judge"), 1, Cost(verifier=2)))
    recorder.record(BestAnswer("second", 1))
    recorder.record(SampleFinished(samples[0], Cost(answer=5)))
    so_far = store.get("t1")
    assert so_far.answer == "second"
    assert so_far.cost == Cost(answer=9, verifier=2, seconds=1.0)
    assert so_far.samples == (samples[1], samples[0])
    assert so_far.scores == (Score(0.5, "judge"),)
    assert so_far.events[:3] == (ThinkingDelta("hm", 0), AnswerDelta("se", 1), AnswerDelta("first", 0))
    assert len(so_far.events) == 7


def test_recording_costs_less_than_a_fifth_of_a_millisecond(store: Store) -> None:
    recorder = store.begin(begun())
    recorder.record(AnswerDelta("warm"))

    def once() -> float:
        start = time.perf_counter()
        for _ in range(500):
            recorder.record(AnswerDelta("a few words"))
        return (time.perf_counter() - start) / 500

    assert min(once() for _ in range(5)) < 0.0002


# ---------------------------------------------------------------- several processes, killed ones

CHILD = """
    import sys
    from pathlib import Path
    from ponder.ops.store import Store
    from ponder.types import AnswerDelta, Trace, ask

    path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with Store.open(path) as store:
        trace = Trace(name, ask("count"))
        recorder = store.begin(trace)
        for i in range(count):
            recorder.record(AnswerDelta(f"{i} "))
            print(i, flush=True)
        recorder.finish(trace)
"""


def child(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_no_event_that_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ponder.db"
    with child(path, "victim", 10**6) as process:
        assert process.stdout
        reported = [int(process.stdout.readline()) for _ in range(200)]
        with Store.open(path) as while_alive:
            assert while_alive.get("victim").state == "running"
        process.send_signal(signal.SIGKILL)
        reported += [int(line) for line in process.stdout.read().splitlines()]
        assert process.wait() == -signal.SIGKILL
    with Store.open(path) as store:
        trace = store.get("victim")
        assert trace.state == "interrupted"
        recorded = trace.answer.split()
        # One more may have been stored and not yet reported when the signal came.
        assert recorded[: len(reported)] == [str(i) for i in reported]
        assert len(recorded) - len(reported) in (0, 1)
        assert trace.events == (AnswerDelta(trace.answer),)
        assert [(s.id, s.state, s.answer) for s in store.list(state="interrupted")] == [
            ("victim", "interrupted", trace.answer)
        ]
        assert raw(store, "PRAGMA integrity_check") == [("ok",)]


def test_processes_that_open_and_write_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "fresh" / "ponder.db"
    children = [child(path, f"child{i}", 150) for i in range(3)]
    for process in children:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert len(output.splitlines()) == 150
    with Store.open(path) as store:
        assert sorted((s.id, s.state) for s in store.list()) == [(f"child{i}", "done") for i in range(3)]


def test_a_reused_process_id_does_not_keep_a_trace_alive(store: Store) -> None:
    store.begin(begun()).record(AnswerDelta("half"))
    raw(store, "UPDATE traces SET started = 'another process of this id'")
    with Store.open(store.path) as reopened:
        assert reopened.get("t1").state == "interrupted"
        assert reopened.get("t1").answer == "half"


def test_traces_of_other_machines_are_left_alone(store: Store) -> None:
    store.begin(begun())
    raw(store, "UPDATE traces SET host = 'elsewhere', started = 'x'")
    with Store.open(store.path) as reopened:
        assert reopened.get("t1").state == "running"
        assert reopened.remove("t1") == "t1"


def test_an_orphan_of_another_version_is_interrupted_and_its_content_kept(store: Store) -> None:
    store.begin(begun()).record(AnswerDelta("half"))
    raw(store, "UPDATE traces SET started = 'gone'")
    raw(store, """UPDATE events SET document = '{"version": 99, "type": "answer_delta"}'""")
    with Store.open(store.path) as reopened:
        assert reopened.list()[0].state == "interrupted"
        with pytest.raises(StoreError, match=r"t1 cannot be read: .*version 99"):
            reopened.get("t1")
        with pytest.raises(StoreError, match="t1 cannot be read"):
            list(reopened.lines())
    assert raw(store, "SELECT count(*) FROM events") == [(1,)]


def test_two_that_find_the_same_orphan_end_it_once(store: Store) -> None:
    store.begin(begun()).record(AnswerDelta("half"))
    raw(store, "UPDATE traces SET started = 'gone'")
    opened: list[str] = []

    def open_it() -> None:
        with Store.open(store.path) as each:
            opened.append(each.get("t1").answer)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["half"] * 4


def test_the_start_of_a_process_tells_it_from_those_that_are_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine, other = start_of(os.getpid()), start_of(process.pid)
    assert mine
    assert other
    assert start_of(os.getpid()) == mine
    process.kill()
    deadline = time.monotonic() + 5
    while start_of(process.pid) and time.monotonic() < deadline:  # a zombie now: gone, although not yet reaped
        time.sleep(0.01)
    assert start_of(process.pid) == ""
    process.communicate()
    assert start_of(process.pid) == ""


def test_without_proc_the_start_comes_from_ps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ponder.ops.process.PROC", tmp_path / "none")
    ps = tmp_path / "ps"
    ps.write_text('#!/bin/sh\n[ "$4" = 1 ] && echo "  Mon Jan  5 10:00:00 2026"\nexit 0\n')
    ps.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start_of(1) == "Mon Jan  5 10:00:00 2026"
    assert start_of(2) == ""
    ps.unlink()
    assert start_of(2) == start_of(1) == "unknown"


# ---------------------------------------------------------------- finding, listing, exporting, removing


@pytest.fixture
def full(store: Store) -> Store:
    for number, (question, answer) in enumerate([("capital of France", "Paris"), ("100% of 5?", "5"), ("a_b", "c")]):
        trace = begun(f"{number}-trace", question, created=f"2026-01-0{number + 1}")
        store.begin(trace).finish(finished(trace, answer))
    running = store.begin(begun("9-trace", "still at it", created="2026-01-09"))
    running.record(AnswerDelta("half"))
    return store


def listed(store: Store, **options: Any) -> list[str]:
    return [summary.id for summary in store.list(**options)]


def test_the_newest_come_first_and_filters_narrow(full: Store) -> None:
    assert listed(full) == ["9-trace", "2-trace", "1-trace", "0-trace"]
    assert listed(full, limit=2) == ["9-trace", "2-trace"]
    assert len(listed(full, limit=None)) == 4
    assert listed(full, state="running") == ["9-trace"]
    assert listed(full, search="FRANCE") == ["0-trace"]
    assert listed(full, search="paris") == ["0-trace"]
    assert listed(full, search="toy", state="done") == ["2-trace", "1-trace", "0-trace"]
    assert listed(full, search="nothing like it") == []
    with pytest.raises(InputError, match="'finished' is no state of a trace"):
        full.list(state="finished")  # type: ignore[arg-type]


def test_search_takes_wildcards_literally(full: Store) -> None:
    assert listed(full, search="%") == ["1-trace"]
    assert listed(full, search="a_b") == ["2-trace"]
    assert listed(full, search="\\") == []


def test_many_traces_keep_their_order(store: Store) -> None:
    for number in range(30):
        store.begin(begun(f"{number:02}", created="2026"))
    assert listed(store) == [f"{number:02}" for number in range(29, 9, -1)]


def test_a_unique_beginning_of_an_id_is_enough(full: Store) -> None:
    assert full.get("1").id == "1-trace"
    full.begin(begun("1-trace-longer"))
    assert full.get("1-trace").id == "1-trace"
    with pytest.raises(InputError, match="'1-' is the beginning of several ids: 1-trace, 1-trace-longer"):
        full.get("1-")
    for wrong in ("7", "", "%"):
        with pytest.raises(InputError, match="there is no trace"):
            full.get(wrong)


def test_an_ambiguous_beginning_names_a_few(store: Store) -> None:
    for number in range(5):
        store.begin(begun(f"same{number}"))
    with pytest.raises(InputError, match=r"same0, same1, same2, \.\.\."):
        store.find("same")


def test_lines_read_back_as_traces_unfinished_ones_too(full: Store) -> None:
    traces = [from_json(Trace, line) for line in full.lines()]
    assert [trace.id for trace in traces] == ["0-trace", "1-trace", "2-trace", "9-trace"]
    assert traces == [full.get(trace.id) for trace in traces]
    assert (traces[-1].answer, traces[-1].state) == ("half", "running")
    assert [from_json(Trace, line).id for line in full.lines(["2", "0"])] == ["2-trace", "0-trace"]
    assert [from_json(Trace, line).id for line in full.lines(state="done", search="paris")] == ["0-trace"]


def test_traces_removed_meanwhile_are_left_out(full: Store) -> None:
    lines = full.lines()
    next(lines)
    full.remove("1")
    assert [from_json(Trace, line).id for line in lines] == ["2-trace", "9-trace"]


def test_export_writes_a_file_whole_or_not_at_all(full: Store, tmp_path: Path) -> None:
    target = tmp_path / "traces.jsonl"
    assert full.export(target, state="done") == 3
    assert target.read_text().splitlines() == list(full.lines(state="done"))
    before = target.read_text()
    raw(full, "UPDATE traces SET document = 'broken' WHERE id = '9-trace'")
    with pytest.raises(StoreError):
        full.export(target)
    assert target.read_text() == before
    assert sorted(each.name for each in tmp_path.iterdir() if "ponder.db" not in each.name) == ["traces.jsonl"]
    with pytest.raises(InputError, match="cannot be written: No such file"):
        full.export(tmp_path / "no" / "such" / "folder.jsonl")


def test_export_to_something_that_is_no_file_does_not_replace_it(full: Store, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    assert full.export(pipe, ids=["0"]) == 1
    reader.join(10)
    assert got == [next(full.lines(["0"])) + "\n"]
    assert pipe.is_fifo()


def test_removing_takes_the_events_along_but_not_from_under_a_running_process(full: Store) -> None:
    assert full.remove("0") == "0-trace"
    with pytest.raises(InputError, match="there is no trace"):
        full.get("0-trace")
    with pytest.raises(InputError, match=f"still being worked on by process {os.getpid()}"):
        full.remove("9")
    raw(full, "UPDATE traces SET started = 'gone' WHERE id = '9-trace'")
    full.remove("9")
    assert raw(full, "SELECT count(*) FROM events") == [(0,)]


def test_recording_into_a_removed_trace_fails_and_finishing_brings_it_back(store: Store) -> None:
    recorder = store.begin(begun())
    raw(store, "DELETE FROM traces")
    with pytest.raises(StoreError, match="t1 was removed"):
        recorder.record(AnswerDelta("x"))
    recorder.finish(finished(begun()))
    assert store.get("t1").answer == "56"


# ---------------------------------------------------------------- opening


def test_the_default_place_is_ponder_home_and_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "new" / "home"))
    with Store.open() as store:
        assert store.path == tmp_path / "new" / "home" / "ponder.db"
        assert store.path.stat().st_mode & 0o777 == 0o600
        store.begin(begun())
        assert raw(store, "PRAGMA journal_mode") == [("wal",)]
    store.close()


def test_a_database_of_a_newer_ponder_is_refused_and_untouched(store: Store) -> None:
    raw(store, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match="newer ponder") as caught:
        Store.open(store.path)
    assert "upgrade" in caught.value.mend
    assert raw(store, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


def test_an_older_database_is_brought_up_to_date(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.begin(begun())
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, ("ALTER TABLE traces ADD COLUMN note TEXT",)))
    with Store.open(store.path) as newer:
        assert raw(newer, "SELECT id, note FROM traces") == [("t1", None)]
        assert raw(newer, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


def test_a_migration_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ("ALTER TABLE traces ADD COLUMN note TEXT", "SELECT * FROM nowhere")
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(StoreError, match="no such table: nowhere"):
        Store.open(store.path)
    assert raw(store, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert ("note",) not in raw(store, "SELECT name FROM pragma_table_info('traces')")


def test_a_damaged_file_is_named_with_the_command_that_moves_it_away(tmp_path: Path) -> None:
    path = tmp_path / "ponder.db"
    path.write_bytes(b"this was never a database" * 100)
    with pytest.raises(StoreError, match="is damaged") as caught:
        Store.open(path)
    assert f"mv '{path}' '{path}.damaged'" in caught.value.mend
    assert path.read_bytes().startswith(b"this was never")


def test_damage_in_the_middle_is_a_store_error_too(tmp_path: Path) -> None:
    path = tmp_path / "ponder.db"
    with Store.open(path) as store:
        for number in range(50):
            store.begin(begun(str(number), "word " * 500))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StoreError, match="is damaged"), Store.open(path) as store:
        store.list()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions mean nothing to root: becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_home_says_what_to_set(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    with without_privileges(), pytest.raises(StoreError, match="cannot be made: Permission denied") as caught:
        Store.open(home / "ponder.db")
    assert "PONDER_HOME" in caught.value.mend
    assert "--no-store" in caught.value.mend


def test_a_home_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made") as caught:
        Store.open(tmp_path / "file" / "home" / "ponder.db")
    assert "PONDER_HOME" in caught.value.mend


def test_a_read_only_database_says_so(store: Store) -> None:
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=r"cannot be written \(attempt to write a readonly database") as caught:
        store.begin(begun())
    assert "PONDER_HOME" in caught.value.mend


def test_a_folder_in_the_place_of_the_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "ponder.db").mkdir()
    with pytest.raises(StoreError, match="unable to open database file"):
        Store.open(tmp_path / "ponder.db")


def test_a_full_disk_loses_nothing_that_was_stored(store: Store) -> None:
    recorder = store.begin(begun())
    recorder.record(AnswerDelta("safe"))
    pages = raw(store, "PRAGMA page_count")[0][0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(100):
            recorder.record(AnswerDelta("x" * 10000))

    with pytest.raises(StoreError, match="database or disk is full") as caught:
        fill()
    assert "make room" in caught.value.mend
    with pytest.raises(StoreError, match="full"):
        recorder.finish(dataclasses.replace(finished(begun()), answer="y" * 10**6))
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.get("t1").answer.startswith("safe")
    recorder.finish(finished(begun()))
    assert store.get("t1").state == "done"


def test_a_file_that_may_not_grow_is_a_store_error(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from ponder.errors import StoreError
        from ponder.ops.store import Store
        from ponder.types import AnswerDelta, Trace, ask
        store = Store.open(sys.argv[1])
        recorder = store.begin(Trace("t", ask("q")))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        try:
            for _ in range(1000):
                recorder.record(AnswerDelta("x" * 1000))
        except StoreError as error:
            print(error.problem, "|", error.mend)
    """
    path = tmp_path / "ponder.db"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert "make room" in done.stdout
    with Store.open(path) as store:
        assert len(store.get("t").answer) % 1000 == 0
        assert store.get("t").state == "interrupted"


def test_a_database_that_is_held_by_another_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(store.path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        with Store.open(store.path) as other, pytest.raises(StoreError, match="held by another process"):
            other.begin(begun())
    finally:
        holder.close()


def test_a_new_database_that_is_held_while_it_is_switched_over_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    path = tmp_path / "ponder.db"
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="held by another process"):
            Store.open(path)
    finally:
        holder.close()


def test_another_thread_may_not_use_it(store: Store) -> None:
    caught: list[Exception] = []

    def use() -> None:
        try:
            store.list()
        except sqlite3.ProgrammingError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 1


# ---------------------------------------------------------------- coalesce

deltas = st.builds(ThinkingDelta, st.text(max_size=3), st.integers(0, 2)) | st.builds(
    AnswerDelta, st.text(max_size=3), st.integers(0, 2)
)
others = st.builds(BestAnswer, st.text(max_size=3), st.integers(0, 2)) | st.builds(
    ToolCalled, st.builds(ToolCall, st.just("f"), st.just("{}")), st.integers(0, 2)
)


def test_coalesce_joins_neighbours_of_one_kind_and_sample() -> None:
    events: list[Event] = [
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        AnswerDelta("c"),
        AnswerDelta("d"),
        BestAnswer("cd"),
        AnswerDelta("e"),
    ]
    assert coalesce(events) == (ThinkingDelta("ab"), AnswerDelta("cd"), BestAnswer("cd"), AnswerDelta("e"))


def test_coalesce_joins_samples_that_take_turns() -> None:
    events = [AnswerDelta(text, sample) for text, sample in (("a", 0), ("x", 1), ("b", 0), ("y", 1))]
    assert coalesce(events) == (AnswerDelta("ab", 0), AnswerDelta("xy", 1))


@given(st.lists(deltas | others, max_size=30))
@settings(deadline=None)
def test_coalesce_keeps_every_text_and_the_order_within_each_sample(events: list[Event]) -> None:
    joined = coalesce(events)
    assert coalesce(joined) == joined
    assert [e for e in joined if isinstance(e, BestAnswer | ToolCalled)] == [
        e for e in events if isinstance(e, BestAnswer | ToolCalled)
    ]
    for sample in range(3):
        assert letters(joined, sample) == letters(events, sample)
    for before, after in itertools.pairwise(joined):
        if isinstance(before, ThinkingDelta | AnswerDelta) and type(before) is type(after):
            assert before.sample != after.sample  # type: ignore[union-attr]


def letters(events: Any, sample: int) -> list[tuple[str, str]]:
    """Each character of a sample with its kind, other events between them as they come."""
    found: list[tuple[str, str]] = []
    for event in events:
        if not isinstance(event, ThinkingDelta | AnswerDelta):
            found.append(("event", repr(event)))
        elif event.sample == sample:
            found += [(event.type, character) for character in event.text]
    return found


def test_whole_traces_are_kept_together_or_not_at_all(store: Store) -> None:
    first, second = finished(begun("t1")), finished(begun("t2"))
    store.keep([first])
    with pytest.raises(StoreError, match="stored already"):
        store.keep([second, first])
    assert [each.id for each in store.list()] == ["t1"]
    assert store.get("t1").answer == "56"
