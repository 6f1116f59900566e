"""`ponder eval`: what it prints, what it compares, and that nothing is paid twice however it is ended."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, Terminal, end, interrupt, ponder, slowly, start, write_script

from ponder.evals.run import kept_run
from ponder.ops import store as store_module
from ponder.ops.store import Store

SUMS = 6


def questions(folder: Path, count: int = SUMS, **more: Any) -> Path:
    rows = [
        {"id": f"q{i}", "question": f"What is {i} + 3?", "answer": str(i + 3), "kind": "even" if i % 2 == 0 else "odd"}
        | more
        for i in range(count)
    ]
    path = folder / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def adder(folder: Path, name: str = "adder", right: str = "yyn", **rest: Any) -> str:
    """A model whose sample k is right where `right` says y, but for the question of 5; without thinking it never is."""
    replies: list[dict[str, Any]] = []
    for i in range(SUMS):
        says = [
            f"<think>\nI have {i} and 3{' and so on' * (k + i % 2)}.\n</think>\n\n"
            f"The answer is {i + 3 if letter == 'y' and i != 5 else i}."
            for k, letter in enumerate(right)
        ]
        when = f"What is {i} "
        replies += [
            {"when": when, "after": "</think>", "say": f"\n\nThe answer is {i}."},
            {"when": when, "say": says},
            *({"when": when, "say": each} for each in says),  # to go on with any of them
        ]
    return write_script(folder / f"{name}.json", replies, **rest)


def told(*arguments: object) -> dict[str, Any]:
    result = ponder("eval", *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    assert len(result.out.splitlines()) == 1
    found: dict[str, Any] = json.loads(result.out)
    return found


def lines(out: str) -> dict[str, str]:
    """The printed lines by their labels."""
    return {line[:10].strip(): line[10:] for line in out.splitlines() if line[:1] != " "}


# ---------------------------------------------------------------- what is printed


def test_accuracy_with_its_interval_and_everything_beside_it(tmp_path):
    result = ponder("eval", questions(tmp_path), "-m", adder(tmp_path), "-s", "vote(3)", "-b", 900)
    assert (result.code, result.err) == (0, "")
    first, *_ = result.out.splitlines()
    assert first == "sums · scripted · vote(3) · 900 tokens a question"
    shown = lines(result.out)
    assert shown["accuracy"] == "83.3% [43.6, 98.2] of 6 questions"
    assert shown["lenient"].startswith("83.3% [43.6, 98.2] ")
    assert shown["coverage"] == "83.3% [43.6, 98.2] with any sample right"
    assert shown["floor"] == "16.7% for always answering '3'"
    assert re.fullmatch(r"[\d.]+ an answer: [\d.]+ thinking, [\d.]+ answer; prompt .* computed.*", shown["tokens"])
    assert re.fullmatch(r"FLOPs unknown · \d+\.\d\d s", shown["compute"])
    assert re.match(r"[\d,]+ tokens in 18 samples and continuations; 0 tokens in 0 from the cache", shown["paid now"])
    assert re.fullmatch("[0-9a-f]{10}", shown["run"])
    kinds = [line.split() for line in result.out.splitlines() if line.split()[:1] in (["even"], ["odd"])]
    assert [(cells[0], cells[1], cells[-1]) for cells in kinds] == [("even", "100.0%", "3"), ("odd", "66.7%", "3")]


def test_json_tells_the_same_in_numbers(tmp_path):
    found = told(questions(tmp_path), "-m", adder(tmp_path), "-s", "vote(3)", "--seeds", 2, "--price", "1,10")
    assert (found["task"], found["model"], found["strategy"], found["budget"]) == ("sums", "scripted", "vote(3)", 2048)
    assert (found["questions"], found["seeds"], found["verifier"]) == (6, 2, "math_answer")
    assert found["accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["accuracy"]["questions"] == 6  # repetitions are not counted as questions
    assert found["floor"] == {"answer": "3", "value": pytest.approx(1 / 6)}
    assert {kind: mean["questions"] for kind, mean in found["kinds"].items()} == {"even": 3, "odd": 3}
    cost = found["cost"]
    assert cost["tokens"] == pytest.approx(cost["thinking"] + cost["answer"])
    prompt = cost["prompt_computed"] + cost["prompt_cached"]
    expected = (prompt * 1 + cost["tokens"] * 10) / 1e6
    assert cost["dollars"] == pytest.approx(expected)
    assert found["paid now"]["samples"] == 36
    assert found["errors"] == {}


def test_strict_and_lenient_and_coverage_are_told_apart(tmp_path):
    model = write_script(tmp_path / "m.json", [{"say": ["So it is 3.", "The answer is 4.", "So it is 3."]}])
    found = told(questions(tmp_path, 2), "-m", model, "-s", "vote(3)")
    assert [found[name]["value"] for name in ("accuracy", "lenient", "coverage")] == [0, 0.5, 0.5]


def test_answers_that_never_came_are_counted_as_wrong_and_told(tmp_path):
    model = adder(tmp_path)
    result = ponder("eval", questions(tmp_path), "-m", model, "-b", 3)
    assert result.code == 0
    assert lines(result.out)["no answer"] == "6 (BudgetTooSmall), counted as wrong"
    assert lines(result.out)["accuracy"].startswith("0.0%")


def test_some_questions_can_be_drawn(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    first = told(path, "-m", model, "--limit", 3)
    drawn = told(path, "-m", model, "--limit", 3, "--sample-seed", 1)
    assert (first["questions"], drawn["questions"]) == (3, 3)
    assert first["run"] != drawn["run"]
    assert told(path, "-m", model, "--limit", 3, "--sample-seed", 1)["run"] == drawn["run"]


def test_verifier_and_format_can_be_chosen(tmp_path):
    path, model = questions(tmp_path, verifier="choice"), adder(tmp_path)
    plain = questions(tmp_path)
    assert told(plain, "-m", model, "--verifier", "pattern('answer is')")["accuracy"]["value"] == 1
    assert told(plain, "-m", model, "--format", "plain")["accuracy"]["value"] > 0
    assert path == plain


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--strategy", "guess(3)"], "there is no strategy 'guess'"),
        (["--against", "guess(3)"], "there is no strategy 'guess'"),
        (["--against", "abcd1234"], "there is no run 'abcd1234'"),
        (["--against", "abcd1234", "--no-cache"], "--no-cache looks up no run"),
        (["--verifier", "guess"], "there is no verifier 'guess'"),
        (["--format", "guess"], "there is no format 'guess'"),
        (["--budget", "0"], "tokens must be above 0"),
        (["--seeds", "0"], "seeds=0"),
        (["--at-once", "0"], "--at-once 0 asks nothing"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--sample-seed", "1"], "--sample-seed draws some"),
        (["--temperature", "nan"], "is no number"),
        (["--price", "x"], "is no price"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_line_and_nothing_is_paid(tmp_path, arguments, problem):
    result = ponder("eval", questions(tmp_path), "-m", adder(tmp_path, faults=[{"kind": "garbage"}]), *arguments)
    assert (result.code, result.out) == (2, "")
    assert problem in result.err
    assert result.err.count("\n") == 1


def test_without_ray_one_line_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = ponder("eval", questions(tmp_path), "-m", adder(tmp_path), "--on", "ray")
    assert (result.code, result.out) == (2, "")
    assert result.err == "ponder: --on ray needs Ray. Run: pip install 'ponder[ray]'.\n"


def test_a_file_that_is_none_is_one_line(tmp_path):
    result = ponder("eval", tmp_path / "none.jsonl", "-m", adder(tmp_path))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


# ---------------------------------------------------------------- against another run


def test_a_run_is_compared_with_another_by_the_beginning_of_its_id(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    other = told(path, "-m", model, "-s", "direct")
    result = ponder("eval", path, "-m", model, "-s", "vote(3)", "--against", other["run"][:6])
    assert result.code == 0
    against, difference, ratio = result.out.splitlines()[9:12]
    assert against == f"against   direct · scripted · 2048 tokens · run {other['run'][:10]}"
    assert re.fullmatch(
        r" {10}\+83\.3 points \[\+\d\d\.\d, \+\d\d\.\d\] on 6 questions · 5 better, 0 worse · McNemar p = 0\.0625",
        difference,
    )
    found = told(path, "-m", model, "-s", "vote(3)", "--against", other["run"])
    assert found["against"]["difference"]["value"] == pytest.approx(5 / 6)
    assert found["against"]["tokens"] == pytest.approx(found["cost"]["tokens"] / other["cost"]["tokens"])
    assert ratio.strip() == f"{found['against']['tokens']:.2f} times its tokens"
    assert found["paid now"]["samples"] == 0


def test_a_strategy_to_compare_with_is_run_too(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    found = told(path, "-m", model, "-s", "vote(3)", "--against", "direct", "--seeds", 2)
    assert (found["against"]["better"], found["against"]["worse"], found["against"]["mcnemar"]) == (5, 0, None)
    assert found["paid now"]["samples"] == 2 * (18 + 6)
    assert told(path, "-m", model, "-s", "direct", "--seeds", 2)["run"] == found["against"]["run"]


def test_runs_of_different_files_are_not_compared(tmp_path):
    model = adder(tmp_path)
    other = told(questions(tmp_path, 5), "-m", model)
    result = ponder("eval", questions(tmp_path, 6), "-m", model, "--against", other["run"])
    assert (result.code, result.out) == (2, "")
    assert "are of different tasks" in result.err


# ---------------------------------------------------------------- what is kept


def test_the_same_command_pays_nothing_and_says_the_same(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    first = told(path, "-m", model, "-s", "vote(3)")
    again = told(path, "-m", model, "-s", "vote(3)")
    assert again.pop("paid now") == dict.fromkeys(first.pop("paid now"), 0)
    assert again == first


def test_another_process_draws_the_same_samples(tmp_path):
    arguments = (questions(tmp_path), "-m", adder(tmp_path), "-s", "vote(3)", "-b", 180)
    first = end(start("eval", *arguments, env=os.environ | {"PYTHONHASHSEED": "1"}))
    assert first.code == 0, first
    # Judged otherwise it is another run, whose samples are all there already.
    paid = told(*arguments, "--verifier", "exact_text")["paid now"]
    assert (paid["samples"], paid["cached_samples"] > 18) == (0, True)


def test_another_budget_is_another_run(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    assert told(path, "-m", model)["run"] != told(path, "-m", model, "-b", 300)["run"]


def test_a_script_that_was_changed_is_another_model(tmp_path):
    path = questions(tmp_path)
    assert told(path, "-m", adder(tmp_path, right="n"))["accuracy"]["value"] == 0
    assert told(path, "-m", adder(tmp_path, right="y"))["accuracy"]["value"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("option", ["--no-cache", "--no-store"])
def test_without_a_cache_nothing_is_kept(tmp_path, ponder_home, option):
    path, model = questions(tmp_path), adder(tmp_path)
    for _ in range(2):
        assert told(path, "-m", model, option)["paid now"]["samples"] == 6
    assert not list(ponder_home.glob("ponder.db*"))


def test_traces_are_kept_on_demand(tmp_path):
    path, model = questions(tmp_path), adder(tmp_path)
    told(path, "-m", model)
    assert ponder("traces", "list").out == "no traces\n"
    told(path, "-m", model, "--seed", 1, "--traces")
    with Store.open() as store:
        assert len(store.list()) == 6


# ---------------------------------------------------------------- how it is ended


def wait_for_results(count: int, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with Store.open() as store:
            done = store._connection.execute("SELECT count(*) FROM results").fetchone()[0]
        if done >= count:
            return
        assert time.monotonic() < deadline, "nothing was done"
        time.sleep(0.02)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    path = questions(tmp_path)
    slow = adder(tmp_path, faults=slowly(0.002))
    process = start("eval", path, "-m", slow, "-s", "vote(3)", "--at-once", 2)
    wait_for_results(1)
    interrupt(process)
    stopped = end(process, timeout=10)
    assert (stopped.code, stopped.out) == (130, "")
    told_ = re.fullmatch(
        r"ponder: stopped\. (\d) of 6 results are kept: the same command goes on from there\.\n", stopped.err
    )
    assert told_, stopped.err
    assert 1 <= int(told_[1]) < 6
    done = int(told_[1])
    found = told(path, "-m", slow, "-s", "vote(3)", "--at-once", 2)
    assert found["accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["paid now"]["samples"] <= 18 - 3 * done


def test_an_engine_that_fails_ends_it_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("ponder.evals.run.PAUSES", (0.0, 0.0))
    path = questions(tmp_path)
    broken = adder(tmp_path, faults=[{"kind": "disconnect", "times": None, "first_call": 3}])
    result = ponder("eval", path, "-m", broken, "--at-once", 1)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("ponder: the scripted engine went away in the middle of the stream. ask again; 2 of 6")
    assert result.err.count("\n") == 1
    lost = ponder("eval", path, "-m", broken, "--at-once", 1, "--no-cache")
    assert "2 of 6 results were done, and are lost with --no-cache" in lost.err


def test_a_terminal_shows_how_far_it_is_and_then_the_numbers(tmp_path):
    slow = adder(tmp_path, faults=slowly(0.002))
    with Terminal("eval", questions(tmp_path), "-m", slow, "--at-once", 1, COLUMNS="120") as terminal:
        assert terminal.end() == 0
    assert "0/6" in terminal.seen
    assert re.search(r"[1-5]/6.*a minute", terminal.seen)
    assert "accuracy" in terminal.seen


# ---------------------------------------------------------------- a database that fails


def test_a_damaged_database_is_one_line(tmp_path, ponder_home):
    (ponder_home / "ponder.db").write_bytes(b"this was never a database" * 100)
    result = ponder("eval", questions(tmp_path), "-m", adder(tmp_path))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "is damaged" in result.err
    assert told(questions(tmp_path), "-m", adder(tmp_path), "--no-store")["questions"] == 6


def test_a_database_that_another_process_holds_is_one_line(tmp_path, monkeypatch):
    path, model = questions(tmp_path), adder(tmp_path)
    with Store.open() as store:
        monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
        holder = sqlite3.connect(store.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            result = ponder("eval", path, "-m", model)
        finally:
            holder.close()
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "is held by another process" in result.err


def test_a_full_disk_ends_it_in_one_line_and_room_lets_it_go_on(tmp_path, ponder_home):
    path, model = questions(tmp_path), adder(tmp_path)
    with Store.open() as store:
        size = store.path.stat().st_size

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 60_000, resource.RLIM_INFINITY))

    # Coverage would have its own file to write, and say that it cannot.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    full = end(start("eval", path, "-m", model, "-s", "vote(3)", preexec_fn=little_room, env=unmeasured))
    assert (full.code, full.out, full.err.count("\n")) == (2, "", 1), full
    assert "cannot be written" in full.err
    assert "make room" in full.err
    assert told(path, "-m", model, "-s", "vote(3)")["accuracy"]["value"] == pytest.approx(5 / 6)


# ---------------------------------------------------------------- kill -9

NURSERY = """
import os, sys
import jinja2.sandbox, rich.console
from ponder import cli
from ponder.engine import scripted
from ponder.evals.inquiry import Judges, strategy_named
from ponder.evals.cached import CachedEngine
from ponder.evals.results import Run, Setting
from ponder.evals.statistics import mean_interval
from ponder.tasks import Task
from ponder.types import from_json, to_json

