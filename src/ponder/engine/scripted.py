"""An engine that says what it is told to, with faults on demand: `scripted:FILE`, or in Python.

    engine = ScriptedEngine(says("<think>2 + 2 is 4</think>4"))
    engine = ScriptedEngine(says("4"), faults=[Fault("disconnect", at=1)])

It is meant for tests, examples and fault injection. Its tokenizer works on bytes, so that every
character beyond ASCII and every marker spans many tokens: the worst case for code that counts
tokens. Sampling settings other than `max_tokens` and `ignore_eos`, and `stops` and `grammar` where it was opened for
them, reach the reply and change nothing else.
"""

from __future__ import annotations

import asyncio
import bisect
import codecs
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from ponder.engine._script import (
    CHATML,
    CLOSE,
    EOS,
    HEADER,
    IM_END,
    OPEN,
    TOKENIZER,
    ByteTokenizer,
    Fault,
    Reply,
    Source,
    Splitter,
    chatml,
    read_json,
    says,
    script,
    script_reply,
    shared,
    validate,
)
from ponder.engine.constraint import Vocabulary
from ponder.engine.guide import Guide
from ponder.errors import (
    ContextOverflow,
    EngineDisconnected,
    EngineUnavailable,
    GarbledReply,
    InputError,
    RateLimited,
    Unsupported,
)
from ponder.protocols import Capabilities, ChatChunk, Chunk, ModelInfo, SamplingParams
from ponder.types import Finish, Message

__all__ = [
    "CHATML",
    "EOS",
    "HEADER",
    "TOKENIZER",
    "ByteTokenizer",
    "Fault",
    "LogProb",
    "Reply",
    "ScriptedEngine",
    "Source",
    "open_scripted",
    "says",
    "script",
]

NEWLINE = 10
CACHED_SEQUENCES = 512

LogProb: TypeAlias = Callable[[tuple[int, ...], int], float]
"""The log-probability of a token id after a prefix of token ids."""


