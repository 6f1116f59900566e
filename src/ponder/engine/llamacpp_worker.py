"""The child process that runs llama.cpp, so that a crash of native code costs a request and no more.

It speaks JSON lines: settings and requests on standard input, replies on standard output. It ends
when its input does, at once and in the middle of anything, so it never outlives its parent.
Text travels as one character a byte (Latin-1), because a token may end inside a character.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ponder.engine.libllama import Model
from ponder.engine.sampling import Sampling
from ponder.engine.scheduler import Request, Scheduler, describe
from ponder.errors import EngineError, InputError, PonderError

Line = dict[str, Any]


class Worker:
    """One model, one scheduler, one stream of requests."""

    def __init__(self, settings: Line, output: int) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._scores: deque[Line] = deque()
        self._abort = ctypes.create_string_buffer(2)
        self._model = Model(
            Path(settings["path"]),
            cells=settings["cells"],
            sequences=settings["sequences"],
            threads=settings["threads"],
            batch=settings["batch"],
            gpu_layers=settings["gpu_layers"],
            flash_attention=settings["flash_attention"],
            cache_type=settings["cache_type"],
            log=self._say,
        )
        for adapter in settings["adapters"]:
            self._model.load_adapter(Path(adapter))
        self._end_ids = self._model.end_ids()
        self._scheduler = Scheduler(
            self._model,
            cells=settings["cells"],
            sequences=settings["sequences"],
            end_ids=self._end_ids,
            shelf=settings["shelf"],
        )
        self._model.abort_on(self._abort)

    def _say(self, line: str) -> None:
        if self._abort[0] == b"\0":  # that an abort stopped a computation is no news
            print(line, end="", file=sys.stderr, flush=True)

    def ready(self) -> Line:
        """What the parent needs to know of the model."""
        model = self._model
        texts = {}
        for which in ("bos", "eos"):
            token = model.special(which)
            texts[which] = model.piece(token).decode("utf-8", "replace") if token >= 0 else ""
        return {
            "ready": {
                "context": model.context,
                "parameters": model.parameters,
                "end_ids": self._end_ids,
                "chat_template": model.chat_template(),
                "metadata": model.metadata(),
                **texts,
            }
        }

    def send(self, line: Line) -> None:
        """Writes one reply."""
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._output, data) :]

    def read(self, lines: TextIO) -> None:
        """Reads requests until the parent closes the pipe or dies, then ends the process."""
        for text in lines:
            line = json.loads(text)
            match line["op"]:
                case "describe":
                    self.send({"id": line["id"], "result": describe(self._scheduler)})
                case "tokenize" | "pieces":  # needs the vocabulary alone: answered beside the computation
                    self._answer(line)
                case "cancel":  # in this order: `run` clears the flag before it empties the inbox
                    self._inbox.put(line)
                    self._abort[0] = b"\1"
                case _:
                    self._inbox.put(line)

    def run(self) -> None:
        """Computes for ever."""
        while True:
            if self._scheduler.idle and not self._scores:
                self._handle(self._inbox.get())
            self._abort[0] = b"\0"
            while not self._inbox.empty():
                self._handle(self._inbox.get())
            try:
                self._scheduler.step()
            except EngineError as error:
                self._fail_all(error)
            self._score_one()

    def _handle(self, line: Line) -> None:
        key = line["id"]
        match line["op"]:
            case "cancel":
                self._scores = deque(score for score in self._scores if score["id"] != key)
                self._scheduler.cancel(key)
                self.send({"id": key, "end": True})
            case "score":
                self._scores.append(line)
            case "sample":
                self._add(line)

    def _answer(self, line: Line) -> None:
        """Sends tokens, or their bytes."""
        try:
            if line["op"] == "tokenize":
                result: Any = self._model.tokenize(line["text"])
            else:
                result = [self._model.piece(token).decode("latin-1") for token in line["ids"]]
            self.send({"id": line["id"], "result": result})
        except PonderError as error:
            self.send({"id": line["id"], "error": _wire(error)})

    def _score_one(self) -> None:
        """Scores what has waited longest. It goes on waiting where there is no room yet, or it was aborted."""
        if not self._scores:
            return
        line = self._scores[0]
        try:
            self._check(line["ids"])
            scores = self._scheduler.score(line["ids"], line["start"], tuple(line["adapters"]))
            if scores is None:
                return
            self.send({"id": line["id"], "result": [scores.computed, scores]})
        except PonderError as error:
            self.send({"id": line["id"], "error": _wire(error)})
        self._scores.popleft()

    def _check(self, ids: Sequence[int]) -> None:
        if unknown := [token for token in ids if not 0 <= token < self._model.vocabulary_size]:
            raise InputError(f"{unknown[0]} is no token of this model, which has {self._model.vocabulary_size}")

    def _add(self, line: Line) -> None:
        key = line["id"]
        remaining = set(range(line["n"]))

        def emit(tokens: list[tuple[int, int, float]], finishes: list[tuple[int, str]]) -> None:
            rows = [[i, t, round(p, 6), self._piece(t)] for i, t, p in tokens]
            remaining.difference_update(index for index, _ in finishes)
            self.send({"id": key, "t": rows, "f": finishes} | ({} if remaining else {"end": True}))

        def fail(error: PonderError) -> None:
            self.send({"id": key, "error": _wire(error)})

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
            prompt=lambda computed, cached: self.send({"id": key, "prompt": [computed, cached]}),
        )
        try:
            self._check(request.prefix)
            self._scheduler.add(request)
        except PonderError as error:
            fail(error)

    def _pauses(self, until: str) -> Callable[[int], bool]:
        wanted = until.encode().decode("latin-1")
        return lambda token: bool(wanted) and wanted in self._piece(token)

    def _piece(self, token: int) -> str:
        return "" if token in self._end_ids else self._model.piece(token).decode("latin-1")

    def _fail_all(self, error: EngineError) -> None:
        """A batch that cannot be computed ends every request: none is left waiting for ever."""
        for request in self._scheduler.drop_all():
            request.fail(error)


def _wire(error: PonderError) -> list[str]:
    return [type(error).__name__, error.problem, error.mend]


def main() -> None:
    """Reads the settings line, loads, answers "ready", serves."""
    # Native code prints to descriptor 1; the protocol gets a descriptor of its own.
    output = os.dup(1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    try:
        worker = Worker(settings, output)
    except PonderError as error:
        os.write(output, json.dumps({"failed": _wire(error)}).encode() + b"\n")
        return
    worker.send(worker.ready())
    threading.Thread(target=_to_the_end, args=(worker.read, sys.stdin), daemon=True).start()
    _to_the_end(worker.run)


def _to_the_end(work: Callable[..., None], *arguments: Any) -> None:
    """Ends the process with `work`, whatever the other thread is doing: half a worker would keep callers waiting."""
    try:
        work(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
