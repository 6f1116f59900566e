"""From what a user calls a model to files on this disk: the weights, and the adapters on top of them."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder.engine import cache, catalogue, gguf_header, hub
from ponder.engine.catalogue import DEFAULT_MODEL
from ponder.engine.download import Progress, silent
from ponder.engine.merge import merged
from ponder.errors import InputError, WeightsError

__all__ = ["DEFAULT_MODEL", "Adapter", "Progress", "Weights", "resolve"]

METADATA_KEYS = ("ponder.thinking", "general.sampling.temp")
"""What a GGUF file may say beyond its weights: of its model, or, an adapter, of what it makes of one."""

NO_ADAPTER = "none"
"""Given as an adapter, it leaves out the one that a model of the catalogue comes with."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter: a GGUF file, and how strongly it is applied by default (1: as it was trained)."""

    name: str
    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Weights:
    """Files ready to be opened.

    `sha256` is the pinned hash that `path` was checked against, None for files that nothing is pinned for.
    `metadata` holds what is known beyond the file: `ponder.thinking`, how the model was taught to think.
    """

    name: str
    path: Path
    adapters: tuple[Adapter, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None


def resolve(name: str, *, adapters: Sequence[str] = (), progress: Progress | None = None) -> Weights:
    """The weights called `name`: a name of the catalogue, a path to a GGUF file, or a file on a model hub.

    A model of the catalogue is fetched if it is not cached; `owner/repo/file.gguf` and `owner/repo:QUANT`
    are fetched by huggingface_hub into its own cache. Each of `adapters` is the path of a GGUF adapter,
    optionally with `=SCALE`, on top of the one that the model comes with; "none" leaves that one out.

    Raises InputError for a file that cannot be used, WeightsError for an unknown name and for weights
    that are damaged or cannot be fetched or stored.
    """
    if not name.strip():
        raise InputError("the name of the model is empty", f"Give one, such as {DEFAULT_MODEL}")
    report = progress or silent
    own = [spec for spec in adapters if spec != NO_ADAPTER]
    entry = catalogue.find(name)
    if entry:
        weights = _known(entry, packaged=NO_ADAPTER not in adapters, alone=not own, progress=report)
    else:
        path = _local(name)
        if path is None:
            found = hub.parse(name)
            if found is None:
                raise unknown(name)
            path = hub.fetch(found, progress=report)
        weights = Weights(path.stem, path)
    return _with_adapters(weights, own) if own else weights


def unknown(name: str) -> WeightsError:
    """The error for a name that means nothing."""
    if kind := name.partition(":")[0] if ":" in name else "":
        return WeightsError(
            f"{name!r} names no model: there is no engine of kind {kind}:",
            "The kinds are gguf:, hf:, openai: and scripted:; `ponder models list` shows the known models",
        )
    near = difflib.get_close_matches(name.lower(), catalogue.names(), n=3, cutoff=0.5)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    return WeightsError(
        f"{name!r} is neither a known model nor a file here",
        f"{guess}`ponder models list` shows the known ones; a path to a GGUF file or owner/repo/file.gguf works too",
    )


def _known(entry: catalogue.Entry, packaged: bool, alone: bool, progress: Progress) -> Weights:
    path = cache.require(entry.base, entry.name, progress)
    if entry.adapter is None or not packaged:
        return Weights(entry.name, path, sha256=entry.base.sha256)
    adapter = Adapter(entry.adapter.name, packaged_path(entry.adapter))
    metadata = {"ponder.thinking": dict(entry.adapter.thinking), "general.sampling.temp": entry.adapter.temperature}
    if alone:  # nothing else to combine it with: merged, it computes faster
        with contextlib.suppress(WeightsError):  # no room for that: slower, but the same model
            fast = merged(path, entry.base.sha256, adapter.path, entry.adapter.sha256, progress)
            return Weights(
                entry.name, fast, (), metadata | {"ponder.adapters": {adapter.name: adapter.scale}}, entry.base.sha256
            )
    return Weights(entry.name, path, (adapter,), metadata, entry.base.sha256)


def packaged_path(adapter: catalogue.PackagedAdapter) -> Path:
    """The path of a shipped adapter. Raises WeightsError where the installation lacks it or holds another."""
    if not adapter.path.is_file() or adapter.path.stat().st_size != adapter.size:
        raise WeightsError(
            f"the adapter {adapter.path} of this installation is missing or damaged",
            "Run `pip install --force-reinstall --no-deps ponder`",
        )
    return adapter.path


def _local(name: str) -> Path | None:
    """The GGUF file at the path `name`; None where `name` may be something else than a path."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a GGUF file", f"Give the path of a .gguf file, or hf:{path}")
    if not path.exists():
        if path.is_absolute() or name.startswith((".", "~")) or (name.endswith(".gguf") and name.count("/") < 2):
            raise InputError(f"there is no file {path}", "Check the path, or see `ponder models list`")
        return None
    if gguf_header.read_header(path).is_adapter:
        raise InputError(f"{path} is an adapter, not a model", f"Give the model it is for, and `--adapter {path}`")
    return path.absolute()


# ---------------------------------------------------------------- adapters


def _with_adapters(weights: Weights, specs: Sequence[str]) -> Weights:
    base = gguf_header.read_header(weights.path)
    all_of_them, metadata = list(weights.adapters), dict(weights.metadata)
    for spec in specs:
        path, scale = split(spec)
        metadata |= told(_check_fits(path, base, weights.name)) if scale else {}
        taken = {adapter.name for adapter in all_of_them}
        all_of_them.append(Adapter(_free_name(path.stem, taken), path.absolute(), scale))
    return Weights(weights.name, weights.path, tuple(all_of_them), metadata, weights.sha256)


def told(file: gguf_header.Header) -> dict[str, Any]:
    """What a GGUF file says beyond weights, of its model or of what it makes of one: its thinking, its temperature."""
    return {key: file.metadata[key] for key in METADATA_KEYS if key in file.metadata}


def split(spec: str) -> tuple[Path, float]:
    """Path and scale of an adapter given as `PATH` or `PATH=SCALE`. Raises InputError for a scale that is none."""
    whole = Path(spec).expanduser()
    if whole.exists() or "=" not in spec:
        return whole, 1.0
    path, _, text = spec.rpartition("=")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise InputError(f"the scale {text!r} of adapter {path} is not a number", f"Write {path}=0.5, for example")
    return Path(path).expanduser(), scale


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _check_fits(path: Path, base: gguf_header.Header, model: str) -> gguf_header.Header:
    """The header of the adapter at `path`. Raises InputError unless its matrices fit those of `base`."""
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            raise InputError(
                f"{path} is an adapter in PEFT form, and GGUF is needed",
                "Open the model with hf:, or convert it by llama.cpp's convert_lora_to_gguf.py and give the .gguf",
            )
        raise InputError(f"{path} is a folder, not a GGUF adapter", "Give the path of a .gguf file")
    if not path.exists():
        raise InputError(
            f"there is no adapter {path}", 'Check the path; "none" leaves out the one the model comes with'
        )
    header = gguf_header.read_header(path)
    if not header.is_adapter:
        raise InputError(f"{path} is a model, not an adapter", "Give it as the model instead")
    if header.architecture != base.architecture:
        raise InputError(
            f"adapter {path} is for {header.architecture} models, and {model} is a {base.architecture} model",
            "Give the model that it was trained on",
        )
    misfit = _misfit(header, base)
    if misfit:
        raise InputError(f"adapter {path} does not fit {model}: {misfit}", "Give the model that it was trained on")
    return header


def _misfit(adapter: gguf_header.Header, base: gguf_header.Header) -> str | None:
    """What keeps an adapter from being added to a model: W (in, out) takes A (in, rank) and B (rank, out)."""
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    for tensor in adapter.tensors:
        target, _, side = tensor.name.rpartition(".lora_")
        if side not in ("a", "b") or target.startswith("token_embd"):  # embeddings are stored the other way round
            continue
        if target not in shapes:
            return f"the model has no {target}"
        axis = 0 if side == "a" else 1
        if tensor.shape[axis] != shapes[target][axis]:
            what = "inputs" if side == "a" else "outputs"
            return f"{target} has {shapes[target][axis]} {what}, not {tensor.shape[axis]}"
    return None
