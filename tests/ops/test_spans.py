"""Spans: what they say, that clients' traces go on in them, and that no collector is ever felt by a request."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ponder.errors import InputError, MissingExtra
from ponder.ops.finished import Attempt, Finished
from ponder.ops.spans import CHILDREN, Name, NoSpans, Spans, spans_from_environment, trace_of
from ponder.types import Image, Message, Text, Thinking, ToolCall, ToolResult, assistant, user

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=abc"}

DONE = Finished(
    "chatcmpl-1",
    dialect="openai",
    model="toy",
    answered="toy-1",
    provider="openai",
    backend="cloud",
    key_id="k1",
    prompt_name="support",
    prompt_version=3,
    strategy="vote(2)",
    effort="high",
    thinking_budget=4096,
    stream=True,
    input_tokens=100,
    cached_tokens=40,
    output_tokens=60,
    reasoning_tokens=25,
    choices=2,
    samples=2,
    finish_reasons=("stop", "length"),
    seconds=1.5,
    first_token=0.3,
    micro_dollars=1_250_000,
    score=0.9,
    attempts=(
        Attempt(0, began=0.1, seconds=0.5, output_tokens=20, finish_reason="stop"),
        Attempt(1, began=0.1, seconds=0.9, output_tokens=40, finish_reason="length"),
        Attempt(2, "attempt", model="toy-1", backend="cloud", provider="openai", error="timeout_error"),
    ),
)


def traced(finished: Finished, headers: dict[str, str] | None = None, **more: Any) -> list[ReadableSpan]:
    """The spans of one request, the request's own last."""
    memory = InMemorySpanExporter()
    spans = Spans(memory, content=more.pop("content", False))
    spans.begin(finished.operation, finished.model, headers or {}).end(finished, **more)
    spans.close()
    found = list(memory.get_finished_spans())
    assert spans.sent == len(found)
    assert spans.dropped == 0
    return found


# ---------------------------------------------------------------- what they say


def test_a_request_is_a_span_of_the_conventions() -> None:
    *_, span = traced(DONE)
    assert span.name == "chat toy"
    assert span.kind is SpanKind.SERVER
    said = dict(span.attributes or {})
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "toy",
        "gen_ai.request.reasoning.level": "high",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": True,
        "gen_ai.prompt.name": "support",
        "gen_ai.prompt.version": "3",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "toy-1",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.response.time_to_first_chunk": 0.3,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 60,
        "gen_ai.usage.reasoning.output_tokens": 25,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "http.response.status_code": 200,
        "ponder.cost.dollars": 1.25,
        "ponder.verifier.score": 0.9,
        "ponder.strategy": "vote(2)",
        "ponder.thinking.budget": 4096,
        "ponder.key.id": "k1",
    }
    assert {name: said.get(name) for name in expected} == expected
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in said
    names = {value for name, value in vars(Name).items() if name.isupper()}
    assert said.keys() <= names  # no name comes from elsewhere


def test_what_is_not_known_is_left_out() -> None:
    (span,) = traced(Finished("r", model="toy"))
    said = dict(span.attributes or {})
    assert not {Name.DOLLARS, Name.SCORE, Name.FIRST_CHUNK, Name.CHOICES, Name.STREAM, Name.KEY} & said.keys()
    assert said[Name.PROVIDER] == "ponder"
    assert said[Name.INPUT_TOKENS] == 0


def test_samples_and_attempts_are_children_with_times_tokens_and_errors() -> None:
    *children, span = traced(DONE)
    assert span.context is not None
    assert [(child.name, child.parent.span_id if child.parent else None) for child in children] == [
        ("chat toy-1", span.context.span_id)
    ] * 3
    assert [child.kind for child in children] == [SpanKind.INTERNAL, SpanKind.INTERNAL, SpanKind.CLIENT]
    assert [(child.attributes or {})[Name.OUTPUT_TOKENS] for child in children] == [20, 40, 0]
    assert [(child.attributes or {}).get(Name.ERROR) for child in children] == [None, None, "timeout_error"]
    assert [child.status.status_code for child in children] == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert children[1].end_time - children[1].start_time == 900_000_000  # type: ignore[operator]
    assert 0.1e9 <= children[0].start_time - span.start_time < 0.2e9  # type: ignore[operator]


