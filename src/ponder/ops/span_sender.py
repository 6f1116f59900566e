"""Sends spans off from a thread of its own: a queue of fixed length in front, batches behind.

It is what OpenTelemetry calls a span processor. The batch processor of the SDK waits up to 30 seconds at the end,
whatever it is told, and does not count what it drops.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.sdk.trace.export import SpanExporter

QUEUE_SPANS = 4_096
BATCH_SPANS = 256
DELAY_SECONDS = 1.0


class Sender:
    """Hands spans to an exporter. `sent` counts those that it took, `dropped` those that found no place in the queue,
    were not taken, or were left at the end. Who ends a span feels neither an exporter that fails nor one that hangs.
    """

    def __init__(self, exporter: SpanExporter, queue_spans: int = QUEUE_SPANS) -> None:
        self.sent = 0
        self.dropped = 0
        self._exporter = exporter
        self._spans: queue.Queue[ReadableSpan | None] = queue.Queue(queue_spans)
        self._flying = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._late = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ponder-spans", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do: spans are sent when they end."""

    def _on_ending(self, span: Span) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a span that is sampled."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        try:
            if self._closing.is_set():
                raise queue.Full
            self._spans.put_nowait(span)
        except queue.Full:
            with self._lock:
                self.dropped += 1

    def close(self, deadline: float) -> None:
        """Sends what waits, for at most `deadline` seconds, and drops what is left then. Safe to call twice."""
        if self._closing.is_set():
            return
        ends = time.monotonic() + deadline
        self._closing.set()
        with suppress(queue.Full):  # who is full does not sleep
            self._spans.put_nowait(None)
        self._thread.join(deadline)
        left = self._rest()
        with self._lock:
            self._late.set()
            self.dropped += self._flying + left
        # It may hang as its collector does: it gets what is left of the time, and is left behind.
        ending = threading.Thread(target=self._end_exporter, name="ponder-spans-end", daemon=True)
        ending.start()
        ending.join(max(0.05, ends - time.monotonic()))

    def shutdown(self) -> None:
        """As `close`, for the SDK."""
        self.close(5.0)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether nothing waits. Spans are sent within `DELAY_SECONDS` of their own accord."""
        return self._spans.empty()

    def _work(self) -> None:
        while not self._late.is_set():
            batch = self._batch()
            if batch:
                self._export(batch)
            elif self._closing.is_set() and self._spans.empty():
                return

    def _batch(self) -> list[ReadableSpan]:
        """What comes until a batch is full, or `DELAY_SECONDS` have passed, or the end has come."""
        ends = time.monotonic() + DELAY_SECONDS
        batch: list[ReadableSpan] = []
        while len(batch) < BATCH_SPANS:
            wait = 0.0 if self._closing.is_set() else ends - time.monotonic()
            try:
                span = self._spans.get(timeout=wait) if wait > 0 else self._spans.get_nowait()
            except queue.Empty:
                break
            if span is not None:
                batch.append(span)
        return batch

    def _export(self, batch: list[ReadableSpan]) -> None:
        from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value
        from opentelemetry.sdk.trace.export import SpanExportResult

        with self._lock:
            self._flying = len(batch)
        # A program that traces its HTTP clients shall not trace this one.
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:
            taken = False
        detach(token)
        with self._lock:
            self._flying = 0
            if not self._late.is_set():  # else they are counted already
                self.sent += len(batch) if taken else 0
                self.dropped += 0 if taken else len(batch)

    def _rest(self) -> int:
        """Empties the queue and gives the number of spans that it held."""
        spans = 0
        while True:
            try:
                spans += self._spans.get_nowait() is not None
            except queue.Empty:
                return spans

    def _end_exporter(self) -> None:
        with suppress(Exception):
            self._exporter.shutdown()
