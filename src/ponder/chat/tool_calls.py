"""Tool calls in the notations of the common model families.

Marked calls (`<tool_call>{...}</tool_call>` and its like) are found anywhere in a text. Bare ones, a
JSON object or a Python list of calls, count only where they are the whole text, since an answer
may speak of such things too.

A marked call that cannot be read is kept as a `ToolCall` with the name "" and its raw text as
arguments, so that the caller can tell the model what was wrong with it. A bare one that cannot be
read is no call but text.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ponder.types import ToolCall

Style = Literal["hermes", "granite", "llama", "mistral", "gemma", "pythonic"]


@dataclass(frozen=True)
class Wrapping:
    """How a family marks calls: from `opener` to `closer`, or to the end of the turn where that is ""."""

    style: Style
    opener: str
    closer: str = ""

    def plausible(self, body: str) -> bool:
        """Whether what follows the opener may be a call; False where it is only spoken of."""
        head = body.lstrip()[:1]
        if self.style in ("mistral", "gemma"):
            return not head or head in "[{" or head.isalpha() or head == "_"
        return not head or head in "[{" or (self.style == "llama" and head.isalpha())


WRAPPINGS = (
    Wrapping("hermes", "<tool_call>", "</tool_call>"),
    Wrapping("granite", "<|tool_call|>"),
    Wrapping("llama", "<|python_tag|>"),
    Wrapping("mistral", "[TOOL_CALLS]"),
    Wrapping("gemma", "<|tool_call>", "<tool_call|>"),
)

_DECODER = json.JSONDecoder()
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def parse_tool_calls(text: str, style: Style | None = None) -> tuple[ToolCall, ...]:
    """Every call in a finished text, in order, each with an id of its own; () where there is none.

    `style` restricts what is looked for. Calls of gpt-oss are named in the headers of its channels,
    which `ponder.chat.parse.Parser` reads.
    """
    wrappings = [each for each in WRAPPINGS if style in (None, each.style)]
    calls: list[ToolCall] = []
    position = 0
    while found := _next_opener(text, position, wrappings):
        start, wrapping = found
        block = read_block(text, start, wrapping, [each.opener for each in wrappings], final=True)
        if block:
            calls += block.calls
        position = block.end if block else start + len(wrapping.opener)
    if not calls and style in (None, "llama", "pythonic"):
        calls = list(bare_calls(text))
    return identify(calls)


def identify(calls: Sequence[ToolCall], first: int = 0) -> tuple[ToolCall, ...]:
    """The calls with ids; `first` says how many calls of the same reply came before.

    An id is derived from the call, so that parsing twice gives the same ids. Nine letters and digits
    are what the strictest templates (Mistral) accept. An id that the model gave stays.
    """
    return tuple(call if call.id else replace(call, id=_id(first + i, call)) for i, call in enumerate(calls))


def _id(index: int, call: ToolCall) -> str:
    spelled = f"{index}\0{call.name}\0{call.arguments}".encode("utf-8", "surrogatepass")
    return hashlib.blake2s(spelled).hexdigest()[:9]


# ---------------------------------------------------------------- marked calls


@dataclass(frozen=True)
class Block:
    """Calls that were read from `text[start:end]`; `readable` is False for a raw one."""

    calls: tuple[ToolCall, ...]
    end: int
    readable: bool


def _next_opener(text: str, position: int, wrappings: Sequence[Wrapping]) -> tuple[int, Wrapping] | None:
    found = [(at, each) for each in wrappings if (at := text.find(each.opener, position)) >= 0]
    return min(found, key=lambda pair: pair[0], default=None)


def read_block(text: str, start: int, wrapping: Wrapping, breakers: Sequence[str], final: bool) -> Block | None:
    """The calls marked by `wrapping.opener` at `text[start]`.

    The block ends with its closer, or before any of `breakers` (end-of-turn tokens, further
    openers), where that does not stand inside a JSON string, or with the text if it is `final`. None
    where what follows is no call but text; raises Incomplete where only more text can tell.
    """
    inner = start + len(wrapping.opener)
    if not wrapping.plausible(text[inner:]):
        return None
    body_end, end = find_end(text, inner, [wrapping.closer] if wrapping.closer else [], breakers, final)
    body = text[inner:body_end]
    if not body.strip():
        return None
    try:
        calls, used = _read(wrapping.style, body)
    except _UNREADABLE:
        calls, used = [], 0
    calls = [call if call.arguments else replace(call, arguments="{}") for call in calls]
    if calls and not wrapping.closer:
        return Block(tuple(calls), inner + used, True)
    if calls and not body[used:].strip():
        return Block(tuple(calls), end, True)
    return Block((ToolCall("", body.strip()),), end, False)


class Incomplete(Exception):
    """Only more text can tell."""


def find_end(text: str, start: int, closers: Sequence[str], breakers: Sequence[str], final: bool) -> tuple[int, int]:
    """Where a body that begins at `start` ends, and where the text after it begins.

    Closers belong to the block, breakers do not. Both are looked for outside of JSON strings first;
    a quote that never closes does not hide them once the text is final. Raises Incomplete where
    there is none yet.
    """
    marks = "|".join(re.escape(mark) for mark in (*closers, *breakers))
    outside = re.compile(rf'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|({marks})', re.DOTALL) if marks else None
    found = next((m for m in outside.finditer(text, start) if m[1]), None) if outside else None
    if found is None and not final:
        raise Incomplete
    if found is None and marks:
        found = re.compile(marks).search(text, start)
    if found is None:
        return len(text), len(text)
    return found.start(), found.end() if found[0] in closers else found.start()


def _read(style: Style, body: str) -> tuple[list[ToolCall], int]:
    if style == "mistral":
        named = re.match(r"\s*([\w.\-]+)\s*(?:\[CALL_ID\](\w+))?\s*(?:\[ARGS\])?\s*(?=\{)", body)
        if named:
            end = _value_end(body, named.end())
            return [ToolCall(named[1], body[named.end() : end], named[2] or "")], end
    if style == "gemma":
        return _gemma(body)
    return _json_calls(body)


def _gemma(body: str) -> tuple[list[ToolCall], int]:
    """`call:NAME{key:value}`, keys bare and strings between `<|"|>` marks."""
    named = re.match(r"\s*call:\s*([\w.\-]+)\s*(?=\{)", body)
    if not named:
        raise ValueError("no call")
    token = re.compile(r'<\|"\|>(.*?)<\|"\|>|([{,]\s*)([A-Za-z_][\w\-]*)(?=\s*:)', re.DOTALL)
    spelled = token.sub(
        lambda m: json.dumps(m[1], ensure_ascii=False) if m[1] is not None else f'{m[2]}"{m[3]}"', body[named.end() :]
    )
    json.loads(spelled)
    return [ToolCall(named[1], spelled.strip())], len(body)


def _json_calls(body: str) -> tuple[list[ToolCall], int]:
    """JSON calls one after the other, bare or in lists, and where the last of them ends."""
    calls: list[ToolCall] = []
    end = 0
    while True:
        start = _skip(body, end, ",;" if calls else "")
        if body[start : start + 1] == "[":
            found, stop = _list(body, start)
        elif body[start : start + 1] == "{":
            found, stop = [_json_call(body[start : (stop := _value_end(body, start))])], stop
        else:
            return calls, end
        calls, end = calls + found, stop


def _list(body: str, start: int) -> tuple[list[ToolCall], int]:
    calls: list[ToolCall] = []
    position = _skip(body, start + 1)
    while body[position : position + 1] != "]":
        end = _value_end(body, position)
        calls.append(_json_call(body[position:end]))
        position = _skip(body, end)
        if body[position : position + 1] == ",":
            position = _skip(body, position + 1)
        elif body[position : position + 1] != "]":
            raise ValueError("a list of calls does not end")
    return calls, position + 1


def _json_call(text: str) -> ToolCall:
    """One JSON object as a call, its arguments exactly as they stand there, "" where it has none."""
    members = _members(text)
    if "name" not in members and "function" in members and members["function"].startswith("{"):
        members = {**members, **_members(members["function"])}
    name = json.loads(members.get("name", members.get("function", "null")))
    if not isinstance(name, str) or not name:
        raise ValueError("a call needs a name")
    arguments = members.get("arguments", members.get("parameters", ""))
    if arguments.startswith('"'):
        arguments = json.loads(arguments)
    given = json.loads(members.get("id", '""'))
    return ToolCall(name, arguments, given if isinstance(given, str) else "")


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object, each value as its raw text."""
    members: dict[str, str] = {}
    position = _skip(text, 1)
    while text[position : position + 1] != "}":
        key, position = _DECODER.raw_decode(text, position)
        start = _skip(text, position, ":")
        position = _value_end(text, start)
        members[key] = text[start:position]
        position = _skip(text, position, ",")
    return members


