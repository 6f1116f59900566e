"""POST /v1/embeddings: texts or token ids in, vectors out, as numbers or as Base64 of little-endian 32-bit floats."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ponder.server.failures import Refusal
from ponder.server.json_body import Body, Fields, opened
from ponder.server.openai_completions import prompts_of
from ponder.server.openai_fields import user_of
from ponder.server.request import Embedding, Request
from ponder.server.wanted import wanted
from ponder.types import Question, user

MOST_DIMENSIONS = 2**16
READ = ("model", "input", "encoding_format", "dimensions", "user", "ponder")
Encoding = Literal["float", "base64"]


def read(body: Body, headers: Mapping[str, str], id: str) -> Request:
    """What a client asks for. Raises Refusal."""
    fields = opened(body)
    Fields({name: value for name, value in fields.values.items() if value is not None}).only(*READ)
    want = wanted(fields, headers)
    if want.strategy or want.think is not None or want.effort or want.prompt is not None:
        raise fields.wrong("model", "is asked for vectors, which no thinking makes", "leave out what asks for thinking")
    inputs = prompts_of(fields, "input")
    for place, each in enumerate(inputs):
        if not each:
            raise fields.wrong(f"input[{place}]" if len(inputs) > 1 else "input", "is empty", "leave it out")
    return Request(
        id,
        want.model,
        Question(tuple(user(each) for each in inputs if isinstance(each, str))),
        n=0,
        budget=want.budget,
        deadline=want.deadline,
        raw_ids=tuple(token for each in inputs if not isinstance(each, str) for token in each),
        user=user_of(fields),
        job=Embedding(inputs, fields.whole("dimensions", 1, MOST_DIMENSIONS), _encoding(fields)),
        dialect="embeddings",
    )


def _encoding(fields: Fields) -> Encoding:
    return "base64" if fields.one_of("encoding_format", get_args(Encoding)) == "base64" else "float"


def whole(request: Request, rows: Sequence[bytes | Sequence[float]], tokens: int) -> dict[str, Any]:
    """A list of `embedding`s, in the encoding that was asked for. Raises Refusal for numbers that no float can be."""
    assert isinstance(request.job, Embedding)
    written = as_text if request.job.encoding == "base64" else as_numbers
    data = [{"object": "embedding", "index": place, "embedding": written(row)} for place, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def as_text(row: bytes | Sequence[float]) -> str:
    """Base64 of little-endian 32-bit floats."""
    try:
        return base64.b64encode(row if isinstance(row, bytes) else struct.pack(f"<{len(row)}f", *row)).decode()
    except (OverflowError, struct.error):
        raise Refusal(502, "api_error", "a vector holds numbers beyond 32-bit floats", "ask for float") from None


def as_numbers(row: bytes | Sequence[float]) -> list[float]:
    """Numbers."""
    return list(struct.unpack(f"<{len(row) // 4}f", row) if isinstance(row, bytes) else row)
