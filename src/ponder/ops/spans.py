"""Spans for OpenTelemetry by its conventions for generative AI: one `{operation} {model}` a request, with a child for
each sample that was drawn and each try at an upstream, sent by OTLP over HTTP.

    spans = spans_from_environment()                      # OTEL_EXPORTER_OTLP_ENDPOINT and its like
    span = spans.begin("chat", "ponder-135m", headers)    # continues the client's trace
    ... span.headers() for upstreams, span.trace_id for the log ...
    span.end(finished)
    spans.close(deadline=2)

Needs `pip install 'ponder[telemetry]'`; where no endpoint is named nothing of it is loaded, and traces of clients are
handed on as they came. Spans wait in a queue of fixed length for a thread that sends them: what does not fit, or what a
collector does not take, is dropped and counted, and no request ever waits or fails for it.

Names of attributes: OpenTelemetry, Semantic conventions for generative client AI spans (in development), gathered in
`Name`, since they still move. What they have no name for is called `ponder.*`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ponder.errors import InputError, MissingExtra
from ponder.ops.finished import Attempt, Finished, Operation
from ponder.ops.log import mask
from ponder.ops.span_sender import QUEUE_SPANS, Sender
from ponder.types import Audio, Image, Message, Part, Text, Thinking, ToolCall, ToolResult

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

CHILDREN = 128
"""The most children that one request gets, so that a wide search does not crowd out the others."""


class Name:
    """Names of attributes. Those of the conventions first, then ponder's own."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    REASONING_LEVEL = "gen_ai.request.reasoning.level"
    CHOICES = "gen_ai.request.choice.count"
    STREAM = "gen_ai.request.stream"
    PROMPT_NAME = "gen_ai.prompt.name"
    PROMPT_VERSION = "gen_ai.prompt.version"
    RESPONSE_ID = "gen_ai.response.id"
    RESPONSE_MODEL = "gen_ai.response.model"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
    CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    INPUT_MESSAGES = "gen_ai.input.messages"
    OUTPUT_MESSAGES = "gen_ai.output.messages"
    ERROR = "error.type"
    STATUS = "http.response.status_code"

    DIALECT = "ponder.dialect"
    BACKEND = "ponder.backend"
    KEY = "ponder.key.id"
    PROJECT = "ponder.project"
    STRATEGY = "ponder.strategy"
    THINKING_BUDGET = "ponder.thinking.budget"
    SAMPLES = "ponder.samples"
    DOLLARS = "ponder.cost.dollars"
    SCORE = "ponder.verifier.score"
    REFUSED = "ponder.refused"
    QUEUED = "ponder.queue.seconds"
    BETWEEN_TOKENS = "ponder.between_tokens.seconds"
    DISCONNECTED = "ponder.client.disconnected"
    KIND = "ponder.step.kind"
    NUMBER = "ponder.step.number"
    LEFT_OUT = "ponder.steps.left_out"


class RequestSpan(Protocol):
    """The span of one request, while it is answered."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    def headers(self) -> Mapping[str, str]:
        """What an upstream is to be sent, so that its spans become part of the trace."""
        ...

    def end(self, finished: Finished, question: Sequence[Message] = (), answers: Sequence[Message] = ()) -> None:
        """Ends the span. question and answers are kept only where content was switched on. Never raises."""
        ...


class SpanMaker(Protocol):
    """Makes the spans of requests. `dropped` counts those that were never taken by a collector, `sent` the others."""

    @property
    def dropped(self) -> int: ...

    @property
    def sent(self) -> int: ...

    def begin(self, operation: Operation, model: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request that begins now. headers: the client's, their names in lower case. Never raises."""
        ...

    def close(self, deadline: float = 5.0) -> None:
        """Sends what waits, for at most `deadline` seconds; what is left then is dropped. Safe to call twice."""
        ...


