"""Data sets of a model hub: from folders and files, and from a loopback server that speaks as much as is needed."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ponder import tasks
from ponder.errors import InputError, MissingExtra
from ponder.tasks import hub

COMMIT = "c" * 40
GSM8K = [{"question": f"{n}+1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(5)]
MMLU = [{"question": "1+1?", "subject": "sums", "choices": ["1", "2", "3"], "answer": 1}]
PLAIN = [{"id": "a", "question": "Who?", "answer": "Ada", "kind": "n"}, {"id": "b", "question": "And?", "answer": "2"}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "own"
    path.mkdir()
    (path / "train.jsonl").write_text(lines(GSM8K[:3]))
    (path / "test.jsonl").write_text(lines(GSM8K[3:]))
    return path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf:some/own", hub.Wanted("some/own")),
        ("hf:some/own:main", hub.Wanted("some/own", "main")),
        ("hf:some/own@train[:10]", hub.Wanted("some/own", None, "train[:10]")),
        ("hf:some/own:main@test#abc", hub.Wanted("some/own", "main", "test", "abc")),
        ("hf:own#abc", hub.Wanted("own", revision="abc")),
    ],
)
def test_what_a_name_says(text, wanted):
    assert hub.parse(text) == wanted


@pytest.mark.parametrize("text", ["hf:", "hf:@test", "hf::main", "hf:some/own:", "hf:a@b@c", "hf:a:b:c"])
def test_what_is_no_name(text):
    with pytest.raises(InputError, match=r"names no data set\. Write it as hf:OWNER/NAME:CONFIGURATION@SPLIT"):
        tasks.load(text)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"needs the package datasets. Run: pip install 'ponder\[datasets\]'"):
        tasks.load("hf:some/own")


@pytest.mark.parametrize("rows", [GSM8K, MMLU, PLAIN])
def test_rows_are_recognised_as_those_of_files_are(rows, tmp_path, datasets):
    (tmp_path / "own.jsonl").write_text(lines(rows))
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "own.parquet"))
    file, data_set = tasks.load(tmp_path / "own.jsonl"), tasks.load(f"hf:{tmp_path}/own.parquet")
    assert [(q.messages, q.reference, q.metadata) for q in data_set.questions] == [
        (q.messages, q.reference, q.metadata) for q in file.questions
    ]
    assert (data_set.verifier, data_set.revision) == (file.verifier, None)


def test_a_folder_its_splits_and_their_hash(folder, datasets):
    test, train = tasks.load(f"hf:{folder}"), tasks.load(f"hf:{folder}@train")
    assert [question.text for question in test.questions] == ["3+1?", "4+1?"]
    assert [question.reference for question in train.questions] == ["1", "2", "3"]
    assert (test.name, train.name) == ("gsm8k/own", "gsm8k/own@train")
    assert tasks.load(f"hf:{folder}@test").sha256 == test.sha256 != train.sha256
    content = "".join(json.dumps(row, sort_keys=True) + "\n" for row in GSM8K[3:])
    assert test.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert tasks.load(f"hf:{folder}@train[1:2]").questions[0].text == "1+1?"
    assert len(tasks.load(f"hf:{folder}@train", limit=2, seed=1).questions) == 2


def test_arrow_and_what_save_to_disk_wrote(folder, tmp_path, datasets):
    loaded = datasets.load_dataset(str(folder))
    loaded.save_to_disk(str(tmp_path / "both"))
    loaded["train"].save_to_disk(str(tmp_path / "one"))
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    train = tasks.load(f"hf:{folder}@train")
    for text in (f"{tmp_path}/both@train", f"{tmp_path}/one", str(arrow)):
        task = tasks.load(f"hf:{text}")
        assert ([q.text for q in task.questions], task.sha256) == ([q.text for q in train.questions], train.sha256)
    assert tasks.load(f"hf:{tmp_path}/both").sha256 == tasks.load(f"hf:{folder}").sha256
    with pytest.raises(InputError, match=r"both@nope cannot be loaded \(it has no split nope\)"):
        tasks.load(f"hf:{tmp_path}/both@nope")


def test_progress_bars_and_offline_mode_are_left_as_they_were(folder, datasets, capfd):
    datasets.enable_progress_bars()
    before = datasets.config.HF_HUB_OFFLINE
    tasks.load(f"hf:{folder}")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
    assert before is datasets.config.HF_HUB_OFFLINE


def test_values_that_json_does_not_have(tmp_path, datasets):
    row = {"question": "When?", "answer": decimal.Decimal("1.50"), "level": datetime.date(2020, 1, 2)}
    datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "own.parquet"))
    (question,) = tasks.load(f"hf:{tmp_path}/own.parquet").questions
    assert (question.reference, question.metadata["level"]) == ("1.50", "2020-01-02")
    datasets.Dataset.from_list([{**row, "kind": b"x"}]).to_parquet(str(tmp_path / "bytes.parquet"))
    with pytest.raises(InputError, match=r"bytes.parquet, line 1: the field kind holds bytes, which is no text"):
        tasks.load(f"hf:{tmp_path}/bytes.parquet")


def test_a_row_that_does_not_fit_is_told_with_its_place(tmp_path, datasets):
    datasets.Dataset.from_list([*GSM8K, {"question": "?", "answer": "####"}]).to_parquet(str(tmp_path / "own.parquet"))
    with pytest.raises(InputError, match=r"own.parquet, line 6: the field answer must end in a line such as"):
        tasks.load(f"hf:{tmp_path}/own.parquet")


def test_mistakes_are_one_line(folder, tmp_path, datasets):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    for split in ("dev", "extra"):
        (tmp_path / "odd" / f"{split}.jsonl").write_text(lines(GSM8K))
    (tmp_path / "own.txt").write_text("hello")
    (tmp_path / "own.yaml").write_text("")
    (tmp_path / "odd" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n    path: dev.jsonl\n"
        "  - split: extra\n    path: extra.jsonl\n---\n"
    )
    for text, problem in {
        f"{folder}@nope": 'own@nope cannot be loaded (Unknown split "nope"',
        f"{folder}:nope": "own:nope cannot be loaded (BuilderConfig 'nope' not found",
        f"{tmp_path}/empty": "empty cannot be loaded",
        f"{tmp_path}/absent": "absent is neither a folder nor OWNER/NAME. Check the path",
        f"{tmp_path}/own.txt": "own.txt is neither Parquet nor Arrow. Leave out hf: for JSONL and CSV",
        f"{tmp_path}/odd": "odd has the splits dev, extra. Name one, as in hf:OWNER/NAME:CONFIGURATION@SPLIT",
    }.items():
        with pytest.raises(InputError) as told:
            tasks.load(f"hf:{text}")
        assert problem in str(told.value)
        assert "\n" not in str(told.value)


# ---------------------------------------------------------------- the hub itself

FILES = {"train.jsonl": lines(GSM8K[:3]).encode(), "test.jsonl": lines(GSM8K[3:]).encode()}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rsplit("/", 1)[1]
        if path.startswith("/api/datasets/some/own/tree/"):
            sizes = {name: len(content) for name, content in FILES.items()}
            self._send([{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()])
        elif path == "/api/datasets/some/own" or (
            path.startswith("/api/datasets/some/own/revision/") and name == COMMIT
        ):
            self._send({"id": "some/own", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path.startswith(f"/datasets/some/own/resolve/{COMMIT}/") and name in FILES:
            self._send(FILES[name])
        else:
            known = path.startswith(("/datasets/some/own/", "/api/datasets/some/own/"))
            code = "RevisionNotFound" if "/revision/" in path else "EntryNotFound" if known else "RepoNotFound"
            self._head(404, ("X-Error-Code", code), ("Content-Length", "0"))

    def _send(self, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self._head(200, ("Content-Length", str(len(body))), ("ETag", f'"{hashlib.sha1(body).hexdigest()}"'))
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("X-Repo-Commit", COMMIT)):
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def endpoint() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


LOADS = """
import json, sys
from ponder import tasks
from ponder.errors import PonderError
for text in sys.argv[1:]:
    try:
        task = tasks.load(text)
        texts = [question.text for question in task.questions]
        print(json.dumps([task.name, texts, task.revision, tasks.describe(task)]))
    except PonderError as error:
        print(error)
