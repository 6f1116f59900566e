"""Metrics for Prometheus. Where vLLM has a metric for a thing, ours has its name behind the prefix: boards made for
`vllm:time_to_first_token_seconds` show `ponder:time_to_first_token_seconds` when the prefix is exchanged.

    metrics = Metrics(["ponder-135m"])
    metrics.queue(running, waiting)         # functions, asked at each scrape
    metrics.upstreams(states)               # so is this
    metrics.finished(finished)
    metrics.exposition()                    # the body for /metrics; its type is CONTENT_TYPE

Labels are bounded: no text that a client chose becomes one unless it was made known, and each label keeps the first
`MOST_LABELS` values that it meets; those after them are counted together as "other".
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ponder.ops.finished import Finished

Kind = TypeVar("Kind", Counter, Histogram)
Upstream = Literal["closed", "half_open", "open"]
"""The states of a circuit breaker before an upstream: asked, tried again, and left alone."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_LABELS = 200
OTHER = "other"
UNKNOWN = "unknown"

REASONS = ("stop", "length", "tool_calls", "refusal", "cancelled")
OPERATIONS = ("chat", "text_completion", "embeddings")

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
WHOLE_REQUEST = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240, 480, 960)
QUEUE = (0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
LEDGER = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)


class Metrics:
    """All metrics of one server, in a registry of their own. Safe to use from several threads.

    models: the names that may become labels, more of them by `know`. prefix: stands before every name. keys: whether
    the ids of keys become labels too, in metrics of their own.
    """

    def __init__(self, models: Iterable[str] = (), *, prefix: str = "ponder:", keys: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._prefix = prefix
        self._known: set[str] = set(models)
        self._label = _Labels()
        self._states: Callable[[], Mapping[str, Upstream]] = dict
        self._labelled: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self._watched = _Watched()
        self._registry.register(self._watched)
        self._running = self._gauge("num_requests_running", "Requests that are being answered.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait to be admitted.")
        self._first = self._histogram("time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN)
        self._between = self._histogram(
            "inter_token_latency_seconds", "Between two tokens: the mean of each request.", BETWEEN_TOKENS
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "Of a whole request.", WHOLE_REQUEST)
        self._queue = self._histogram("request_queue_time_seconds", "Until a request was admitted.", QUEUE)
        self._success = self._counter(
            "request_success", "Requests that were answered, by how their choices ended.", "model_name finished_reason"
        )
        self._requests = self._counter("requests", "Requests by HTTP status.", "operation dialect status")
        self._left = self._counter("client_disconnects", "Requests whose client left before the end.", "model_name")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts, cached ones too.", "model_name")
        self._cached = self._counter("prompt_tokens_cached", "Tokens of prompts that a cache held.", "model_name")
        self._generated = self._counter("generation_tokens", "Tokens generated, reasoning too.", "model_name")
        self._reasoning = self._counter("reasoning_tokens", "Tokens generated that were reasoning.", "model_name")
        self._dollars = self._counter("dollars", "What requests cost, where a price is known.", "model_name backend")
        self._unpriced = self._counter("unpriced_requests", "Requests without a known price.", "model_name backend")
        self._refused = self._counter("refusals", "Requests that the model refused to answer.", "model_name")
        self._limits = self._counter("limits_hit", "Requests turned away by a limit, by what it bounds.", "limit")
        self._upstream = self._gauge("upstream_state", "1 for the state that an upstream is in.", "backend state")
        self._ledger = self._histogram("ledger_seconds", "Of an operation of the ledger.", LEDGER, "operation")
        self._drift = self._gauge("drift_alarm", "1 where an alarm of drift stands.", "model_name prompt signal")
        self._keys: tuple[Counter, Counter, Counter] | None = None
        if keys:
            self._keys = (
                self._counter("key_requests", "Requests by key.", "key project"),
                self._counter("key_tokens", "Tokens of prompts and answers by key.", "key project"),
                self._counter("key_dollars", "Known costs by key.", "key project"),
            )

    # ------------------------------------------------------------ what happens

    def know(self, models: Iterable[str]) -> None:
        """Lets these names become labels as well."""
        self._known |= set(models)

    def queue(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Who knows how many requests are at work, and how many wait: asked at each scrape."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def upstreams(self, states: Callable[[], Mapping[str, Upstream]]) -> None:
        """Who knows the state of each upstream: asked at each scrape."""
        self._states = states

    @contextmanager
    def ledger(self, operation: Literal["reserve", "settle", "void"]) -> Iterator[None]:
        """Times an operation of the ledger, one that raises too."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._of(self._ledger, operation).observe(time.perf_counter() - began)

    def limit_hit(self, limit: str) -> None:
        """A request was turned away. limit: what is bounded, such as "requests/min"."""
        self._limits.labels(self._label("limit", limit)).inc()

    def drift(self, alarms: Mapping[tuple[str, str, str], bool]) -> None:
        """The alarms that stand, by model, prompt and signal, in the place of those before."""
        self._drift.clear()
        for (model, prompt, signal), on in alarms.items():
            self._drift.labels(self._model(model), self._label("prompt", prompt), signal).set(on)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A counter that is kept elsewhere and asked for at each scrape: `spans_dropped`, `log_lines_lost`."""
        self._watched.add(self._prefix + name, text, value)

    def finished(self, finished: Finished) -> None:
        """Counts a request that has ended. Never raises for what an upstream reported: what is no number counts 0."""
        model = self._model(finished.model, finished.answered)
        backend = self._label("backend", finished.backend)
        dialect, status = self._label("dialect", finished.dialect), self._label("status", _status(finished))
        self._of(self._requests, _among(finished.operation, OPERATIONS), dialect, status).inc()
        self._of(self._whole, model).observe(_amount(finished.seconds))
        self._of(self._queue, model).observe(_amount(finished.queued))
        if finished.first_token is not None:
            self._of(self._first, model).observe(_amount(finished.first_token))
        if finished.between_tokens is not None:
            self._of(self._between, model).observe(_amount(finished.between_tokens))
        if finished.succeeded:
            self._of(self._success, model, _reason(finished.finish_reasons)).inc()
        if finished.disconnected:
            self._of(self._left, model).inc()
        if finished.refused:
            self._of(self._refused, model).inc()
        self._spent(finished, model, backend)

    def exposition(self) -> bytes:
        """All metrics as text, for a scrape."""
        for backend, state in self._states().items():
            for each in get_args(Upstream):
                self._upstream.labels(self._label("backend", backend), each).set(each == state)
        return generate_latest(self._registry)

    # ------------------------------------------------------------ within

    def _spent(self, finished: Finished, model: str, backend: str) -> None:
        self._of(self._prompt, model).inc(_amount(finished.input_tokens))
        self._of(self._cached, model).inc(_amount(finished.cached_tokens))
        self._of(self._generated, model).inc(_amount(finished.output_tokens))
        self._of(self._reasoning, model).inc(_amount(finished.reasoning_tokens))
        dollars = _amount(finished.micro_dollars or 0) / 1_000_000
        if finished.micro_dollars is not None:
            self._of(self._dollars, model, backend).inc(dollars)
        elif finished.input_tokens or finished.output_tokens:
            self._of(self._unpriced, model, backend).inc()
        if self._keys is not None:
            requests, tokens, cost = self._keys
            labels = self._label("key", finished.key_id), self._label("project", finished.project)
            self._of(requests, *labels).inc()
            self._of(tokens, *labels).inc(_amount(finished.input_tokens) + _amount(finished.output_tokens))
            self._of(cost, *labels).inc(dollars)

    def _of(self, metric: Kind, *labels: str) -> Kind:
        """The metric with these labels. Kept, for to look one up takes longer there than to count."""
        found = self._labelled.get((metric, labels))
        if found is None:
            found = self._labelled[metric, labels] = metric.labels(*labels)
        return cast(Kind, found)

    def _model(self, *names: str) -> str:
        """The first name that is known. What a client made up is counted, but never named."""
        known = next((name for name in names if name in self._known), None)
        return UNKNOWN if known is None else self._label("model", known)

    def _counter(self, name: str, text: str, labels: str) -> Counter:
        return Counter(self._prefix + name, text, labels.split(), registry=self._registry)

    def _gauge(self, name: str, text: str, labels: str = "") -> Gauge:
        return Gauge(self._prefix + name, text, labels.split(), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: str = "model_name") -> Histogram:
        text = f"Seconds. {text}"
        return Histogram(self._prefix + name, text, labels.split(), registry=self._registry, buckets=buckets)


class _Labels:
    """The values that each label has met, up to `MOST_LABELS` of them."""

    def __init__(self) -> None:
        self._met: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, label: str, value: str) -> str:
        met = self._met.get(label)
        if met is not None and value in met:
            return value
        with self._lock:
            met = self._met.setdefault(label, set())
            if value not in met and len(met) >= MOST_LABELS:
                return OTHER
            met.add(value)
            return value


class _Watched(Collector):
    """Counters that others keep."""

    def __init__(self) -> None:
        self._counters: list[tuple[str, str, Callable[[], float]]] = []

    def add(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._counters.append((name, text, value))

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, text, value in self._counters:
            yield CounterMetricFamily(name, text, value=_amount(value()))


def _status(finished: Finished) -> str:
    """The HTTP status; 499, as proxies write it, where the client left before there was one to tell."""
    status = 499 if finished.disconnected and finished.status < 400 else finished.status
    return str(status) if 100 <= status <= 599 else UNKNOWN


def _reason(reasons: tuple[str, ...]) -> str:
    """How the choices of a request ended; "mixed" where they ended in different ways."""
    different = set(reasons)
    if len(different) > 1:
        return "mixed"
    return _among(different.pop() if different else UNKNOWN, (*REASONS, UNKNOWN))


def _among(value: str, values: tuple[str, ...]) -> str:
    return value if value in values else OTHER


def _amount(value: float) -> float:
    """A count may only go up, and a sum must stay a number."""
    try:
        number = float(value)
    except OverflowError:  # an integer past what a float holds
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
