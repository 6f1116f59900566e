"""Bad input, case by case: one clear line with what mends it, exit code 2, and nothing lost."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, ponder, run, scripted, traces, write_script

from ponder.engine.catalogue import INTERIM_ADAPTER, SMOLLM2

MEGABYTE = 1_000_000


def assert_one_line(result: Result, *parts: str) -> None:
    """The form that every complaint has."""
    assert result.code == 2, result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("ponder: ")
    assert "Traceback" not in result.err
    assert len(result.err) < 700
    for part in parts:
        assert part in result.err, result.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a working model `scripted:good.json` and everything that is wrong."""
    monkeypatch.chdir(tmp_path)
    os.rename(scripted(tmp_path, "It is 4.").removeprefix("scripted:"), "good.json")
    Path("note.txt").write_text("not a model")
    Path("note.gguf").write_text("not a model either")
    Path("binary").write_bytes(bytes(range(256)) * 10)
    Path("zeros").write_bytes(b"text\0text")
    Path("latin").write_bytes("größer".encode("latin-1"))
    Path("folder").mkdir()
    Path("broken.json").write_text('{"version": 1,\n "replies": [}')
    Path("shape.json").write_text('{"version": 1, "replys": []}')
    Path("list.json").write_text("[]")
    Path("old.json").write_text('{"version": 7}')
    Path("regex.json").write_text('{"version": 1, "replies": [{"when": "/(/", "say": "x"}]}')
    write_script(tmp_path / "silent.json", [])
    write_script(tmp_path / "plain.json", [], model={"chat_template": None})
    return tmp_path


GOOD = ("-m", "scripted:good.json")

CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # models
    "unknown model": (("-m", "ponder-135n", "hi"), ("ponder-135n", "Did you mean ponder-135m?", "ponder models list")),
    "unknown scheme": (("-m", "foo:bar", "hi"), ("no engine of kind foo:", "gguf:, hf:, openai: and scripted:")),
    "folder without a model": (("-m", "hf:./folder", "hi"), ("folder holds no config.json", "transformers has saved")),
    "no model": (("-m", "", "hi"), ("names no model", "ponder-135m")),
    "missing path": (("-m", "./none.gguf", "hi"), ("there is no file none.gguf", "Check the path")),
    "missing file": (("-m", "none.gguf", "hi"), ("there is no file none.gguf", "Check the path")),
    "folder as model": (("-m", "./folder", "hi"), ("is a folder", ".gguf")),
    "text as model": (("-m", "note.txt", "hi"), ("note.txt is not a GGUF file",)),
    "text called gguf": (("-m", "note.gguf", "hi"), ("note.gguf is not a GGUF file",)),
    "no address": (("-m", "openai:nonsense", "hi"), ("'nonsense' is no address", "openai:http://HOST:PORT/v1#MODEL")),
    "adapter on a scripted model": ((*GOOD, "--adapter", "x.gguf", "hi"), ("takes no adapters",)),
    # scripts
    "no script": (("-m", "scripted:none.json", "hi"), ("none.json cannot be read", "scripted:FILE")),
    "script of a folder": (("-m", "scripted:folder", "hi"), ("folder cannot be read",)),
    "wrong JSON": (("-m", "scripted:broken.json", "hi"), ("not valid JSON: line 2, column 14", "mend that line")),
    "script of another shape": (("-m", "scripted:shape.json", "hi"), ("shape.json is no script: replys", '"say": "4"')),
    "list as script": (("-m", "scripted:list.json", "hi"), ("list.json is no script",)),
    "script of another version": (("-m", "scripted:old.json", "hi"), ("old.json is no script: version",)),
    "bad pattern": (("-m", "scripted:regex.json", "hi"), ("replies[0]", "no regular expression")),
    "binary script": (("-m", "scripted:binary", "hi"), ("binary is not a text file",)),
    "script without a reply": (("-m", "scripted:silent.json", "hi"), ("no reply in", '"otherwise"')),
    # questions
    "no question": (GOOD, ("the question is empty", "ponder ask")),
    "empty question": ((*GOOD, ""), ("the question is empty", "ponder ask")),
    "white space": ((*GOOD, " \n\t "), ("the question is empty", "ponder ask")),
    "no UTF-8": ((*GOOD, os.fsdecode(b"caf\xe9")), ("no UTF-8 text", "convert")),
    "system message is no UTF-8": ((*GOOD, "hi", "--system", os.fsdecode(b"caf\xe9")), ("no UTF-8 text",)),
    "binary file": ((*GOOD, "hi", "--file", "binary"), ("binary is no UTF-8 text", "convert it")),
    "file with zeros": ((*GOOD, "hi", "--file", "zeros"), ("zeros is binary", "convert it")),
    "other encoding": ((*GOOD, "hi", "--file", "latin"), ("latin is no UTF-8 text", "convert it")),
    "missing --file": ((*GOOD, "hi", "--file", "none"), ("cannot read none: No such file", "the path of a text file")),
    "folder as --file": ((*GOOD, "hi", "--file", "folder"), ("cannot read folder: Is a directory",)),
    "endless --file": ((*GOOD, "hi", "--file", "/dev/zero"), ("/dev/zero has more than 4 MiB",)),
    "long prompt": ((*GOOD, "word " * 9000), ("45", "context 4096", "shorten the question")),
    # bounds
    "budget 3": ((*GOOD, "--budget", "3", "hi"), ("a budget of 3 tokens", "at least 4")),
    "budget 1": ((*GOOD, "--budget", "1", "hi"), ("a budget of 1 tokens", "at least 4")),
    "budget 0": ((*GOOD, "--budget", "0", "hi"), ("tokens must be above 0",)),
    "budget -5": ((*GOOD, "--budget", "-5", "hi"), ("tokens must be above 0, not -5",)),
    "answer above budget": ((*GOOD, "--budget", "10", "--answer", "20", "hi"), ("answer=20", "raise tokens or lower")),
    "thinking -1": ((*GOOD, "--thinking", "-1", "hi"), ("thinking must be at least 0",)),
    "thinking bounds": ((*GOOD, "--thinking", "5", "--min-thinking", "9", "hi"), ("min_thinking=9", "thinking=5")),
    "seconds 0": ((*GOOD, "--seconds", "0", "hi"), ("seconds must be above 0",)),
    "seconds nan": ((*GOOD, "--seconds", "nan", "hi"), ("--seconds nan is no number",)),
    "temperature -1": ((*GOOD, "--temperature", "-1", "hi"), ("temperature must be at least 0", "0.6")),
    "temperature nan": ((*GOOD, "--temperature", "nan", "hi"), ("--temperature nan is no number",)),
    "one price": ((*GOOD, "--price", "1", "hi"), ("--price '1' is no price", "--price 0.15,0.60")),
    "price in words": ((*GOOD, "--price", "a,b", "hi"), ("--price 'a,b' is no price", "--price 0.15,0.60")),
    "price nan": ((*GOOD, "--price", "1,nan", "hi"), ("is no price",)),
    "negative price": ((*GOOD, "--price", "1,-2", "hi"), ("is no price",)),
    "dollars without price": ((*GOOD, "--dollars", "1", "hi"), ("--dollars needs a price", "--price 0.15,0.60")),
    "too few dollars": (
        (*GOOD, "--dollars", "0.000001", "--price", "1,1", "hi"),
        ("do not pay for a prompt of 21 tokens", "more dollars"),
    ),
    "contradiction": ((*GOOD, "--no-think", "--think", "prompt", "hi"), ("--no-think and --think contradict",)),
    "not trained to think": (
        ("-m", "scripted:plain.json", "--think", "trained", "hi"),
        ("not trained", "--think prompt"),
    ),
    "compare one way": ((*GOOD, "--compare", "--no-think", "hi"), ("--compare tries every way", "drop")),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_that_says_what_mends_it(here: Path, case: str):
    arguments, parts = CASES[case]
    result = ponder("ask", *arguments)
    assert result.out == ""
    assert_one_line(result, *parts)


@pytest.mark.parametrize(
    "arguments",
    [("ask", "-m", "ponder-135n", "hi"), ("ask", *GOOD, " "), ("ask", "-m", "scripted:broken.json", "hi")],
    ids=["unknown model", "white space", "wrong JSON"],
)
def test_a_real_process_ends_the_same_way(here: Path, arguments: tuple[str, ...]):
    result = run(*arguments)
    assert result == ponder(*arguments)
    assert_one_line(result)


