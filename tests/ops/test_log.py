"""Logs: each line is JSON, no secret gets into it, no text forges one, and no disk or pipe can fail a request."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.ops.finished import Attempt, Finished
from ponder.ops.log import LEFT_OUT, MASK, Id, Log, line, mask


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def read(fields: dict[str, Any], content: bool = False) -> dict[str, Any]:
    """The fields of one line as a reader gets them."""
    document: dict[str, Any] = json.loads(line("e", "info", fields, content))
    return document


# ---------------------------------------------------------------- lines


def test_a_line_is_an_object_with_time_level_event_and_fields(tmp_path: Path) -> None:
    log = Log(tmp_path / "a" / "server.log")
    log.write("started", port=8000)
    log.write("upstream_failed", "warning", backend="cloud")
    log.close()
    first, second = written(tmp_path / "a" / "server.log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "info", "event": "started", "port": 8000}
    assert (second["level"], second["backend"]) == ("warning", "cloud")
    assert (tmp_path / "a" / "server.log").stat().st_mode & 0o077 == 0


def test_levels_below_the_least_are_not_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", level="warning")
    for level in ("debug", "info", "warning", "error"):
        log.write("e", level)  # type: ignore[arg-type]
    log.close()
    assert [each["level"] for each in written(tmp_path / "log")] == ["warning", "error"]


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no level of a log"):
        Log(tmp_path / "log", level="loud")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be written"):
        Log(tmp_path)


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, "info"),
        ({"disconnected": True}, "info"),
        ({"status": 404, "error": "not_found_error"}, "warning"),
        ({"status": 502, "error": "api_error"}, "error"),
        ({"error": "api_error"}, "error"),  # in the middle of a stream, after its 200
    ],
)
def test_a_finished_request_is_a_line(tmp_path: Path, change: dict[str, Any], level: str) -> None:
    log = Log(tmp_path / "log")
    trace, request = "0af7651916cd43dd8448eb211c80319c", "chatcmpl-5f0b1ce5a2b94d7e8d1a5b2c9b7f3e1d"
    log.finished(
        Finished(request, model="ponder-135m", prompt_name="support", trace_id=trace, input_tokens=9, **change)
    )
    log.close()
    (only,) = written(tmp_path / "log")
    assert (only["event"], only["level"], only["id"], only["trace_id"]) == ("request", level, request, trace)
    assert (only["model"], only["prompt_name"], only["input_tokens"]) == ("ponder-135m", "support", 9)


# ---------------------------------------------------------------- what is never written


def test_named_secrets_and_content_are_left_out_at_any_depth() -> None:
    fields = {
        "headers": {"Authorization": "Bearer x", "X-Api-Key": "short", "accept": "text/html"},
        "key": "abc",
        "prompt": "my diagnosis",
        "request": [{"messages": [{"role": "user", "content": "my diagnosis"}]}],
        "prompt_tokens": 3,
    }
    out = read(fields)
    assert out["headers"] == {"Authorization": MASK, "X-Api-Key": MASK, "accept": "text/html"}
    assert (out["key"], out["prompt"], out["request"]) == (MASK, LEFT_OUT, [{"messages": LEFT_OUT}])
    assert out["prompt_tokens"] == 3
    assert "diagnosis" not in json.dumps(out)


def test_content_comes_when_switched_on_and_secrets_in_it_do_not() -> None:
    out = read({"prompt": "my key is sk-abcdefgh12345678", "key": "abc"}, content=True)
    assert out["prompt"] == f"my key is {MASK}"
    assert out["key"] == MASK


def secrets() -> st.SearchStrategy[str]:
    """Secrets as programs make them, from a seed."""

    def make(kind: str, seed: int, size: int) -> str:
        drawn = random.Random(seed).randbytes(size)
        url = base64.urlsafe_b64encode(drawn).decode().rstrip("=")
        return {
            "openai": f"sk-{url}",
            "ponder": f"pk_{url}",
            "hex": drawn.hex(),
            "base64": base64.b64encode(drawn).decode(),
            "url": url,
            "base32": base64.b32encode(drawn).decode().lower().rstrip("="),
            "token": f"eyJhbGciOi.{url}.{url}",
            "aws": f"AKIA{base64.b32encode(drawn).decode()[:16]}",
        }[kind]

    kinds = st.sampled_from(["openai", "ponder", "hex", "base64", "url", "base32", "token", "aws"])
    return st.builds(make, kinds, st.integers(0, 2**64), st.integers(20, 64))


around = st.sampled_from(["", " ", '"', "'", "(", "key: ", "?api_key=", "\n", "\t", "→", "a b ", "{", ":", ",", "\x00"])
behind = st.sampled_from(["", " ", '"', "'", ")", "\n", ".", "→", " a b", "}", ",", ";", "\x00"])


def pieces(secret: str) -> list[str]:
    """What must not come out: any ten characters of it in a row, but for what all secrets of its kind begin with."""
    body = re.sub(r"^(sk-|pk_|eyJhbGciOi\.|AKIA)", "", secret)
    return [body[at : at + 10] for at in range(len(body) - 9)]


@given(secrets(), around, behind, st.booleans(), st.data())
def test_no_secret_that_is_put_in_any_field_comes_out(
    secret: str, before: str, after: str, content: bool, data: st.DataObject
) -> None:
    text = before + secret + after
    values: list[Any] = [
        text,
        {"deep": [{"er": (text,)}]},
        {text: 1},
        ValueError(text),
        Path(text.replace("\0", "")),
        {text},
        Id(text),
        [[[[[[[text]]]]]]],
        text.encode(),
    ]
    value = data.draw(st.sampled_from(values))
    name = data.draw(st.sampled_from(["model", "error", "prompt", "key", "url", "anything", secret]))
    out = line("e", "info", {name: value}, content).decode()
    assert not [piece for piece in pieces(secret) if piece in out]


@given(secrets(), around, behind)
def test_no_secret_comes_out_of_a_finished_request_or_an_event(secret: str, before: str, after: str) -> None:
    text = before + secret + after
    named = {
        name: text
        for name, kind in Finished.__annotations__.items()
        if kind == "str" and name not in ("id", "trace_id")  # these are made by the server
    }
    finished = Finished("r1", **named, finish_reasons=(text,), attempts=(Attempt(0, model=text, error=text),))  # type: ignore[arg-type]
    out = line(text, "info", finished.fields()).decode()
    assert not [piece for piece in pieces(secret) if piece in out]


@pytest.mark.parametrize(
    "secret",
    ["Bearer abcdef123", "bearer  x.y.z", "Basic dXNlcjpwYXNz", "password=hunter2", '"api_key": "short one"', "sk-12ab",
     "authorization: Bearer abcdef123", "https://user:hunter2@host/path", "Id sk-0123456789abcdef0123456789abcdef"],
)  # fmt: skip
def test_short_secrets_are_known_by_what_stands_before_them(secret: str) -> None:
    shown = mask(f"it said {secret} and went")
    for part in ("abcdef123", "x.y.z", "dXNl", "hunter2", "short one", "12ab", "0123456789"):
        assert part not in shown
    assert shown.startswith("it said ")


@pytest.mark.parametrize(
    "text",
    [
        "meta-llama/Llama-3-70B-Instruct-AWQ-INT4",
        "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8",
        "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF",
        "claude-sonnet-4-5-20250929",
        "accounts/fireworks/models/llama-v3p1-405b-instruct",
        "/v1/chat/completions/chat/completions",
        "http://127.0.0.1:8000/v1/responses",
        "best_of_n(16, verifier=math_answer)",
        "maximum_completion_tokens_exceeded_for_the_model",
        "the disk has a risk-free task-list",
        "2026-11-23T17:57:18.123Z",
    ],
)
def test_what_is_no_secret_can_be_read(text: str) -> None:
    assert mask(text) == text


def test_ids_that_the_server_made_can_be_read_and_what_is_none_cannot() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    out = read({"a": Id(trace), "b": trace, "c": Id(f"sk-{trace}"), "d": Id("dGhpcyBpcyBub3QgYW4gaWQ0NTY3OA")})
    assert (out["a"], out["b"], out["c"], out["d"]) == (trace, MASK, MASK, MASK)


# ---------------------------------------------------------------- whatever comes, one line


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(Unspeakable)
    | st.text().map(Id),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(st.text(), st.dictionaries(st.text(), anything), st.booleans())
def test_anything_makes_exactly_one_line_of_printable_ascii(event: str, fields: dict[str, Any], content: bool) -> None:
    out = line(event, "info", fields, content)
    assert out.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in out[:-1])
    document = json.loads(out, parse_constant=pytest.fail)
    assert document["level"] == "info"
    assert list(document)[:3] == ["time", "level", "event"]


def test_a_line_cannot_be_forged(tmp_path: Path) -> None:
    forged = 'x\n{"time":"2026-01-01T00:00:00.000Z","level":"error","event":"forged"}\r\n\u2028\u0085\x1b[2J'
    log = Log(tmp_path / "log")
    log.write(forged, model=forged, **{forged: 1, "level": "error"})
    log.close()
    raw = (tmp_path / "log").read_bytes()
    assert raw.count(b"\n") == 1
    assert b"\x1b" not in raw
    (only,) = written(tmp_path / "log")
    assert (only["level"], only["model"], only[forged]) == ("info", forged, 1)


def test_endless_and_huge_values_are_cut() -> None:
    endless: list[Any] = []
    endless.append(endless)
    started = time.perf_counter()
    out = line("e", "info", {"a": endless, "b": "word " * 1_000_000, "c": list(range(100_000)), "d": 10**5000})
    assert len(out) < 20_000
    assert time.perf_counter() - started < 2


def test_half_a_secret_at_the_cut_does_not_come_out() -> None:
    secret = "0123456789abcdef" * 4
    masked_away = " ".join(["f" * 5_000] * 20)
    for length in range(99_990 - len(secret), 100_010):
        out = line("e", "info", {"a": masked_away[:length] + " " + secret}).decode()
        assert "0123456" not in out


# ---------------------------------------------------------------- disks and pipes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    log = Log("/dev/full")
    for _ in range(5):
        log.write("e")
    log.close()
    assert log.lost == 5


def test_what_was_lost_is_told_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log")
    log.write("before")
    until(lambda: bool((tmp_path / "log").read_bytes()))
    real = os.write

    def half(descriptor: int, text: bytes) -> int:
        if len(text) > 20:
            return real(descriptor, text[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("ponder.ops.log.os.write", half)
        log.write("never-whole")
        until(lambda: log.lost == 1)
    log.write("after")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    events = [json.loads(each)["event"] for each in lines if each.endswith("}")]
    assert events == ["before", "log_lines_lost", "after"]  # the torn line did not swallow the next one
    assert json.loads(lines[-2])["lines"] == 1


def until(true: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("broken", ["closed", "none"])
def test_a_stderr_that_is_not_there_loses_lines(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream if broken == "closed" else None)
    log = Log()
    log.write("e")
    log.close()
    assert log.lost == 1


def test_a_pipe_that_nobody_reads_holds_no_request_up() -> None:
    """In a process of its own, whose stderr is a full pipe: 50,000 lines are taken in, and the end comes in time."""
    program = textwrap.dedent(
        """
        import sys, time
        from ponder.ops.log import Log
        log = Log()
        longest = 0.0
        for number in range(20_000):
            began = time.perf_counter()
            log.write("e", number=number)
            longest = max(longest, time.perf_counter() - began)
        log.close(0.2)
        print(log.lost, longest, flush=True)
        import os
        os._exit(0)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        lost, longest = process.stdout.readline().split()
        assert process.wait(10) == 0
        assert int(lost) > 5_000  # the queue and the pipe hold the others
        assert float(longest) < 1
        process.stderr.read()
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()


def test_a_reader_that_went_away_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    log = Log()
    try:
        old, sys.stderr = sys.stderr, stream
        log.write("e")
        log.close()
    finally:
        sys.stderr = old
    assert log.lost == 1
    os.close(os.dup(writer))
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    threads = [
        threading.Thread(target=lambda: [log.write("e", text="x y " * 200) for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(written(tmp_path / "log")) == 800


def test_after_the_end_lines_are_lost_and_counted(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.close()
    log.close()
    log.write("late")
    assert log.lost == 1
    assert written(tmp_path / "log") == []
