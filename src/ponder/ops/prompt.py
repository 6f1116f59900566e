"""A version of a prompt: messages with blanks in them, how the blanks are filled, and how two versions differ.

    text = "You answer for {{ product }}."           # Jinja, in a sandbox
    prompt.render({"product": "ponder"})             # the messages

What fills a blank is text for the model and never code of the template, whatever it holds. A blank that nothing
fills, and a value without a blank, are errors.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ponder.errors import InputError
from ponder.types import Message, Text

if TYPE_CHECKING:
    import jinja2

TurnRole = Literal["system", "user", "assistant"]

LONGEST = 4 * 2**20
"""Characters of a version's texts, and of each text when it is filled."""
DEEPEST = 64
"""How deep lists and objects may lie in a value."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_TAKEN = {"self", "super", "caller", "loop", "varargs", "kwargs", "true", "false", "none"}
"""Names that have a meaning in every template."""


@dataclass(frozen=True)
class Turn:
    """A message whose text is a template."""

    role: TurnRole
    text: str


@dataclass(frozen=True)
class Prompt:
    """A version of a prompt, which never changes. variables: the names of its blanks. created: ISO 8601 in UTC."""

    name: str
    version: int
    messages: tuple[Turn, ...]
    variables: tuple[str, ...] = ()
    note: str = ""
    created: str = ""

    @property
    def reference(self) -> str:
        """ "support@3" """
        return f"{self.name}@{self.version}"

    def render(self, variables: Mapping[str, Any] | None = None) -> tuple[Message, ...]:
        """The messages with their blanks filled by JSON values. Raises InputError for values missing or surplus."""
        values = variables or {}
        missing = [name for name in self.variables if name not in values]
        surplus = [name for name in values if name not in self.variables]
        if missing:
            raise InputError(
                f"the prompt {self.reference} has nothing to fill {', '.join(missing)} with",
                "give a value for each of its variables",
            )
        if surplus:
            takes = f"it takes {', '.join(self.variables)}" if self.variables else "it takes no variables"
            raise InputError(f"the prompt {self.reference} has no variable {_shown(surplus[0])}", takes)
        for name, value in values.items():
            _check_value(name, value)
        return tuple(Message(turn.role, (Text(self._filled(turn, values)),)) for turn in self.messages)

    def _filled(self, turn: Turn, values: Mapping[str, Any]) -> str:
        pieces, size = [], 0
        try:
            for piece in _compiled(turn.text).generate(dict(values)):
                size += len(piece)
                if size > LONGEST:
                    raise InputError(f"the prompt {self.reference} grew too long", "give it shorter values")
                pieces.append(piece)
        except InputError:
            raise
        except Exception as error:  # whatever a template does with a value it did not expect
            raise InputError(
                f"the prompt {self.reference} cannot be filled: {_line(error)}", "give it the values that it expects"
            ) from None
        return "".join(pieces)


def checked(content: str | Sequence[Turn], variables: Sequence[str] | None) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Messages and variables as a version keeps them. A text alone is a system message.

    variables: None declares those that the texts use; one that is declared and unused may be filled, to no effect.
    Line ends become "\\n". Raises InputError for what can be no prompt.
    """
    turns = (Turn("system", content),) if isinstance(content, str) else tuple(content)
    turns = tuple(Turn(turn.role, turn.text.replace("\r\n", "\n").replace("\r", "\n")) for turn in turns)
    if not any(turn.text.strip() for turn in turns):
        raise InputError("a prompt without text says nothing", "give it a text")
    if sum(len(turn.text) for turn in turns) > LONGEST:
        raise InputError(f"a prompt of more than {LONGEST:,} characters is none", "give the part of it that matters")
    for turn in turns:
        if turn.role not in get_args(TurnRole):
            raise InputError(f"a prompt has no messages of {turn.role!r}", f"take {', '.join(get_args(TurnRole))}")
    used = sorted(set().union(*(_variables(turn.text) for turn in turns)))
    declared = tuple(used if variables is None else dict.fromkeys(variables))
    for name in (*declared, *used):
        if not _VARIABLE.fullmatch(name) or name.lower() in _TAKEN:
            raise InputError(f"{_shown(name)} cannot be a variable", "take letters, digits and _, a letter first")
    if undeclared := [name for name in used if name not in declared]:
        raise InputError(f"the prompt uses {', '.join(undeclared)} without declaring it", "declare it, or leave it out")
    return turns, declared