def test_a_wide_search_does_not_crowd_out_the_others() -> None:
    *children, span = traced(replace(DONE, attempts=tuple(Attempt(number) for number in range(CHILDREN + 50))))
    assert len(children) == CHILDREN
    assert (span.attributes or {})[Name.LEFT_OUT] == 50


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"status": 502, "error": "api_error"}, "api_error"),
        ({"status": 500}, "500"),
        ({"error": "timeout_error"}, "timeout_error"),
        ({"disconnected": True}, None),
    ],
)
def test_failures(change: dict[str, Any], error: str | None) -> None:
    (span,) = traced(replace(DONE, attempts=(), **change))
    assert (span.attributes or {}).get("error.type") == error
    assert (span.status.status_code is StatusCode.ERROR) is (error is not None)
    assert (span.attributes or {}).get(Name.DISCONNECTED) == change.get("disconnected")


QUESTION = (
    user("my diagnosis, and sk-abcdefgh12345678"),
    Message("assistant", (Thinking("hm"), ToolCall("look", '{"at": 1}', "c1"))),
    Message("tool", (ToolResult("c1", "rainy"),)),
    Message("user", (Text("and this?"), Image("https://a.example/b.png"), Image("data:image/png;base64,AAAA"))),
)


def test_prompts_and_answers_only_when_switched_on() -> None:
    answers = (assistant("fifty-six", "seven eights"), assistant("no"))
    for span in traced(DONE, question=QUESTION, answers=answers):
        assert "diagnosis" not in span.to_json()
        assert "fifty-six" not in span.to_json()
    *_, span = traced(DONE, question=QUESTION, answers=answers, content=True)
    said = {
        name: json.loads(str((span.attributes or {})[name])) for name in (Name.INPUT_MESSAGES, Name.OUTPUT_MESSAGES)
    }
    first, second, third, fourth = said["gen_ai.input.messages"]
    assert first == {"role": "user", "parts": [{"type": "text", "content": "my diagnosis, and [masked]"}]}
    assert second["parts"][1] == {"type": "tool_call", "id": "c1", "name": "look", "arguments": '{"at": 1}'}
    assert third["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "rainy"}]
    assert [part["type"] for part in fourth["parts"]] == ["text", "uri", "blob"]
    assert "AAAA" not in span.to_json()
    assert [answer["finish_reason"] for answer in said["gen_ai.output.messages"]] == ["stop", "length"]
    assert said["gen_ai.output.messages"][0]["parts"][0] == {"type": "reasoning", "content": "seven eights"}


def test_a_secret_that_a_client_wrote_into_the_model_is_masked() -> None:
    (span,) = traced(Finished("r", model="sk-abcdefgh12345678", status=404, error="not_found_error"))
    assert "abcdefgh" not in span.to_json()


strange = st.text() | st.just("\ud800")
number = st.integers(-(2**70), 2**70) | st.floats()


@given(
    st.builds(
        Finished,
        strange,
        model=strange,
        answered=strange,
        finish_reasons=st.lists(strange).map(tuple),
        input_tokens=number,
        score=st.none() | st.floats(),
        error=strange,
        attempts=st.lists(
            st.builds(Attempt, number, model=strange, began=number, seconds=number, error=strange), max_size=3
        ).map(tuple),
    ),
    strange,
)
def test_whatever_an_upstream_reports_can_be_sent(finished: Finished, text: str) -> None:
    found = traced(finished, question=(user(text),), content=True)
    assert len(found) == 1 + len(finished.attempts)
    encoded = ExportTraceServiceRequest.FromString(encode_spans(found).SerializeToString())
    sent = {span.span_id: span for each in encoded.resource_spans for scope in each.scope_spans for span in scope.spans}
    for span in found:
        assert span.context is not None
        arrived = sent[span.context.span_id.to_bytes(8, "big")]
        assert {each.key for each in arrived.attributes} == (span.attributes or {}).keys()  # none was lost on the way


# ---------------------------------------------------------------- traces of clients


def test_the_clients_trace_goes_on() -> None:
    memory = InMemorySpanExporter()
    spans = Spans(memory)
    span = spans.begin("chat", "toy", CLIENT)
    assert span.trace_id == TRACE
    handed = span.headers()
    span.end(DONE)
    spans.close()
    *children, own = memory.get_finished_spans()
    assert own.parent is not None
    assert own.context is not None
    assert f"{own.parent.span_id:016x}" == PARENT
    assert handed["traceparent"] == f"00-{TRACE}-{own.context.span_id:016x}-01"
    assert handed["tracestate"] == "vendor=abc"
    assert {child.context.trace_id for child in children if child.context} == {int(TRACE, 16)}


def test_what_the_client_does_not_sample_is_not_sent_and_goes_on_all_the_same() -> None:
    spans = Spans(InMemorySpanExporter())
    span = spans.begin("chat", "toy", {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    span.end(DONE)
    assert (span.trace_id, span.headers()["traceparent"][-3:]) == (TRACE, "-00")
    spans.close()
    assert (spans.sent, spans.dropped) == (0, 0)


@pytest.mark.parametrize(
    "sent",
    ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01",
     f"00-{TRACE.upper()}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-more"],
)  # fmt: skip
def test_a_traceparent_that_is_wrong_begins_a_trace_of_our_own(sent: str) -> None:
    spans = Spans(InMemorySpanExporter())
    for maker in (spans, NoSpans()):
        span = maker.begin("chat", "toy", {"traceparent": sent})
        assert len(span.trace_id) == 32
        assert span.trace_id.lower() != TRACE
        span.end(DONE)
    assert trace_of({"traceparent": sent}) is None
    spans.close()


def test_without_spans_a_trace_is_handed_on_as_it_came() -> None:
    span = NoSpans().begin("chat", "toy", CLIENT)
    assert (span.trace_id, dict(span.headers())) == (TRACE, CLIENT)
    later = {"traceparent": f"01-{TRACE}-{PARENT}-01-what comes later"}
    assert NoSpans().begin("chat", "toy", later).trace_id == TRACE
    fresh = NoSpans().begin("chat", "toy", {})
    assert dict(fresh.headers()) == {}
    assert fresh.trace_id != NoSpans().begin("chat", "toy", {}).trace_id


# ---------------------------------------------------------------- a collector


class Collector:
    """An OTLP collector: keeps what it is sent, answers with `status`, waits while `held`."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.go = threading.Event()
        self.go.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.paths.append(self.path)
                collector.go.wait(20)
                if collector.status == 200:
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the client went away
                    return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Any]:
        return [s for r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.close()


def test_a_real_collector_gets_them_by_the_standard_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=blue")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    spans = spans_from_environment(version="1.2")
    for _ in range(300):
        spans.begin("chat", "toy", CLIENT).end(replace(DONE, attempts=DONE.attempts[:1]))
    spans.close()
    assert (spans.sent, spans.dropped) == (600, 0)
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.headers[0]["x-team"] == "blue"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"
    found = collector.spans()
    assert len({span.span_id for span in found}) == 600
    assert {span.trace_id.hex() for span in found} == {TRACE}
    own = next(span for span in found if span.parent_span_id.hex() == PARENT)
    values = {each.key: each.value for each in own.attributes}
    assert own.name == "chat toy"
    assert values["gen_ai.usage.reasoning.output_tokens"].int_value == 25
    assert [v.string_value for v in values["gen_ai.response.finish_reasons"].array_value.values] == ["stop", "length"]
    resource = {
        each.key: each.value.string_value for each in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "ponder"
    assert resource["service.version"] == "1.2"
    assert resource["deployment.environment.name"] == "test"


def test_spans_are_sent_without_being_asked_to(collector: Collector) -> None:
    spans = spans_from_environment()
    spans.begin("chat", "toy", {}).end(replace(DONE, attempts=()))
    deadline = time.monotonic() + 10
    while not collector.spans():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    spans.close()


def test_the_name_of_the_service_is_the_environments(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    spans = spans_from_environment()
    spans.begin("chat", "toy", {}).end(DONE)
    spans.close()
    resource = {
        each.key: each.value.string_value for each in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "mine"


def test_a_collector_that_hangs_is_felt_by_nobody_and_ends_in_time(collector: Collector) -> None:
    collector.go.clear()
    spans = spans_from_environment()
    spans.begin("chat", "toy", {}).end(DONE)
    deadline = time.monotonic() + 10
    while not collector.paths:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    longest = 0.0
    for _ in range(200):
        began = time.perf_counter()
        spans.begin("chat", "toy", {}).end(replace(DONE, attempts=()))
        longest = max(longest, time.perf_counter() - began)
    assert longest < 0.5
    began = time.perf_counter()
    spans.close(deadline=0.3)
    assert time.perf_counter() - began < 2
    assert (spans.sent, spans.dropped) == (0, 204)
    spans.close()
    spans.begin("chat", "toy", {}).end(replace(DONE, attempts=()))
    assert spans.dropped == 205  # after the end


def test_a_collector_that_refuses_costs_spans_only(collector: Collector) -> None:
    collector.status = 400
    spans = spans_from_environment()
    spans.begin("chat", "toy", {}).end(DONE)
    spans.close()
    assert (spans.sent, spans.dropped) == (0, 4)


def test_nobody_there_says_nothing_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "from ponder.ops.finished import Finished\n"
        "from ponder.ops.spans import spans_from_environment\n"
        "spans = spans_from_environment()\n"
        "spans.begin('chat', 'toy', {}).end(Finished('r'))\n"
        "spans.close(0.5)\n"
        "print(spans.sent, spans.dropped)\n"
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.split(), done.stderr) == (["0", "1"], "")


class Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("broken")

    def shutdown(self) -> None:
        raise RuntimeError("broken")


def test_a_broken_exporter_is_no_failure() -> None:
    spans = Spans(Broken())
    spans.begin("chat", "toy", {}).end(DONE)
    spans.close()
    assert (spans.sent, spans.dropped) == (0, 4)


class Held(SpanExporter):
    def __init__(self) -> None:
        self.go, self.entered, self.got = threading.Event(), threading.Event(), 0
        self.quiet: object = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.quiet = get_value(_SUPPRESS_INSTRUMENTATION_KEY)
        self.entered.set()
        self.go.wait(20)
        self.got += len(spans)
        return SpanExportResult.SUCCESS


def test_what_does_not_fit_into_the_queue_is_dropped_and_counted() -> None:
    held = Held()
    spans = Spans(held, queue_spans=10)
    one = replace(DONE, attempts=())
    spans.begin("chat", "toy", {}).end(one)
    assert held.entered.wait(10)
    for _ in range(25):
        spans.begin("chat", "toy", {}).end(one)
    assert spans.dropped == 15
    held.go.set()
    spans.close()
    assert (spans.sent, spans.dropped, held.got) == (11, 15, 11)
    assert held.quiet is True  # a program that traces its HTTP clients does not trace the exporter


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_spans_are_off_unless_an_endpoint_is_named(environment: dict[str, str]) -> None:
    assert isinstance(spans_from_environment(environment=environment), NoSpans)


def test_an_endpoint_of_the_traces_alone_is_taken_as_it_is(collector: Collector) -> None:
    own = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/mine",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://no.example",
    }
    spans = spans_from_environment(environment=own)
    spans.begin("chat", "toy", {}).end(DONE)
    spans.close()
    assert collector.paths == ["/mine"]


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "no address"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://localhost:4317"}, "OTLP_TRACES_ENDPOINT is no address"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "asks for 'grpc'"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        spans_from_environment(environment=environment)
    assert "\n" not in str(raised.value)


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert isinstance(spans_from_environment(environment={}), NoSpans)
    with pytest.raises(MissingExtra, match=r"pip install 'ponder\[telemetry\]'"):
        spans_from_environment(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})


def test_nothing_of_it_is_loaded_where_it_is_off() -> None:
    program = (
        "import sys, ponder.ops.spans as s\n"
        "s.spans_from_environment(environment={}).begin('chat', 'm', {})\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_names_every_attribute_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    table = "".join(re.findall(r"^\| (`(?:gen_ai|ponder|error|http)\..*?) \|", page, re.M))
    assert set(re.findall(r"`([\w.]+)`", table)) == {value for name, value in vars(Name).items() if name.isupper()}
