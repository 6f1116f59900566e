"""POST /v1/audio/transcriptions and /v1/audio/speech: sounds to text and text to sounds, by upstreams that do it.

What a client sends is handed on as it came, but for the name of the model, and so is what comes back: whoever does the
work says which fields it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from ponder.server.failures import invalid
from ponder.server.json_body import parsed
from ponder.server.multipart import form_of
from ponder.server.request import Handed, Request
from ponder.types import Question, user

_NOTHING = Question(())


def transcription(body: bytes, headers: Mapping[str, str], id: str) -> Request:
    """A form with a file. Raises Refusal."""
    kind = headers.get("content-type", "")
    form = form_of(body, kind)
    if not any(part.name == "file" for part in form.parts):
        raise invalid("file: is missing", "send the sound as a file", "file")
    model, stream = form.text("model") or "", (form.text("stream") or "").lower() == "true"
    if not model:
        raise invalid("model: is missing", "see /v1/models", "model")
    return _request(id, model, "/audio/transcriptions", kind, lambda name: form.written("model", name), stream=stream)


def speech(body: bytes, headers: Mapping[str, str], id: str) -> Request:
    """JSON with a text. Raises Refusal."""
    fields = parsed(body)
    model, text = fields.need_text("model"), fields.need_text("input")

    def written(name: str) -> bytes:
        return json.dumps({**fields.values, "model": name}, ensure_ascii=False).encode()

    question = Question((user(text),))
    return _request(id, model, "/audio/speech", "application/json", written, question=question)


def _request(
    id: str,
    model: str,
    path: str,
    kind: str,
    body: Callable[[str], bytes],
    question: Question = _NOTHING,
    stream: bool = False,
) -> Request:
    return Request(id, model, question, n=0, stream=stream, job=Handed(path, kind, body), dialect="audio")
