"""Writing a file or a folder whole or not at all.

What is new is written beside its place and takes it once it is complete, so that neither a crash nor a full
disk leaves half of it behind, or harms what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ponder.engine.download import FULL
from ponder.errors import InputError, WeightsError


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target`: the file or folder that the block writes there takes the place of `target`.

    An earlier file is replaced; of an earlier folder only one that holds no other files than the new one.
    Raises WeightsError where the disk is full or cannot be written, InputError for a place that is taken.
    """
    target = target.expanduser().absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        _flush(temporary)
        _move(temporary, target)
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        if number in FULL:
            raise WeightsError(
                f"the disk is full: {target.parent} has no room for {target.name}",
                "Free space there, or give a place on another disk; nothing was left half-written",
            ) from error
        raise WeightsError(
            f"{target} cannot be written ({os.strerror(number)})", "Give a place that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # whatever keeps it there has been told
            _remove(temporary)


def _number(error: Exception) -> int | None:
    """The operating system's number of what went wrong, None where it was something else."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    # Writers in Rust only tell it in their text, and numpy only that less was written than asked for.
    if told := re.search(r"os error (\d+)", str(error)):
        return int(told[1])
    return errno.ENOSPC if re.search(r"\d+ requested and \d+ written", str(error)) else None


def _flush(path: Path) -> None:
    """Until the bytes are on the disk, a crash of the machine could leave the new name with nothing in it."""
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _move(temporary: Path, target: Path) -> None:
    if not target.is_dir():
        if temporary.is_dir() and target.exists():
            raise InputError(f"{target} is a file, and a folder is to be written there", "Give another place")
        os.replace(temporary, target)
        return
    if not temporary.is_dir():
        raise InputError(f"{target} is a folder, and a file is to be written there", "Give the name of a file")
    if others := sorted({file.name for file in target.iterdir()} - {file.name for file in temporary.iterdir()}):
        raise InputError(f"{target} holds other files, such as {others[0]}", "Give a folder that is new or empty")
    old = temporary.with_suffix(".old")
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
