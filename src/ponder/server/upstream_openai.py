"""OpenAI's chat and completions as spoken by OpenAI and by vLLM, SGLang, llama-server, Ollama, OpenRouter, DeepSeek
and Qwen, which differ in how thinking is asked for, how it comes back, and what they know beside the common fields.

What a server is not known to have is refused by name, not left out in silence. Thinking is read under both of its
names, `reasoning_content` and `reasoning`, and as parts of the content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ponder.server import upstream_vectors
from ponder.server.events import Call, Content, Ended, Reason, Reasoning, ReplyEvent, Token, Usage
from ponder.server.failures import invalid
from ponder.server.request import Request
from ponder.server.signatures import SignedThinking, ours
from ponder.server.upstream_dialect import (
    Ask,
    Failed,
    Hard,
    Heard,
    count_of,
    is_object,
    number_of,
    object_of,
    objects_of,
    spent,
    text_of,
    token_of,
)
from ponder.server.upstream_thinking import Flavour, amount, thinking_fields
from ponder.types import Audio, Image, Message, Text, Thinking, ToolCall, ToolResult, Video

Enforced = Literal["", "hard", "hint", "cut"]

_REASONS: Mapping[str, Reason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "refusal",
    "abort": "cancelled",
    "error": "cancelled",
}
_REPLAYED: Mapping[Flavour, tuple[str, ...]] = {
    "vllm": ("reasoning", "reasoning_content"),
    "sglang": ("reasoning_content",),
    "llama-server": ("reasoning_content",),
    "ollama": ("reasoning",),
    "openrouter": ("reasoning",),
    "deepseek": ("reasoning_content",),
    "qwen": ("reasoning_content",),
}
"""Where the thinking of earlier turns goes; OpenAI's own chat takes none."""
_LOCAL: frozenset[Flavour] = frozenset({"vllm", "sglang", "llama-server"})
_DRAWS: Mapping[str, frozenset[Flavour]] = {
    "top_k": _LOCAL | {"ollama", "openrouter", "qwen"},
    "min_p": _LOCAL | {"openrouter"},
    "ignore_eos": _LOCAL,
}
_ONE_CHOICE: frozenset[Flavour] = frozenset({"ollama", "openrouter", "deepseek", "qwen"})
"""Those that give one choice, whatever `n` says."""
_ANY_JSON: frozenset[Flavour] = frozenset({"deepseek"})
"""Those that hold answers to JSON, but to no schema."""
_PLAIN = frozenset({"role", "content"})
"""The fields of a piece that has nothing but text in it."""
_CONTINUED: frozenset[Flavour] = frozenset({"vllm", "sglang"})
"""Those that go on from the beginning of an answer."""


