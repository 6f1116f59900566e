"""Stored prompts in requests: the messages of the version that a client names, before its own.

Only the question changes by it, and which version it was is written into the request. Model, strategy, budget and key
are told by fields and headers, and by no text of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ponder.errors import InputError
from ponder.ops.prompt import in_front
from ponder.ops.prompts import Prompts, UnknownPrompt
from ponder.server.failures import Refusal, invalid
from ponder.server.request import PromptVersion, Request
from ponder.types import Message, ask


def with_prompt(request: Request, prompts: Prompts) -> Request:
    """The request with its stored prompt in front, and the version's number; one without a prompt as it is.

    Raises Refusal: 404 where there is no such prompt, version or label, 400 for variables that do not fit.
    """
    if request.prompt is None:
        return request
    try:
        prompt = prompts.get(_reference(request.prompt))
        rendered = prompt.render(_values(request))
    except UnknownPrompt as error:
        raise Refusal(
            404, "not_found_error", error.problem, error.mend, param="prompt", code="prompt_not_found"
        ) from None
    except InputError as error:
        raise invalid(error.problem, error.mend, "variables", "invalid_variables") from None
    version = PromptVersion(prompt.name, prompt.version, request.prompt.label)
    return replace(_asked(request, rendered), prompt=version)


def _asked(request: Request, rendered: tuple[Message, ...]) -> Request:
    if request.raw_ids:
        raise invalid("a stored prompt cannot stand before token ids", "send a text", "prompt")
    if request.raw is not None:
        raw = "\n\n".join(message.text for message in rendered) + request.raw
        return replace(request, raw=raw, question=replace(request.question, messages=ask(raw).messages))
    messages = in_front(rendered, request.question.messages)
    return replace(request, question=replace(request.question, messages=messages))


def _reference(wanted: PromptVersion) -> str:
    which = wanted.label or str(wanted.version or "")
    return f"{wanted.name}@{which}" if which else wanted.name


def _values(request: Request) -> Mapping[str, Any]:
    """What fills the blanks. In the Responses API a value may be a part of a message: of these, texts can."""
    if request.dialect != "responses":
        return request.variables
    return {name: _plain(name, value) for name, value in request.variables.items()}


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or value.get("type") not in ("input_text", "input_image", "input_file"):
        return value
    if value["type"] != "input_text" or not isinstance(value.get("text"), str):
        raise InputError(f"the variable {name[:60]!r} is no text", "fill blanks with texts, and send files as messages")
    return value["text"]
