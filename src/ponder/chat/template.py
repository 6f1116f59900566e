"""The model's own Jinja chat template, rendered in a sandbox the way model authors expect.

Templates come with downloaded weights, so they are untrusted: they see plain values only, cannot
reach Python attributes, and whatever they raise becomes one `InputError`. jinja2 is imported on
first use, since a template is not needed to print help.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ponder.errors import InputError
from ponder.types import Audio, Image, Message, Part, Text, Thinking, ToolCall, ToolResult, Video

if TYPE_CHECKING:
    import jinja2

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For models that come without a template."""

# Survives every filter that templates put on contents: no white space at its ends, no markup.
_HERE = "PONDERcontinuesHERE"
_LEADING_MARKER = re.compile(r"\s*(<[^<>\s]+>|\[/?[A-Z_]+\])")


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja source, and the texts of the tokens that begin and end a sequence."""

    source: str
    bos: str = ""
    eos: str = ""

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not define itself: its switches are among them."""
        return _variables(self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **switches: Any,
    ) -> str:
        """The prompt for `messages`, special tokens spelled out.

        `tools` are descriptions of functions in the usual JSON form; `switches` become variables of
        the template. With `continue_final_message` the last message must be the assistant's: it is
        left open, its exact text is the tail of the prompt, and `add_generation_prompt` has no say.
        Raises InputError where the template is broken or refuses the messages.
        """
        context = {**switches, "tools": None if tools is None else [dict(tool) for tool in tools]}
        if not continue_final_message:
            return self._render(messages, add_generation_prompt, context)
        if not messages or messages[-1].role != "assistant":
            raise InputError("only a message of the assistant can be continued", "End the messages with one")
        if any(isinstance(part, Thinking) for part in messages[-1].parts):
            return self._continue_thinking(messages, context)
        return self._continue_text(messages, context)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, context: Mapping[str, Any]) -> str:
        template = _compiled(self.source)

        def attempt(read_arguments: Callable[[str], Any]) -> str:
            return template.render(
                {
                    **context,
                    "messages": to_template(messages, read_arguments),
                    "add_generation_prompt": add_generation_prompt,
                    "bos_token": self.bos,
                    "eos_token": self.eos,
                }
            )

        try:
            try:
                return attempt(_as_mapping)
            except TypeError:
                # Some templates paste the arguments into the text and so need them as text.
                return attempt(str)
        except Exception as error:
            # Whatever a template does wrong surfaces as the Python error it caused, of any class.
            raise InputError(
                f"the chat template failed: {error or type(error).__name__}",
                "Give it the messages that it expects, or another template",
            ) from error

    def _continue_text(self, messages: Sequence[Message], context: Mapping[str, Any]) -> str:
        """The generation prompt and then the text, exactly as the model saw it while it wrote the text.

        Rendering the message as history would not do: templates trim it, drop its thinking, or put
        an empty thinking block in front of it.
        """
        text = messages[-1].text
        prompt = self._render(messages[:-1], True, context)
        marker = _LEADING_MARKER.match(text)
        if marker and prompt.rstrip().endswith(marker[1]):
            # Both open the thinking; the text's own opening stays.
            prompt = prompt.rstrip().removesuffix(marker[1])
        return prompt + text

    def _continue_thinking(self, messages: Sequence[Message], context: Mapping[str, Any]) -> str:
        """Lets the template lay out the thinking, and cuts where the text to be continued belongs."""
        final = messages[-1]
        thinking = "".join(part.text for part in final.parts if isinstance(part, Thinking))
        parts: tuple[Part, ...] = (Thinking(thinking), Text(_HERE)) if final.text else (Thinking(_HERE),)
        rendered = self._render([*messages[:-1], replace(final, parts=parts)], False, context)
        head, found, _ = rendered.rpartition(_HERE)
        if not found or (final.text and thinking.strip() not in head):
            raise InputError(
                "this chat template drops the thinking of the message to be continued",
                "Put the thinking and its markers into the message's text",
            )
        return head + (final.text or thinking)


# ---------------------------------------------------------------- messages as templates know them


def to_template(
    messages: Sequence[Message], read_arguments: Callable[[str], Any] | None = None
) -> list[dict[str, Any]]:
    """The dictionaries that chat templates are written for; each tool result becomes a message."""
    read = read_arguments or _as_mapping
    names = {part.id: part.name for message in messages for part in message.parts if isinstance(part, ToolCall)}
    return [plain for message in messages for plain in _plain(message, read, names)]


def _plain(message: Message, read: Callable[[str], Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    results = [
        {"role": "tool", "content": part.content, "tool_call_id": part.id, "name": names.get(part.id, "")}
        for part in message.parts
        if isinstance(part, ToolResult)
    ]
    rest = [part for part in message.parts if not isinstance(part, ToolResult)]
    if results and not rest:
        return results
    plain: dict[str, Any] = {"role": message.role, "content": _content(rest)}
    thinking = "".join(part.text for part in rest if isinstance(part, Thinking))
    if thinking:
        # Two names for one thing: templates of gpt-oss read the second.
        plain["reasoning_content"] = plain["thinking"] = thinking
    calls = [part for part in rest if isinstance(part, ToolCall)]
    if calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": read(call.arguments)}}
            for call in calls
        ]
    return [*results, plain]


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    shown = [part for part in parts if isinstance(part, Text | Image | Audio | Video)]
    if all(isinstance(part, Text) for part in shown):
        return "".join(part.text for part in shown if isinstance(part, Text))
    return [_attachment(part) for part in shown]


def _attachment(part: Text | Image | Audio | Video) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Video):
        return {"type": "video", "frames": list(part.frames), "seconds": part.seconds}
    return {"type": part.type, "url": part.url}


def _as_mapping(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


# ---------------------------------------------------------------- the sandbox


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant wrote, for training masks; here it only groups."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance's set

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise InputError(f"the chat template is not valid Jinja: {error}", "Use another template") from error


@functools.lru_cache(maxsize=32)
def _variables(source: str) -> frozenset[str]:
    from jinja2 import meta

    _compiled(source)
    return frozenset(meta.find_undeclared_variables(_environment().parse(source)))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter would escape <, > and & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