def spans_from_environment(
    *, content: bool = False, environment: Mapping[str, str] | None = None, version: str = ""
) -> SpanMaker:
    """Spans that go where the standard variables say, or `NoSpans` where they name no endpoint.

    content: whether spans hold prompts and answers. environment: in the place of the process's; the exporter itself
    reads its headers, timeout and certificates from the process's. Raises MissingExtra without the packages, and
    InputError for an endpoint or a protocol that cannot be used.
    """
    environment = os.environ if environment is None else environment
    endpoint = _endpoint(environment)
    if endpoint is None:
        return NoSpans()
    _require()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # The exporter tells of failures by way of `logging`, which without a handler writes to stderr between our lines.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    return Spans(OTLPSpanExporter(endpoint=endpoint), content=content, version=version)


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """Where spans go, by the rules of the OTLP exporter's specification; None where they are not wanted."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return None
    own, base = (environment.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip() for name in ("TRACES_ENDPOINT", "ENDPOINT"))
    if not own and not base:
        return None
    which = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
    address = urlsplit(own or base)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(f"{which} is no address of http or https", f"set it as in {which}=http://localhost:4318")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(variable, "http/protobuf") not in ("", "http/protobuf"):
            raise InputError(f"{variable} asks for {environment[variable]!r}", "only http/protobuf is spoken here")
    return own or base.removesuffix("/") + "/v1/traces"


def _require() -> None:
    for package in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise MissingExtra("spans need the packages of opentelemetry", "Run: pip install 'ponder[telemetry]'")


# ---------------------------------------------------------------- without OpenTelemetry

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def trace_of(headers: Mapping[str, str]) -> str | None:
    """The id of the client's trace, from its `traceparent`; None where it sent none that is right.

    W3C, Trace Context, section 3.2.
    """
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    return None if not int(found[2], 16) or not int(found[3], 16) else found[2]


class NoSpans:
    """Makes no spans: every request has an id of a trace all the same, the client's if it sent one."""

    dropped = 0
    sent = 0

    def begin(self, operation: Operation, model: str, headers: Mapping[str, str]) -> RequestSpan:
        return _NoSpan(headers)

    def close(self, deadline: float = 5.0) -> None:
        pass


class _NoSpan:
    def __init__(self, headers: Mapping[str, str]) -> None:
        trace = trace_of(headers)
        self.trace_id = trace or os.urandom(16).hex()
        # Who takes no part in a trace hands it on unchanged.
        known = ("traceparent", "tracestate") if trace else ()
        self._headers = {name: headers[name] for name in known if name in headers}

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def end(self, finished: Finished, question: Sequence[Message] = (), answers: Sequence[Message] = ()) -> None:
        pass


# ---------------------------------------------------------------- with it


