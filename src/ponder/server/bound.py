"""What holds an answer by a grammar: JSON, JSON of a schema, a call of a tool that has to come, a call or else JSON.

It is refused where the engine binds samples to no grammar: an answer that only may be what was asked for is another
one. Whoever asks for nothing of it pays nothing for it.
"""

from __future__ import annotations

from ponder.chat import answer_grammar
from ponder.chat.model import Model
from ponder.errors import InputError
from ponder.server.failures import invalid
from ponder.server.request import Request

_SHAPES = {"responses": "text.format", "anthropic": "output_config.format"}


def grammar_of(request: Request, model: Model) -> str:
    """The grammar for `Model.answer_grammar` that a request comes to, "" for none.

    Raises Refusal, which names the field: where the engine has no grammars, and for a schema that none can be made of.
    """
    field = _field(request)
    if not field:
        return ""
    if not model.engine.capabilities.grammar:
        mend = "ask a model that ponder runs itself, or leave it out"
        raise invalid(f"{model.name} runs on an engine that holds answers to no {field}", mend, field)
    try:
        grammar = _grammar(request, model)
        answer_grammar.check(grammar)
    except InputError as error:
        raise invalid(error.problem, error.mend, field) from None
    return grammar


def _field(request: Request) -> str:
    """The field that binds the answer."""
    choice, shape = request.tool_choice, _SHAPES.get(request.dialect, "response_format")
    if choice.mode in ("required", "named"):
        return "tool_choice"
    return "" if request.shape.kind == "text" else shape


def _grammar(request: Request, model: Model) -> str:
    choice, shape, tools = request.tool_choice, request.shape, request.question.tools
    style = answer_grammar.style_of(model.template.source, model.format.channels)
    if choice.mode in ("required", "named"):
        return answer_grammar.tool_call(style, tools, choice.name, choice.parallel)
    if tools and choice.mode == "auto":
        return answer_grammar.call_or_json(style, tools, shape.schema, choice.parallel)
    return answer_grammar.any_json() if shape.schema is None else answer_grammar.json_schema(shape.schema)
