"""Continuous batching over one key-value cache: many samples of many prompts, forked without copying.

Every step computes one batch: the next token of each running line, and a piece of prompt for those
still waiting to start. A prompt is computed once, in a sequence of its own, which its n samples then
share (`llama_memory_seq_cp` copies no memory). Samples of a request that have said the same so far are one
line, computed once, from whose probabilities each draws by its own random numbers; where they draw
different tokens, the line parts. Finished sequences stay as long as there is room, so
that a continuation, or a fork at any token, finds all but its last token already computed; where
they take more than a few cells, they wait on a `shelf.Shelf` instead. A request may have a `Guide`, which says what
its samples may say next and where they end: each line has its own, and the others pay nothing for it.

Room is promised before a sample starts (its prompt plus `max_tokens`), so running samples never run
out of cache; idle sequences give way in the order of their last use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ponder.engine import texts
from ponder.engine.guide import Guide
from ponder.engine.libllama import ABORTED
from ponder.engine.lines import Drawn, Line, Logits, Request, Rows, Sample, Slot, Way
from ponder.engine.sampling import likeliest, picks
from ponder.engine.shelf import Shelf, State, cells, common, longer
from ponder.errors import ContextOverflow, EngineError, InputError
from ponder.protocols import LogProbs
from ponder.types import Finish

PREFILL_BESIDE_DECODE = 128
"""Prompt tokens a step while samples are running: bounds the pause that a new prompt gives them."""

IDLE_SHARE = 1 / 8
"""Cells that idle sequences may take while others run, as a share of theirs: attention runs over all of them."""


class Backend(Protocol):
    """What the scheduler needs of `libllama.Model`."""

    batch: int
    context: int

    def decode(self, tokens: Rows) -> int: ...
    def logits(self, row: int) -> Logits: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def save(self, sequence: int) -> State: ...
    def restore(self, sequence: int, state: State) -> bool: ...
    def use_adapters(self, scales: Sequence[float]) -> None: ...


class Scheduler:
    """Runs requests on a backend whose cache holds `cells` tokens in at most `sequences` sequences.

    `shelf` is the memory for sequences put away, in bytes. `tidy`: idle sequences are put away before there is no
    room, since attention runs over them too; not so on a backend that computes those alone which go on.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        cells: int,
        sequences: int,
        end_ids: Sequence[int],
        shelf: int = 0,
        tidy: bool = True,
    ) -> None:
        if sequences < 2:
            raise ValueError(f"sequences must be at least 2, one for a prompt and one for its sample, not {sequences}")
        self.backend = backend
        self._cells = cells
        self._slots = [Slot(number) for number in range(sequences)]
        self._end_ids = frozenset(end_ids)
        self._end_array = np.array(sorted(end_ids), dtype=np.int64)
        self._requests: deque[Request] = deque()
        self._lines: list[Line] = []
        self.computed = 0
        self._shelf = Shelf(shelf)
        self._tidies = tidy
        self._active_adapters: tuple[float, ...] | None = None
        self._clock = 0

    # ------------------------------------------------------------ what callers do

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._requests

    def add(self, request: Request) -> None:
        """Queues a request. Raises ContextOverflow where it could never fit."""
        room = min(self._cells, self.backend.context)
        if len(request.prefix) + request.max_tokens > room:
            raise ContextOverflow(
                f"a prompt of {len(request.prefix)} tokens and {request.max_tokens} more do not fit into {room}",
                "shorten the prompt or lower the budget",
            )
        if not request.prefix:
            raise ContextOverflow("an empty prompt cannot be continued", "give at least one token")
        self._requests.append(request)

    def cancel(self, key: int) -> None:
        """Ends a request at once; its samples finish as "cancelled"."""
        for request in [r for r in self._requests if r.key == key]:
            request.cancelled = True
            mine = [line for line in self._lines if line.request is request]
            request.emit([], [(sample.index, "cancelled") for line in mine for sample in line.samples])
            for line in mine:
                self._end(line)
            request.running = 0
            self._retire(request)

    def drop_all(self) -> list[Request]:
        """Forgets every request, running or waiting, and the whole cache; returns them."""
        dropped = list(self._requests)
        self._requests.clear()
        self._lines.clear()
        for slot in self._slots:
            self.forget(slot)
            slot.busy = False
        self._shelf.clear()
        for request in dropped:
            request.holder = None
        return dropped

    def step(self) -> None:
        """One batch. Raises EngineError where llama.cpp cannot compute it."""
        if self._admit() and self._tidies:
            self._tidy()
        adapters = self._turn()
        if adapters is None:
            return
        decoding = [line for line in self._lines if line.request.adapters == adapters][: self.backend.batch]
        rows = [(line.next, len(line.slot.tokens), line.slot.number, True) for line in decoding]
        prefilling = self._prefill_rows(adapters, rows)
        if not rows:
            return
        self._switch(adapters)
        holders = [p[0].holder for p in prefilling if p[0].holder]
        if not self.compute(rows, [line.slot for line in decoding] + holders):
            return
        for line in decoding:
            line.slot.tokens.append(line.next)
        self._finish_prefill(prefilling)
        self._sample_all(decoding)

    def score(self, ids: Sequence[int], start: int, adapters: tuple[float, ...], top: int = 0) -> LogProbs | None:
        """See `texts.score`."""
        return texts.score(self, ids, start, adapters, top)

    def embed(self, ids: Sequence[int], adapters: tuple[float, ...]) -> list[float] | None:
        """See `texts.embed`."""
        return texts.embed(self, ids, adapters)

    @contextmanager
    def lent(self, ids: Sequence[int], adapters: tuple[float, ...], limit: int) -> Iterator[tuple[Slot, int] | None]:
        """A sequence for a text outside of all requests, and how many of its tokens, at most `limit`, are computed.

        None where there is no room before the next step. Raises ContextOverflow for what would never fit.
        """
        room = min(self._cells, self.backend.context)
        if len(ids) > room:
            raise ContextOverflow(f"a text of {len(ids)} tokens does not fit into {room}", "take a shorter text")
        if len(ids) > self._cells - self._promised() or self._free() < 1:
            yield None
            return
        slot, cached = self._open(ids, adapters, limit)
        try:
            self._switch(adapters)
            yield slot, cached
        finally:
            self._release(slot)

    # ------------------------------------------------------------ admission

    def _promised(self) -> int:
        """Cache cells that requests under way may still come to use. One sample of each is always promised."""
        under_way = [r for r in self._requests if r.holder or r.running]
        return sum(len(r.prefix) + max(1, r.running) * r.max_tokens for r in under_way)

    def _free(self) -> int:
        """Slots that nobody uses, and that no line may need when it parts."""
        parting = sum(len(line.samples) - 1 for line in self._lines)
        return sum(not slot.busy for slot in self._slots) - parting

    def _admit(self) -> int:
        """Starts what has room; returns how many requests came in."""
        for request in list(self._requests):
            while request.logits is not None and request.started < request.n:
                another = request.max_tokens if request.running else 0
                if self._promised() + another > self._cells or self._free() < 1:
                    break
                self._start(request)
        admitted = 0
        for request in self._requests:
            if request.holder is None and request.started == 0:
                # Two slots: one for the prompt, one for its first sample.
                if self._free() < 2 or self._promised() + len(request.prefix) + request.max_tokens > self._cells:
                    break
                request.holder, cached = self._open(request.prefix, request.adapters, limit=len(request.prefix) - 1)
                request.prompt(len(request.prefix) - cached, cached)
                admitted += 1
        return admitted

    def _start(self, request: Request) -> None:
        assert request.holder is not None
        assert request.logits is not None
        sample = Sample(request.started, request.sampling.random(request.started))
        request.started += 1
        request.running += 1
        drawn = Drawn()
        guide = request.guide if request.guide is None or request.started == request.n else request.guide.fork()
        ways = self._draw(request, [sample], request.logits, drawn, guide)
        for way in ways:
            self._join(request, sample, way)
        if request.started == request.n:
            self._drop_holder(request)
        self._tell(request, drawn)

    def _tell(self, request: Request, drawn: Drawn) -> None:
        """Hands out what was drawn; a request that cannot go on ends, and no other."""
        if drawn.error is None:
            request.emit(drawn.tokens, drawn.finishes)
        else:
            for line in [line for line in self._lines if line.request is request]:
                self._end(line)
            request.cancelled, request.running = True, 0
            request.fail(drawn.error)
        self._retire(request)

    def _join(self, request: Request, sample: Sample, way: Way) -> None:
        """A sample that has said its first token goes with others that said the same, or begins a line of its own."""
        length = len(request.prefix)
        for line in self._lines:
            if line.request is request and line.next == way.token and len(line.slot.tokens) == length:
                line.samples.append(sample)
                return
        assert request.holder is not None
        if request.started == request.n:  # nobody else begins there
            slot, request.holder = request.holder, None
        else:
            slot = self._claim(keep=request.holder)
            self.backend.copy(request.holder.number, slot.number, length)
            slot.tokens, slot.adapters = list(request.prefix), request.adapters
        self._lines.append(Line(request, slot, way.token, [sample], way.guide))

    # ------------------------------------------------------------ one step

    def _turn(self) -> tuple[float, ...] | None:
        """The adapters whose requests compute next: the others' turn comes after."""
        waiting = [line.request.adapters for line in self._lines]
        waiting += [r.adapters for r in self._requests if r.holder and r.logits is None]
        if not waiting:
            return None
        # Round and round in the order of the scales: every set comes before any comes twice.
        later = [a for a in waiting if self._active_adapters is not None and a > self._active_adapters]
        return min(later or waiting)

    def _switch(self, adapters: tuple[float, ...]) -> None:
        if adapters != self._active_adapters:
            self.backend.use_adapters(adapters)
            self._active_adapters = adapters

    def _prefill_rows(
        self, adapters: tuple[float, ...], rows: list[tuple[int, int, int, bool]]
    ) -> list[tuple[Request, int, int]]:
        """Appends prompt rows; returns (request, tokens added, row of its last prompt token or -1)."""
        room = self.backend.batch - len(rows)
        room = min(room, PREFILL_BESIDE_DECODE) if rows else room
        added: list[tuple[Request, int, int]] = []
        for request in self._requests:
            holder = request.holder
            if holder is None or request.logits is not None or request.adapters != adapters or room <= 0:
                continue
            begin = len(holder.tokens)
            end = min(begin + room, len(request.prefix))
            last = len(request.prefix) - 1
            rows += [(request.prefix[at], at, holder.number, at == last) for at in range(begin, end)]
            added.append((request, end - begin, len(rows) - 1 if end > last else -1))
            room -= end - begin
        return added

    def compute(self, rows: Rows, slots: Sequence[Slot], decode: Callable[[Rows], int] | None = None) -> bool:
        """Decodes `rows`; False where it was aborted. Idle sequences give way if the cache is full."""
        while True:
            code = (decode or self.backend.decode)(rows)
            if code == 0:
                self.computed += len(rows)
                return True
            for slot in slots:  # what was computed of this batch is forgotten, so that it can run again
                self.backend.truncate(slot.number, len(slot.tokens))
            if code == ABORTED:
                return False
            victim = self._oldest_idle()
            if code != 1 or victim is None:
                raise EngineError(f"the engine could not compute a batch of {len(rows)} tokens (code {code})")
            self.forget(victim)

    def _finish_prefill(self, prefilling: list[tuple[Request, int, int]]) -> None:
        for request, count, row in prefilling:
            assert request.holder is not None
            begin = len(request.holder.tokens)
            request.holder.tokens += request.prefix[begin : begin + count]
            if row >= 0:
                request.logits = self.backend.logits(row).copy()

    def _sample_all(self, decoding: list[Line]) -> None:
        said: dict[int, tuple[Request, Drawn]] = {}
        ways = []
        for row, line in enumerate(decoding):
            _, drawn = said.setdefault(line.request.key, (line.request, Drawn()))
            ways.append(self._draw(line.request, line.samples, self.backend.logits(row), drawn, line.guide))
        for line, way in zip(decoding, ways, strict=True):
            self._part(line, way)
        for request, drawn in said.values():
            self._tell(request, drawn)

    def _draw(
        self, request: Request, samples: Sequence[Sample], logits: Logits, drawn: Drawn, guide: Guide | None
    ) -> list[Way]:
        """The next token of each sample; those that go on, by their tokens. `guide` is used up."""
        banned = self._end_array if request.sampling.ignore_eos else None
        try:
            if guide is not None and not samples[0].count and guide.complete:  # by what it was given to begin with
                drawn.finishes += [(sample.index, "stop") for sample in samples]
                request.running -= len(samples)
                return []
            allowed = None if guide is None else guide.allowed()
            found = picks(logits, request.sampling, [sample.random for sample in samples], banned, allowed)
            guided = self._guided(guide, dict.fromkeys(token for token, _ in found))
        except InputError as error:
            drawn.error = error
            return []
        top = [likeliest(logits, request.top)] if request.top else []
        ways: dict[int, Way] = {}
        for sample, (token, logprob) in zip(samples, found, strict=True):
            sample.count += 1
            drawn.tokens.append((sample.index, token, logprob, *top))
            after, finish = guided.get(token, (None, None))
            cut = sample.count == request.max_tokens or request.pauses(token)
            finish = "stop" if token in self._end_ids else finish or ("length" if cut else None)
            if finish is None:
                ways.setdefault(token, Way(token, after)).samples.append(sample)
            else:
                drawn.finishes.append((sample.index, finish))
                request.running -= 1
        return list(ways.values())

    def _guided(self, guide: Guide | None, tokens: Iterable[int]) -> dict[int, tuple[Guide, Finish | None]]:
        """The guide after each of `tokens`, and how a sample ends with it. The last one goes on with `guide` itself."""
        if guide is None:
            return {}
        going = [token for token in tokens if token not in self._end_ids]
        guides = [guide.fork() for _ in going[1:]] + [guide]
        return {token: (each, each.take(token)) for token, each in zip(going, guides, strict=False)}

    def _part(self, line: Line, ways: list[Way]) -> None:
        """The first way goes on in the line's own sequence, each other one in a copy of it."""
        if not ways:
            self._end(line)
            return
        first, *others = ways
        line.next, line.samples, line.guide = first.token, first.samples, first.guide
        parted = []
        for way in others:
            slot = self._claim(keep=line.slot)
            self.backend.copy(line.slot.number, slot.number, len(line.slot.tokens))
            slot.tokens, slot.adapters = list(line.slot.tokens), line.slot.adapters
            parted.append(Line(line.request, slot, way.token, way.samples, way.guide))
        place = self._lines.index(line) + 1
        self._lines[place:place] = parted

    # ------------------------------------------------------------ slots

    def _end(self, line: Line) -> None:
        self._lines.remove(line)
        self._release(line.slot)

    def _retire(self, request: Request) -> None:
        if request.over and request in self._requests:
            self._drop_holder(request)
            request.logits = None
            self._requests.remove(request)

    def _drop_holder(self, request: Request) -> None:
        if request.holder is not None:
            self._release(request.holder)
            request.holder = None

    def _release(self, slot: Slot) -> None:
        self._clock += 1
        slot.busy, slot.used = False, self._clock

    def _oldest_idle(self, keep: Slot | None = None) -> Slot | None:
        idle = [s for s in self._slots if not s.busy and s.tokens and s is not keep]
        return min(idle, key=lambda s: s.used, default=None)

    def forget(self, slot: Slot) -> None:
        """Empties a sequence."""
        self.backend.truncate(slot.number, 0)
        slot.tokens = []

    def _claim(self, keep: Slot | None = None) -> Slot:
        """An empty slot, by putting the longest unused one away if there is none."""
        slot = next((s for s in self._slots if not s.busy and not s.tokens), None) or self._oldest_idle(keep)
        assert slot is not None
        self._put_away(slot)
        slot.busy = True
        return slot

    def _put_away(self, slot: Slot) -> None:
        """Empties a slot, and shelves what is not elsewhere too."""
        last = len(slot.tokens) - 1
        others = [s for s in self._slots if s is not slot and s.adapters == slot.adapters]
        elsewhere = last < 0 or any(longer(other.tokens, slot.tokens, last) for other in others)
        if not elsewhere and self._shelf.find(slot.tokens, slot.adapters)[1] <= last:
            state = self.backend.save(slot.number)
            if state:  # there was memory for it
                self._shelf.put(slot.tokens, slot.adapters, state)
        self.forget(slot)

    def _tidy(self) -> None:
        """Puts idle sequences away, unless they take few cells beyond those that running ones share with them."""
        running = [(s.adapters, s.tokens) for s in self._slots if s.busy]
        running += [(r.adapters, r.prefix) for r in self._requests if r.holder]
        idle = sorted((s for s in self._slots if not s.busy and s.tokens), key=lambda s: s.used)
        if cells([*running, *((s.adapters, s.tokens) for s in idle)]) > (1 + IDLE_SHARE) * cells(running):
            for slot in idle:
                self._put_away(slot)

    def _open(self, ids: Sequence[int], adapters: tuple[float, ...], limit: int) -> tuple[Slot, int]:
        """A busy slot that holds the longest computed prefix of `ids`, at most `limit` long, and its length."""
        best, length = None, 0
        for slot in self._slots:
            if length < limit and slot.adapters == adapters and longer(slot.tokens, ids, length):
                best, length = slot, min(common(slot.tokens, ids), limit)
        kept, shared = self._shelf.find(ids[:limit], adapters)
        if kept is not None and shared > length:
            state = self._shelf.use(kept)
            target = self._claim()
            length = shared if self.backend.restore(target.number, state) else 0
            self.backend.truncate(target.number, length)
        elif best is not None and not best.busy and (length == len(best.tokens) or self._only_idle(best)):
            self.backend.truncate(best.number, length)
            target = best
            target.busy = True
        else:
            target = self._claim(keep=best)
            if best is not None and length:
                self._clock += 1
                best.used = self._clock
                self.backend.copy(best.number, target.number, length)
        target.tokens, target.adapters = list(ids[:length]), adapters
        return target, length

    def _only_idle(self, slot: Slot) -> bool:
        return all(other.busy or other is slot for other in self._slots)


def describe(scheduler: Scheduler) -> dict[str, Any]:
    """Counts for tests and monitoring: samples that run, requests, bytes put away, tokens in the cache and computed."""
    return {
        "running": sum(len(line.samples) for line in scheduler._lines),
        "requests": len(scheduler._requests),
        "shelved": scheduler._shelf.size,
        "cached": sum(len(s.tokens) for s in scheduler._slots),
        "computed": scheduler.computed,
    }
