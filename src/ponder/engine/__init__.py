"""Token ids in, token ids out: `open_engine` for any kind of engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from ponder.errors import InputError, Unsupported
from ponder.protocols import Engine

if TYPE_CHECKING:
    from ponder.engine.llamacpp import LlamaSettings
    from ponder.engine.torch_engine import TorchSettings
    from ponder.engine.weights import Progress

__all__ = ["open_engine"]


async def open_engine(
    uri: str,
    *,
    adapters: Sequence[str] = (),
    api_key: str | None = None,
    settings: LlamaSettings | TorchSettings | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine behind `uri`.

        gguf:NAME_OR_PATH       llama.cpp in process (the kind of a bare name or path, too)
        hf:NAME_OR_PATH         a transformers model in process: a known name, GGUF file, folder or owner/repo
        openai:BASE_URL#MODEL   any OpenAI-compatible server
        scripted:FILE           replies from a script, with faults on demand

    `adapters` (paths of GGUF adapters, `PATH=SCALE`, or "none"; for hf folders of PEFT, too), `settings`
    (`LlamaSettings` for gguf, `TorchSettings` for hf) and `progress` are for gguf and hf, `api_key` is for
    openai. Raises InputError for a uri that names no model, Unsupported for adapters where there can be none,
    MissingExtra for hf without its packages, and what the engine raises.
    """
    kind, colon, rest = uri.partition(":")
    base = kind.split("+")[0]
    if not colon or base not in ("gguf", "openai", "scripted", "hf"):
        base, rest = "gguf", uri
    if not rest.strip():
        raise InputError(f"{uri!r} names no model", "try ponder-135m, a path, or openai:http://127.0.0.1:8000/v1#NAME")
    if adapters and base not in ("gguf", "hf"):
        raise Unsupported(f"an engine of kind {base} takes no adapters from here", "load them where the model runs")
    if base == "gguf":
        return await _open_gguf(rest, adapters, cast("LlamaSettings | None", settings), progress)
    if base == "hf":
        return await _open_hf(rest, adapters, cast("TorchSettings | None", settings), progress)
    if base == "openai":
        from ponder.engine.remote import open_remote

        return await open_remote(uri, api_key=api_key)
    from ponder.engine.scripted import open_scripted

    return await open_scripted(uri)


async def _open_gguf(
    name: str, adapters: Sequence[str], settings: LlamaSettings | None, progress: Progress | None
) -> Engine:
    import asyncio

    from ponder.engine.llamacpp import open_llamacpp
    from ponder.engine.weights import resolve

    weights = await asyncio.to_thread(resolve, name, adapters=adapters, progress=progress)
    metadata = {**weights.metadata, "ponder.name": weights.name, "ponder.sha256": weights.sha256}
    return await open_llamacpp(weights.path, adapters=weights.adapters, settings=settings, metadata=metadata)


async def _open_hf(
    name: str, adapters: Sequence[str], settings: TorchSettings | None, progress: Progress | None
) -> Engine:
    import asyncio
    from importlib import import_module

    from ponder.engine.torch_load import require_packages

    require_packages("hf:")
    module = await asyncio.to_thread(import_module, "ponder.engine.torch_engine")  # it takes seconds
    engine: Engine = await module.open_torch(name, adapters=adapters, settings=settings, progress=progress)
    return engine
