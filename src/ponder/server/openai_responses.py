"""The dialect OpenAI Responses: a body into a `Request`. `responses_items` reads what it holds of a conversation,
`responses_reply` has the way back.

    previous = store.chain(previous_id(body), owner) if previous_id(body) else ()
    request = read(body, headers, id, previous, signer)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ponder.server.json_body import Body, Fields, opened, wrong
from ponder.server.openai_fields import metadata_of, sampling_of, user_of
from ponder.server.request import PromptVersion, Request, Shape, Shown, ToolChoice
from ponder.server.responses_items import Item, items_of, messages_of
from ponder.server.responses_reply import Wire, outputs, stream, whole
from ponder.server.signatures import Signer
from ponder.server.wanted import EFFORTS, Said, effort_said, model_and_suffix, wanted
from ponder.types import Message, Question, Text

__all__ = ["Wire", "input_items", "outputs", "previous_id", "read", "stream", "whole", "wire_of"]

MOST_LIKELIEST = 20

READ = (
    *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "prompt"),
    *("max_output_tokens", "previous_response_id", "store", "metadata", "truncation", "include", "stream"),
    *("stream_options", "safety_identifier", "user", "top_logprobs", "temperature", "top_p", "ponder"),
    # No fields of OpenAI's: what other dialects have, under the same names.
    *("top_k", "min_p", "seed", "stop", "frequency_penalty", "presence_penalty", "logit_bias", "ignore_eos"),
)
WITHOUT_EFFECT = (
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier", "max_tool_calls"),
    "client_metadata",
)
"""Fields that only help a server along, or bound tools that are not there."""
REFUSED = {
    "background": "keep the connection open, or stream",
    "conversation": "go on from previous_response_id",
    "context_management": "send the items that are to be seen",
    "moderation": "leave it out",
}
_INCLUDES = (
    *("reasoning.encrypted_content", "message.output_text.logprobs"),
    # About tools that are not there.
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs"),
)
_SUMMARIES = ("auto", "concise", "detailed")
_MODES: Mapping[str, Any] = {"auto": "auto", "none": "none", "required": "required"}

Tools = tuple[Mapping[str, Any], ...]


def read(body: Body, headers: Mapping[str, str], id: str, previous: Sequence[Item] | None, signer: Signer) -> Request:
    """What a client asks for. `previous`: the items behind `previous_response_id`, None where it names none.

    Raises Refusal, which names the field.
    """
    fields = opened(body)
    _check_known(fields)
    if (fields.text("previous_response_id") is None) != (previous is None):
        raise fields.wrong("previous_response_id", "cannot be gone on from here", "send the conversation as input")
    model, _ = model_and_suffix(fields.need_text("model"))
    want = wanted(fields, headers, [*_effort(fields), *_prompt(fields)], fields.whole("max_output_tokens", 1))
    items = [*(previous or ()), *items_of(fields, id, previous or (), model, signer)]
    if not items and want.prompt is None:
        raise fields.wrong("input", "is missing or empty", "send a text or items")
    instructions = fields.text("instructions")
    head = (Message("system", (Text(instructions),)),) if instructions else ()
    choice, tools = _tool_choice(fields, _tools(fields))
    return Request(
        id=id,
        model=want.model,
        question=Question((*head, *messages_of(items, model, signer)), tools=tools),
        strategy=want.strategy,
        effort=want.effort,
        budget=want.budget,
        think=want.think,
        deadline=want.deadline,
        sampling=sampling_of(fields, _logprobs(fields)),
        tool_choice=choice,
        shape=_shape(fields),
        stream=fields.flag("stream", False),
        store=fields.flag("store", True),
        prompt=want.prompt,
        variables=want.variables,
        shown=Shown(),
        user=user_of(fields),
        metadata=metadata_of(fields),
        dialect="responses",
    )


def previous_id(body: Body) -> str | None:
    """The response that the request goes on from. Raises Refusal."""
    return opened(body).text("previous_response_id")


def input_items(body: Body, id: str, previous: Sequence[Item] | None, signer: Signer) -> list[Item]:
    """The items of a body that `read` took, each with an id: what is kept of it."""
    fields = opened(body)
    model, _ = model_and_suffix(fields.need_text("model"))
    return list(items_of(fields, id, previous or (), model, signer))


def wire_of(body: Body, signer: Signer, created: float) -> Wire:
    """How a reply is written to the sender of a body that `read` took. `created`: now, in seconds since 1970."""
    fields = opened(body)
    reasoning = fields.object("reasoning") or Fields({})
    return Wire(
        signer,
        created=int(created),
        summary=_summary(reasoning) is not None,
        encrypted="reasoning.encrypted_content" in fields.texts("include"),
        echo={
            "background": False,
            "instructions": fields.text("instructions"),
            "max_output_tokens": fields.whole("max_output_tokens", 1),
            "max_tool_calls": fields.whole("max_tool_calls"),
            "metadata": metadata_of(fields),
            "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
            "previous_response_id": fields.text("previous_response_id"),
            "reasoning": {"effort": reasoning.text("effort"), "summary": _summary(reasoning)},
            "safety_identifier": fields.text("safety_identifier"),
            "service_tier": "default",
            "store": fields.flag("store", True),
            "temperature": fields.raw("temperature"),
            "text": _text(fields),
            "tool_choice": fields.raw("tool_choice") or "auto",
            "tools": [_flat(tool) for tool in _tools(fields)],
            "top_logprobs": _logprobs(fields) or 0,
            "top_p": fields.raw("top_p"),
            "truncation": "disabled",  # nothing is ever left out of a prompt, whatever was asked
            "user": fields.text("user"),
        },
    )


# ---------------------------------------------------------------- settings


def _check_known(body: Fields) -> None:
    for name, mend in REFUSED.items():
        if body.raw(name):
            raise body.wrong(name, "is not supported", mend)
    known = Fields({name: value for name, value in body.values.items() if value is not None and name not in REFUSED})
    known.only(*READ, *WITHOUT_EFFECT)
    for number, value in enumerate(body.texts("include")):
        if value not in _INCLUDES:
            raise wrong(f"include[{number}]", f"{value[:60]!r} is not known", f"choose from {', '.join(_INCLUDES)}")
    body.one_of("truncation", ("auto", "disabled"))
    body.object("stream_options")
    body.whole("max_tool_calls")


def _effort(body: Fields) -> list[Said]:
    reasoning = body.object("reasoning")
    if reasoning is None:
        return []
    reasoning.only("effort", "summary", "generate_summary", "context", "mode")
    if reasoning.text("mode", "standard") != "standard":
        raise reasoning.wrong("mode", "is not supported", "leave it out, or ask for a strategy")
    _summary(reasoning)
    effort = reasoning.one_of("effort", EFFORTS)
    return [] if effort is None else effort_said(effort, "reasoning.effort")


def _summary(reasoning: Fields) -> str | None:
    return reasoning.one_of("summary", _SUMMARIES) or reasoning.one_of("generate_summary", _SUMMARIES)


def _prompt(body: Fields) -> list[Said]:
    """A stored prompt: `version` is a number or a label."""
    prompt = body.object("prompt")
    if prompt is None:
        return []
    prompt.only("id", "version", "variables")
    version = prompt.text("version", "")
    number = int(version) if version.isascii() and version.isdecimal() and len(version) < 10 else 0
    named = PromptVersion(prompt.need_text("id"), number, "" if number else version)
    said = [Said("prompt", named, "prompt")]
    if (variables := prompt.object("variables")) is not None:
        said.append(Said("variables", variables.values, "prompt.variables"))
    return said


def _logprobs(body: Fields) -> int | None:
    likeliest = body.whole("top_logprobs", 0, MOST_LIKELIEST)
    return likeliest or 0 if "message.output_text.logprobs" in body.texts("include") else likeliest


def _shape(body: Fields) -> Shape:
    text = body.object("text") or Fields({}, "text")
    if text.text("verbosity", "medium") != "medium":
        raise text.wrong("verbosity", "is not supported but for 'medium'", "leave it out")
    shape = text.object("format")
    if shape is None:
        return Shape()
    kind = shape.one_of("type", ("text", "json_object", "json_schema")) or shape.need("type")
    if kind != "json_schema":
        return Shape("json") if kind == "json_object" else Shape()
    shape.flag("strict")
    shape.text("description")
    return Shape("schema", dict(shape.need_object("schema").values), shape.need_text("name"))


def _text(body: Fields) -> dict[str, Any]:
    text = body.object("text") or Fields({})
    shape = text.object("format")
    return {"format": dict(shape.values) if shape else {"type": "text"}, "verbosity": "medium"}


# ---------------------------------------------------------------- tools


def _tools(body: Fields) -> Tools:
    tools = tuple(_tool(each) for each in body.objects("tools"))
    names = [tool["function"]["name"] for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise wrong(f"tools[{number}].name", f"{name!r} is there twice", "rename one")
    return tools


def _tool(tool: Fields) -> Mapping[str, Any]:
    """A tool as chat templates know it."""
    if tool.need_text("type") != "function":
        raise tool.wrong("type", f"tools of the type {tool.raw('type')[:60]!r} are not run here", "send functions")
    function: dict[str, Any] = {"name": tool.need_text("name")}
    if (description := tool.text("description")) is not None:
        function["description"] = description
    parameters = tool.object("parameters")
    function["parameters"] = dict(parameters.values) if parameters else {"type": "object", "properties": {}}
    if tool.flag("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def _flat(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as this dialect writes it."""
    return {"type": "function", "description": None, "strict": False, **tool["function"]}