@dataclass(frozen=True)
class OpenAI:
    """flavour: which server it is. efforts: those that its models know. enforced: what becomes of a budget for
    thinking, "" for what is known of the flavour; "cut": we end the thinking once it is spent. provider: as prices know
    it.
    """

    flavour: Flavour = "openai"
    efforts: tuple[str, ...] = ()
    enforced: Enforced = ""
    provider: str = ""

    @property
    def several(self) -> bool:
        """Whether it obeys `n`."""
        return self.flavour not in _ONE_CHOICE

    @property
    def hands(self) -> bool:
        """It is what clients speak, too."""
        return True

    def headers(self, key: str) -> Mapping[str, str]:
        """The key as a bearer's."""
        return {"authorization": f"Bearer {key}"} if key else {}

    # ------------------------------------------------------------ the request

    def ask(self, request: Request, model: str) -> Ask:
        """Chat, or completions for a raw text. Raises Refusal."""
        wanted = amount(request)
        if request.raw is not None or request.raw_ids:
            return Ask("/completions", self._raw(request, model))
        thinking, hard = thinking_fields(wanted, self.flavour, self.efforts)
        hard, limit = self._kept(hard, wanted.tokens)
        body = {
            "model": model,
            "messages": [said for message in request.question.messages for said in self._messages(message)],
            **self._drawn(request),
            **self._tools(request),
            **_shape(request, self.flavour),
            **thinking,
            **self._streamed(limit is not None),
        }
        return Ask("/chat/completions", body, hard, limit if request.n == 1 else None)

    def closed(self, request: Request, model: str, thinking: str, used: int) -> Ask | None:
        """The same with the thinking so far, closed, as the beginning of the answer."""
        if self.flavour not in _CONTINUED or request.n != 1:
            return None
        begun = {"role": "assistant", "content": f"<think>\n{thinking.strip()}\n</think>\n\n"}
        asked = self.ask(request, model)
        body = {**asked.body, "messages": [*asked.body["messages"], begun]}
        most = request.budget.tokens
        if most is not None:
            body[self._most] = max(1, most - used)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
        return Ask(asked.path, body, "hard")

    def _kept(self, hard: Hard, tokens: int | None) -> tuple[Hard, int | None]:
        """What becomes of a budget, and the limit that we keep."""
        enforced = self.enforced or ("cut" if self.flavour == "sglang" else "")
        if hard == "none" or not tokens or not enforced:
            return hard, None
        if enforced == "cut":
            return ("hard", tokens) if self.flavour in _CONTINUED else ("hint", None)
        return ("hard" if enforced == "hard" else "hint"), None

    @property
    def _most(self) -> str:
        return "max_completion_tokens" if self.flavour == "openai" else "max_tokens"

    def _streamed(self, counted: bool = False) -> dict[str, Any]:
        options = {"include_usage": True, **({"continuous_usage_stats": True} if counted else {})}
        return {"stream": True, "stream_options": options}

    def _drawn(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        for name, flavours in _DRAWS.items():
            if getattr(sampling, name) not in (None, False) and self.flavour not in flavours:
                raise invalid(f"{request.model} has no {name}", "leave it out", name)
        body: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": sampling.seed,
            self._most: request.budget.tokens,
            "stop": list(sampling.stop) or None,
            "frequency_penalty": sampling.frequency_penalty or None,
            "presence_penalty": sampling.presence_penalty or None,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
            "ignore_eos": sampling.ignore_eos or None,
            "n": request.n if request.n > 1 else None,
            "user": request.user or None,
        }
        if sampling.logprobs is not None and request.raw is None and not request.raw_ids:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs or None}
        return {name: value for name, value in body.items() if value is not None}

    def _raw(self, request: Request, model: str) -> dict[str, Any]:
        if request.echo:
            raise invalid(f"{request.model} tells nothing of the prompt's tokens", "leave echo out", "echo")
        prompt: Any = list(request.raw_ids) or request.raw
        body = {"model": model, "prompt": prompt, **self._drawn(request), **self._streamed()}
        body |= _shape(request, self.flavour)
        if (most := body.pop("max_completion_tokens", None)) is not None:
            body["max_tokens"] = most
        if request.sampling.logprobs is not None:
            body["logprobs"] = request.sampling.logprobs
        return body

    def _tools(self, request: Request) -> dict[str, Any]:
        if not request.question.tools:
            return {}
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice.name}}
        body: dict[str, Any] = {"tools": [dict(tool) for tool in request.question.tools]}
        if choice.mode != "auto":
            body["tool_choice"] = named if choice.mode == "named" else choice.mode
        if not choice.parallel:
            body["parallel_tool_calls"] = False
        return body

    def _messages(self, message: Message) -> list[dict[str, Any]]:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        said = [{"role": "tool", "tool_call_id": each.id, "content": each.content} for each in results]
        if len(results) == len(message.parts) and results:
            return said
        return [*said, self._assistant(message) if message.role == "assistant" else _asked(message)]

    def _assistant(self, message: Message) -> dict[str, Any]:
        calls = [
            {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
            for part in message.parts
            if isinstance(part, ToolCall)
        ]
        thoughts = [part for part in message.parts if isinstance(part, Thinking)]
        said: dict[str, Any] = {"role": "assistant", "content": message.text or (None if calls else "")}
        if calls:
            said["tool_calls"] = calls
        if text := "".join(thought.text for thought in thoughts):
            said |= dict.fromkeys(_REPLAYED.get(self.flavour, ()), text)
        if self.flavour == "openrouter" and (details := [each for part in thoughts for each in _details(part)]):
            said["reasoning_details"] = details
        return said

    # ------------------------------------------------------------ the answer

    def reading(self, request: Request) -> _Reading:
        """See `upstream_dialect.Dialect`."""
        return _Reading(request, self.flavour)

    def counting(self, request: Request, model: str) -> Ask | None:
        """vLLM counts the tokens of a conversation."""
        if self.flavour != "vllm" or request.raw is not None:
            return None
        body = self.ask(request, model).body
        return Ask("//tokenize", {name: body[name] for name in ("model", "messages", "tools") if name in body})

    def counted(self, document: Mapping[str, Any]) -> int | None:
        """Of what `counting` gives."""
        return count_of(document.get("count")) or None

    def embedding(self, request: Request, model: str) -> Ask:
        """POST /embeddings."""
        return upstream_vectors.asked(request, model)

    def embedded(self, document: Mapping[str, Any]) -> tuple[list[Any], int | None]:
        """The vectors by their index."""
        return upstream_vectors.told(document)

    def failed(self, document: Any) -> str:
        """The message, which servers put into several places."""
        error = object_of(document).get("error")
        inner = object_of(error)
        nested = text_of(object_of(inner.get("metadata")).get("raw"))  # where OpenRouter puts a provider's own words
        found = text_of(inner.get("message")) or text_of(error) or text_of(object_of(document).get("message"))
        detail = object_of(document).get("detail")
        return " ".join(each for each in (found or text_of(detail), nested[:500]) if each)

    def listed(self, document: Mapping[str, Any]) -> dict[str, int]:
        """GET /models."""
        found = {}
        for entry in objects_of(document.get("data")):
            context = count_of(entry.get("max_model_len")) or count_of(entry.get("context_length"))
            if name := text_of(entry.get("id")):
                found[name] = context or count_of(object_of(entry.get("meta")).get("n_ctx_train"))
        return found


def _shape(request: Request, flavour: Flavour) -> dict[str, Any]:
    shape = request.shape
    if shape.kind == "schema" and flavour in _ANY_JSON:
        problem = f"{request.model} is behind a server that knows no schemas"
        raise invalid(problem, 'ask for {"type": "json_object"}, and tell the schema in words', "response_format")
    if shape.kind == "text":
        return {}
    if shape.kind == "json":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": shape.name or "answer", "schema": dict(shape.schema or {}), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _asked(message: Message) -> dict[str, Any]:
    parts = [part for part in message.parts if not isinstance(part, ToolResult)]
    if all(isinstance(part, Text) for part in parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [each for part in parts for each in _parts(part)]}


def _parts(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, Text):
        return [{"type": "text", "text": part.text}]
    if isinstance(part, Image):
        return [{"type": "image_url", "image_url": {"url": part.url}}]
    if isinstance(part, Video):
        return [{"type": "image_url", "image_url": {"url": frame}} for frame in part.frames]
    if isinstance(part, Audio):
        head, comma, data = part.url.partition(",")
        if not comma or not head.startswith("data:audio/"):
            return [{"type": "audio_url", "audio_url": {"url": part.url}}]
        kind = head.removeprefix("data:audio/").partition(";")[0]
        sound = {"data": data, "format": {"mpeg": "mp3", "x-wav": "wav"}.get(kind, kind)}
        return [{"type": "input_audio", "input_audio": sound}]
    return []


def _details(thought: Thinking) -> list[dict[str, Any]]:
    """Thinking with its provider's proof, as OpenRouter takes it back."""
    if not isinstance(thought, SignedThinking):
        return []
    if thought.redacted:
        return [{"type": "reasoning.encrypted", "data": thought.redacted}]
    if thought.signature and not ours(thought.signature):
        return [{"type": "reasoning.text", "text": thought.text, "signature": thought.signature}]
    return []


# ---------------------------------------------------------------- reading


class _Calls:
    """The calls of a choice, numbered as they begin.

    Some servers give every call index 0, or none, or no ids: another id begins another call, and so does a name after
    arguments that are whole.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._arguments: dict[int, str] = {}
        self._last = 0
        self.count = 0

    def number(self, index: int | None, id: str, name: str, arguments: str) -> int:
        """The number of the call that a piece belongs to."""
        index = self._last if index is None else index
        if index not in self._numbers or self._another(index, id, name):
            self._numbers[index], self._ids[index], self._arguments[index] = self.count, "", ""
            self.count += 1
        self._ids[index] = self._ids[index] or id
        self._arguments[index] += arguments
        self._last = index
        return self._numbers[index]

    def _another(self, index: int, id: str, name: str) -> bool:
        if not name or (id and id == self._ids[index]):
            return False
        return bool(id and self._ids[index]) or is_object(self._arguments[index])


class _Reading:
    """Chunks of chat and completions, or a whole answer where a server does not stream."""

    def __init__(self, request: Request, flavour: Flavour) -> None:
        self.heard = Heard()
        self._request, self._flavour = request, flavour
        self._calls: dict[int, _Calls] = {}
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def take(self, document: Mapping[str, Any]) -> list[ReplyEvent]:
        """The events of a chunk. Raises Failed."""
        if document.get("error"):
            error = object_of(document["error"])
            status = count_of(error.get("code")) or count_of(error.get("status"))
            message = OpenAI().failed(document) or "it told of an error"
            raise Failed(message, status if 400 <= status < 600 else 0, text_of(error.get("code")))
        if document.get("usage"):
            self._usage = object_of(document["usage"]) or self._usage
        if document.get("timings"):
            self._timings = object_of(document["timings"]) or self._timings
        events: list[ReplyEvent] = []
        for choice in objects_of(document.get("choices")):
            for event in self._choice(choice):
                self.heard.see(event)
                events.append(event)
        return events

    def _choice(self, choice: Mapping[str, Any]) -> list[ReplyEvent]:
        index = count_of(choice.get("index"))
        if index >= self._request.n or index in self.heard.ended:
            return []
        delta = object_of(choice.get("delta")) or object_of(choice.get("message")) or choice
        events: list[ReplyEvent]
        text = delta.get("content")
        if delta.keys() <= _PLAIN and text and isinstance(text, str) and self._request.sampling.logprobs is None:
            events = [Content(text, index)]  # most pieces of most answers
        else:
            events = [*self._thoughts(delta, index), *self._content(delta, choice, index), *self._called(delta, index)]
        reason = text_of(choice.get("finish_reason"))
        if reason:
            events.append(self._end(reason, choice, index))
        return events

    def _thoughts(self, delta: Mapping[str, Any], index: int) -> Sequence[Reasoning]:
        text = text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning"))
        events = [Reasoning(text, index)] if text else []
        for detail in objects_of(delta.get("reasoning_details")):
            if signature := text_of(detail.get("signature")):
                events.append(Reasoning("", index, signature=signature))
            if detail.get("type") == "reasoning.encrypted" and (data := text_of(detail.get("data"))):
                events.append(Reasoning("", index, redacted=data))
        for part in objects_of(delta.get("content")):
            if part.get("type") == "thinking":
                inner = part.get("thinking")
                said = text_of(inner) or "".join(text_of(each.get("text")) for each in objects_of(inner))
                events += [Reasoning(said, index)] if said else []
        return events

    def _content(self, delta: Mapping[str, Any], choice: Mapping[str, Any], index: int) -> list[ReplyEvent]:
        content = delta.get("content")
        text = text_of(content) or text_of(delta.get("refusal")) or text_of(choice.get("text"))
        text += "".join(text_of(part.get("text")) for part in objects_of(content) if part.get("type") == "text")
        tokens = _tokens(object_of(choice.get("logprobs"))) if self._request.sampling.logprobs is not None else ()
        if tokens and not text and self._thinks(delta):  # log-probabilities of thinking, which no dialect shows
            return []
        return [Content(text, index, tokens)] if text or tokens else []

    @staticmethod
    def _thinks(delta: Mapping[str, Any]) -> bool:
        return bool(text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning")))

    def _called(self, delta: Mapping[str, Any], index: int) -> list[Call]:
        found: list[Call] = []
        for call in objects_of(delta.get("tool_calls")):
            calls = self._calls.setdefault(index, _Calls())
            function, id = object_of(call.get("function")), text_of(call.get("id"))
            name, arguments = text_of(function.get("name")), text_of(function.get("arguments"))
            given = call.get("index")
            place = given if isinstance(given, int) and not isinstance(given, bool) else None
            found.append(Call(arguments, calls.number(place, id, name, arguments), id, name, index))
        return found

    def _end(self, reason: str, choice: Mapping[str, Any], index: int) -> Ended:
        known = _REASONS.get(reason, "stop")
        if known == "stop" and index in self._calls:  # Ollama says "stop" after a call
            known = "tool_calls"
        met = choice.get("stop_reason")  # vLLM's: the stop string, or the id of a token
        return Ended(known, index, met if isinstance(met, str) and met in self._request.sampling.stop else None)

    # ------------------------------------------------------------ usage

    def usage(self) -> Usage | None:
        """What was counted. Where the thinking was not, its share is told by the lengths of the texts."""
        told = self._usage
        if not told:
            return self._timed()
        prompt, completion = count_of(told.get("prompt_tokens")), count_of(told.get("completion_tokens"))
        details = object_of(told.get("prompt_tokens_details"))
        cached = count_of(details.get("cached_tokens")) or count_of(told.get("prompt_cache_hit_tokens"))
        if self._flavour == "llama-server" and self._request.n > 1:
            completion = max(completion, self.heard.pieces)  # some versions count one choice of several
        return self._with_thinking(prompt, cached, completion, object_of(told.get("completion_tokens_details")))

    def _timed(self) -> Usage | None:
        """llama-server's own counts, where it gives no usage."""
        told = self._timings
        if not told:
            return None
        cached = count_of(told.get("cache_n"))
        return self._with_thinking(
            cached + count_of(told.get("prompt_n")), cached, count_of(told.get("predicted_n")), {}
        )

    def _with_thinking(self, prompt: int, cached: int, completion: int, details: Mapping[str, Any]) -> Usage:
        reasoning = details.get("reasoning_tokens", self._usage.get("reasoning_tokens"))
        guessed = reasoning is None or (not count_of(reasoning) and self.heard.thinking > 0)
        tokens = self.heard.share(completion) if guessed else count_of(reasoning)
        extra = {"reasoning_estimated": True} if guessed and tokens else {}
        return spent(prompt, cached, completion, tokens, dollars=number_of(self._usage.get("cost")), extra=extra)


def _tokens(logprobs: Mapping[str, Any]) -> tuple[Token, ...]:
    """Log-probabilities of chat, or of completions, which tell them in columns."""
    if isinstance(logprobs.get("content"), list):
        return tuple(token_of(row) for row in objects_of(logprobs["content"]))
    texts, values, tops = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(texts, list) or not isinstance(values, list):
        return ()
    rows = tops if isinstance(tops, list) else []
    found = []
    for place, (text, value) in enumerate(zip(texts, values, strict=False)):
        logprob = number_of(value)
        top = object_of(rows[place]) if place < len(rows) else {}
        likeliest = tuple(Token(name, number) for name, each in top.items() if (number := number_of(each)) is not None)
        found.append(Token(text_of(text), math.nan if logprob is None else logprob, top=likeliest))
    return tuple(found)
