"""Which server stands behind an address, found out once by a few small questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ponder.engine.dialects import Address, Dialect, count_of, object_of
from ponder.engine.remote_errors import Refused
from ponder.engine.remote_llama_server import LlamaServer
from ponder.engine.remote_sglang import SGLang
from ponder.engine.remote_vllm import Vllm
from ponder.engine.transport import Transport
from ponder.errors import GarbledReply, InputError, PonderError
from ponder.protocols import ModelInfo

Kind = Literal["vllm", "llamacpp", "sglang", "chat"]
KINDS: tuple[Kind, ...] = ("vllm", "llamacpp", "sglang", "chat")


@dataclass(frozen=True)
class Found:
    """A server: `dialect` is None where it deals in messages alone; `slots` bounds the replies of one request."""

    kind: Kind
    where: Address
    dialect: Dialect | None
    info: ModelInfo
    slots: int = 1 << 30


async def find(wire: Transport, base: str, model: str | None, forced: Kind | None) -> Found:
    """The server at `base`.

    Raises InputError if the model has to be named, EngineUnavailable if nothing answers.
    """
    root = base.removesuffix("/v1")
    models = await _models(wire, base)
    entry = _chosen(models, model, base)
    where = Address(base, root, model or str(entry["id"]))
    kind = forced or await _kind(wire, root, entry)
    wire.fresh_connections = kind == "llamacpp"  # llama-server drops a connection that has carried a stream
    if kind == "llamacpp":
        return await _llama_server(wire, where, entry)
    if kind == "vllm":
        return await _vllm(wire, where, entry)
    if kind == "sglang":
        return await _sglang(wire, where, entry)
    return Found("chat", where, None, _info(where, kind, entry))


async def model_names(wire: Transport, base: str) -> list[str]:
    """The models that the server lists, for a message; none where it does not tell."""
    try:
        return [str(entry["id"]) for entry in await _models(wire, base)]
    except PonderError:
        return []


async def _models(wire: Transport, base: str) -> list[Mapping[str, Any]]:
    try:
        listed = await wire.get(f"{base}/models", patient=False)
    except Refused as refused:
        if refused.status in (404, 405, 501):
            return []
        raise
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        raise GarbledReply(f"{base}/models is no list of models", "correct the address; most end in /v1")
    return [entry for entry in data if isinstance(entry, dict) and entry.get("id")]


def _chosen(models: list[Mapping[str, Any]], model: str | None, base: str) -> Mapping[str, Any]:
    """The entry of the model that is meant. A name that is not listed is left for the server to judge."""
    if model is None and len(models) != 1:
        if not models:
            raise InputError(f"{base} does not list its models", f"name one: openai:{base}#MODEL")
        names = ", ".join(str(entry["id"]) for entry in models[:20])
        raise InputError(f"{base} has {len(models)} models", f"name one after a #: {names}")
    named = [entry for entry in models if model in (None, entry["id"])]
    if named:
        return named[0]
    # Which server it is can be told by any of its models.
    return {"owned_by": models[0].get("owned_by")} if models else {}


async def _kind(wire: Transport, root: str, entry: Mapping[str, Any]) -> Kind:
    owner = entry.get("owned_by")
    if owner in ("vllm", "llamacpp", "sglang"):
        return {"vllm": KINDS[0], "llamacpp": KINDS[1], "sglang": KINDS[2]}[owner]
    props = await wire.probe(f"{root}/props")
    if "default_generation_settings" in props:
        return "llamacpp"
    if "model_path" in await wire.probe(f"{root}/get_model_info"):
        return "sglang"
    if isinstance((await wire.probe(f"{root}/version")).get("version"), str):
        return "vllm"
    return "chat"


async def _llama_server(wire: Transport, where: Address, entry: Mapping[str, Any]) -> Found:
    props = await wire.probe(f"{where.root}/props")
    settings = object_of(props.get("default_generation_settings"))
    meta = object_of(entry.get("meta"))
    slots = max(1, count_of(props.get("total_slots")))
    dialect = LlamaServer(wire, where, slots)
    context = count_of(settings.get("n_ctx")) or count_of(props.get("n_ctx")) or count_of(meta.get("n_ctx_train"))
    info = await _with_markers(_info(where, "llamacpp", entry, context), props, dialect)
    return Found("llamacpp", where, dialect, info, slots)


async def _vllm(wire: Transport, where: Address, entry: Mapping[str, Any]) -> Found:
    dialect = Vllm(wire, where)
    # Only where the server was started with --enable-tokenizer-info-endpoint.
    known = await wire.probe(f"{where.root}/tokenizer_info")
    return Found("vllm", where, dialect, await _with_markers(_info(where, "vllm", entry), known, dialect))


async def _sglang(wire: Transport, where: Address, entry: Mapping[str, Any]) -> Found:
    found = await wire.probe(f"{where.root}/server_info") or await wire.probe(f"{where.root}/get_server_info")
    context = count_of(entry.get("max_model_len")) or count_of(found.get("context_length"))
    return Found("sglang", where, SGLang(wire, where), _info(where, "sglang", entry, context))


def _info(where: Address, kind: Kind, entry: Mapping[str, Any], context: int = 0) -> ModelInfo:
    parameters = count_of(object_of(entry.get("meta")).get("n_params"))
    return ModelInfo(
        name=where.model,
        context=context or count_of(entry.get("max_model_len")) or count_of(entry.get("context_length")),
        parameters=parameters or None,
        metadata={"server": kind, "address": where.base},
    )


async def _with_markers(info: ModelInfo, known: Mapping[str, Any], dialect: Dialect) -> ModelInfo:
    """`info` with the template and the special tokens that the server tells."""
    bos, eos = _token(known.get("bos_token")), _token(known.get("eos_token"))
    template = known.get("chat_template")
    eos_ids: tuple[int, ...] = ()
    if eos:
        ids = await dialect.tokenize(eos)
        eos_ids = tuple(ids) if len(ids) == 1 else ()
    return ModelInfo(
        name=info.name,
        context=info.context,
        eos_ids=eos_ids,
        bos=bos,
        eos=eos,
        chat_template=template if isinstance(template, str) and template else None,
        parameters=info.parameters,
        metadata=info.metadata,
    )


def _token(value: Any) -> str:
    """A special token, which tokenizer configurations write as a text or as an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