def _tool_choice(body: Fields, tools: Tools) -> tuple[ToolChoice, Tools]:
    """Which tools may or must be called, and those that are left to choose from."""
    parallel = body.flag("parallel_tool_calls", True)
    if not isinstance(body.raw("tool_choice"), Mapping):
        mode = _MODES[body.one_of("tool_choice", tuple(_MODES)) or "auto"]
        if mode == "required" and not tools:
            raise body.wrong("tool_choice", "wants a call, but there are no tools", "send tools")
        return ToolChoice(mode, parallel=parallel), tools
    choice = body.need_object("tool_choice")
    choice.need("type")
    if choice.one_of("type", ("function", "allowed_tools")) == "function":
        return ToolChoice("named", _offered(choice, tools), parallel), tools
    chosen = {_offered(each, tools) for each in choice.objects("tools")}
    if not chosen:
        raise choice.wrong("tools", "is empty", "name some, or leave tool_choice out")
    mode = _MODES[choice.one_of("mode", ("auto", "required")) or "auto"]
    return ToolChoice(mode, parallel=parallel), tuple(tool for tool in tools if tool["function"]["name"] in chosen)


def _offered(choice: Fields, tools: Tools) -> str:
    name = choice.need_text("name")
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise choice.wrong("name", f"{name[:128]!r} is not among the tools", f"choose from {', '.join(names)}")
    return name
