"""Messages, tools and shapes of answers in the words of OpenAI's chat, read into the project's own values.

Fields of messages that are not known are skipped, since clients send back whatever servers put into replies; parts and
tools of unknown kinds are refused, since an answer without them would be one to another question.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ponder.server.json_body import Fields, wrong
from ponder.server.request import Shape, ToolChoice
from ponder.types import Audio, Image, Message, Part, Role, Text, Thinking, ToolCall, ToolResult

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_MODES: Mapping[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
    "any": "required",  # as Mistral calls it
}
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]*,", re.ASCII)
_NAME = re.compile(r"[\w.:/-]{1,128}")
_READABLE = ("text/", "application/json", "application/xml")


# ---------------------------------------------------------------- messages


def messages_of(body: Fields) -> tuple[Message, ...]:
    """The conversation. Raises Refusal."""
    return tuple(_message(each) for each in body.objects("messages"))


def _message(fields: Fields) -> Message:
    role = _ROLES[fields.one_of("role", tuple(_ROLES)) or fields.need("role")]
    if role == "tool":
        content = "".join(part.text for part in _content(fields) if isinstance(part, Text))
        return Message(role, (ToolResult(fields.need_text("tool_call_id"), content),))
    if role != "assistant":
        fields.need("content")
        return Message(role, _content(fields))
    for name in ("function_call", "audio"):
        if fields.has(name):
            raise fields.wrong(name, "is not supported", "send tool_calls and text")
    calls = tuple(_call(each) for each in fields.objects("tool_calls"))
    refusal = fields.text("refusal")
    if not calls and refusal is None:
        fields.need("content")
    return Message(role, (*_reasoning(fields), *_content(fields), *([Text(refusal)] if refusal else ()), *calls))


def _reasoning(fields: Fields) -> tuple[Part, ...]:
    """The thinking of an earlier turn: under its old name, its new one, or in pieces."""
    text = fields.text("reasoning_content") or fields.text("reasoning")
    if text is None and isinstance(fields.raw("reasoning_details"), list):
        text = "".join(piece.text("text", "") for piece in fields.objects("reasoning_details"))
    return (Thinking(text),) if text else ()


def _call(fields: Fields) -> ToolCall:
    if fields.text("type", "function") != "function":
        raise fields.wrong("type", "is not supported", 'only "function" is')
    function = fields.need_object("function")
    arguments = function.raw("arguments")
    if isinstance(arguments, Mapping):  # some clients send what they decoded
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif arguments is not None:
        arguments = function.text("arguments")
    return ToolCall(function.need_text("name"), arguments or "{}", fields.text("id", ""))


def _content(fields: Fields) -> tuple[Part, ...]:
    content = fields.raw("content")
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),)
    role = fields.raw("role")
    kinds = _ASSISTANT if role == "assistant" else _USER if role == "user" else _WORDS
    return tuple(part for each in fields.objects("content") for part in _part(each, kinds))


def _part(fields: Fields, kinds: Mapping[str, Callable[[Fields], Part]]) -> tuple[Part, ...]:
    kind = fields.need_text("type")
    if kind not in kinds:
        raise fields.wrong("type", f"{kind[:40]!r} is not supported here", f"choose from {', '.join(kinds)}")
    return (kinds[kind](fields),)


def _text(fields: Fields) -> Part:
    return Text(fields.need_text("text", empty=True))


def _refused(fields: Fields) -> Part:
    return Text(fields.need_text("refusal", empty=True))


def _thought(fields: Fields) -> Part:
    """Thinking as a part: its text, or a list of texts."""
    if not isinstance(fields.raw("thinking"), list):
        return Thinking(fields.need_text("thinking", empty=True))
    return Thinking("".join(piece.text("text", "") for piece in fields.objects("thinking")))


def _image(fields: Fields) -> Part:
    url, where = _url(fields, "image_url")
    return Image(_checked(url, where, "image/"))


def _audio_url(fields: Fields) -> Part:
    url, where = _url(fields, "audio_url")
    return Audio(_checked(url, where, "audio/"))


def _audio(fields: Fields) -> Part:
    sound = fields.need_object("input_audio")
    kind = sound.need_text("format")
    if not (kind.isascii() and kind.isalnum()):
        raise sound.wrong("format", "is no format", 'write one such as "wav"')
    return Audio(_checked(f"data:audio/{kind};base64,{sound.need_text('data')}", sound.at("data"), "audio/"))


def _file(fields: Fields) -> Part:
    """A file that is an image, a sound or a text; documents of other kinds are not taken apart."""
    file = fields.need_object("file")
    if file.has("file_id"):
        raise file.wrong("file_id", "is not supported", "send the file itself as file_data")
    url, where = file.need_text("file_data"), file.at("file_data")
    found = _DATA.match(url)
    kind = (found[1] or "") if found else ""
    if kind.startswith(_READABLE):
        try:
            return Text(_bytes(url, where).decode())
        except UnicodeDecodeError:
            raise wrong(where, "is no text in UTF-8", "send it in UTF-8") from None
    if kind.startswith("audio/"):
        return Audio(_checked(url, where, "audio/"))
    return Image(_checked(url, where, "image/"))


def _url(fields: Fields, name: str) -> tuple[str, str]:
    if isinstance(fields.raw(name), str):
        return fields.need_text(name), fields.at(name)
    nested = fields.need_object(name)
    return nested.need_text("url"), nested.at("url")


def _checked(url: str, where: str, kind: str) -> str:
    """An address on the web, or a data URI of the kind; whether the web may be asked is for who fetches it to say."""
    if url.startswith(("http://", "https://")):
        return url
    found = _DATA.match(url)
    if found is None or not (found[1] or "").startswith(kind):
        raise wrong(where, f"is no data URI of {kind}* and no address on the web", f"send data:{kind}...;base64,...")
    _bytes(url, where)
    return url


def _bytes(url: str, where: str) -> bytes:
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise wrong(where, "is not in base64", "write data:...;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise wrong(where, "holds what is no base64", "encode the bytes again") from None


_WORDS: Mapping[str, Callable[[Fields], Part]] = {"text": _text}
_USER = {**_WORDS, "image_url": _image, "input_audio": _audio, "audio_url": _audio_url, "file": _file}
_ASSISTANT = {**_WORDS, "refusal": _refused, "thinking": _thought}


# ---------------------------------------------------------------- tools


def tools_of(body: Fields) -> tuple[dict[str, Any], ...]:
    """The tools on offer, in the JSON form that chat templates know. Raises Refusal."""
    tools = tuple(_tool(each) for each in body.objects("tools"))
    names = [tool["function"]["name"] for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise wrong(f"{body.at('tools')}[{number}].function.name", f"{name!r} is there twice", "rename one")
    return tools


def _tool(fields: Fields) -> dict[str, Any]:
    if fields.need_text("type") != "function":
        raise fields.wrong("type", "is not supported", 'only "function" is')
    function = fields.need_object("function")
    name = function.need_text("name")
    if not _NAME.fullmatch(name):
        raise function.wrong("name", "is no name of a tool", "take at most 128 letters, digits, _ and -")
    told: dict[str, Any] = {"name": name}
    if (description := function.text("description")) is not None:
        told["description"] = description
    parameters = function.object("parameters")
    told["parameters"] = {"type": "object", "properties": {}} if parameters is None else dict(parameters.values)
    if function.flag("strict"):
        told["strict"] = True
    return {"type": "function", "function": told}


def tool_choice_of(body: Fields, tools: tuple[dict[str, Any], ...]) -> tuple[ToolChoice, tuple[dict[str, Any], ...]]:
    """Which tools may or must be called, and those that are left to choose from. Raises Refusal."""
    parallel = body.flag("parallel_tool_calls", True)
    names = [tool["function"]["name"] for tool in tools]
    if not isinstance(body.raw("tool_choice"), Mapping):
        mode = _MODES[body.one_of("tool_choice", tuple(_MODES)) or "auto"]
        if mode == "required" and not tools:
            raise body.wrong("tool_choice", "wants a call, but there are no tools", "send tools")
        return ToolChoice(mode, parallel=parallel), tools
    choice = body.need_object("tool_choice")
    if choice.one_of("type", ("function", "allowed_tools")) == "allowed_tools":
        return _allowed(choice.need_object("allowed_tools"), tools, parallel)
    return ToolChoice("named", _named(choice.need_object("function"), names), parallel), tools


def _named(function: Fields, names: list[str]) -> str:
    name = function.need_text("name")
    if name not in names:
        raise function.wrong("name", f"{name[:128]!r} is not among the tools", f"choose from {', '.join(names)}")
    return name


def _allowed(
    allowed: Fields, tools: tuple[dict[str, Any], ...], parallel: bool
) -> tuple[ToolChoice, tuple[dict[str, Any], ...]]:
    names = [tool["function"]["name"] for tool in tools]
    chosen = {_named(each.need_object("function"), names) for each in allowed.objects("tools")}
    if not chosen:
        raise allowed.wrong("tools", "is empty", "name some, or leave tool_choice out")
    required = allowed.one_of("mode", ("auto", "required")) == "required"
    left = tuple(tool for tool in tools if tool["function"]["name"] in chosen)
    return ToolChoice("required" if required else "auto", parallel=parallel), left


# ---------------------------------------------------------------- the shape of the answer


def shape_of(body: Fields) -> Shape:
    """What `response_format` asks for. A schema is obeyed exactly, whether it is called strict or not."""
    wanted = body.object("response_format")
    if wanted is None:
        return Shape()
    kind = wanted.one_of("type", ("text", "json_object", "json_schema")) or wanted.need("type")
    if kind == "text":
        return Shape()
    if kind == "json_object":
        schema = wanted.object("schema")  # an older way to give one
        return Shape("json") if schema is None else Shape("schema", schema.values)
    told = wanted.need_object("json_schema")
    told.flag("strict")
    told.text("description")
    name = told.need_text("name")
    if not _NAME.fullmatch(name):
        raise told.wrong("name", "is no name", "take at most 128 letters, digits, _ and -")
    return Shape("schema", told.need_object("schema").values, name)
