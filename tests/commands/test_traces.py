"""`ponder traces`: what it lists, shows, exports and removes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ponder.commands.terminal import describe
from ponder.commands.traces import app
from ponder.errors import InputError, StoreError
from ponder.ops.store import Store
from ponder.types import (
    AnswerDelta,
    BestAnswer,
    Cost,
    Provenance,
    Sample,
    SampleFinished,
    Score,
    Scored,
    ThinkingDelta,
    ToolCall,
    ToolCalled,
    ToolResult,
    ToolReturned,
    Trace,
    ask,
    from_json,
)

SAMPLE = Sample(0, "", thinking="seven times [bold]eight", answer="56")
COST = Cost(thinking=30, answer=2, written=1, prompt_computed=12, prompt_cached=3, seconds=1.25, dollars=0.0012)


def trace(trace_id: str, question: str, **fields: Any) -> Trace:
    given = {"answer": "56", "cost": COST, "samples": (SAMPLE,), "created": "2026-03-04T05:06:07.000+00:00", **fields}
    return Trace(trace_id, ask(question), provenance=Provenance(model="toy", strategy="direct"), **given)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def keep(*traces: Trace) -> None:
    with Store.open() as store:
        for each in traces:
            recorder = store.begin(dataclasses.replace(each, events=(), samples=(), answer="", cost=Cost()))
            if each.state != "running":
                recorder.finish(each)


def call(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=typed, catch_exceptions=False)


def out(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# ---------------------------------------------------------------- list


def test_list_shows_whole_ids_newest_first() -> None:
    long_id = "0123456789abcdef" * 3
    keep(trace("older", "What is\n7 x 8?"), trace(long_id, "q " * 100, created="2026-05-01"))
    lines = out("list").splitlines()
    assert lines[0].split() == [long_id, "2026-05-01", "done", "33", "tokens"]
    assert lines[1].endswith("…")
    assert len(lines[1]) == 80
    assert lines[2].split() == ["older", "2026-03-04", "05:06", "done", "33", "tokens"]
    assert lines[3] == "  What is 7 x 8? → 56"


def test_list_filters() -> None:
    keep(trace("a", "apples"), trace("b", "pears", state="failed"), trace("c", "plums", answer="none"))
    assert [row["id"] for row in json.loads(out("list", "--json"))] == ["c", "b", "a"]
    assert [row["id"] for row in json.loads(out("list", "--json", "--limit", "1"))] == ["c"]
    assert [row["id"] for row in json.loads(out("list", "--json", "--state", "failed"))] == ["b"]
    assert [row["id"] for row in json.loads(out("list", "--json", "--search", "APPL"))] == ["a"]
    assert out("list", "--search", "grapes") == "no such traces\n"


def test_list_json_holds_the_summary() -> None:
    keep(trace("a", "2 + 2 = é?"))
    assert json.loads(out("list", "--json")) == [
        {
            "id": "a",
            "created": "2026-03-04T05:06:07.000+00:00",
            "state": "done",
            "model": "toy",
            "strategy": "direct",
            "question": "2 + 2 = é?",
            "answer": "56",
            "tokens": 33,
            "seconds": 1.25,
            "dollars": 0.0012,
        }
    ]


def test_an_empty_store_says_so() -> None:
    assert out("list") == "no traces\n"
    assert json.loads(out("list", "--json")) == []


def test_wrong_options_are_refused() -> None:
    assert call("list", "--state", "finished").exit_code == 2
    assert call("list", "--limit", "0").exit_code == 2


# ---------------------------------------------------------------- show

EVENTS = (
    ThinkingDelta("seven times eight"),
    ToolCalled(ToolCall("times", '{"a": 7}')),
    ToolReturned(ToolResult("1", "56")),
    ToolReturned(ToolResult("2", "no such tool", error=True)),
    AnswerDelta("56"),
    SampleFinished(SAMPLE, Cost(thinking=30, answer=2)),
    Scored(Score(0.75, "judge", "looks right"), 0),
    Scored(Score(1.0, "math"), 0),
    BestAnswer("56"),
)


def test_show_tells_everything_in_order() -> None:
    keep(trace("abc123", "What is 7 x 8?", events=EVENTS, state="failed", error="the engine went away"))
    assert out("show", "abc") == "\n".join(
        [
            "trace abc123",
            "toy · direct · 2026-03-04T05:06:07.000+00:00 · failed",
            "",
            "question",
            "What is 7 x 8?",
            "",
            "thinking",
            "seven times [bold]eight",
            "",
            "answer",
            "56",
            "",
            "error",
            "the engine went away",
            "",
            "cost",
            "33 tokens (30 thinking, 2 answer, 1 written) · prompt 12 computed, 3 cached"
            " · 1.2 s · 26 tokens/s · $0.001200",
            "",
            "events",
            "thinking_delta of sample 0: seven times eight",
            'tool_called by sample 0: times({"a": 7})',
            "tool_returned: 56",
            "tool_returned (error): no such tool",
            "answer_delta of sample 0: 56",
            "sample_finished: 0, stop, 32 tokens (30 thinking, 2 answer) · prompt 0 computed, 0 cached · 0.0 s",
            "scored sample 0: 0.75 by judge: looks right",
            "scored sample 0: 1 by math",
            "best_answer from sample 0: 56",
            "",
            "",
        ]
    )


def test_show_an_unfinished_trace() -> None:
    keep(trace("abc", "What?", state="running"))
    shown = out("show", "abc")
    assert "running" in shown
    assert "answer\n(none)\n" in shown
    assert "thinking" not in shown
    assert "events" not in shown


def test_show_json_is_the_trace_itself() -> None:
    whole = trace("abc", "What is 7 x 8?", events=EVENTS)
    keep(whole)
    assert from_json(Trace, out("show", "abc", "--json")) == whole


def test_what_a_model_wrote_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\u202e56"
    keep(trace("abc", evil, answer=evil, samples=(dataclasses.replace(SAMPLE, thinking=evil, answer=evil),)))
    for shown in (out("show", "abc"), out("list")):
        assert not set("\x1b\x07\r\u202e") & set(shown)
        assert "owned" in shown
    friendly = "👩\u200d🚀 a\u00a0b 日本\u3000語"
    keep(trace("other", friendly))
    assert friendly in out("show", "other")


def test_thinking_is_dimmed_on_a_terminal_and_no_color_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(trace("abc", "What is 7 x 8?"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[2mseven times [bold]eight\x1b[0m" in out("show", "abc")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in out("show", "abc")
    assert "\x1b" not in out("list")


def test_unknown_ids_raise_for_the_command_line_to_print() -> None:
    keep(trace("abc1", "q"), trace("abc2", "q"))
    for command in (["show", "x"], ["show", "x", "--json"], ["rm", "x"], ["rm", "x", "--yes"]):
        with pytest.raises(InputError, match="there is no trace 'x'"):
            call(*command)
    with pytest.raises(InputError, match="several ids"):
        call("show", "abc")


def test_a_damaged_store_raises_for_the_command_line_to_print(home: Path) -> None:
    home.mkdir()
    (home / "ponder.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StoreError, match="is damaged"):
        call("list")


def test_costs_in_one_line() -> None:
    assert describe(Cost()) == "0 tokens · prompt 0 computed, 0 cached · 0.0 s"
    line = describe(Cost(verifier=1, probe=2, cancelled=3, dollars=None))
    assert line == "6 tokens (1 verifier, 2 probe, 3 cancelled) · prompt 0 computed, 0 cached · 0.0 s"


# ---------------------------------------------------------------- export and rm


def test_export_to_standard_output_and_to_a_file(tmp_path: Path) -> None:
    kept = [trace("a", "apples", events=EVENTS), trace("b", "pears", state="failed")]
    keep(*kept)
    assert [from_json(Trace, line) for line in out("export").splitlines()] == kept
    target = tmp_path / "traces.jsonl"
    assert out("export", "--output", str(target)) == f"{target}: 2 traces\n"
    assert [from_json(Trace, line) for line in target.read_text().splitlines()] == kept
    assert out("export", "-o", str(target), "--state", "failed") == f"{target}: 1 trace\n"
    assert [from_json(Trace, line).id for line in target.read_text().splitlines()] == ["b"]
    assert [from_json(Trace, line).id for line in out("export", "--search", "apples").splitlines()] == ["a"]
    with pytest.raises(InputError, match="cannot be written"):
        call("export", "--output", str(tmp_path / "no" / "file"))


def test_rm_asks_first_and_takes_no_for_an_answer() -> None:
    keep(trace("abc", "What is 7 x 8?"))
    refused = call("rm", "ab", typed="n\n")
    assert refused.exit_code == 1
    assert "Remove trace abc (What is 7 x 8?)?" in refused.output
    assert "abc" in out("list")
    assert call("rm", "ab", typed="y\n").exit_code == 0
    assert out("list") == "no traces\n"


def test_rm_yes_does_not_ask() -> None:
    keep(trace("abc", "q"))
    assert out("rm", "abc", "--yes") == "removed abc\n"
    assert out("list") == "no traces\n"


def test_importing_the_command_stays_light() -> None:
    code = (
        "import sys, ponder.commands.traces;"
        "heavy = [m for m in ('pydantic', 'numpy', 'httpx', 'ponder.ops.store') if m in sys.modules];"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
