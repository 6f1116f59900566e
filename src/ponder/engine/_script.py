"""What a scripted engine says and how it fails: its tokenizer, its replies, its faults, its files.

`ponder.engine.scripted` is the public face of this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from ponder.errors import EngineError, InputError
from ponder.protocols import SamplingParams
from ponder.types import Message, Text, ToolResult

EOS = 256
"""Id of the end of a turn; the ids below are bytes."""

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
HEADER = f"{IM_START}assistant\n"
"""What opens the assistant's turn in `CHATML`."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The chat template (Jinja) of a scripted model that brings none of its own."""

OPEN, CLOSE = "<think>", "</think>"
ECHO = re.compile(rb"<[^<>\s]+>|[\w\x80-\xff]{4,}")
"""What tells where a text stands: a marker, or a word too long to turn up by chance."""

# ---------------------------------------------------------------- faults and replies

FaultKind = Literal["delay", "hang", "disconnect", "garbage", "wrong_counts", "partial", "rate_limit"]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in `sample` or `chat`.

    delay: `seconds` of silence before token `at`, before each token from there on with `every`.
    hang: nothing comes any more, until the stream or the engine is closed.
    disconnect, garbage: raises `EngineDisconnected`, `GarbledReply`.
    rate_limit: raises `RateLimited`, with `seconds` as its `after` unless 0.
    wrong_counts: reports `prompt` too many prompt tokens, and claims `tokens` more a sample than it
    gave (as `Chunk.lost`, or in `ChatChunk.completion_tokens`).
    partial: ends without a finish: the iterator just stops.

    It strikes once `at` tokens were given: by the whole call, or by sample number `sample` if that
    is set; then hang and partial befall that sample alone. `times` is how many calls it affects (None: all), and
    `first_call` the number of the first call that it may affect (1 is the engine's first). Within
    a script `at` counts the tokens of the entry, and `times` its replies.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    kind: FaultKind
    at: int = 0
    seconds: float = 0.0
    every: bool = False
    sample: int | None = None
    prompt: int = 0
    tokens: int = 0
    times: int | None = 1
    first_call: int = 1

    def __post_init__(self) -> None:
        if self.at < 0 or self.seconds < 0:
            raise ValueError(f"a fault needs at >= 0 and seconds >= 0, not at={self.at} and seconds={self.seconds}")
        if self.times is not None and self.times < 1:
            raise ValueError(f"a fault's times must be at least 1, or None for always, not {self.times}")


Source: TypeAlias = Iterable["int | Fault"]
"""Token ids, endless if it likes; a `Fault` among them strikes when its turn comes."""

Reply: TypeAlias = Callable[[tuple[int, ...], int, SamplingParams], Source]
"""What sample `index` of a request goes on with after the token ids of its prefix."""

# ---------------------------------------------------------------- tokenizer


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 is `eos`, 257 is `<|im_start|>`, and `specials` follow."""

    specials: tuple[str, ...] = ()
    eos: str = IM_END

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The special tokens in the order of their ids, from 256 on."""
        return tuple(dict.fromkeys((self.eos, IM_START, *self.specials)))

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {name.encode(): EOS + place for place, name in enumerate(self.names)}

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        longest_first = sorted(self._ids, key=len, reverse=True)
        return re.compile(b"(" + b"|".join(map(re.escape, longest_first)) + b")")

    @property
    def size(self) -> int:
        return EOS + len(self.names)

    @property
    def end_ids(self) -> tuple[int, ...]:
        return (EOS,)

    def special_ids(self) -> tuple[int, ...]:
        return tuple(range(EOS, self.size))

    def tokenize(self, text: str) -> list[int]:
        return self.encode(text)

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids; the names of special tokens become their ids."""
        ids: list[int] = []
        for piece in self._pattern.split(text.encode() if isinstance(text, str) else text):
            ids += [self._ids[piece]] if piece in self._ids else piece
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`. Raises ValueError for an id that the tokenizer does not have."""
        return b"".join(map(self.piece, ids))

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        if not 0 <= token < EOS + len(self.names):
            raise ValueError(f"{token} is no token id of this model: it has 0 to {EOS + len(self.names) - 1}")
        return bytes((token,)) if token < EOS else self.names[token - EOS].encode()


TOKENIZER = ByteTokenizer()

# ---------------------------------------------------------------- replies


def says(*texts: str, tokenizer: ByteTokenizer = TOKENIZER, header: str = HEADER) -> Reply:
    """A reply in which sample i says `texts[i % len(texts)]`.

    A prefix whose assistant turn (what follows the last `header`) holds the beginning of the text
    is continued from there. If something else was written in between, the text goes on after the
    last thing in the turn that it has in common with it (a closing marker, say), else where it was left.
    """
    if not texts:
        raise ValueError("says() needs at least one text")
    encoded = [text.encode() for text in texts]

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        say = encoded[index % len(encoded)]
        _, opened, turn = tokenizer.decode(prefix).rpartition(header.encode())
        return tokenizer.encode(_resume(say, turn) if opened else say[overlap(turn, say) :])

    return reply


def _resume(say: bytes, turn: bytes) -> bytes:
    """What is left of `say` for a speaker whose turn so far reads `turn`."""
    same = shared(say, turn)
    rest, written = say[same:], turn[same:]
    for echo in reversed(list(ECHO.finditer(written))):
        if echo[0] in rest:
            end = echo.end()
            start = next(start for start in range(end) if written[start:end] in rest)
            return _resume(rest.partition(written[start:end])[2], written[end:])
    return rest[overlap(written, rest) :]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def overlap(before: bytes, after: bytes) -> int:
    """Length of the longest beginning of `after` that `before` ends with."""
    return next(size for size in range(min(len(before), len(after)), -1, -1) if before.endswith(after[:size]))


@dataclass(frozen=True)
class Entry:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    say: str | tuple[str, ...]
    when: str | None = None
    after: str | None = None
    fault: Fault | None = None

    def __post_init__(self) -> None:
        if not self.say and not isinstance(self.say, str):
            raise ValueError("say is an empty list")
        if self.after == "":
            raise ValueError("after is empty")
        try:
            re.compile(self._when or "")
        except re.error as error:
            raise ValueError(f"when is no regular expression: {error}") from None

    @property
    def _when(self) -> str | None:
        if self.when is not None and len(self.when) > 2 and self.when[0] == self.when[-1] == "/":
            return self.when[1:-1]
        return None if self.when is None else re.escape(self.when)

    def rest(self, prompt: str, turn: bytes, index: int) -> bytes | None:
        """What is left to say, or None if the entry is not meant for this turn."""
        if self._when is not None and not re.search(self._when, prompt):
            return None
        if self.after is not None:
            _, found, turn = turn.rpartition(self.after.encode())
            if not found:
                return None
        say = (self.say if isinstance(self.say, str) else self.say[index % len(self.say)]).encode()
        return say[len(turn) :] if say.startswith(turn) else None


@dataclass(frozen=True)
class ScriptModel:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    name: str = "scripted"
    context: int = 4096
    chat_template: str | None = None
    specials: tuple[str, ...] = ()
    eos: str = IM_END
    header: str = HEADER
    chat_only: bool = False
    burst: int = 1

    def __post_init__(self) -> None:
        if self.context < 1 or self.burst < 1:
            raise ValueError(f"context and burst must be at least 1, not {self.context} and {self.burst}")


@dataclass(frozen=True)
class Script:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    version: Literal[1]
    replies: tuple[Entry, ...] = ()
    otherwise: str | None = None
    model: ScriptModel = ScriptModel()
    faults: tuple[Fault, ...] = ()


def validate(document: Any, source: str) -> Script:
    # Imported here: pydantic costs a tenth of a second that `ponder --help` does not have.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Script).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
        raise InputError(
            f"{source} is no script: {place or 'the whole'}: {first['msg']}",
            'a script looks like {"version": 1, "replies": [{"when": "2 + 2", "say": "4"}], "otherwise": "?"}',
        ) from None


def script(document: Mapping[str, Any], *, source: str = "the script") -> Reply:
    """A reply from a document of the form that `scripted:FILE` holds.

    The first entry of `replies` wins whose `when` (a text, or a regular expression between
    slashes) occurs in the prompt before the assistant's turn, and whose `say` continues the turn so
    far: all of it, or what follows the last `after` in it. If there is none, `otherwise` is said,
    continued as `says` does. Of `model` this takes `specials`, `eos` and `header`; the rest of it
    and `faults` describe an engine, and only `open_scripted` heeds them.

    Raises InputError, naming `source`, if the document has another shape; the reply raises
    EngineError if no entry fits and there is no `otherwise`.
    """
    return script_reply(validate(document, source), source)


def script_reply(parsed: Script, source: str) -> Reply:
    model = parsed.model
    tokenizer = ByteTokenizer(model.specials, model.eos)
    otherwise = None if parsed.otherwise is None else says(parsed.otherwise, tokenizer=tokenizer, header=model.header)
    struck = [0] * len(parsed.replies)

    def reply(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Source:
        data = tokenizer.decode(prefix)
        head, opened, turn = data.rpartition(model.header.encode())
        prompt = (head if opened else data).decode(errors="replace")
        for place, entry in enumerate(parsed.replies):
            rest = entry.rest(prompt, turn if opened else b"", index)
            if rest is not None:
                fault = entry.fault
                if fault is None or (fault.times is not None and struck[place] >= fault.times):
                    return tokenizer.encode(rest)
                struck[place] += 1
                return _with_fault(tokenizer.encode(rest), fault)
        if otherwise is not None:
            return otherwise(prefix, index, params)
        tail = data[-200:].decode(errors="replace")
        raise EngineError(
            f"no reply in {source} fits the prompt that ends {tail!r}", 'add one to "replies", or an "otherwise"'
        )

    return reply


def _with_fault(ids: list[int], fault: Fault) -> Iterator[int | Fault]:
    # One step past the last token, where the end of the turn would come.
    for place in range(len(ids) + 1):
        if place == fault.at or (fault.every and place > fault.at):
            yield fault
        yield from ids[place : place + 1]


# ---------------------------------------------------------------- messages


def chatml(message: Message) -> str:
    """One turn as `CHATML` writes it, for the server side of `chat`."""
    parts = (p.text if isinstance(p, Text) else p.content for p in message.parts if isinstance(p, Text | ToolResult))
    return f"{IM_START}{message.role}\n{''.join(parts)}{IM_END}\n"


class Splitter:
    """Divides a text that arrives in pieces into thinking and answer, at the literal markers."""

    def __init__(self) -> None:
        self.tokens = 0
        self.thinking_bytes = 0
        self._inside = False
        self._held = ""

    def feed(self, text: str, final: bool) -> tuple[str, str]:
        """The thinking and the answer that are certain by now."""
        said = {True: "", False: ""}
        self._held += text
        while (marker := CLOSE if self._inside else OPEN) in self._held:
            before, _, self._held = self._held.partition(marker)
            said[self._inside] += before
            self._inside = not self._inside
        held = 0 if final else overlap(self._held.encode(), marker.encode())
        cut = len(self._held) - held
        said[self._inside] += self._held[:cut]
        self._held = self._held[cut:]
        self.thinking_bytes += len(said[True].encode())
        return said[True], said[False]


# ---------------------------------------------------------------- files


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"the script {path} cannot be read: {error.strerror}", "give the path of a JSON file: scripted:FILE"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}", "mend that line"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file", "give a JSON file in UTF-8") from None