def _value_end(text: str, start: int) -> int:
    return _DECODER.raw_decode(text, start)[1]


def _skip(text: str, position: int, also: str = "") -> int:
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position


# ---------------------------------------------------------------- bare calls

_KEYS = ("name", "parameters", "arguments", "type", "function", "id")
_JSON_HEAD = re.compile(r'\s*(?:\[\s*)?(?:\Z|\{\s*(?:\Z|"([a-z]*)(?:\Z|("))))')
_PYTHONIC_HEAD = re.compile(r"\s*\[\s*(?:\Z|[^\W\d][\w.]*\s*(?:\Z|\())")


def may_become_bare(text: str) -> bool:
    """Whether `text` may be the beginning of a bare call; once False, no more text makes it True."""
    head = _JSON_HEAD.match(text)
    if head and head[2]:
        return head[1] in _KEYS
    if head:
        return any(key.startswith(head[1] or "") for key in _KEYS)
    return bool(_PYTHONIC_HEAD.match(text))


def bare_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls that `text` consists of, without ids; () where it is not made of calls alone."""
    if not may_become_bare(text):
        return ()
    try:
        if _PYTHONIC_HEAD.match(text):
            return _pythonic(text.strip())
        calls, end = _json_calls(text)
    except _UNREADABLE:
        return ()
    # A bare {"name": "Ann"} is an answer; only with arguments is it a call.
    whole = not text[end:].strip() and all(call.arguments.startswith("{") for call in calls)
    return tuple(calls) if whole else ()


def _pythonic(text: str) -> tuple[ToolCall, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash in a model's string is not ours to complain about
        tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.List):
        raise ValueError("no list of calls")
    return tuple(_python_call(node) for node in tree.elts)


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    if len(arguments) != len(node.keywords):
        raise ValueError("no call with named arguments")
    return ToolCall(_dotted(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("no name of a function")
