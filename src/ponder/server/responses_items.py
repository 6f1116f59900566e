"""Items of OpenAI Responses: the input of a body as items with ids, and items as messages.

Items that came in are brought into one form, which is kept, listed and gone on from: a text is a message with one
part, and everything has an id. The thinking, the text and the calls of one turn are several items and one message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ponder.server.json_body import Fields, wrong
from ponder.server.signatures import SignedThinking, Signer, ours
from ponder.types import Audio, Image, Message, Part, Role, Text, Thinking, ToolCall, ToolResult

Item: TypeAlias = Mapping[str, Any]

_ROLES: Mapping[str, Role] = {
    "user": "user",
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
}
_ASKED = ("input_text", "input_image", "input_audio", "input_file")
_SAID = ("output_text", "refusal")
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)[^,]*;base64,", re.ASCII)
_SOUND = re.compile(r"\w{1,10}", re.ASCII)
_READABLE = ("text/", "application/json", "application/xml")


# ---------------------------------------------------------------- a body's input


def items_of(body: Fields, id: str, previous: Sequence[Item], model: str, signer: Signer) -> Iterator[Item]:
    """The items of a body's `input`, in their one form. `previous`: those before it. Raises Refusal."""
    called = {item["call_id"] for item in previous if item["type"] == "function_call"}
    known = {item["id"]: item for item in previous}
    if isinstance(body.raw("input"), str):
        yield _message(Fields({"role": "user", "content": body.raw("input")}, "input"), f"msg_{_bare(id)}_in0")
        return
    for number, fields in enumerate(body.objects("input")):
        item = _item(fields, f"{_bare(id)}_in{number}", known, model, signer)
        if item["type"] == "function_call":
            called.add(item["call_id"])
        if item["type"] == "function_call_output" and item["call_id"] not in called:
            problem = f"No tool call found for function call output with call_id {item['call_id'][:60]!r}"
            raise fields.wrong("call_id", problem, "send the call before it, too")
        yield item


def _bare(id: str) -> str:
    return id.removeprefix("resp_")


def _item(fields: Fields, id: str, known: Mapping[str, Item], model: str, signer: Signer) -> Item:
    kind = fields.text("type") or ("message" if fields.has("role") else fields.need_text("type"))
    if kind == "message":
        return _message(fields, f"msg_{id}")
    if kind == "function_call":
        call = {name: fields.need_text(name, empty=name == "arguments") for name in ("call_id", "name", "arguments")}
        return {"id": fields.text("id") or f"fc_{id}", "type": kind, "status": "completed", **call}
    if kind == "function_call_output":
        told = {"call_id": fields.need_text("call_id"), "output": _output(fields)}
        return {"id": fields.text("id") or f"fco_{id}", "type": kind, "status": "completed", **told}
    if kind == "reasoning":
        return _reasoning(fields, f"rs_{id}", model, signer)
    if kind == "item_reference":
        name = fields.need_text("id")
        if name not in known:
            raise fields.wrong("id", f"there is no item {name[:60]!r} before it", "send the item itself")
        return known[name]
    known_kinds = "message, function_call, function_call_output, reasoning, item_reference"
    raise fields.wrong("type", f"items of the type {kind[:60]!r} are not read here", f"choose from {known_kinds}")


def _message(fields: Fields, id: str) -> Item:
    fields.need("role")
    role = fields.one_of("role", tuple(_ROLES))
    fields.need("content")
    said = role == "assistant"
    if isinstance(fields.raw("content"), str):
        parts = [_text("output_text" if said else "input_text", fields.raw("content"))]
    else:
        parts = [_part(each, _SAID if said else _ASKED) for each in fields.objects("content")]
    head = {"id": fields.text("id") or id, "type": "message", "status": "completed", "role": role}
    return {**head, "content": parts}


def _text(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text, **({"annotations": []} if kind == "output_text" else {})}


def _part(fields: Fields, allowed: Sequence[str]) -> dict[str, Any]:
    kind = fields.need_text("type")
    kind = allowed[0] if kind == "text" else kind
    if kind not in allowed:
        raise fields.wrong("type", f"{kind[:60]!r} has no place here", f"choose from {', '.join(allowed)}")
    if kind in ("input_text", "output_text"):
        return _text(kind, fields.need_text("text", empty=True))
    if kind == "refusal":
        return {"type": kind, "refusal": fields.need_text("refusal", empty=True)}
    if kind == "input_audio":
        sound = fields.need_object("input_audio")
        if not _SOUND.fullmatch(sound.need_text("format")):
            raise sound.wrong("format", "is no format", 'write one such as "wav"')
        _check_base64(sound.need_text("data"), sound.at("data"))
        return {"type": kind, "input_audio": {"format": sound.raw("format"), "data": sound.raw("data")}}
    if fields.has("file_id"):
        raise fields.wrong("file_id", "files are not kept here", "send it as a data URI")
    if kind == "input_image":
        url = _checked(fields.need_text("image_url"), fields.at("image_url"), ("image/",))
        return {"type": kind, "image_url": url, "detail": fields.text("detail", "auto")}
    if fields.has("file_url"):
        raise fields.wrong("file_url", "files are not fetched here", "send file_data")
    data = _checked(fields.need_text("file_data"), fields.at("file_data"), ("image/", *_READABLE), web=False)
    return {"type": kind, "filename": fields.text("filename", ""), "file_data": data}


