"""Vectors of texts as upstreams are asked for them and tell them: OpenAI's /embeddings, Gemini's batchEmbedContents.

A vector comes as a list of numbers, or as Base64 of little-endian 32-bit floats; some servers give lists whatever they
were asked for. Both are taken, and stay what they are until a client's own wish is met (`openai_embeddings`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ponder.server.failures import Refusal, invalid
from ponder.server.request import Embedding, Request
from ponder.server.upstream_dialect import Ask, count_of, object_of, objects_of


def job_of(request: Request) -> Embedding:
    """What is to be embedded."""
    assert isinstance(request.job, Embedding)
    return request.job


# ---------------------------------------------------------------- OpenAI


def asked(request: Request, model: str) -> Ask:
    """POST /embeddings."""
    job = job_of(request)
    inputs = [each if isinstance(each, str) else list(each) for each in job.inputs]
    body: dict[str, Any] = {
        "model": model,
        "input": inputs[0] if len(inputs) == 1 else inputs,
        "encoding_format": job.encoding,
        "dimensions": job.dimensions,
        "user": request.user or None,
    }
    return Ask("/embeddings", {name: value for name, value in body.items() if value is not None})


def told(document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
    """The vectors by their index, and the tokens of all texts."""
    rows = objects_of(document.get("data"))
    places = [row.get("index") for row in rows]
    known = sorted(place for place in places if type(place) is int) == list(range(len(rows)))
    by_index = {place if known else number: rows[number].get("embedding") for number, place in enumerate(places)}
    tokens = object_of(document.get("usage")).get("prompt_tokens")
    return [by_index.get(place) for place in range(len(rows))], None if tokens is None else count_of(tokens)


# ---------------------------------------------------------------- Gemini


def gemini_asked(request: Request, model: str) -> Ask:
    """POST /models/NAME:batchEmbedContents. Raises Refusal for token ids, which it does not take."""
    job = job_of(request)
    width = {} if job.dimensions is None else {"outputDimensionality": job.dimensions}
    rows = []
    for each in job.inputs:
        if not isinstance(each, str):
            raise invalid(f"{request.model} takes no token ids", "send texts", "input")
        rows.append({"model": f"models/{model}", "content": {"parts": [{"text": each}]}, **width})
    return Ask(f"/models/{quote(model, safe='')}:batchEmbedContents", {"requests": rows})


def gemini_told(document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
    """The vectors in the order of the texts, and their tokens where they are told."""
    tokens = object_of(document.get("usageMetadata")).get("promptTokenCount")
    vectors = [row.get("values") for row in objects_of(document.get("embeddings"))]
    return vectors, None if tokens is None else count_of(tokens)


# ---------------------------------------------------------------- others


def none_here(request: Request) -> Refusal:
    """What a dialect without vectors answers."""
    return invalid(
        f"{request.model} is behind a server that makes no vectors", "ask a model made for embeddings", "model"
    )


# ---------------------------------------------------------------- reading what may be anything


def vector_of(value: Any) -> bytes | Sequence[float] | None:
    """A vector of finite numbers, None for what is none."""
    if isinstance(value, str):
        try:
            found = base64.b64decode(value, validate=True)
        except ValueError:
            return None
        return found if found and len(found) % 4 == 0 else None
    if not isinstance(value, list) or not value or not set(map(type, value)) <= {int, float}:
        return None
    try:
        return value if math.isfinite(math.fsum(value)) else None
    except (OverflowError, ValueError):
        return None
