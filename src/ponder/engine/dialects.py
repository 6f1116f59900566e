"""What the dialects of servers have in common: their shape, and how untrusted replies are read.

A dialect turns one request into `Chunk`s that keep the promises of the protocol: exact ids, an end
named for every sample, the prompt counted once. What a server cannot deliver is in `Chunk.lost`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ponder.engine.remote_errors import Refused
from ponder.engine.transport import Transport
from ponder.errors import EngineDisconnected, GarbledReply, Unsupported
from ponder.protocols import Capabilities, Chunk, SamplingParams
from ponder.types import Finish

_STOPPED = frozenset({"stop", "eos", "eos_token", "word", "end_turn", "stop_sequence", "tool_calls", "function_call"})
_CUT = frozenset({"length", "limit", "max_tokens"})


class Dialect(Protocol):
    """A server that takes token ids. `most` is the number of samples that one request can hold."""

    capabilities: Capabilities
    most: int

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        """One request: n samples, numbered from 0."""
        ...

    async def tokenize(self, text: str) -> list[int]: ...

    async def detokenize(self, ids: Sequence[int]) -> str: ...

    async def score(self, ids: Sequence[int], start: int) -> list[float]: ...


@dataclass(frozen=True)
class Address:
    """Where a server is: `base` is its OpenAI address (most end in /v1), `root` its own, without a slash."""

    base: str
    root: str
    model: str


def finish_of(reason: object) -> Finish | None:
    """Our name for a server's reason to end. Raises for a reason that is none: an abort is no end of text."""
    if reason is None:
        return None
    name = str(reason).lower()
    if name in _STOPPED:
        return "stop"
    if name in _CUT:
        return "length"
    if name == "content_filter":
        return "error"
    if name in ("abort", "aborted", "error", "none"):
        raise EngineDisconnected("the server gave up on a sample in the middle", "look at the server's log")
    raise GarbledReply(f"the server ended a sample for a reason that is not known: {name[:40]!r}")


def index_of(item: Mapping[str, Any], n: int) -> int:
    """Which of n samples `item` belongs to. Raises GarbledReply for one that was never asked for."""
    index = item.get("index", 0 if n == 1 else None)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < n:
        raise GarbledReply(f"the server sent something for sample {index!r} of {n}")
    return index


def ids_of(value: Any) -> tuple[int, ...]:
    """A list of token ids, checked."""
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value):
        raise GarbledReply(f"the server sent something for token ids that is not a list of them: {str(value)[:80]!r}")
    return tuple(value)


def count_of(value: Any) -> int:
    """A count, 0 where the server gave none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def object_of(value: Any) -> Mapping[str, Any]:
    """A JSON object, an empty one where the server sent null or nothing."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """A text, an empty one where the server sent null or nothing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise GarbledReply(f"the server sent a {type(value).__name__} where a text belongs")
    return value


def logprobs_of(values: Any, count: int) -> tuple[float | None, ...]:
    """`count` log-probabilities, None where the server gave none or a wrong number of them."""
    if not isinstance(values, list) or len(values) != count:
        return (None,) * count
    return tuple(float(v) if isinstance(v, (int, float)) else None for v in values)


async def ask(wire: Transport, url: str, body: Mapping[str, Any], name: str) -> Any:
    """The field `name` of what the server answers at an address that not every version of it has."""
    try:
        answer = await wire.post(url, body)
    except Refused as refused:
        if refused.status in (404, 405):
            raise Unsupported(f"the server has no {url}", "switch it on, or use the engine's chat()") from None
        raise
    if name not in answer:
        raise GarbledReply(f"{url} answered without {name!r}")
    return answer[name]


def choices_of(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of an event of an OpenAI stream, each with a `finish_reason`."""
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise GarbledReply("the server sent an event without choices")
    return [{"finish_reason": None, **choice} for choice in choices]
