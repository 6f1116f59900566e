"""GGUF files on a model hub, through huggingface_hub and into its own cache."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ponder.engine import gguf_header
from ponder.engine.download import FULL, Progress, silent
from ponder.errors import WeightsError

_PART = r"[A-Za-z0-9][\w.-]*"
_FILE = re.compile(rf"(?P<repo>{_PART}/{_PART})/(?P<file>[^\s:]+\.gguf)")
_QUANT = re.compile(rf"(?P<repo>{_PART}/{_PART})(:(?P<quant>[\w.-]+))?")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class HubFile:
    """A repository, and in it either a file or a quantisation such as `Q4_K_M` (empty: the only one there is)."""

    repo: str
    file: str = ""
    quant: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}" if self.file else f"{self.repo}:{self.quant}".rstrip(":")


def parse(name: str) -> HubFile | None:
    """`owner/repo/file.gguf`, `owner/repo:QUANT` or `owner/repo`; None for anything else."""
    if match := _FILE.fullmatch(name):
        return HubFile(match["repo"], file=match["file"])
    if match := _QUANT.fullmatch(name):
        return HubFile(match["repo"], quant=match["quant"] or "")
    return None


def fetch(
    wanted: HubFile,
    *,
    force: bool = False,
    progress: Progress = silent,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The file on this disk; what is cached is taken without asking the hub, unless `force`.

    `endpoint` is the address of the hub and `cache_dir` its cache; None leaves them to huggingface_hub
    (HF_ENDPOINT, HF_HUB_CACHE).

    Raises WeightsError where it is neither cached nor can be fetched.
    """
    if not force:
        present = cached(wanted, cache_dir)
        if present:
            return present
    progress(f"fetching {wanted}", 0, None)
    path = _fetch(wanted, force, progress, endpoint, cache_dir)
    if not gguf_header.is_gguf(path):
        raise WeightsError(f"what the hub gave as {wanted} is not a GGUF file", "Choose another file of the repository")
    return path


def choose(wanted: HubFile, files: list[str]) -> list[str]:
    """Which of a repository's files are wanted: one, or all shards of one, in order. Raises WeightsError."""
    models = sorted(f for f in files if f.endswith(".gguf") and not PurePosixPath(f).name.startswith("mmproj"))
    if wanted.file:
        matching = [f for f in models if f == wanted.file]
    elif wanted.quant:
        matching = [f for f in models if _has_quant(f, wanted.quant)]
    else:
        matching = models
    kinds = {_SHARD.sub("", f) for f in matching}
    if len(kinds) == 1:
        shard = _SHARD.search(matching[0])
        if shard is None:
            return matching
        return [_SHARD.sub(f"-{i:05}-of-{shard[1]}.gguf", matching[0]) for i in range(1, int(shard[1]) + 1)]
    offered = ", ".join(models[:12]) or "no GGUF file at all"
    problem = "fits several files" if kinds else "fits no file"
    raise WeightsError(f"{wanted} {problem} of the repository, which has {offered}", "Name one as owner/repo/file.gguf")


def _has_quant(file: str, quant: str) -> bool:
    # Q4_K must not match Q4_K_M, hence the boundaries.
    stem = _SHARD.sub("", file).removesuffix(".gguf")
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(quant)}(?![A-Za-z0-9_])", stem, re.IGNORECASE) is not None


def cached(wanted: HubFile, cache_dir: Path | None = None) -> Path | None:
    """The file in huggingface_hub's cache, the newest revision first, without asking the hub."""
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = huggingface_hub.scan_cache_dir(cache_dir)
    except CacheNotFound:
        return None
    for repo in cache.repos:
        if repo.repo_type != "model" or repo.repo_id != wanted.repo:
            continue
        for revision in sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True):
            files = {file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files}
            chosen = _choose_or_none(wanted, files)
            if chosen:
                return revision.snapshot_path / chosen
    return None


def _choose_or_none(wanted: HubFile, files: set[str]) -> str | None:
    """The file to open, if `files` hold it whole and leave no doubt."""
    try:
        chosen = choose(wanted, sorted(files))
    except WeightsError:
        return None
    return chosen[0] if files.issuperset(chosen) else None


def _fetch(wanted: HubFile, force: bool, progress: Progress, endpoint: str | None, cache_dir: Path | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    # Its releases differ in the HTTP client beneath, whose own errors come through; this is their base in each.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    bar: Any = functools.partial(_Bar, progress=progress)
    try:
        # Not `list_repo_files`: it retries for half a minute where there is no network.
        info = huggingface_hub.HfApi(endpoint).model_info(wanted.repo, timeout=20)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        paths = [
            huggingface_hub.hf_hub_download(
                wanted.repo, file, force_download=force, tqdm_class=bar, endpoint=endpoint, cache_dir=cache_dir
            )
            for file in choose(wanted, files)
        ]
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightsError(
            f"the model hub has no repository {wanted.repo}, or it is private",
            "Check the name, or run `hf auth login`; for a file here, check the path",
        ) from error
    except (http_error, OSError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{wanted} is not cached and cannot be fetched from the model hub ({lines[0].rstrip('. ')})",
            "Free disk space, or set HF_HOME to a folder on another disk"
            if full
            else "Try again with a network, or give the path of a GGUF file",
        ) from error
    return Path(paths[0])


class _Bar:
    """What huggingface_hub takes for a tqdm bar: passes on to a `Progress`."""

    def __init__(
        self, *, progress: Progress, desc: str = "", total: int | None = None, initial: int = 0, **_: Any
    ) -> None:
        self.report, self.desc, self.total, self.n = progress, desc, total, initial

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: float | None = 1) -> None:
        self.n += int(n or 0)
        self.report(f"fetching {self.desc}", self.n, self.total)