class _PrefixCache:
    """The newest token sequences, and how much of a new one they already hold."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, ...]] = []
        self._oldest_first: deque[tuple[int, ...]] = deque()

    def add(self, sequence: tuple[int, ...]) -> None:
        place = bisect.bisect_left(self._sorted, sequence)
        if self._sorted[place : place + 1] == [sequence]:
            return
        self._sorted.insert(place, sequence)
        self._oldest_first.append(sequence)
        if len(self._sorted) > CACHED_SEQUENCES:
            del self._sorted[bisect.bisect_left(self._sorted, self._oldest_first.popleft())]

    def longest(self, sequence: tuple[int, ...]) -> int:
        # In sorted order the sequence that shares most is a neighbour.
        place = bisect.bisect_left(self._sorted, sequence)
        return max((shared(known, sequence) for known in self._sorted[max(0, place - 1) : place + 1]), default=0)


@dataclass(frozen=True)
class _Due:
    """A fault whose time has come, and whether it befalls one sample alone."""

    fault: Fault
    alone: bool


@dataclass
class _Lane:
    """One sample on its way."""

    index: int
    source: Iterator[int | Fault]
    text: codecs.IncrementalDecoder
    ids: list[int] = field(default_factory=list)
    due: list[_Due] = field(default_factory=list)
    struck: dict[int, int] = field(default_factory=dict)
    wrong_tokens: int = 0
    guide: Guide | None = None
    state: Literal["open", "finished", "hung", "gone"] = "open"


class _Call:
    """One request: its samples in turn, and the faults that strike it."""

    def __init__(self, engine: ScriptedEngine, prefix: tuple[int, ...], n: int, params: SamplingParams) -> None:
        self.engine, self.prefix, self.params = engine, prefix, params
        self.number = engine.calls
        self.limit = min(params.max_tokens, engine.info.context - len(prefix))
        self.stop = asyncio.Event()
        self.prefilled = False
        self.over = False
        self.wrong_prompt = 0
        self.struck: dict[int, int] = {}
        self.lanes = [self._lane(index) for index in range(n)]

    def _lane(self, index: int) -> _Lane:
        text = codecs.getincrementaldecoder("utf-8")("replace")
        # A prefix may end inside a character (a fork does not care): the decoder has to know its first bytes.
        text.decode(self.engine.tokenizer.decode(self.prefix[-3:]))
        source = iter(self.engine.reply(self.prefix, self.params.first + index, self.params))
        return _Lane(index, source, text, guide=self.engine._guide(self.prefix, self.params))

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        return [self.prefix + tuple(lane.ids) for lane in self.lanes] if self.prefilled else []

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self._round_robin()) as chunks:
            async for chunk in chunks:
                yield chunk
        if self.over:
            return
        if any(lane.state == "hung" for lane in self.lanes):
            await self.stop.wait()
        for lane in self.lanes:
            if lane.state in ("open", "hung"):
                yield Chunk(lane.index, finish="cancelled")

    async def _round_robin(self) -> AsyncGenerator[Chunk, None]:
        while live := [lane for lane in self.lanes if lane.state == "open"]:
            for lane in live:
                await asyncio.sleep(0)  # one turn of the loop a chunk: cancelling must work between any two
                chunk = None if self.stop.is_set() else await self._advance(lane)
                if self.over or self.stop.is_set():
                    return
                if chunk is not None:
                    yield chunk

    async def _advance(self, lane: _Lane) -> Chunk | None:
        """The next tokens of a sample; None if a fault left nothing to deliver."""
        ids: list[int] = []
        text = ""
        finish: Finish | None = None
        while finish is None and len(ids) < self.engine.burst:
            if due := self._due(lane):
                if ids:  # what was generated before the fault is delivered before it
                    lane.due.insert(0, due)
                    break
                await self._strike(due, lane)
                if self.over or self.stop.is_set() or lane.state != "open":
                    return None
                continue
            token = next(lane.source, EOS)
            if isinstance(token, Fault):
                lane.due.append(_Due(token, alone=True))
                continue
            if token == EOS and self.params.ignore_eos:
                token = NEWLINE
            if lane.guide is not None:
                if lane.guide.complete:
                    finish = "stop"
                    break
                token = self._allowed(lane.guide, token, len(lane.ids))
            ids.append(token)
            lane.ids.append(token)
            if token == EOS:
                text += lane.text.decode(b"", final=True)
                finish = "stop"
            else:
                piece = self.engine.tokenizer.piece(token)
                text += lane.text.decode(piece)
                cut = len(lane.ids) >= self.limit or (self.params.until and self.params.until.encode() in piece)
                finish = "length" if cut else None
                if lane.guide is not None:
                    finish = lane.guide.take(token) or finish
        return self._chunk(lane, ids, text, finish)

    def _allowed(self, guide: Guide, token: int, place: int) -> int:
        """The token, or one of those that its grammar allows, each in its turn."""
        mask = guide.allowed()
        if mask is None or (mask[token] and not (token == EOS and self.params.ignore_eos)):
            return token
        others = [int(each) for each in mask.nonzero()[0] if each != EOS or not self.params.ignore_eos]
        return others[place % len(others)]

    def _chunk(self, lane: _Lane, ids: list[int], text: str, finish: Finish | None) -> Chunk:
        self.engine.generated += len(ids)
        computed, cached = self._prefill()
        if finish is not None:
            lane.state = "finished"
        return Chunk(
            index=lane.index,
            ids=tuple(ids),
            text=text,
            logprobs=self._logprobs(lane, len(ids)),
            finish=finish,
            prompt_computed=computed,
            prompt_cached=cached,
            lost=0 if finish is None else lane.wrong_tokens,
            pending=bool(lane.text.getstate()[0]),
        )

    def _logprobs(self, lane: _Lane, last: int) -> tuple[float | None, ...]:
        if self.engine._logprob is None:
            return (None,) * last
        whole = self.prefix + tuple(lane.ids)
        return tuple(self.engine._logprob(whole[:at], whole[at]) for at in range(len(whole) - last, len(whole)))

    def _prefill(self) -> tuple[int, int]:
        """Prompt tokens computed and cached, once a call."""
        if self.prefilled:
            return 0, 0
        # The last token is always computed: its output is what the first sampled token comes from.
        cached = min(self.engine._cached(self.prefix), len(self.prefix) - 1)
        self.prefilled = True
        return max(0, len(self.prefix) - cached + self.wrong_prompt), cached

    def _due(self, lane: _Lane) -> _Due | None:
        """The next fault that strikes here and now, marked as having struck."""
        if lane.due:
            return lane.due.pop(0)
        for place, fault in enumerate(self.engine.faults):
            if fault.sample not in (None, lane.index) or self.number < fault.first_call:
                continue
            alone = fault.sample is not None
            given = len(lane.ids) if alone else sum(len(each.ids) for each in self.lanes)
            struck = lane.struck if alone else self.struck
            if given < fault.at or (place in struck and not (fault.every and struck[place] < given)):
                continue
            if place not in struck and not self.engine._claim(place, self.number):
                continue
            struck[place] = given
            return _Due(fault, alone)
        return None

    async def _strike(self, due: _Due, lane: _Lane) -> None:
        fault = due.fault
        match fault.kind:
            case "delay":
                await self._pause(fault.seconds)
            case "hang" if due.alone:
                lane.state = "hung"
            case "hang":
                await self.stop.wait()
            case "partial" if due.alone:
                lane.state = "gone"
            case "partial":
                self.over = True
            case "wrong_counts":
                self.wrong_prompt += fault.prompt
                for each in [lane] if due.alone else self.lanes:
                    each.wrong_tokens += fault.tokens
            case "disconnect":
                raise EngineDisconnected("the scripted engine went away in the middle of the stream", "ask again")
            case "garbage":
                raise GarbledReply("the scripted engine sent something that is no reply", "look at its faults")
            case "rate_limit":
                raise RateLimited("the scripted engine is too busy", "ask again later", fault.seconds or None)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            pass


class ScriptedEngine:
    """An `Engine` whose tokens come from `reply`.

    reply: called with the prefix as token ids, the number of the sample and the settings; gives
        token ids. A sample ends with finish "stop" at id 256 or when its source ends, with "length" at
        `max_tokens` or a full `context`. With `ignore_eos` newlines take the place of ends of turn.
    faults: what goes wrong, and when.
    name, context, chat_template: see `ModelInfo`; the template is `CHATML` if None.
    specials: special tokens beside `<|im_start|>` and `eos`; each becomes one id.
    chat_only: deals in messages alone, as many servers do: `chat` works, `sample` does not.
    burst: tokens a chunk.
    until: whether it ends samples at `SamplingParams.until`.
    grammar: whether it obeys `SamplingParams.grammar` and `stops`: other tokens take the place of those that the
        grammar forbids.
    logprob: log-probability of a token after a prefix; without it there are none, and no `score`.

    `calls`, `generated` (tokens given out, cancelled streams included) and `open_streams` are honest
    books to check the user's against.
    """

    def __init__(
        self,
        reply: Reply,
        *,
        faults: Sequence[Fault] = (),
        name: str = "scripted",
        context: int = 4096,
        chat_template: str | None = None,
        specials: Sequence[str] = (),
        eos: str = IM_END,
        chat_only: bool = False,
        burst: int = 1,
        logprob: LogProb | None = None,
        until: bool = True,
        grammar: bool = False,
        uri: str | None = None,
    ) -> None:
        if burst < 1 or context < 1:
            raise ValueError(f"burst and context must be at least 1, not {burst} and {context}")
        self.reply = reply
        self.faults = tuple(faults)
        self.tokenizer = ByteTokenizer(tuple(specials), eos)
        self.burst = burst
        self.calls = 0
        self.generated = 0
        self._uri = uri or f"scripted:{name}"
        self._info = ModelInfo(
            name=name,
            context=context,
            eos_ids=(EOS,),
            eos=eos,
            chat_template=None if chat_only else chat_template or CHATML,
        )
        self._logprob = logprob
        self._capabilities = Capabilities(
            tokens=not chat_only,
            chat=chat_only,
            logprobs=logprob is not None,
            score=logprob is not None,
            until=until,
            first=True,
            stops=grammar,
            grammar=grammar,
        )
        self._affected: list[set[int]] = [set() for _ in self.faults]
        self._cache = _PrefixCache()
        self._open: list[_Call] = []
        self._closed = False

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def open_streams(self) -> int:
        """Streams that were begun and neither ended nor were closed."""
        return len(self._open)

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`: its bytes, and the ids of special tokens."""
        return self.tokenizer.encode(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises ValueError for an unknown id."""
        return self.tokenizer.decode(ids).decode(errors="replace")

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncGenerator[Chunk, None]:
        """n continuations of `prefix`, in turn. Raises as `Engine.sample` does, and what `faults` say."""
        if not self._capabilities.tokens:
            raise Unsupported("this scripted engine deals in messages alone", "ask with chat(), or drop chat_only")
        return self._stream(tuple(prefix), n, params)

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        """What `logprob` says of each of `ids[start:]`. Raises Unsupported without a `logprob`."""
        if self._logprob is None:
            raise Unsupported("this scripted engine has no log-probabilities", "open it with logprob=")
        if not 0 <= start <= len(ids):
            raise ValueError(f"start must lie in 0 to {len(ids)}, not {start}")
        self._admit()
        self.calls += 1
        known = tuple(ids)
        return [self._logprob(known[:place], known[place]) for place in range(start, len(known))]

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncGenerator[ChatChunk, None]:
        """n replies to `messages`; what stands between <think> and </think> comes as thinking."""
        if not self._capabilities.chat:
            raise Unsupported("this scripted engine deals in tokens", "ask with sample(), or open it with chat_only")
        return self._chat(messages, n, params, think)

    async def close(self) -> None:
        """Admits nothing more; open streams end with finish "cancelled"."""
        self._closed = True
        for call in self._open:
            call.stop.set()

    async def _stream(self, prefix: tuple[int, ...], n: int, params: SamplingParams) -> AsyncGenerator[Chunk, None]:
        self._check(prefix, n, params)
        self.calls += 1
        call = _Call(self, prefix, n, params)
        self._open.append(call)
        try:
            async with aclosing(call.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._open.remove(call)
            for sequence in call.sequences:
                self._cache.add(sequence)

    async def _chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None
    ) -> AsyncGenerator[ChatChunk, None]:
        # Thinking is switched off as templates do it: by an empty think block that is already closed.
        turn = HEADER + (f"{OPEN}\n\n{CLOSE}\n\n" if think is False else "")
        prefix = tuple(self.tokenizer.encode("".join(map(chatml, messages)) + turn))
        splitters = [Splitter() for _ in range(n)]
        computed = cached = 0
        async with aclosing(self._stream(prefix, n, params)) as chunks:
            async for chunk in chunks:
                computed, cached = computed + chunk.prompt_computed, cached + chunk.prompt_cached
                splitter = splitters[chunk.index]
                thinking, answer = splitter.feed(chunk.text, final=chunk.finish is not None)
                splitter.tokens += len(chunk.ids) + chunk.lost
                if not (last := chunk.finish is not None) and not thinking and not answer:
                    continue
                yield ChatChunk(
                    index=chunk.index,
                    thinking=thinking,
                    answer=answer,
                    finish=chunk.finish,
                    completion_tokens=splitter.tokens if last else None,
                    thinking_tokens=splitter.thinking_bytes if last else None,
                    prompt_tokens=computed + cached if last else None,
                    prompt_cached=cached if last else None,
                )

    def _admit(self) -> None:
        if self._closed:
            raise EngineUnavailable("the scripted engine is closed", "open it again")

    def _check(self, prefix: tuple[int, ...], n: int, params: SamplingParams) -> None:
        self._admit()
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if params.until and not self._capabilities.until:
            raise Unsupported("this scripted engine does not stop at a text", "leave until out")
        if params.top or ((params.grammar or params.stops) and not self._capabilities.grammar):
            raise Unsupported("this scripted engine says what its script says", "leave grammar, stops and top out")
        if params.adapters:
            raise Unsupported("a scripted engine has no adapters", "leave adapters out")
        if not prefix:
            raise InputError("the prompt is empty", "write something into it")
        self.tokenizer.decode(prefix)
        if len(prefix) >= self._info.context:
            raise ContextOverflow(
                f"a prompt of {len(prefix)} tokens leaves no room in a context of {self._info.context}",
                "shorten it, or raise the script's context",
            )

    def _guide(self, prefix: tuple[int, ...], params: SamplingParams) -> Guide | None:
        if not params.grammar and not params.stops:
            return None
        begun = None
        if params.grammar:
            consumed = prefix[len(prefix) - params.grammar_consumed :]
            begun = self._vocabulary.begin(params.grammar, consumed)
        return Guide(self.tokenizer.piece, begun, tuple(stop.encode() for stop in params.stops))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    def _cached(self, prefix: tuple[int, ...]) -> int:
        """How many tokens of `prefix` were seen before, in ended streams and in open ones."""
        running = (sequence for call in self._open for sequence in call.sequences)
        return max(self._cache.longest(prefix), max((shared(each, prefix) for each in running), default=0))

    def _claim(self, place: int, call: int) -> bool:
        """Whether fault number `place` may affect call number `call`; counts the call if so."""
        affected, times = self._affected[place], self.faults[place].times
        if times is None or call in affected:
            return True
        if len(affected) >= times:
            return False
        affected.add(call)
        return True


async def open_scripted(uri: str | Path) -> ScriptedEngine:
    """The engine that a script file describes: `scripted:FILE`, or its path.

    The file holds {"version": 1, "replies": [{"when", "after", "say", "fault"}, ...], "otherwise",
    "model": {"name", "context", "chat_template", "specials", "eos", "header", "chat_only",
    "burst"}, "faults": [...]}; everything but the version may be left out. See `script` and `Fault`.

    Raises InputError that names the file, the place in it and the mend.
    """
    path = Path(str(uri).removeprefix("scripted:"))
    parsed = validate(read_json(path), str(path))
    model = parsed.model
    return ScriptedEngine(
        script_reply(parsed, str(path)),
        faults=parsed.faults,
        name=model.name,
        context=model.context,
        chat_template=model.chat_template,
        specials=model.specials,
        eos=model.eos,
        chat_only=model.chat_only,
        burst=model.burst,
        uri=f"scripted:{path}",
    )
