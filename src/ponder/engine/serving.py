"""The answering side of an engine: one thread that computes, for ever, what requests ask for.

Requests come as lines (see `streaming`) through `take`, from any thread; replies leave through `reply`. Whatever
needs the vocabulary alone is answered at once, beside the computation.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ponder.engine import constraint
from ponder.engine.guide import Guide
from ponder.engine.lines import Request, Row
from ponder.engine.sampling import Sampling
from ponder.engine.scheduler import Scheduler, describe
from ponder.errors import EngineError, InputError, PonderError

if TYPE_CHECKING:
    from ponder.engine.streaming import Line


class Vocabulary(Protocol):
    """The tokens of a model. `piece` gives the bytes of one, `special_ids` included, which are no text."""

    @property
    def size(self) -> int: ...

    @property
    def end_ids(self) -> tuple[int, ...]: ...

    def tokenize(self, text: str) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def special_ids(self) -> tuple[int, ...]: ...


class Server:
    """One scheduler and one stream of requests.

    reply: takes the lines that answer. interrupt(True) makes the backend stop soon, as `ABORTED`, until
    interrupt(False). before: called before a request is taken in, and before each step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        vocabulary: Vocabulary,
        *,
        reply: Callable[[Line], None],
        interrupt: Callable[[bool], None] = lambda on: None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler, self._vocabulary = scheduler, vocabulary
        self._reply, self._interrupt, self._before = reply, interrupt, before
        self._inbox: queue.SimpleQueue[Line | Callable[[], None] | None] = queue.SimpleQueue()
        self._scores: deque[Line] = deque()
        self._constraints: constraint.Vocabulary | None = None
        self._waiting: list[Line] = []  # for that one, which a thread makes
        self._preparing = False

    # ------------------------------------------------------------ from any thread

    def take(self, line: Line) -> None:
        """Takes a request, or its cancel."""
        match line["op"]:
            case "describe":
                self._reply({"id": line["id"], "result": describe(self._scheduler)})
            case "tokenize" | "pieces":
                self._answer(line)
            case "cancel":  # in this order: `run` clears the interrupt before it empties the inbox
                self._inbox.put(line)
                self._interrupt(True)
            case _:
                self._inbox.put(line)

    def call(self, work: Callable[[], None]) -> None:
        """Has `work` done by the thread that computes, between two steps."""
        self._inbox.put(work)

    def stop(self) -> None:
        """Ends `run`, soon."""
        self._inbox.put(None)
        self._interrupt(True)

    # ------------------------------------------------------------ the thread that computes

    def run(self) -> None:
        """Computes until it is told to stop."""
        going = True
        while going:
            if self._scheduler.idle and not self._scores:
                going = self._handle(self._inbox.get())
            self._interrupt(False)
            while going and not self._inbox.empty():
                going = self._handle(self._inbox.get())
            if not going or (self._scheduler.idle and not self._scores):
                continue
            try:
                self._before()
                self._scheduler.step()
            except EngineError as error:
                self.fail_all(error)
            self._score_one()

    def fail_all(self, error: EngineError) -> None:
        """Ends every request that samples, and forgets all that was computed: nobody is left waiting for ever."""
        for request in self._scheduler.drop_all():
            request.fail(error)

    def _handle(self, line: Line | Callable[[], None] | None) -> bool:
        if line is None:
            return False
        if callable(line):
            line()
            return True
        key = line["id"]
        match line["op"]:
            case "cancel":
                self._scores = deque(score for score in self._scores if score["id"] != key)
                self._waiting = [waiting for waiting in self._waiting if waiting["id"] != key]
                self._scheduler.cancel(key)
                self._reply({"id": key, "end": True})
            case "score" | "embed":
                self._before()
                self._scores.append(line)
            case "sample":
                self._before()
                if line.get("grammar") and self._constraints is None:
                    self._prepare(line)
                else:
                    self._add(line)
        return True

    def _prepare(self, line: Line) -> None:
        """Adds a request once the vocabulary of grammars is there: it takes up to a second, in which others go on."""
        self._waiting.append(line)
        if not self._preparing:
            self._preparing = True
            threading.Thread(target=self._make, daemon=True).start()

    def _make(self) -> None:
        try:
            made = constraint.Vocabulary(self._vocabulary)
        except Exception as error:
            self.call(partial(self._prepared, None, str(error) or type(error).__name__))
        else:
            self.call(partial(self._prepared, made))

    def _prepared(self, made: constraint.Vocabulary | None, problem: str = "") -> None:
        self._constraints, self._preparing = made, False
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            if made is None:
                self._reply({"id": line["id"], "error": wire(EngineError(f"no grammar can be followed: {problem}"))})
            else:
                self._add(line)

    def _answer(self, line: Line) -> None:
        """Sends tokens, or their bytes."""
        try:
            if line["op"] == "tokenize":
                result: Any = self._vocabulary.tokenize(line["text"])
            else:
                self._check(line["ids"])
                result = [self._vocabulary.piece(token).decode("latin-1") for token in line["ids"]]
            self._reply({"id": line["id"], "result": result})
        except PonderError as error:
            self._reply({"id": line["id"], "error": wire(error)})

    def _score_one(self) -> None:
        """Scores what has waited longest, or makes its vector. It goes on waiting where there is no room yet, or it was
        aborted."""
        if not self._scores:
            return
        line = self._scores[0]
        try:
            self._check(line["ids"])
            result = self._measured(line)
            if result is None:
                return
            self._reply({"id": line["id"], "result": result})
        except PonderError as error:
            self._reply({"id": line["id"], "error": wire(error)})
        self._scores.popleft()

    def _measured(self, line: Line) -> list[Any] | None:
        """[tokens computed, scores, likeliest tokens], or a vector; None where it has to wait."""
        ids, adapters = line["ids"], tuple(line["adapters"])
        if line["op"] == "embed":
            return self._scheduler.embed(ids, adapters)
        scores = self._scheduler.score(ids, line["start"], adapters, line.get("top", 0))
        return None if scores is None else [scores.computed, scores, scores.top]

    def _check(self, ids: Sequence[int]) -> None:
        if unknown := [token for token in ids if not 0 <= token < self._vocabulary.size]:
            raise InputError(f"{unknown[0]} is no token of this model, which has {self._vocabulary.size}")

    def _add(self, line: Line) -> None:
        key = line["id"]
        remaining = set(range(line["n"]))

        def emit(tokens: list[Row], finishes: list[tuple[int, str]]) -> None:
            rows = [(i, token, logprob, self._piece(token), *top) for i, token, logprob, *top in tokens]
            remaining.difference_update(index for index, _ in finishes)
            self._reply({"id": key, "t": rows, "f": finishes} | ({} if remaining else {"end": True}))

        def fail(error: PonderError) -> None:
            self._reply({"id": key, "error": wire(error)})

        request = Request(
            key=key,
            prefix=line["prefix"],
            n=line["n"],
            max_tokens=line["max_tokens"],
            sampling=Sampling(**line["sampling"]),
            adapters=tuple(line["adapters"]),
            pauses=self._pauses(line["until"]),
            emit=emit,
            fail=fail,
            prompt=lambda computed, cached: self._reply({"id": key, "prompt": (computed, cached)}),
            top=line.get("top", 0),
        )
        try:
            self._check(request.prefix)
            request.guide = self._guide(line)
            self._scheduler.add(request)
        except PonderError as error:
            fail(error)

    def _pauses(self, until: str) -> Callable[[int], bool]:
        wanted = until.encode().decode("latin-1")
        return lambda token: bool(wanted) and wanted in self._piece(token)

    def _guide(self, line: Line) -> Guide | None:
        """What samples are followed with, where anything is to be. Raises InputError for a grammar that is none."""
        grammar, stops, consumed = line.get("grammar", ""), line.get("stops", ()), line.get("consumed", 0)
        if not grammar and not stops:
            return None
        if consumed > len(line["prefix"]):
            raise InputError(f"a prefix of {len(line['prefix'])} tokens does not end in {consumed} of a grammar")
        begun = None
        if grammar:
            assert self._constraints is not None, "a request with a grammar waits for it"
            begun = self._constraints.begin(grammar, line["prefix"][len(line["prefix"]) - consumed :])
        return Guide(self._vocabulary.piece, begun, tuple(stop.encode("utf-8", "surrogatepass") for stop in stops))

    def _piece(self, token: int) -> str:
        return "" if token in self._vocabulary.end_ids else self._vocabulary.piece(token).decode("latin-1")


def wire(error: PonderError) -> list[str]:
    """An error as a line holds it."""
    return [type(error).__name__, error.problem, error.mend]
