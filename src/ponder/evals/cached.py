"""An engine that never pays twice: finished samples are kept by the hash of all that decides them, and replayed.

    key = SHA-256(model, adapters, prefix ids, sampling parameters, seed, number of the sample)

A sample is kept at the moment its finish is delivered, so kill -9 loses at most what was in flight. It is replayed
chunk by chunk as it was delivered, in the order in which the samples of its request took turns; what is missing is
asked of the engine. A stream that its reader closed is kept as far as it was read, and goes on only for a
reader that wants more: the request is then made anew, and what was replayed already is left out.

Requests without a seed are made as ever. Score sheets (`score`) are kept whatever the seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, pairwise
from typing import Any, Generic, Protocol, TypeVar

from ponder.errors import EngineDisconnected, EngineError, StoreError
from ponder.evals.identity import identity_of
from ponder.protocols import Capabilities, ChatChunk, Chunk, Engine, LogProbs, ModelInfo, SamplingParams, closing
from ponder.types import Message, ToolCall, to_dict

C = TypeVar("C", Chunk, ChatChunk)
T = TypeVar("T")

VERSION = 1
"""Of the keys and of what is kept."""


class Cache(Protocol):
    """Where samples are kept: `ops.results.Background`, or the memory of a process that has no database."""

    async def do(self, work: Callable[[Any], T]) -> T: ...


@dataclass
class Account:
    """What was paid now, and what came from the cache; `failure` is the last one of the engine."""

    samples: int = 0
    tokens: int = 0
    scored: int = 0
    cached_samples: int = 0
    cached_tokens: int = 0
    cached_scored: int = 0
    failure: EngineError | None = None
    _then: list[tuple[float, float]] = field(default_factory=list)
    _now: list[tuple[float, float]] = field(default_factory=list)

    @property
    def saved(self) -> float:
        """Seconds that it took to generate what came from the cache, less those of replaying it."""
        return _covered(self._then) - _covered(self._now)

    def cached(self, complete: bool, tokens: int, seconds: tuple[float, float]) -> None:
        """Counts a sample that came from the cache, whole or as far as it was read before."""
        self.cached_samples += complete
        self.cached_tokens += tokens
        self._then.append(seconds)

    @property
    def counts(self) -> dict[str, int]:
        """All numbers by their names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def add(self, other: Account) -> None:
        """Takes over what `other` counted."""
        self.count(other.counts)

    def count(self, counts: Mapping[str, int]) -> None:
        """Adds numbers by their names."""
        for name, value in counts.items():
            setattr(self, name, getattr(self, name) + value)


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of all intervals together, where they overlap once."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


