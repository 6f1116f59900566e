"""Rollouts with tools: calls are found in a turn, made, and their results shown as the model's chat template does.

    turn -> calls -> results -> text -> turn -> ... -> answer

A call that fails, for whatever reason, has the reason as its result: the model is to learn from it. A sample whose last
turn calls tools still, when its turns or its tokens are used up, has no answer and counts as cut off.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ponder import sandbox
from ponder.chat.parse import Parser
from ponder.errors import InputError
from ponder.protocols import Tool
from ponder.train.loop import run
from ponder.train.rollout import Ask, Environment, Reply, Rollout, Rollouts, with_turns
from ponder.train.texts import Texts
from ponder.types import Message, Question, Sample, Text, ToolCall, ToolResult, user

SECONDS = 60.0
"""How long a call may take; tools may have shorter limits of their own."""

LONGEST = 2000
"""Characters of a result that the model is shown."""

_HERE, _RESULT = "PONDERcalledHERE", "PONDERgotTHIS"
_MEND = "Leave tools out, or take another model"
_HOW = 'a call is {"name": ..., "arguments": {...}}'


def telling(texts: Texts, tools: Sequence[Tool]) -> Texts:
    """`texts` whose prompts tell the model of the tools, where its chat template shows any."""
    told = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": dict(t.schema)}}
        for t in tools
    ]
    # What switches thinking on is given to the template with every prompt, and the tools beside it.
    return replace(texts, format=replace(texts.format, switches_on={**texts.format.switches_on, "tools": told}))


def check(tools: Sequence[Tool], texts: Texts) -> None:
    """Raises InputError where the chat template cannot show results, Unsupported where a tool cannot run here."""
    call = ToolCall(tools[0].name, "{}", "123456789")
    try:
        if _RESULT not in shown(texts, [call], [ToolResult(call.id, _RESULT)]):
            raise InputError("its chat template leaves results out")
    except InputError as error:
        raise InputError(f"this model can be shown no results of tools: {error.problem}", _MEND) from None
    if any(tool.name == "run_code" for tool in tools):
        run(sandbox.check())


def with_tools(rollouts: Rollouts, tools: Sequence[Tool], texts: Texts, *, turns: int, least: int = 1) -> Rollouts:
    """Samples in which the model may call tools and go on with their results; see `with_turns`."""
    sample = with_turns(rollouts, answered(tools, texts), texts, turns=turns, least=least)

    def cut(asks: Sequence[Ask]) -> list[list[Rollout]]:
        return [[_without_answer(each, texts) for each in group] for group in sample(asks)]

    return cut


def answered(tools: Sequence[Tool], texts: Texts, seconds: float = SECONDS) -> Environment:
    """What makes the calls of a turn, all at once, and writes their results; None for a turn without calls."""
    known = {tool.name: tool for tool in tools}
    gate = asyncio.Semaphore(os.cpu_count() or 1)  # more code at once would only take time from each other

    async def result(call: ToolCall) -> ToolResult:
        async with gate:
            return await _result(call, known, seconds)

    async def answer(question: Question, turn: Sample) -> Reply | None:
        calls = _calls(turn.text, texts, texts.format.inside(texts.decode(turn.prompt_ids)))
        if turn.finish != "stop" or not calls:
            return None
        results = [_shortened(each, texts) for each in await asyncio.gather(*map(result, calls))]
        ended = "" if turn.ids[-1:] == (texts.end,) else texts.template.eos  # some servers keep it to themselves
        return Reply(ended + shown(texts, calls, results), len(calls), sum(each.error for each in results), turn=True)

    return answer


def shown(texts: Texts, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> str:
    """What the chat template writes after the end of a turn with `calls`: results, and where the next turn begins.

    Raises InputError for a template that fails, or that does not end turns as the model does.
    """
    spelled = [replace(call, name=call.name or "unknown", arguments=json.dumps({"at": _HERE})) for call in calls]
    turn = Message("assistant", (Text(_HERE), *spelled))
    messages = (user("Hello"), turn, Message("tool", tuple(results)))
    text = texts.template.render(messages, **texts.format.switches_on)
    _, ended, reply = text.rpartition(_HERE)[2].partition(texts.template.eos)
    if not ended:
        raise InputError("the chat template does not end a turn that calls tools", _MEND)
    return reply + texts.format.begin(reply, True)


def _calls(text: str, texts: Texts, inside: bool) -> list[ToolCall]:
    parser = Parser(texts.format, inside)
    return [piece.call for piece in [*parser.feed(text), *parser.finish()] if piece.call is not None]


async def _result(call: ToolCall, tools: Mapping[str, Tool], seconds: float) -> ToolResult:
    try:
        if not call.name:
            raise ValueError(f"the call cannot be read: {_HOW}")
        if call.name not in tools:
            raise ValueError(f"there is no tool {call.name!r}: choose from {', '.join(tools)}")
        arguments = json.loads(call.arguments)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments are no object: {_HOW}")
        async with asyncio.timeout(seconds):
            return ToolResult(call.id, await tools[call.name].run(**arguments))
    except TimeoutError:
        return ToolResult(call.id, f"error: {call.name} took longer than {seconds:g} s", True)
    except Exception as fault:  # whatever a tool does wrong is the model's to read
        return ToolResult(call.id, f"error: {fault}" if str(fault) else f"error: {type(fault).__name__}", True)


def _shortened(result: ToolResult, texts: Texts) -> ToolResult:
    """The result as the model is shown it. What it printed itself must not end its turn, or begin another."""
    content = result.content
    for mark in texts.format.ends:
        content = content.replace(mark, "")
    return replace(result, content=content if len(content) <= LONGEST else content[:LONGEST] + " ...")


def _without_answer(rollout: Rollout, texts: Texts) -> Rollout:
    sample = rollout.sample
    if sample.finish != "stop" or not _calls(sample.answer, texts, False):
        return rollout
    return replace(rollout, sample=replace(sample, answer="", finish="length"))