class Spans:
    """Spans that go to an exporter. version: of ponder. The service is called so, too, unless the environment (
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) has a name for it."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        content: bool = False,
        version: str = "",
        queue_spans: int = QUEUE_SPANS,
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.version": version} if version else {})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "ponder"}))
        self._sender = Sender(exporter, queue_spans)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._sender)  # type: ignore[arg-type]  # it has the shape, and no base class
        self._provider = provider
        self._tracer = provider.get_tracer("ponder", version or None)
        self._propagator = TraceContextTextMapPropagator()
        self._content = content

    @property
    def dropped(self) -> int:
        return self._sender.dropped

    @property
    def sent(self) -> int:
        return self._sender.sent

    def begin(self, operation: Operation, model: str, headers: Mapping[str, str]) -> RequestSpan:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        model = _writable(mask(model))  # a client may write anything into it
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagator.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes={Name.OPERATION: operation, Name.REQUEST_MODEL: model},
        )
        return _Span(span, set_span_in_context(span, Context()), self)

    def close(self, deadline: float = 5.0) -> None:
        self._sender.close(deadline)


class _Span:
    def __init__(self, span: OtelSpan, context: Context, spans: Spans) -> None:
        self._span, self._context, self._spans = span, context, spans
        self._began = time.time_ns()
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        self._spans._propagator.inject(carrier, self._context)
        return carrier

    def end(self, finished: Finished, question: Sequence[Message] = (), answers: Sequence[Message] = ()) -> None:
        span = self._span
        if not span.is_recording():  # not sampled, or ended already
            span.end()
            return
        span.set_attributes(_of_request(finished))
        if self._spans._content:
            span.set_attribute(Name.INPUT_MESSAGES, _messages(question))
            span.set_attribute(Name.OUTPUT_MESSAGES, _messages(answers, finished.finish_reasons or ("unknown",)))
        for attempt in finished.attempts[:CHILDREN]:
            self._child(finished, attempt)
        if len(finished.attempts) > CHILDREN:
            span.set_attribute(Name.LEFT_OUT, len(finished.attempts) - CHILDREN)
        _set_error(span, finished.error or (str(finished.status) if finished.status >= 400 else ""))
        span.end()

    def _child(self, finished: Finished, attempt: Attempt) -> None:
        from opentelemetry.trace import SpanKind

        model = _writable(mask(attempt.model or finished.answered or finished.model))
        began = self._began + _nanoseconds(attempt.began)
        span = self._spans._tracer.start_span(
            f"{finished.operation} {model}",
            context=self._context,
            kind=SpanKind.CLIENT if attempt.kind == "attempt" else SpanKind.INTERNAL,
            attributes=_known(
                {
                    Name.OPERATION: finished.operation,
                    Name.PROVIDER: attempt.provider or finished.provider or "ponder",
                    Name.REQUEST_MODEL: model,
                    Name.BACKEND: attempt.backend,
                    Name.KIND: attempt.kind,
                    Name.NUMBER: attempt.number,
                    Name.FINISH_REASONS: (attempt.finish_reason,) if attempt.finish_reason else (),
                    **_tokens(attempt),
                }
            ),
            start_time=began,
        )
        _set_error(span, attempt.error)
        span.end(began + _nanoseconds(attempt.seconds))


def _set_error(span: OtelSpan, error: str) -> None:
    from opentelemetry.trace import StatusCode

    if error:
        span.set_attribute(Name.ERROR, _writable(mask(error)))
        span.set_status(StatusCode.ERROR)


def _nanoseconds(seconds: float) -> int:
    return int(min(max(seconds, 0.0), 1e6) * 1e9) if math.isfinite(seconds) else 0


def _of_request(finished: Finished) -> dict[str, Any]:
    """The attributes of a whole request; those that are not known are left out."""
    dollars = None if finished.micro_dollars is None else finished.micro_dollars / 1_000_000
    return _known(
        {
            Name.PROVIDER: finished.provider or "ponder",
            Name.REASONING_LEVEL: finished.effort,
            Name.CHOICES: None if finished.choices == 1 else finished.choices,
            Name.STREAM: finished.stream or None,
            Name.PROMPT_NAME: finished.prompt_name,
            Name.PROMPT_VERSION: "" if finished.prompt_version is None else str(finished.prompt_version),
            Name.RESPONSE_ID: finished.id,
            Name.RESPONSE_MODEL: finished.answered,
            Name.FINISH_REASONS: finished.finish_reasons,
            Name.FIRST_CHUNK: finished.first_token if finished.stream else None,
            **_tokens(finished),
            Name.STATUS: finished.status,
            Name.DIALECT: finished.dialect,
            Name.BACKEND: finished.backend,
            Name.KEY: finished.key_id,
            Name.PROJECT: finished.project,
            Name.STRATEGY: finished.strategy,
            Name.THINKING_BUDGET: finished.thinking_budget,
            Name.SAMPLES: finished.samples,
            Name.DOLLARS: dollars,
            Name.SCORE: finished.score,
            Name.REFUSED: finished.refused or None,
            Name.QUEUED: finished.queued,
            Name.BETWEEN_TOKENS: finished.between_tokens,
            Name.DISCONNECTED: finished.disconnected or None,
        }
    )


def _tokens(spent: Finished | Attempt) -> dict[str, Any]:
    return {
        Name.INPUT_TOKENS: spent.input_tokens,
        Name.OUTPUT_TOKENS: spent.output_tokens,
        Name.REASONING_TOKENS: spent.reasoning_tokens,
        Name.CACHED_TOKENS: spent.cached_tokens,
    }


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in attributes.items() if value is not None and value != "" and value != ()}
    return {name: _fitting(value) for name, value in known.items()}


def _fitting(value: Any) -> Any:
    """A value that protobuf takes: one that it does not take would lose the whole batch."""
    if isinstance(value, tuple):
        return tuple(map(_fitting, value))
    if isinstance(value, str):
        return _writable(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(2**63), min(value, 2**63 - 1))
    return value


def _writable(text: str) -> str:
    """The text without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


# ---------------------------------------------------------------- content


def _messages(messages: Sequence[Message], reasons: Sequence[str] = ()) -> str:
    """Messages as JSON, as the conventions' schemas have them; those of an answer with the reason it ended for."""
    documents: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        document: dict[str, Any] = {"role": message.role, "parts": [_part(part) for part in message.parts]}
        if reasons:
            document["finish_reason"] = reasons[min(number, len(reasons) - 1)]
        documents.append(document)
    return _writable(json.dumps(documents, ensure_ascii=False))


def _part(part: Part) -> dict[str, Any]:
    # Secrets are masked here too, and before the texts become JSON, whose quotes would be taken for theirs.
    if isinstance(part, Text):
        return {"type": "text", "content": mask(part.text)}
    if isinstance(part, Thinking):
        return {"type": "reasoning", "content": mask(part.text)}
    if isinstance(part, ToolCall):
        return {"type": "tool_call", "id": part.id, "name": part.name, "arguments": mask(part.arguments)}
    if isinstance(part, ToolResult):
        return {"type": "tool_call_response", "id": part.id, "response": mask(part.content)}
    if isinstance(part, Image | Audio) and not part.url.startswith("data:"):
        return {"type": "uri", "modality": part.type, "uri": mask(part.url)}
    return {"type": "blob", "modality": part.type, "content": ""}  # bytes of pictures and sounds are left out