def _checked(url: str, path: str, kinds: tuple[str, ...], web: bool = True) -> str:
    """An address on the web, or a data URI; whether the web may be asked is for who fetches it to say."""
    if web and url.startswith(("http://", "https://")):
        return url
    found = _DATA.match(url)
    if found is None or not found[1].startswith(kinds):
        raise wrong(path, f"is no data URI of {' or '.join(kinds)}", f"send data:{kinds[0]}...;base64,...")
    data = _check_base64(url[found.end() :], path)
    if found[1].startswith(_READABLE):
        try:
            data.decode()
        except UnicodeDecodeError:
            raise wrong(path, "is no text in UTF-8", "send it in UTF-8") from None
    return url


def _check_base64(text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise wrong(path, "holds what is no base64", "encode the bytes again") from None


def _output(fields: Fields) -> str | list[dict[str, Any]]:
    fields.need("output")
    if isinstance(fields.raw("output"), str):
        return str(fields.raw("output"))
    return [_part(each, ("input_text", "input_image", "input_file")) for each in fields.objects("output")]


def _reasoning(fields: Fields, id: str, model: str, signer: Signer) -> Item:
    sealed = fields.text("encrypted_content")
    if sealed and ours(sealed) and signer.opened(sealed, model) is None:
        problem = "The encrypted content could not be verified"
        raise fields.wrong("encrypted_content", problem, "send the item back as it came, or leave it out")
    item: dict[str, Any] = {"id": fields.text("id") or id, "type": "reasoning"}
    item["summary"] = [{"type": "summary_text", "text": each} for each in _texts(fields, "summary")]
    if content := _texts(fields, "content"):
        item["content"] = [{"type": "reasoning_text", "text": each} for each in content]
    return item | ({"encrypted_content": sealed} if sealed else {})


def _texts(fields: Fields, name: str) -> list[str]:
    return [each.need_text("text", empty=True) for each in fields.objects(name)]


# ---------------------------------------------------------------- messages


def messages_of(items: Iterable[Item], model: str, signer: Signer) -> Iterator[Message]:
    """The messages that items make: an assistant's items in a row are one, and so are results of tools."""
    role: Role | None = None
    parts: list[Part] = []
    for item in items:
        next_role, more = _parts(item, model, signer)
        if role is not None and (next_role != role or role in ("user", "system")):
            yield from _told(role, parts)
            parts = []
        role, parts = next_role, parts + more
    if role is not None:
        yield from _told(role, parts)


def _told(role: Role, parts: list[Part]) -> Iterator[Message]:
    """A message. No text of a result holds its images: they follow as the user's."""
    images = [part for part in parts if role == "tool" and not isinstance(part, ToolResult)]
    yield Message(role, tuple(part for part in parts if part not in images))
    if images:
        yield Message("user", tuple(images))


def _parts(item: Item, model: str, signer: Signer) -> tuple[Role, list[Part]]:
    kind = item["type"]
    if kind == "function_call":
        return "assistant", [ToolCall(item["name"], item["arguments"], item["call_id"])]
    if kind == "reasoning":
        return "assistant", _thoughts(item, model, signer)
    if kind == "message":
        return _ROLES[item["role"]], [_read(part) for part in item["content"]]
    output = item["output"]
    parts = [Text(output)] if isinstance(output, str) else [_read(part) for part in output]
    text = "".join(part.text for part in parts if isinstance(part, Text))
    return "tool", [ToolResult(item["call_id"], text), *(part for part in parts if not isinstance(part, Text))]


def _thoughts(item: Item, model: str, signer: Signer) -> list[Part]:
    """The thinking of an item: as it was sealed, else its text, else its summary."""
    texts = item.get("content") or item["summary"]
    thinking = Thinking("".join(each["text"] for each in texts))
    sealed = item.get("encrypted_content")
    if sealed and not ours(sealed):
        thinking = SignedThinking(thinking.text, redacted=sealed)
    elif sealed:
        # The key of a kept item may be another one by now: what it shows is what is left of it.
        thinking = signer.opened(sealed, model) or thinking
    return [thinking] if thinking.text or isinstance(thinking, SignedThinking) else []


def _read(part: Mapping[str, Any]) -> Part:
    kind = part["type"]
    if kind == "input_image":
        return Image(part["image_url"])
    if kind == "input_audio":
        sound = part["input_audio"]
        return Audio(f"data:audio/{sound['format']};base64,{sound['data']}")
    if kind == "input_file":
        return _file(part)
    return Text(part["refusal"] if kind == "refusal" else part["text"])


def _file(part: Mapping[str, Any]) -> Part:
    head, _, data = part["file_data"].partition(",")
    if head.startswith("data:image/"):
        return Image(part["file_data"])
    name = f"{part['filename']}\n" if part["filename"] else ""
    return Text(f"{name}{base64.b64decode(data).decode()}\n\n")
