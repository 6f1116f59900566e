"""vLLM: completions by token ids over its OpenAI address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ponder.engine.dialects import (
    Address,
    ask,
    choices_of,
    count_of,
    finish_of,
    ids_of,
    index_of,
    logprobs_of,
    object_of,
    text_of,
)
from ponder.engine.transport import Transport
from ponder.errors import GarbledReply, Unsupported
from ponder.protocols import Capabilities, Chunk, SamplingParams, closing


class Vllm:
    """vLLM's `/v1/completions` with a prompt of ids; needs 0.10.2 or newer for exact ids of every kind."""

    capabilities = Capabilities(chat=True, score=True, exact_cancel=False)
    most = 1 << 30

    def __init__(self, wire: Transport, where: Address) -> None:
        self._wire = wire
        self._where = where

    async def tokenize(self, text: str) -> list[int]:
        body = {"model": self._where.model, "prompt": text, "add_special_tokens": False}
        return list(ids_of(await ask(self._wire, f"{self._where.root}/tokenize", body, "tokens")))

    async def detokenize(self, ids: Sequence[int]) -> str:
        body = {"model": self._where.model, "tokens": list(ids)}
        return text_of(await ask(self._wire, f"{self._where.root}/detokenize", body, "prompt"))

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        body = {
            **self._common(prefix, params),
            "n": n,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": 0,
            # Older servers know only the second way to say ids: as "token_id:5" in place of the text.
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        usage: Mapping[str, Any] = {}
        open_samples = set(range(n))
        last: Chunk | None = None
        async with closing(self._wire.stream(f"{self._where.base}/completions", body)) as events:
            async for event in events:
                usage = object_of(event.get("usage")) or usage
                for choice in choices_of(event):
                    chunk = self._chunk(choice, n, prefix)
                    if chunk.finish:
                        open_samples.discard(chunk.index)
                    if chunk.finish and not open_samples:
                        last = chunk  # held back: the usage that it is to carry comes after it
                    elif chunk.ids or chunk.text or chunk.finish:
                        yield chunk
        if last:
            prompt = count_of(usage.get("prompt_tokens")) or len(prefix)
            cached = min(prompt, count_of(object_of(usage.get("prompt_tokens_details")).get("cached_tokens")))
            yield replace(last, prompt_computed=prompt - cached, prompt_cached=cached)

    def _common(self, prefix: Sequence[int], params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._where.model,
            "prompt": list(prefix),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": 1.0,  # otherwise the model's generation_config.json decides
            "ignore_eos": params.ignore_eos,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        return body if params.seed is None else {**body, "seed": params.seed}

    def _chunk(self, choice: Mapping[str, Any], n: int, prefix: Sequence[int]) -> Chunk:
        index = index_of(choice, n)
        seen = choice.get("prompt_token_ids")
        if seen is not None and list(seen) != list(prefix):
            raise GarbledReply("the server changed the prompt that it was given", "update vLLM")
        logprobs = object_of(choice.get("logprobs"))
        text = text_of(choice.get("text"))
        raw = choice.get("token_ids")
        ids = ids_of(raw) if raw is not None else _named_ids(logprobs.get("tokens"))
        if ids is None and text:
            raise Unsupported("this server does not say which tokens it sampled", "update vLLM, or use openai+chat:")
        ids = ids or ()
        finish = finish_of(choice["finish_reason"])
        given = logprobs_of(logprobs.get("token_logprobs"), len(ids))
        # Every token has a text but those that end inside a character.
        return Chunk(index, ids, text, given, finish, pending=bool(ids) and not text and finish is None)

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        body = {**self._common(ids, SamplingParams(max_tokens=1, temperature=0)), "prompt_logprobs": 0}
        answer = await self._wire.post(f"{self._where.base}/completions", body)
        rows = choices_of(answer)[0].get("prompt_logprobs") if answer.get("choices") else None
        if not isinstance(rows, list) or len(rows) != len(ids):
            raise GarbledReply("the server was asked for the log-probabilities of a prompt and gave others")
        try:
            return [float(rows[i][str(ids[i])]["logprob"]) for i in range(start, len(ids))]
        except (KeyError, TypeError, ValueError):
            raise GarbledReply("the server left out the log-probability of a token of the prompt") from None


def _named_ids(tokens: Any) -> tuple[int, ...] | None:
    """Ids out of `["token_id:5", ...]`; None where tokens are given as texts or not at all."""
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t.startswith("token_id:") for t in tokens):
        return None
    return ids_of([int(t.removeprefix("token_id:")) for t in tokens])