Judges(Task("", (), "math_answer", ""))
strategy_named("vote(3)")
mean_interval([[1.0]])
from_json(Run, to_json(Run("", "", "", Setting(""), ())))

class Call(scripted._Call):
    def __init__(self, engine, prefix, n, params):
        super().__init__(engine, prefix, n, params)
        self.key = CachedEngine(engine, None)._numbered("sample", list(prefix), params)
        for index in range(n):
            os.write(log, b"begin %s\\n" % self.key(index).hex().encode())

    def _chunk(self, lane, ids, text, finish):
        if finish is not None:
            os.write(log, b"end %s\\n" % self.key(lane.index).hex().encode())
        return super()._chunk(lane, ids, text, finish)

scripted._Call = Call
print(flush=True)
for line in sys.stdin:
    home, *arguments = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.environ["PONDER_HOME"] = home
    log, out, err = [os.open(f"{home}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("log", "out", "err")]
    os.dup2(out, 1), os.dup2(err, 2)
    sys.argv = ["ponder", "eval", *arguments]
    cli.main()
"""
"""Starts `ponder eval` for each line that it reads, with an engine that writes down which samples it begins and ends.

Each is a process of its own, forked off one that has imported everything: ten starts would take ten seconds.
"""


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        assert process.stdin
        process.stdin.close()


@dataclass
class Watched:
    """`ponder eval` with a home of its own, from a process whose engine is watched."""

    nursery: subprocess.Popen[str]
    home: Path
    arguments: tuple[str, ...]
    begun: list[set[str]] = field(default_factory=list)
    ended: list[set[str]] = field(default_factory=list)

    def run(self, kill_after: int | None = None) -> Result:
        """Lets it run to its end, or kills it once it has begun and ended so many samples."""
        self.home.mkdir(exist_ok=True)
        log = self.home / "log"
        log.write_text("")
        assert self.nursery.stdin
        assert self.nursery.stdout
        self.nursery.stdin.write("\t".join([str(self.home), *self.arguments]) + "\n")
        self.nursery.stdin.flush()
        child = int(self.nursery.stdout.readline())
        if kill_after is not None:
            deadline = time.monotonic() + 20
            while log.read_text().count("\n") < kill_after:
                assert time.monotonic() < deadline, (self.home / "err").read_text()
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)
        code = int(self.nursery.stdout.readline())
        self.note()
        return Result(code, (self.home / "out").read_text(), (self.home / "err").read_text())

    def note(self) -> None:
        """What the process did that has ended now. A sample that it began twice would be counted twice."""
        written = [line.split() for line in (self.home / "log").read_text().splitlines()]
        for word, found in (("begin", self.begun), ("end", self.ended)):
            keys = [line[1] for line in written if line[0] == word]
            assert len(keys) == len(set(keys))
            found.append(set(keys))

    def samples(self, complete: bool = True) -> dict[str, Any]:
        """What is kept: text and token ids of each sample by its key."""
        if not (self.home / "ponder.db").exists():
            return {}
        with Store.open(self.home / "ponder.db") as store:
            rows = store._connection.execute(
                "SELECT key, chunks FROM samples WHERE complete = ?", (complete,)
            ).fetchall()
        found = {}
        for key, blob in rows:
            chunks = [chunk for _, chunk in json.loads(zlib.decompress(blob))["chunks"]]
            ids = [token for chunk in chunks for token in chunk.get("ids", [])]
            found[key.hex()] = (ids, "".join(chunk.get("text", "") for chunk in chunks), chunks[-1]["finish"])
        return found

    def results(self, run: str) -> list[Any]:
        """The results without what depends on the clock and on what the engine's cache held."""
        with Store.open(self.home / "ponder.db") as store:
            kept = kept_run(store, run)
        kinds = ("thinking", "answer", "verifier", "probe", "cancelled", "written", "prompt", "calls")

        def spent(cost: Any) -> list[int]:
            return [getattr(cost, kind) for kind in kinds]

        def judged(samples: Any) -> list[Any]:
            ordered = sorted(samples, key=lambda sample: sample.index)
            return [(s.index, s.answer, s.correct, s.kept, spent(s.cost)) for s in ordered]

        return [
            (r.question, r.seed, r.answer, r.correct, r.lenient, r.error, spent(r.cost), judged(r.samples))
            for r in kept.results
        ]


def test_kill_9_at_any_moment_loses_nothing_that_was_stored_and_nothing_is_paid_twice(tmp_path, nursery):
    moments = random.Random(9)
    # So little that thinking is closed early: each sample then takes several requests.
    command = (str(questions(tmp_path)), "-m", adder(tmp_path, faults=slowly(0.0005)), "-s", "vote(3)", "-b", "180")
    command = (*command, "--seeds", "2", "--at-once", "2", "--json")
    whole = Watched(nursery, tmp_path / "whole", command)
    undisturbed = whole.run()
    killed, kills = Watched(nursery, tmp_path / "killed", command), 10
    for _ in range(kills):
        stored = killed.samples()
        assert killed.run(kill_after=moments.randint(1, 50)).code == -signal.SIGKILL
        assert killed.begun[-1].isdisjoint(stored)
        # What had ended was stored at once: two questions of three samples run side by side.
        assert len(killed.ended[-1] - killed.samples().keys()) <= 2 * 3
    stored = killed.samples()
    resumed = killed.run()
    assert killed.begun[-1].isdisjoint(stored)
    assert (undisturbed.code, resumed.code, resumed.err) == (0, 0, "")

    before, after = json.loads(undisturbed.out), json.loads(resumed.out)
    assert before["run"] == after["run"]
    assert killed.results(after["run"]) == whole.results(before["run"])
    assert killed.samples() == whole.samples()
    assert whole.begun[0] == set(whole.samples())
    # In flight at a kill: the samples of the questions that were being asked.
    generated = sum(map(len, killed.begun))
    assert len(whole.begun[0]) <= generated <= len(whole.begun[0]) + kills * 2 * 3
    assert 0 < len(killed.begun[-1]) < len(whole.begun[0])  # the kills came in the middle of the work
    assert after["paid now"]["samples"] == len(killed.ended[-1])
