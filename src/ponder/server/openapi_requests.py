"""What requests may hold, as JSON schemas: of each dialect the fields that it reads, by the names that it has for them.

A schema is never stricter than what reads the request, which says what is wrong with it in one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from ponder.server import anthropic, openai_chat, openai_completions, openai_embeddings, openai_fields, openai_responses
from ponder.server.wanted import EFFORTS, LONGEST_WAIT

Schema = dict[str, Any]

ANY: Schema = {}
TEXT: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": ["boolean", "null"]}
OBJECT: Schema = {"type": ["object", "null"]}
ROWS: Schema = {"type": ["array", "null"], "items": {"type": "object"}}
NAME: Schema = {"type": "string", "minLength": 1}


def whole(least: int = 0, most: int | None = None) -> Schema:
    """A whole number or null."""
    return {"type": ["integer", "null"], "minimum": least, **({} if most is None else {"maximum": most})}


def number(**bounds: float) -> Schema:
    """A number or null."""
    return {"type": ["number", "null"], **bounds}


def one_of(values: Iterable[Any]) -> Schema:
    """One of some values, or null."""
    return {"enum": [*values, None]}


PONDER: Schema = {
    "type": ["object", "null"],
    "description": "What is asked of ponder itself.",
    "additionalProperties": False,
    "properties": {
        "strategy": {**TEXT, "description": 'auto, or an expression such as "vote(8)".'},
        "budget": {
            "description": "Tokens of a choice, or several bounds.",
            "anyOf": [
                whole(1),
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "tokens": whole(1),
                        "thinking": whole(0),
                        "answer": whole(1),
                        "calls": whole(1),
                        "seconds": number(exclusiveMinimum=0, maximum=LONGEST_WAIT),
                        "dollars": number(exclusiveMinimum=0, maximum=1e9),
                    },
                },
            ],
        },
        "effort": one_of(EFFORTS),
        "deadline": {
            **number(exclusiveMinimum=0, maximum=LONGEST_WAIT),
            "description": "Seconds from now by which the best answer so far is wanted.",
        },
        "prompt": {**TEXT, "description": "A stored prompt: NAME, NAME@VERSION or NAME@LABEL."},
        "variables": {**OBJECT, "description": "What fills the blanks of the stored prompt."},
    },
}

_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}},
}
_STOPS: Schema = {"anyOf": [TEXT, {"type": "array", "items": {"type": "string"}, "maxItems": openai_fields.MOST_STOPS}]}
_TOOLS: Schema = {
    "type": ["array", "null"],
    "items": {"type": "object", "required": ["type"], "properties": {"type": {"const": "function"}}},
}
_FORMAT: Schema = {
    "type": ["object", "null"],
    "required": ["type"],
    "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
}
_NOTES: Schema = {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": TEXT}

_FIELDS: Mapping[str, Schema] = {
    "model": {**NAME, "description": "A name of /v1/models, with suffixes such as :vote-8 or :high."},
    "messages": {"type": ["array", "null"], "items": _MESSAGE},
    "prompt": {"type": ["string", "array"], "minItems": 1},
    "input": {"type": ["string", "array", "null"]},
    "system": {"type": ["string", "array", "null"]},
    "instructions": TEXT,
    "n": whole(1, openai_fields.MOST_CHOICES),
    "best_of": whole(1, openai_fields.MOST_CHOICES),
    "temperature": number(minimum=0, maximum=2),
    "top_p": number(exclusiveMinimum=0, maximum=1),
    "top_k": whole(-1),
    "min_p": number(minimum=0, exclusiveMaximum=1),
    "seed": {"type": ["integer", "null"]},
    "stop": _STOPS,
    "stop_sequences": {"type": ["array", "null"], "items": {"type": "string"}},
    "frequency_penalty": number(minimum=-2, maximum=2),
    "presence_penalty": number(minimum=-2, maximum=2),
    "logit_bias": {"type": ["object", "null"], "additionalProperties": number(minimum=-100, maximum=100)},
    "ignore_eos": FLAG,
    "stream": FLAG,
    "stream_options": OBJECT,
    "user": TEXT,
    "safety_identifier": TEXT,
    "metadata": _NOTES,
    "ponder": PONDER,
    "tools": _TOOLS,
    "tool_choice": {"type": ["string", "object", "null"]},
    "parallel_tool_calls": FLAG,
    "response_format": _FORMAT,
    "output_format": OBJECT,
    "output_config": OBJECT,
    "text": OBJECT,
    "logprobs": FLAG,
    "top_logprobs": whole(0, openai_fields.MOST_LIKELIEST),
    "echo": FLAG,
    "store": FLAG,
    "max_completion_tokens": whole(1),
    "max_tokens": whole(1),
    "max_output_tokens": whole(1),
    "reasoning_effort": one_of(EFFORTS),
    "thinking_level": one_of(EFFORTS),
    "reasoning": OBJECT,
    "thinking": OBJECT,
    "thinking_budget": whole(-1),
    "thinking_token_budget": whole(-1),
    "reasoning_budget_tokens": whole(-1),
    "enable_thinking": FLAG,
    "include_reasoning": FLAG,
    "chat_template_kwargs": OBJECT,
    "previous_response_id": TEXT,
    "truncation": one_of(("auto", "disabled")),
    "include": {"type": ["array", "null"], "items": {"type": "string"}},
}


def requests() -> dict[str, Schema]:
    """The bodies of requests by their names."""
    shared = (*openai_fields.READ, *openai_fields.WITHOUT_EFFECT)
    neutral = {name: one_of(values) for name, values in openai_fields.NEUTRAL.items()}
    chat = _body((*openai_chat.READ, *shared), ("model",), neutral)
    logprobs = {"logprobs": whole(0, openai_fields.MOST_LIKELIEST)}
    completion = _body((*openai_completions.READ, *shared), ("model",), {**neutral, **logprobs})
    refused = {name: {"description": f"Not supported: {mend}."} for name, mend in openai_responses.REFUSED.items()}
    stored = {"prompt": {**OBJECT, "description": "A stored prompt: id, version, variables."}}
    calls = {"max_tool_calls": whole(0)}
    response = _body(
        (*openai_responses.READ, *openai_responses.WITHOUT_EFFECT), ("model",), {**refused, **stored, **calls}
    )
    cooler: Schema = {"temperature": number(minimum=0, maximum=1), "top_k": whole(0), "metadata": OBJECT, "tools": ROWS}
    message = _body((*anthropic.READ, *anthropic.WITHOUT_EFFECT), ("model", "max_tokens"), cooler)
    counting = _body((*anthropic.READ, *anthropic.WITHOUT_EFFECT), ("model",), cooler)
    return {
        "ChatRequest": chat,
        "CompletionRequest": completion,
        "ResponseRequest": response,
        "MessageRequest": {**message, "additionalProperties": False},
        "CountRequest": {**counting, "additionalProperties": False},
        "EmbeddingRequest": {
            "type": "object",
            "required": ["model", "input"],
            "properties": {
                "model": NAME,
                "input": {
                    "description": "A text, token ids, or a list of either.",
                    "type": ["string", "array"],
                    "minItems": 1,
                    "minLength": 1,
                    "items": {"type": ["string", "integer", "array"]},
                },
                "encoding_format": one_of(get_args(openai_embeddings.Encoding)),
                "dimensions": whole(1, openai_embeddings.MOST_DIMENSIONS),
                "user": TEXT,
                "ponder": PONDER,
            },
            "additionalProperties": {"type": "null"},
        },
        "TranscriptionForm": {
            "type": "object",
            "description": "Further fields are handed on as they are.",
            "required": ["file", "model"],
            "properties": {"file": {"type": "string", "format": "binary"}, "model": NAME},
        },
        "SpeechRequest": {
            "type": "object",
            "description": "Further fields are handed on as they are.",
            "required": ["model", "input"],
            "properties": {"model": NAME, "input": NAME},
        },
        "TokenizeRequest": {
            "type": "object",
            "properties": {
                "model": TEXT,
                "prompt": TEXT,
                "messages": _FIELDS["messages"],
                "tools": _TOOLS,
                "add_special_tokens": FLAG,
                "add_generation_prompt": FLAG,
            },
            "additionalProperties": False,
        },
        "DetokenizeRequest": {
            "type": "object",
            "required": ["tokens"],
            "properties": {
                "model": TEXT,
                "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}},
            },
            "additionalProperties": False,
        },
    }


def _body(names: Iterable[str], required: Iterable[str], special: Mapping[str, Schema]) -> Schema:
    """An object of fields; one that is not known may only be null."""
    ignored = {*openai_fields.WITHOUT_EFFECT, *openai_responses.WITHOUT_EFFECT, *anthropic.WITHOUT_EFFECT}
    properties = {name: special.get(name) or (ANY if name in ignored else _FIELDS[name]) for name in names}
    return {
        "type": "object",
        "required": list(required),
        "properties": {**properties, **special},
        "additionalProperties": {"type": "null"},
    }