class CachedEngine:
    """`engine`, whose samples are kept in `cache` (None: nowhere, and only counted)."""

    def __init__(
        self,
        engine: Engine,
        cache: Cache | None,
        *,
        account: Account | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.cache = cache
        self.account = account or Account()
        self._identity = identity or identity_of(engine)

    @property
    def uri(self) -> str:
        return self.engine.uri

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    @property
    def capabilities(self) -> Capabilities:
        return self.engine.capabilities

    async def tokenize(self, text: str) -> list[int]:
        return await self.engine.tokenize(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self.engine.detokenize(ids)

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        """As the engine does it; replayed as far as it is kept."""
        ids = list(prefix)

        def ask(start: int, size: int) -> AsyncIterator[Chunk]:
            return self.engine.sample(ids, size, replace(params, first=params.first + start) if start else params)

        return _Stream(self, Chunk, ask, self._numbered("sample", ids, params), n, params.seed is not None)

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        """As the engine does it; replayed as far as it is kept."""
        asked = list(messages)

        def ask(start: int, size: int) -> AsyncIterator[ChatChunk]:
            chosen = replace(params, first=params.first + start) if start else params
            return self.engine.chat(asked, size, chosen, think)

        said = [*map(to_dict, asked), think]
        return _Stream(self, ChatChunk, ask, self._numbered("chat", said, params), n, params.seed is not None)

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        """As the engine does it, once."""
        key = self._numbered("score", list(ids), params)(start)
        kept = None if self.cache is None else (await self.cache.do(lambda results: results.kept([key]))).get(key)
        if kept is not None:
            found = _read(kept[1])
            self.account.cached_scored += len(found["scores"])
            return list(found["scores"]) if found["computed"] is None else LogProbs(found["scores"], found["computed"])
        try:
            scores = await self.engine.score(ids, start, params)
        except EngineError as error:
            self.account.failure = error
            raise
        self.account.scored += len(scores)
        if self.cache is not None:
            blob = _written({"scores": list(scores), "computed": getattr(scores, "computed", None)})
            await self.cache.do(lambda results: results.keep({key: (True, blob)}))
        return scores

    async def close(self) -> None:
        """Closes the engine; the cache belongs to who opened it."""
        await self.engine.close()

    def _numbered(self, kind: str, said: Sequence[Any], params: SamplingParams | None) -> Callable[[int], bytes]:
        """The key of each sample of a request by its place among those asked for."""
        chosen = {} if params is None else {each.name: getattr(params, each.name) for each in fields(params)}
        first = chosen.pop("first", 0)
        if chosen.get("adapters") is None:
            chosen["adapters"] = self._identity["adapters"]
        chosen["adapters"] = dict(chosen["adapters"])
        common = hashlib.sha256(_canonical([VERSION, kind, self._identity, said, chosen]))

        def key(index: int) -> bytes:
            own = common.copy()
            own.update(b"%d" % (first + index))
            return own.digest()

        return key


# ---------------------------------------------------------------- one request


@dataclass
class _Said(Generic[C]):
    """What was delivered of one sample: its chunks, each with its turn in the stream.

    `sizes` are the lengths of what is continued from chunk to chunk; `seconds` tells from when to when it was
    generated, if it came from the cache.
    """

    chunks: list[tuple[int, C]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    undelivered: int = 0
    complete: bool = False
    seconds: tuple[float, float] | None = None

    def add(self, turn: int, chunk: C) -> None:
        self.chunks.append((turn, chunk))
        for name in _TEXTS[type(chunk)]:
            self.sizes[name] += len(getattr(chunk, name))

    def joined(self, name: str) -> Any:
        """One text or tuple of all chunks."""
        parts = [getattr(chunk, name) for _, chunk in self.chunks]
        return "".join(parts) if isinstance(parts[0], str) else tuple(chain.from_iterable(parts))

    def rest(self, anew: _Said[C], chunk: C) -> C | None:
        """What the reader has not seen of a sample that is made again, after its next chunk; None if nothing.

        Raises EngineDisconnected where it is another sample: the reader then goes on from its exact tokens.
        """
        anew.add(0, chunk)
        behind = any(anew.sizes[name] < size for name, size in self.sizes.items())
        if behind and not chunk.finish:
            return None
        left: dict[str, Any] = {}
        for name, size in self.sizes.items():
            whole = anew.joined(name)
            left[name] = whole[size:]
            # Log-probabilities are equal up to rounding only.
            if behind or (name != "logprobs" and whole[:size] != self.joined(name)):
                raise EngineDisconnected(
                    "the engine made another sample from the same seed", "go on from what there is"
                )
        return replace(chunk, **left) if chunk.finish or any(left.values()) else None


class _Stream(Generic[C]):
    """The chunks of one request: what is kept, then what the engine is asked for. Has `undelivered` as engines do."""

    def __init__(
        self,
        owner: CachedEngine,
        kind: type[C],
        ask: Callable[[int, int], AsyncIterator[C]],
        key: Callable[[int], bytes],
        n: int,
        seeded: bool,
    ) -> None:
        self.undelivered = 0
        self._kind: type[C] = kind
        self._ask: Callable[[int, int], AsyncIterator[C]] = ask
        self._account, self._numbers = owner.account, owner.capabilities.first
        self._cache = owner.cache if seeded else None
        self._keys = [key(index) for index in range(n)]
        self._told: list[_Said[C]] = [_Said() for _ in range(n)]
        self._turn = 0
        self._prompt = self._owed = (0, 0)
        self._items: AsyncGenerator[C, None] = self._run()

    def __aiter__(self) -> _Stream[C]:
        return self

    async def __anext__(self) -> C:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Cancels what runs; what was delivered is kept."""
        await self._items.aclose()

    async def _run(self) -> AsyncGenerator[C, None]:
        await self._load()
        try:
            async with aclosing(self._replay()) as chunks:
                async for chunk in chunks:
                    yield chunk
            for start, size in self._missing():
                async with aclosing(self._live(start, size)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        finally:
            for said in self._told:
                if said.seconds is not None:
                    self._account.cached(said.complete, _total(said.chunks) + said.undelivered, said.seconds)

    def _delivered(self, chunk: C) -> C:
        """The chunk as the reader gets it: what the prompt cost comes with the first one, whichever sample's it is."""
        (computed, cached), self._owed = self._owed, (0, 0)
        if isinstance(chunk, Chunk) and (computed or cached):
            return replace(chunk, prompt_computed=computed, prompt_cached=cached)
        return chunk

    # ------------------------------------------------------------ from the cache

    async def _load(self) -> None:
        if self._cache is None:
            return
        for key, (complete, blob) in (await self._cache.do(lambda results: results.kept(self._keys))).items():
            row, said = _read(blob), self._told[self._keys.index(key)]
            said.complete, said.undelivered, said.seconds = complete, row["undelivered"], tuple(row["seconds"])
            for turn, chunk in row["chunks"]:
                said.add(turn, _revived(self._kind, chunk))
            self._prompt = self._owed = max(self._prompt, tuple(row["prompt"]))

    async def _replay(self) -> AsyncGenerator[C, None]:
        """The chunks in the turns in which they came first, so that a reader who stops does so at the same place."""
        turns = [(turn, index, chunk) for index, said in enumerate(self._told) for turn, chunk in said.chunks]
        turns.sort(key=lambda each: each[:2])
        began = time.time()
        try:
            for self._turn, (_, index, chunk) in enumerate(turns, 1):
                await asyncio.sleep(0)  # as engines do: whoever waits for something else has a turn, too
                if self._turn == len(turns):  # who leaves here does so where the last reader did
                    self.undelivered = sum(said.undelivered for said in self._told)
                yield self._delivered(replace(chunk, index=index))
        finally:
            self._account._now.append((began, time.time()))
        self.undelivered = 0

    # ------------------------------------------------------------ from the engine

    def _missing(self) -> list[tuple[int, int]]:
        """What the engine has to be asked for, as (start, size): runs of samples, or all up to the last of them."""
        missing: list[int] = [index for index, said in enumerate(self._told) if not said.complete]
        if not missing or not self._numbers:
            return [(0, missing[-1] + 1)] if missing else []
        edges = [0, *(place for place, (a, b) in enumerate(pairwise(missing), 1) if b > a + 1), len(missing)]
        return [(missing[a], b - a) for a, b in pairwise(edges)]

    async def _live(self, start: int, size: int) -> AsyncGenerator[C, None]:
        """Samples `start` to `start + size` from the engine. Of those replayed in part, what is left."""
        began, stream, seen = time.time(), self._asked(start, size), dict[int, int]()
        open_ = {index for index in range(start, start + size) if not self._told[index].complete}
        anew: dict[int, _Said[C]] = {index: _Said() for index in open_ if self._told[index].chunks}
        fresh: set[int] = set()
        for index in open_:
            self._told[index].undelivered, self._told[index].seconds = 0, None
        left = True
        try:
            async with closing(stream) as chunks:
                async for each in chunks:
                    index = start + each.index
                    chunk = self._counted(replace(each, index=index), seen)
                    if index not in open_:  # asked for along with others, and told before
                        continue
                    if index in anew:
                        rest = self._told[index].rest(anew[index], chunk)
                        if rest is None:
                            continue
                        chunk = rest
                        del anew[index]
                    self._turn += 1
                    self._told[index].add(self._turn, chunk)
                    fresh.add(index)
                    if chunk.finish:
                        open_.discard(index)
                        await self._finished(index, began)
                    yield self._delivered(chunk)
            left = False
        except EngineError as error:
            self._account.failure, left = error, False
            raise
        finally:
            undelivered = getattr(stream, "undelivered", 0)
            self.undelivered += undelivered
            self._account.tokens += undelivered
            if left:  # the reader did, and will leave at the same place again
                await self._keep_parts([index for index in sorted(open_) if index in fresh], undelivered, began)
        if open_:
            self._account.failure = EngineDisconnected("the engine's stream ended without a finish", "ask again")

    def _asked(self, start: int, size: int) -> AsyncIterator[C]:
        try:
            return self._ask(start, size)
        except EngineError as error:
            self._account.failure = error
            raise

    def _counted(self, chunk: C, seen: dict[int, int]) -> C:
        """Counts what a chunk cost, and takes out of it what its prompt did."""
        tokens = _tokens(chunk, seen.get(chunk.index, 0))
        seen[chunk.index] = seen.get(chunk.index, 0) + tokens
        self._account.tokens += tokens
        self._account.samples += chunk.finish in ENDS
        if not isinstance(chunk, Chunk) or not (chunk.prompt_computed or chunk.prompt_cached):
            return chunk
        if self._prompt == (0, 0):  # else the request was counted before, and this is another part of it
            self._prompt = self._owed = (chunk.prompt_computed, chunk.prompt_cached)
        return replace(chunk, prompt_computed=0, prompt_cached=0)

    async def _finished(self, index: int, began: float) -> None:
        said = self._told[index]
        # What a failing engine ended, or ended without a word, is no sample: it is asked for again.
        if said.chunks[-1][1].finish in ENDS and any(said.sizes.values()):
            await self._keep({self._keys[index]: (True, said)}, began)

    async def _keep_parts(self, parts: Sequence[int], undelivered: int, began: float) -> None:
        for index in parts[:1]:
            self._told[index].undelivered = undelivered
        await self._keep({self._keys[index]: (False, self._told[index]) for index in parts}, began)

    async def _keep(self, parts: Mapping[bytes, tuple[bool, _Said[C]]], began: float) -> None:
        if self._cache is None or not parts:
            return
        seconds, prompt = (began, time.time()), self._prompt

        def row(said: _Said[C]) -> bytes:
            chunks = [(turn, _plain(chunk)) for turn, chunk in said.chunks]
            told = {"chunks": chunks, "undelivered": said.undelivered, "prompt": prompt, "seconds": seconds}
            return _written(told)

        await self._cache.do(
            lambda results: results.keep({key: (complete, row(said)) for key, (complete, said) in parts.items()})
        )


# ---------------------------------------------------------------- chunks as JSON

ENDS = ("stop", "length")
"""How a sample ends by itself."""

_TEXTS: Mapping[type, tuple[str, ...]] = {
    Chunk: ("ids", "text", "logprobs"),
    ChatChunk: ("thinking", "answer", "tool_calls"),
}
"""Fields that are continued from chunk to chunk."""

_DEFAULTS = {
    kind: {each.name: each.default for each in fields(kind) if each.name != "index"} for kind in (Chunk, ChatChunk)
}


def _tokens(chunk: Chunk | ChatChunk, before: int) -> int:
    """Tokens of a chunk, after so many of the same sample; one a delta where a server does not count."""
    if isinstance(chunk, Chunk):
        return len(chunk.ids) + chunk.lost
    if chunk.completion_tokens is not None:
        return max(0, chunk.completion_tokens - before)
    return int(bool(chunk.thinking or chunk.answer or chunk.tool_calls))


def _total(chunks: Sequence[tuple[int, Chunk | ChatChunk]]) -> int:
    total = 0
    for _, chunk in chunks:
        total += _tokens(chunk, total)
    return total


def _plain(chunk: Chunk | ChatChunk) -> dict[str, Any]:
    """The fields of a chunk that say something."""
    plain = {
        name: getattr(chunk, name) for name, none in _DEFAULTS[type(chunk)].items() if getattr(chunk, name) != none
    }
    if "tool_calls" in plain:
        plain["tool_calls"] = [asdict(call) for call in plain["tool_calls"]]
    return plain


def _revived(kind: type[C], plain: Mapping[str, Any]) -> C:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    if "tool_calls" in values:
        values["tool_calls"] = tuple(ToolCall(**call) for call in values["tool_calls"])
    return kind(0, **values)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _written(row: Mapping[str, Any]) -> bytes:
    return zlib.compress(_canonical(row))


def _read(blob: bytes) -> Any:
    """What `_written` wrote. Raises StoreError for anything else."""
    try:
        return json.loads(zlib.decompress(blob))
    except (zlib.error, ValueError) as error:
        raise StoreError(
            f"a kept sample cannot be read ({error})", "remove what is kept with Results.prune(0), or use --no-cache"
        ) from error