def test_usage_errors_have_the_same_exit_code(here: Path):
    for arguments in (
        ("ask", "--nonsense"),
        ("ask", "--budget", "many", "hi"),
        ("nonsense",),
        ("ask", "--think", "hard"),
    ):
        result = ponder(*arguments)
        assert result.code == 2
        assert result.out == ""
        assert "Usage: ponder" in result.err
        assert "Traceback" not in result.err


# ---------------------------------------------------------------- standard input


@pytest.mark.parametrize("stdin", ["", " \n "], ids=["empty", "white space"])
def test_nothing_piped_is_no_question(here: Path, stdin: str):
    assert_one_line(ponder("ask", *GOOD, stdin=stdin), "the question is empty")


def test_binary_standard_input(here: Path):
    assert_one_line(
        ponder("ask", *GOOD, "hi", stdin=bytes(range(256))), "standard input is no UTF-8 text", "convert it"
    )
    assert_one_line(ponder("ask", *GOOD, "hi", stdin=b"a\0b"), "standard input is binary", "convert it")
    assert_one_line(ponder("chat", *GOOD, stdin=b"\xff\xfe"), "standard input is no UTF-8 text", "convert it")


def test_ten_megabytes_of_standard_input(here: Path):
    # Through a real pipe, of which not all is read: whoever writes must not be left hanging.
    result = run("ask", *GOOD, "hi", stdin=b"word " * (2 * MEGABYTE))
    assert_one_line(result, "standard input has more than 4 MiB", "give the part of it that matters")


def test_three_megabytes_do_not_fit_the_context(here: Path):
    result = ponder("ask", *GOOD, "hi", stdin="word " * 600_000)
    assert_one_line(result, "the prompt has 300", "the model's context 4096", "shorten the question")
    trace = traces()[0]
    assert trace.state == "failed"
    assert len(trace.question.text) == 3_000_004


def test_a_long_line_does_not_end_a_chat(here: Path):
    result = ponder("chat", *GOOD, stdin="word " * 9000 + "\nWhat is 2 + 2?\n")
    assert (result.code, result.out) == (0, "It is 4.\n")
    assert result.err.startswith("ponder: the prompt has 45")


# ---------------------------------------------------------------- servers


def test_unreachable_server():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert_one_line(
            ponder("ask", "-m", f"openai:{url}#m", "hi"), f"nothing answers at {url[:-3]}", "start the server"
        )