"""


def loaded(home: Path, port: int, *texts: str) -> list[str]:
    """What a process of its own prints: the libraries read the address of the hub when they are imported."""
    hidden = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    environment = {**hidden, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)}
    run = subprocess.run([sys.executable, "-c", LOADS, *texts], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_data_set_of_the_hub_with_its_commit_and_again_without_the_hub(endpoint, tmp_path, datasets):
    first, train, pinned, revision, absent = loaded(
        tmp_path,
        endpoint.server_port,
        "hf:some/own",
        "hf:some/own@train",
        f"hf:some/own#{COMMIT}",
        "hf:some/own#nope",
        "hf:some/absent",
    )
    name, questions, commit, described = json.loads(first)
    assert (name, questions, commit) == ("gsm8k/own", ["3+1?", "4+1?"], COMMIT)
    assert described["revision"] == COMMIT
    assert json.loads(train)[:3] == ["gsm8k/own@train", ["0+1?", "1+1?", "2+1?"], COMMIT]
    assert pinned == first
    assert revision == "some/own has no revision nope. Check it, or leave it out."
    assert absent.startswith("the model hub has no data set some/absent, or it is private. Check the name")

    endpoint.shutdown()
    endpoint.server_close()
    again, pinned, absent = loaded(
        tmp_path, endpoint.server_port, "hf:some/own", f"hf:some/own#{COMMIT}", "hf:some/absent"
    )
    assert json.loads(again)[:3] == [name, questions, None]
    assert json.loads(again)[3]["sha256"] == described["sha256"]
    for line, wanted in ((pinned, "some/own"), (absent, "some/absent")):
        assert line.startswith(f"{wanted} is not cached and cannot be fetched from the model hub (")
        assert line.endswith("Try again with a network, or give the path of a folder that holds its files.")
