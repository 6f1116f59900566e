"""The asking side of an engine that works elsewhere: requests go out as lines, replies come back as lines.

Where the work is done, in a child process (`llamacpp`) or in a thread (`torch_engine`), is a `Link`'s business.
A line is a dictionary of plain values. Text travels in it as one character a byte (Latin-1), because a token may
end inside a character.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import random
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ponder import errors
from ponder.engine.sampling import Sampling
from ponder.errors import InputError, PonderError, Unsupported
from ponder.protocols import Capabilities, Chunk, LogProbs, SamplingParams
from ponder.types import Finish

Line = dict[str, Any]

TOP = 100
"""Likeliest tokens that may be asked for at each place."""

CAPABILITIES = Capabilities(score=True, until=True, first=True, stops=True, grammar=True, top=TOP)
"""What `serving.Server` can do."""

_Decoder = getincrementaldecoder("utf-8")


class Link(Protocol):
    """The way to what computes: `send` takes a line, and replies with its "id" arrive in that id's mailbox."""

    @property
    def mailboxes(self) -> dict[int, Mailbox]: ...

    @property
    def ended(self) -> bool: ...

    def send(self, line: Line) -> None: ...

    def crashed(self) -> PonderError:
        """Why it has ended."""
        ...


class Mailbox:
    """Replies to one request, from the thread that has them to the event loop that asked.

    Waking that loop costs more than all else that is done for a token, so it is woken only where it waits.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: deque[Line] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, line: Line) -> None:
        self._lines.append(line)
        if (waiter := self._waiter) is not None:
            self._waiter = None
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(_wake, waiter)

    async def get(self) -> Line:
        while not self._lines:
            self._waiter = waiter = self._loop.create_future()
            if not self._lines:  # nothing came between the look and the announcement
                await waiter
        line = self._lines.popleft()
        if "error" in line:
            name, problem, mend = line["error"]
            raise getattr(errors, name)(problem, mend)
        return line


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


_keys = itertools.count()


@dataclass(frozen=True)
class Asker:
    """The methods of `protocols.Engine` that ask over a link.

    `adapters` holds names and default scales; `pieces` keeps the bytes of tokens that were asked for.
    """

    link: Callable[[], Awaitable[Link]]
    adapters: Sequence[tuple[str, float]]
    pieces: dict[int, bytes]

    async def ask(self, line: Line) -> Any:
        """The result of one request that has one. Cancelled, it takes what it asked for back."""
        link, key, mailbox = await self.link(), next(_keys), Mailbox()
        link.mailboxes[key] = mailbox
        try:
            _post(link, key, line)
            return (await mailbox.get())["result"]
        except asyncio.CancelledError:
            if line["op"] in ("score", "embed"):  # all else is answered at once
                link.send({"op": "cancel", "id": key})
            raise
        finally:
            link.mailboxes.pop(key, None)

    async def tokenize(self, text: str) -> list[int]:
        ids: list[int] = await self.ask({"op": "tokenize", "text": text})
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        ids = _integers(ids)
        missing = [i for i in dict.fromkeys(ids) if i not in self.pieces]
        if missing:
            pieces = await self.ask({"op": "pieces", "ids": missing})
            self.pieces.update(zip(missing, (p.encode("latin-1") for p in pieces), strict=True))
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        if not 1 <= start <= len(ids):
            raise InputError(f"cannot score from token {start} of {len(ids)}", "start lies between 1 and the length")
        scales, top = self._scales(params.adapters if params else None), params.top if params else 0
        check_top(top)
        line = {"op": "score", "ids": _integers(ids), "start": start, "adapters": scales}
        computed, scores, tops = await self.ask(line | ({"top": top} if top else {}))
        return LogProbs(scores, computed, [tuple((other, chance) for other, chance in each) for each in tops])

    async def embed(self, ids: Sequence[int], params: SamplingParams | None = None) -> list[float]:
        scales = self._scales(params.adapters if params else None)
        vector: list[float] = await self.ask({"op": "embed", "ids": _integers(ids), "adapters": scales})
        return vector

    async def counts(self) -> dict[str, int]:
        """What is done and has been done: samples `running`, `requests`, tokens `cached` and `computed`."""
        counted: dict[str, int] = await self.ask({"op": "describe"})
        return counted

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        if n < 1:
            raise InputError(f"n must be at least 1, not {n}")
        check_top(params.top)
        seldom = {
            "stops": params.stops,
            "grammar": params.grammar,
            "consumed": params.grammar_consumed,
            "top": params.top,
        }
        line = {
            "op": "sample",
            "prefix": _integers(prefix),
            "n": n,
            "max_tokens": params.max_tokens,
            "until": params.until,
            "adapters": self._scales(params.adapters),
            "sampling": asdict(
                Sampling(
                    temperature=params.temperature,
                    top_p=params.top_p,
                    top_k=params.top_k,
                    min_p=params.min_p,
                    seed=random.getrandbits(63) if params.seed is None else params.seed,
                    ignore_eos=params.ignore_eos,
                    first=params.first,
                )
            ),
            **{name: value for name, value in seldom.items() if value},
        }
        return Stream(self.link, next(_keys), line)

    def _scales(self, chosen: Mapping[str, float] | None) -> list[float]:
        if chosen is None:
            return [scale for _, scale in self.adapters]
        names = [name for name, _ in self.adapters]
        if unknown := [name for name in chosen if name not in names]:
            raise InputError(f"no adapter {unknown[0]!r} is loaded", f"choose from {', '.join(names) or 'none'}")
        return [float(chosen.get(name, 0.0)) for name in names]


def check_top(top: int) -> None:
    """Raises Unsupported for more of the likeliest tokens than are told."""
    if top > TOP:
        raise Unsupported(f"this engine tells {TOP} of the likeliest tokens, not {top}", f"ask for {TOP}")


def no_chat(kind: str) -> Unsupported:
    """What an engine of token ids answers to messages."""
    return Unsupported(f"the {kind} engine takes token ids, not messages", "use ponder.chat to make the prompt")


def _integers(ids: Sequence[int]) -> list[int]:
    """Plain integers, whatever kind of integers they were. Raises TypeError for anything else."""
    return [operator.index(token) for token in ids]


class Stream:
    """The chunks of one request. After `aclose`, `undelivered` counts tokens that nobody had read."""

    _link: Link | None = None
    _ended = False

    def __init__(self, link: Callable[[], Awaitable[Link]], key: int, line: Line) -> None:
        self.undelivered = 0
        self._find_link, self._key, self._line = link, key, line
        self._mailbox: Mailbox | None = None
        self._decoders = [_Decoder("replace") for _ in range(line["n"])]
        self._ready: deque[Chunk] = deque()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            try:
                mailbox = self._mailbox or await self._open()
                line = await mailbox.get()
            except PonderError:
                self._forget()
                raise
            except BaseException:
                await self.aclose()
                raise
            self._take(line)
        return self._ready.popleft()

    async def _open(self) -> Mailbox:
        link = await self._find_link()
        self._link, self._mailbox = link, Mailbox()
        link.mailboxes[self._key] = self._mailbox
        _post(link, self._key, self._line)
        return self._mailbox

    def _take(self, line: Line) -> None:
        if "prompt" in line:
            computed, cached = line["prompt"]
            self._ready.append(Chunk(0, prompt_computed=computed, prompt_cached=cached))
        finishes: dict[int, Finish] = dict(line.get("f", ()))
        for index, token, logprob, piece, *top in line.get("t", ()):
            finish = finishes.pop(index, None)
            text = self._decoders[index].decode(piece.encode("latin-1"), final=False)
            pending = bool(self._decoders[index].getstate()[0])
            told = tuple(tuple((other, chance) for other, chance in each) for each in top)
            self._ready.append(Chunk(index, (token,), text, (logprob,), finish, pending=pending, top=told))
        self._ready.extend(Chunk(index, finish=finish) for index, finish in finishes.items())
        if line.get("end"):
            self._forget()

    def _forget(self) -> None:
        self._ended = True
        if self._link is not None:
            self._link.mailboxes.pop(self._key, None)

    async def aclose(self) -> None:
        """Cancels what still runs, and waits until it has stopped."""
        if self._mailbox is None or self._link is None:
            self._ended = True
        elif not self._ended:
            self._link.send({"op": "cancel", "id": self._key})
            while not self._ended and not self._link.ended:
                try:
                    self._take(await asyncio.wait_for(self._mailbox.get(), 60))
                except (PonderError, TimeoutError):
                    self._forget()
        self.undelivered += sum(len(chunk.ids) for chunk in self._ready)
        self._ready.clear()

    def __del__(self) -> None:
        """A stream that is dropped half-read is cancelled, as a generator would be."""
        if self._link is not None and not self._ended:
            self._link.mailboxes.pop(self._key, None)
            self._link.send({"op": "cancel", "id": self._key})


def _post(link: Link, key: int, line: Line) -> None:
    link.send(line | {"id": key})
    if link.ended:
        raise link.crashed()