@pytest.fixture
def website() -> Iterator[str]:
    """A server that answers everything with a web page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><title>Welcome</title>" + b"<p>hello</p>" * 1000
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("model", ["#m", ""])
def test_a_server_that_is_a_website(website: str, model: str):
    assert_one_line(ponder("ask", "-m", f"openai:{website}/v1{model}", "hi"), website)


# ---------------------------------------------------------------- the disk


def limited(size: int) -> dict[str, Any]:
    """For a child process: no file may grow beyond `size` bytes, as on a disk that is nearly full."""
    # What measures the child's coverage would fail to write its own files.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), "env": environment}


def test_home_that_cannot_be_made(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PONDER_HOME", "/dev/null/x")
    assert_one_line(ponder("ask", *GOOD, "hi"), "/dev/null/x/ponder.db cannot be made", "PONDER_HOME", "--no-store")
    assert ponder("ask", *GOOD, "--no-store", "hi").out == "It is 4.\n"
    assert_one_line(ponder("chat", *GOOD, stdin="hi\n"), "/dev/null/x/ponder.db cannot be made")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_home_that_may_only_be_read(here: Path, ponder_home: Path):
    ponder_home.chmod(0o500)
    try:
        assert_one_line(ponder("ask", *GOOD, "hi"), "ponder.db cannot be made", "PONDER_HOME", "--no-store")
    finally:
        ponder_home.chmod(0o700)


def test_damaged_database(here: Path, ponder_home: Path):
    file = ponder_home / "ponder.db"
    file.write_bytes(b"This is no database. " * 500)
    assert_one_line(ponder("ask", *GOOD, "hi"), f"{file} is damaged", f"mv '{file}'")
    assert file.read_bytes().startswith(b"This is no database.")


def test_full_disk_before_the_first_trace(here: Path):
    result = run("ask", *GOOD, "hi", **limited(8192))
    assert_one_line(result, "ponder.db cannot be written", "make room", "--no-store")


def test_full_disk_in_the_middle_of_an_answer(here: Path, ponder_home: Path):
    ponder("ask", *GOOD, "an earlier question")
    model = scripted(here, "It is four. " * 30, "Let me see. " * 30)
    size = (ponder_home / "ponder.db").stat().st_size
    result = run("ask", "-m", model, "hi", **limited(max(size, 200_000)))
    assert result.code == 2
    *said, complaint = result.err.splitlines()
    assert complaint.startswith(f"ponder: {ponder_home / 'ponder.db'} cannot be written")
    assert "make room" in complaint
    assert "Traceback" not in result.err
    assert "".join(said).startswith("Let me see.")
    # What was there before stays, and what there was of this is readable.
    newest, earlier = traces()
    assert (earlier.question.text, earlier.answer) == ("an earlier question", "It is 4.")
    assert newest.state == "interrupted"
    assert newest.events[0].text.startswith("Let me see.")


def test_full_disk_for_the_output(here: Path):
    with open("/dev/full", "wb") as full:
        assert_one_line(run("ask", "-q", *GOOD, "hi", stdout=full), "the output cannot be written", "Free disk space")


def test_full_disk_for_weights(here: Path, ponder_home: Path):
    source = here / "weights.gguf"
    source.write_bytes(b"GGUF" + bytes(2 * MEGABYTE))
    folder = ponder_home / "models" / SMOLLM2.name
    before = sorted(file.name for file in folder.iterdir())
    result = run("models", "pull", SMOLLM2.name, "--from", source, **limited(MEGABYTE))
    assert_one_line(result, "the disk is full", "Free 99 MB there, or set PONDER_HOME")
    assert sorted(file.name for file in folder.iterdir()) == before


def test_full_disk_for_an_export(here: Path, ponder_home: Path):
    ponder("ask", *GOOD, "hi" * 40_000)
    Path("out.jsonl").write_text("an earlier export")
    # Room for what SQLite shares between processes, but not for the trace.
    result = run("traces", "export", "-o", "out.jsonl", **limited(50_000))
    assert_one_line(result, "cannot be written", "choose another file")
    assert Path("out.jsonl").read_text() == "an earlier export"


# ---------------------------------------------------------------- adapters


@pytest.mark.model
@pytest.mark.parametrize(
    ("adapter", "parts"),
    [
        ("none.gguf", ("there is no adapter none.gguf", "Check the path")),
        ("note.gguf", ("note.gguf is not a GGUF file",)),
        ("folder", ("folder is a folder",)),
        (f"{INTERIM_ADAPTER.path}=much", ("the scale 'much'", "=0.5")),
    ],
    ids=["missing", "no GGUF", "folder", "scale"],
)
def test_bad_adapters(here: Path, adapter: str, parts: tuple[str, ...]):
    assert_one_line(ponder("ask", "--adapter", adapter, "hi"), *parts)


# ---------------------------------------------------------------- chat


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("-m", "ponder-135n"), ("Did you mean ponder-135m?",)),
        ((*GOOD, "--budget", "0"), ("a budget of 0 tokens",)),
        ((*GOOD, "--load", "none.jsonl"), ("cannot read none.jsonl", "/save")),
        ((*GOOD, "--load", "note.txt"), ("note.txt is no saved conversation", "/save")),
        ((*GOOD, "--load", "list.json"), ("list.json is no saved conversation", "/save")),
        ((*GOOD, "--load", "binary"), ("binary is no saved conversation", "/save")),
        ((*GOOD, "--load", "folder"), ("cannot read folder",)),
        ((*GOOD, "--load", "note.txt", "--system", "x"), ("drop --system",)),
        ((*GOOD, "--no-think", "--think", "trained"), ("--no-think and --think contradict",)),
        ((*GOOD, "--price", "free"), ("--price 'free' is no price",)),
        ((*GOOD, "--temperature", "-2"), ("temperature must be at least 0",)),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) and value[0].startswith("-") else "",
)
def test_chat_refuses_at_once(here: Path, arguments: tuple[str, ...], parts: tuple[str, ...]):
    result = ponder("chat", *arguments, stdin="hello\n")
    assert result.out == ""
    assert_one_line(result, *parts)