def in_front(prompt: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages of a prompt before those of a conversation.

    System messages that begin both become one: most chat templates take a single one, and that at the beginning.
    """
    (ours, rest), (theirs, others) = _split(prompt), _split(messages)
    system = (*ours, *theirs)
    if ours and theirs:
        parts = [Text("\n\n".join(message.text for message in system))]
        system = (Message("system", tuple(parts)),)
    return (*system, *rest, *others)


def diff(old: Prompt, new: Prompt) -> str:
    """What has changed from one version to another, message by message, as unified differences; "" for nothing."""
    blocks = []
    for place in range(max(len(old.messages), len(new.messages))):
        before, after = [each.messages[place : place + 1] for each in (old, new)]
        blocks += _difference(
            [_titled(old, place, before), *_lines(before)], [_titled(new, place, after), *_lines(after)]
        )
    names = [[f"{each.reference} variables", *each.variables] for each in (old, new)]
    return "\n".join([*blocks, *_difference(*names)])


def _difference(old: list[str], new: list[str]) -> list[str]:
    """Of two lists of lines, each with its title first."""
    return list(difflib.unified_diff(old[1:], new[1:], old[0], new[0], lineterm=""))


def _titled(prompt: Prompt, place: int, turn: tuple[Turn, ...]) -> str:
    return f"{prompt.reference} message {place + 1}" + (f" ({turn[0].role})" if turn else " (none)")


def _lines(turn: tuple[Turn, ...]) -> list[str]:
    # Not splitlines: a line end at the end of a text is a difference too. Nor is the role lost where only it changed.
    return [f"[{turn[0].role}]", *turn[0].text.split("\n")] if turn else []


def _split(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system messages at the beginning, and the others."""
    count = next((place for place, each in enumerate(messages) if each.role != "system"), len(messages))
    return tuple(messages[:count]), tuple(messages[count:])


def _check_value(name: str, value: Any, depth: int = 0) -> None:
    """Templates see plain values only: an object could have methods."""
    if depth > DEEPEST:
        raise InputError(f"the value of {name} has too many lists and objects in each other", "give a simpler one")
    if isinstance(value, list | tuple):
        for each in value:
            _check_value(name, each, depth + 1)
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for each in value.values():
            _check_value(name, each, depth + 1)
    elif value is not None and type(value) not in (str, bool, int, float):
        raise InputError(f"the value of {name} is a {type(value).__name__}", "give a value that JSON has")


def _shown(name: str) -> str:
    return repr(name[:60])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


# ---------------------------------------------------------------- the sandbox


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Arithmetic of numbers alone: a value must not decide how much memory a text takes."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            small = all(isinstance(each, int | float) and abs(each) < 1e15 for each in (left, right))
            if operator == "**" or not small:
                raise SecurityError(f"a prompt does not compute {operator} of these")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals.clear()  # no names but those of the variables
    environment.filters["tojson"] = _tojson
    del environment.filters["random"]  # the same values, the same text
    return cast("jinja2.Environment", environment)


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON as it is; jinja2's own filter would escape <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(text)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        raise InputError(
            f"the prompt is no template: {_line(error)}", "put braces that are meant between {% raw %} and {% endraw %}"
        ) from None


@functools.lru_cache(maxsize=256)
def _variables(text: str) -> frozenset[str]:
    from jinja2 import meta

    _compiled(text)
    tree = _environment().parse(text)
    if list(meta.find_referenced_templates(tree)):
        raise InputError("a prompt includes no other template", "write its text into it")
    return frozenset(meta.find_undeclared_variables(tree))
