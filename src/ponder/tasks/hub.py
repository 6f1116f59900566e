"""Data sets of a model hub, or folders laid out like them, through the package `datasets`.

`hf:OWNER/NAME:CONFIGURATION@SPLIT#REVISION`, where all behind the name may be left out: the split is then the only one
or "test", the revision the newest. A folder, or a file of Parquet or Arrow, may stand in place of OWNER/NAME. The rows
are recognised as those of files are.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.errors import InputError, MissingExtra
from ponder.tasks.fields import Row
from ponder.tasks.rows import Numbered

PREFIX = "hf:"
EXAMPLE = f"{PREFIX}OWNER/NAME:CONFIGURATION@SPLIT"
SHAPE = f"Write it as {EXAMPLE}"

_TEXT = re.compile(
    r"(?P<name>[^:@#]+)(?::(?P<configuration>[^:@#]+))?(?:@(?P<split>[^@#]+))?(?:#(?P<revision>[^@#\s]+))?"
)
_REPOSITORY = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Wanted:
    """A split of a configuration of a data set; None is for what was left out."""

    name: str
    configuration: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path | None:
        """Where it lies on this disk, None where it does not."""
        path = Path(self.name).expanduser()
        return path if path.exists() else None

    @property
    def label(self) -> str:
        """A short name: that of the data set, and what else was said."""
        said = (f":{self.configuration}" if self.configuration else "") + (f"@{self.split}" if self.split else "")
        return Path(self.name).name + said


def parse(text: str) -> Wanted:
    """What `text` names. Raises InputError where it cannot be read."""
    found = _TEXT.fullmatch(text.removeprefix(PREFIX).strip())
    if found is None:
        raise InputError(f"{text!r} names no data set", SHAPE)
    return Wanted(**found.groupdict())


def read(text: str) -> tuple[list[Numbered], str, str | None]:
    """The rows of a split, numbered from 1; the SHA-256 of their content; and the commit they are of, where known.

    Fields without a value are left out. Raises InputError where there is no such data set, it cannot be
    reached, or has no such split; MissingExtra without `datasets`.
    """
    wanted = parse(text)
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtra(f"{text} needs the package datasets", "Run: pip install 'ponder[datasets]'")
    if wanted.path is None and not _REPOSITORY.fullmatch(wanted.name):
        raise InputError(f"{wanted.name} is neither a folder nor OWNER/NAME", "Check the path of the folder")
    library = importlib.import_module("datasets")
    revision = None if wanted.path else _commit(wanted)
    with _quiet(library, offline=wanted.path is None and revision is None):
        dataset = _split(wanted, _loaded(library, wanted, revision))
        rows = [(number, _row(text, number, row)) for number, row in enumerate(dataset, 1)]
    content = "".join(json.dumps(row, sort_keys=True) + "\n" for _, row in rows)
    return rows, hashlib.sha256(content.encode()).hexdigest(), revision


def _commit(wanted: Wanted) -> str | None:
    """The commit that the hub has for it, None where the hub cannot be reached and any that is cached will do."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # Its releases differ in the HTTP client beneath, whose own errors come through; this is their base in each.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        # Not left to `datasets`, which retries for half a minute where there is no network.
        sha = huggingface_hub.HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=20).sha
    except RevisionNotFoundError:
        raise InputError(f"{wanted.name} has no revision {wanted.revision}", "Check it, or leave it out") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"the model hub has no data set {wanted.name}, or it is private",
            "Check the name, or run `hf auth login`; for a folder here, check the path",
        ) from None
    except (http_error, OSError) as error:
        if wanted.revision is None:
            return None
        raise _unreachable(wanted, error) from None
    return sha


def _loaded(library: Any, wanted: Wanted, revision: str | None) -> Any:
    path = wanted.path
    split = wanted.split
    try:
        if path is None:
            return library.load_dataset(wanted.name, wanted.configuration, split=split, revision=revision)
        if path.is_file():
            if path.suffix not in _FILES:
                raise InputError(f"{path} is neither Parquet nor Arrow", f"Leave out {PREFIX} for JSONL and CSV")
            return library.load_dataset(_FILES[path.suffix], data_files=str(path), split=split or "train")
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _of_disk(library.load_from_disk(str(path)), split)
        return library.load_dataset(str(path), wanted.configuration, split=split)
    except ConnectionError as error:
        raise _unreachable(wanted, error) from None
    except (library.exceptions.DatasetsError, ValueError, OSError) as error:
        raise InputError(f"{wanted.label} cannot be loaded ({_line(error)})", SHAPE) from None


def _of_disk(saved: Any, split: str | None) -> Any:
    """What `save_to_disk` wrote: splits by their names, or rows alone."""
    if split is None:
        return saved
    if not isinstance(saved, dict) or split not in saved:
        raise ValueError(f"it has no split {split}")
    return saved[split]


def _split(wanted: Wanted, loaded: Any) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if len(loaded) > 1 and "test" not in loaded:
        raise InputError(f"{wanted.label} has the splits {', '.join(loaded)}", f"Name one, as in {EXAMPLE}")
    return loaded["test"] if "test" in loaded else next(iter(loaded.values()))


def _row(text: str, number: int, row: Row) -> Row:
    return {name: _plain(text, number, name, value) for name, value in row.items() if value is not None}


def _plain(text: str, number: int, name: str, value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(text, number, name, each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(text, number, name, each) for key, each in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise InputError(
        f"{text}, line {number}: the field {name} holds {type(value).__name__}, which is no text",
        "Take a data set of text and numbers",
    )


def _unreachable(wanted: Wanted, error: Exception) -> InputError:
    return InputError(
        f"{wanted.name} is not cached and cannot be fetched from the model hub ({_line(error)})",
        "Try again with a network, or give the path of a folder that holds its files",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


@contextlib.contextmanager
def _quiet(library: Any, offline: bool) -> Iterator[None]:
    """No progress bars, and where the hub was not reached a moment ago, no asking it again."""
    shown, before = not library.are_progress_bars_disabled(), library.config.HF_HUB_OFFLINE
    library.disable_progress_bars()
    library.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before
        if shown:
            library.enable_progress_bars()
