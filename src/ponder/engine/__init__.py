"""Token ids in, token ids out: `open_engine` for any kind of engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ponder.errors import InputError, Unsupported
from ponder.protocols import Engine

if TYPE_CHECKING:
    from ponder.engine.llamacpp import LlamaSettings
    from ponder.engine.weights import Progress

__all__ = ["open_engine"]


async def open_engine(
    uri: str,
    *,
    adapters: Sequence[str] = (),
    api_key: str | None = None,
    settings: LlamaSettings | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine behind `uri`.

        gguf:NAME_OR_PATH       llama.cpp in process (the kind of a bare name or path, too)
        openai:BASE_URL#MODEL   any OpenAI-compatible server
        scripted:FILE           replies from a script, with faults on demand

    `adapters` (paths of GGUF adapters, `PATH=SCALE`, or "none"), `settings` and `progress` are for
    gguf, `api_key` is for openai. Raises InputError for another kind, and what the engine raises.
    """
    kind, colon, rest = uri.partition(":")
    base = kind.split("+")[0]
    if not colon or base not in ("gguf", "openai", "scripted", "hf"):
        base, rest = "gguf", uri
    if not rest.strip():
        raise InputError(f"{uri!r} names no model", "try ponder-135m, a path, or openai:http://127.0.0.1:8000/v1#NAME")
    if adapters and base != "gguf":
        raise Unsupported(f"an engine of kind {base} takes no adapters from here", "load them where the model runs")
    if base == "gguf":
        return await _open_gguf(rest, adapters, settings, progress)
    if base == "openai":
        from ponder.engine.remote import open_remote

        return await open_remote(uri, api_key=api_key)
    if base == "scripted":
        from ponder.engine.scripted import open_scripted

        return await open_scripted(uri)
    raise Unsupported("this ponder has no hf: engine yet", "convert the model to GGUF, or serve it and use openai:")


async def _open_gguf(
    name: str, adapters: Sequence[str], settings: LlamaSettings | None, progress: Progress | None
) -> Engine:
    import asyncio

    from ponder.engine.llamacpp import open_llamacpp
    from ponder.engine.weights import resolve

    weights = await asyncio.to_thread(resolve, name, adapters=adapters, progress=progress)
    metadata = {**weights.metadata, "ponder.name": weights.name, "ponder.sha256": weights.sha256}
    return await open_llamacpp(weights.path, adapters=weights.adapters, settings=settings, metadata=metadata)
