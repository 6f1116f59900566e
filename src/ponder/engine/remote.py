"""Any OpenAI-compatible server as an engine.

    openai:http://127.0.0.1:8000/v1#qwen3       the kind of server is found out
    openai+vllm: openai+llamacpp: openai+sglang: openai+chat:    or said

vLLM, llama-server and SGLang take and give token ids. Any other server deals in messages alone, and
`capabilities` says so. No request is trusted to keep to its cap, to honour `n`, or to end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakSet

from ponder.engine.dialects import Dialect
from ponder.engine.remote_chat import CHAT_ONLY, Chat
from ponder.engine.remote_errors import Refused
from ponder.engine.remote_guard import capped, counted_once, rounds
from ponder.engine.remote_live import Live
from ponder.engine.remote_probe import KINDS, Found, Kind, find, model_names
from ponder.engine.transport import Retries, Transport
from ponder.errors import ContextOverflow, EngineError, InputError, Unsupported
from ponder.protocols import Capabilities, ChatChunk, Chunk, ModelInfo, SamplingParams, closing
from ponder.types import Message

C = TypeVar("C", Chunk, ChatChunk)


async def open_remote(
    uri: str,
    *,
    api_key: str | None = None,
    timeout: float = 120.0,
    first_token_timeout: float = 600.0,
    connect_timeout: float = 10.0,
    retries: Retries | None = None,
    reasoning_effort: bool = False,
) -> RemoteEngine:
    """The engine at `openai:BASE_URL#MODEL`, in the running event loop.

    MODEL may be left out where the server has one only. `api_key` falls back to OPENAI_API_KEY.
    `timeout` bounds the silence between two bytes, `first_token_timeout` the wait for the first event,
    `connect_timeout` the connection, all in seconds. `reasoning_effort` sends `think` as
    `reasoning_effort` none or medium, to servers that know it.

    Raises InputError for a URI that cannot be used or leaves several models to choose from,
    EngineUnavailable if nothing answers, EngineError if the key is refused.
    """
    kind, base, model = _parsed(uri)
    key = _checked_key(os.environ.get("OPENAI_API_KEY") if api_key is None else api_key)
    wire = Transport(
        _client(base, key, connect_timeout),
        silence=timeout,
        first=first_token_timeout,
        retries=retries or Retries(),
        secret=key,
    )
    try:
        found = await find(wire, base, model, kind)
    except BaseException:
        await wire.close()
        raise
    return RemoteEngine(wire, found, reasoning_effort=reasoning_effort)


def _parsed(uri: str) -> tuple[Kind | None, str, str | None]:
    """Kind, base address and model of a URI."""
    scheme, _, rest = uri.partition(":")
    prefix, plus, forced = scheme.partition("+")
    if prefix != "openai" or (plus and forced not in KINDS):
        kinds = ", ".join(f"openai+{kind}:" for kind in KINDS)
        raise InputError(f"{scheme}: is no kind of server", f"write openai: or one of {kinds}")
    address, _, model = rest.partition("#")
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"{address!r} is no address", "write openai:http://HOST:PORT/v1#MODEL") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in address):
        raise InputError(f"{address!r} is no address", "write openai:http://HOST:PORT/v1#MODEL")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"the address of {host} holds more than a place", "leave out user, password and query; use OPENAI_API_KEY"
        )
    path = parts.path.rstrip("/") or "/v1"
    return cast("Kind | None", forced or None), f"{parts.scheme}://{parts.netloc}{path}", model or None


def _checked_key(key: str | None) -> str | None:
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("the API key holds a character that no key has", "set OPENAI_API_KEY without spaces or breaks")
    return key or None


def _client(base: str, key: str | None, connect_timeout: float) -> Any:
    import httpx  # a tenth of a second, which a run without a server does not pay

    host = urlsplit(base).hostname
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(None, connect=connect_timeout),  # silences are bounded by the transport
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
        verify=base.startswith("https:"),  # reading the certificates takes a while, and http needs none
        trust_env=host not in ("127.0.0.1", "localhost", "::1"),  # a proxy cannot reach this machine's own loopback
    )


class RemoteEngine:
    """An `Engine` on a server. Make one with `open_remote`."""

    def __init__(self, wire: Transport, found: Found, *, reasoning_effort: bool) -> None:
        self._wire = wire
        self._found = found
        self._chat = Chat(wire, found.where, most=found.slots, templated=found.kind != "chat", effort=reasoning_effort)
        self._live: WeakSet[Live[Any]] = WeakSet()
        self._closed = False

    @property
    def uri(self) -> str:
        return f"openai+{self._found.kind}:{self._found.where.base}#{self._found.where.model}"

    @property
    def info(self) -> ModelInfo:
        """What the server tells. `context` is 0 where it does not say."""
        return self._found.info

    @property
    def capabilities(self) -> Capabilities:
        dialect = self._found.dialect
        return CHAT_ONLY if dialect is None else dialect.capabilities

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`. Raises Unsupported on a server that deals in messages alone."""
        self._check_open()
        return await self._dialect().tokenize(text) if text else []

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        self._check_open()
        return await self._dialect().detokenize(ids) if ids else ""

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        """Log-probabilities of `ids[start:]`; `start` is at least 1, since the first token follows nothing."""
        self._check_open()
        if not 1 <= start <= len(ids):
            raise InputError(f"cannot score from token {start} of {len(ids)}", "start at 1 or later")
        if params:
            _check_params(params)
        dialect = self._dialect()
        return await dialect.score(ids, start) if dialect.capabilities.score or start < len(ids) else []

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        """n continuations of `prefix`. Closing the iterator closes the connection, from any task.

        What the server samples beyond `max_tokens` is cut off and counted as `lost`; a sample that
        ends without a reason is EngineDisconnected, not a finished one. Where the server holds fewer
        than n at once, they come in rounds; the prompt is counted for the first.
        """
        self._check_open()
        _check_params(params)
        dialect = self._dialect()
        ids = list(prefix)
        if not ids:
            raise InputError("the prompt is empty", "give at least one token")
        if 0 < self.info.context <= len(ids):
            raise ContextOverflow(
                f"the prompt has {len(ids)} tokens and the context {self.info.context}", "shorten the prompt"
            )

        def ask(first: int, size: int) -> AsyncIterator[Chunk]:
            seeded = params if params.seed is None else replace(params, seed=params.seed + first)
            return capped(dialect, ids, size, seeded)

        def source() -> AsyncIterator[Chunk]:
            return counted_once(rounds(n, lambda: dialect.most, ask))

        return self._start(source)

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        """n replies to `messages`, by the template of the server.

        A reply's `completion_tokens` counts one a delta at least. Servers count all replies of a
        request together, so with n > 1 the last to end carries what the others leave.
        """
        self._check_open()
        _check_params(params)
        turns = tuple(messages)

        def ask(first: int, size: int) -> AsyncIterator[ChatChunk]:
            seeded = params if params.seed is None else replace(params, seed=params.seed + first)
            return self._chat.reply(turns, size, seeded, think)

        return self._start(lambda: rounds(n, lambda: self._chat.most, ask))

    async def close(self) -> None:
        """Cancels what runs, whose iterators then raise EngineError, and closes every connection."""
        if self._closed:
            return
        self._closed = True
        gone = EngineError("the engine was closed while it was answering")
        await asyncio.gather(*(live.stop(gone) for live in list(self._live)))
        await self._wire.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", "open another")

    def _dialect(self) -> Dialect:
        if self._found.dialect is None:
            raise Unsupported(
                f"the server at {self._found.where.base} deals in messages, not in token ids",
                "use chat(), or say the kind of server: openai+vllm:, openai+llamacpp:, openai+sglang:",
            )
        return self._found.dialect

    def _start(self, source: Callable[[], AsyncIterator[C]]) -> AsyncIterator[C]:
        async def explained() -> AsyncIterator[C]:
            try:
                async with closing(source()) as items:
                    async for item in items:
                        yield item
            except Refused as refused:
                raise await self._with_models(refused) from None

        live: Live[C] = Live(explained, self._live)
        return live

    async def _with_models(self, refused: Refused) -> EngineError:
        """`refused`, naming the models to choose from where it is the model that is missing."""
        if refused.status != 404:
            return refused
        model = self._found.where.model
        names = await model_names(self._wire, self._found.where.base)
        if model in names:
            return refused
        mend = f"choose one of: {', '.join(names[:20])}" if names else "correct the name after the #"
        return Refused(f"the server has no model {model!r}", mend, status=404, message=refused.message)


def _check_params(params: SamplingParams) -> None:
    if params.until or params.first:
        raise Unsupported("a server cannot stop at a character or number its samples", "leave until and first out")
    if params.stops or params.grammar or params.top:
        problem = "a remote engine holds its samples to no grammar, and tells no likeliest tokens"
        raise Unsupported(problem, "leave grammar, stops and top out, or run the model with gguf: or hf:")
    if params.adapters:
        names = ", ".join(params.adapters)
        raise Unsupported(
            f"a remote engine cannot switch on the adapter {names}", "name the adapted model after the # instead"
        )
