from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ponder.engine.libllama import Model
from ponder.engine.scheduler import Scheduler
from ponder.engine.serving import Server, wire
from ponder.errors import PonderError

Line = dict[str, Any]


@dataclass(frozen=True)
class _Vocabulary:
    """Implements `serving.Vocabulary`."""

    model: Model
    size: int
    end_ids: tuple[int, ...]

    def tokenize(self, text: str) -> list[int]:
        return self.model.tokenize(text)

    def piece(self, token: int) -> bytes:
        return self.model.piece(token)

    def special_ids(self) -> tuple[int, ...]:
        return self.model.control_ids()


class Worker:
    """One model, one scheduler, one stream of requests."""

    def __init__(self, settings: Line, output: int) -> None:
        self._output = output
        self._lock = threading.Lock()
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
        self._vocabulary = _Vocabulary(self._model, self._model.vocabulary_size, self._model.end_ids())
        scheduler = Scheduler(
            self._model,
            cells=settings["cells"],
            sequences=settings["sequences"],
            end_ids=self._vocabulary.end_ids,
            shelf=settings["shelf"],
        )
        self._server = Server(scheduler, self._vocabulary, reply=self.send, interrupt=self._interrupt)
        self._model.abort_on(self._abort)

    def _say(self, line: str) -> None:
        if self._abort[0] == b"\0":  # that an abort stopped a computation is no news
            print(line, end="", file=sys.stderr, flush=True)

    def _interrupt(self, on: bool) -> None:
        self._abort[0] = b"\1" if on else b"\0"

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
                "end_ids": self._vocabulary.end_ids,
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
            self._server.take(json.loads(text))

    def run(self) -> None:
        """Computes for ever."""
        self._server.run()


def main() -> None:
    """Reads the settings line, loads, answers "ready", serves."""
    # Native code prints to descriptor 1; the protocol gets a descriptor of its own.
    output = os.dup(1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    try:
        worker = Worker(settings, output)
    except PonderError as error:
        os.write(output, json.dumps({"failed": wire(error)}).encode() + b"\n")
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
