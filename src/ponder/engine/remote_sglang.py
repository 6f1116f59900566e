"""SGLang: completions by token ids over its native address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.engine.dialects import Address, ask, count_of, finish_of, ids_of, index_of, logprobs_of, object_of, text_of
from ponder.engine.remote_errors import given_up
from ponder.engine.transport import Transport
from ponder.errors import GarbledReply, Unsupported
from ponder.protocols import Capabilities, Chunk, SamplingParams, closing


@dataclass
class _Growing:
    """One sample of SGLang while it grows: what has been passed on of it."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    pieces: bool = False  # whether the server sends only what is new


class SGLang:
    """SGLang's own `/generate`.

    Its log-probabilities belong to the tempered distribution unless the server was started otherwise,
    so they are passed on only at temperature 1 and 0, where they are the model's own.
    """

    capabilities = Capabilities(chat=True, logprobs=False, score=False, exact_cancel=False)
    most = 1 << 30

    def __init__(self, wire: Transport, where: Address) -> None:
        self._wire = wire
        self._where = where

    async def tokenize(self, text: str) -> list[int]:
        body = {"model": self._where.model, "prompt": text, "add_special_tokens": False}
        return list(ids_of(await ask(self._wire, f"{self._where.root}/tokenize", body, "tokens")))

    async def detokenize(self, ids: Sequence[int]) -> str:
        body = {"model": self._where.model, "tokens": list(ids), "skip_special_tokens": False}
        return text_of(await ask(self._wire, f"{self._where.root}/detokenize", body, "text"))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        raise Unsupported("scoring given tokens is not supported on SGLang", "use a vLLM server or the gguf: engine")

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        grown = [_Growing() for _ in range(n)]
        counted = False
        url = f"{self._where.root}/generate"
        async with closing(self._wire.stream(url, self._body(prefix, n, params))) as events:
            async for event in events:
                meta = object_of(event.get("meta_info"))
                index = index_of(event, n)
                chunk = self._chunk(event, meta, index, grown[index], params.temperature in (0, 1))
                if not counted and "prompt_tokens" in meta:
                    prompt = count_of(meta.get("prompt_tokens"))
                    # With n > 1 the server first fills its cache in a request of its own, so that each
                    # sample looks cached; what that cost is not told, and none of it is claimed as saved.
                    cached = min(prompt, count_of(meta.get("cached_tokens"))) if n == 1 else 0
                    chunk, counted = replace(chunk, prompt_computed=prompt - cached, prompt_cached=cached), True
                if chunk.ids or chunk.text or chunk.finish or chunk.prompt_computed or chunk.prompt_cached:
                    yield chunk

    def _body(self, prefix: Sequence[int], n: int, params: SamplingParams) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_new_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": params.min_p,
            "ignore_eos": params.ignore_eos,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        body = {"stream": True, "return_logprob": True, "logprob_start_len": -1}
        if params.seed is None or n == 1:
            seed = {} if params.seed is None else {"sampling_seed": params.seed}
            return {**body, "input_ids": list(prefix), "sampling_params": {**sampling, "n": n, **seed}}
        # One seed for n samples would give the same text n times: each gets its own, as a batch.
        seeds = [{**sampling, "n": 1, "sampling_seed": params.seed + i} for i in range(n)]
        return {**body, "input_ids": [list(prefix)] * n, "sampling_params": seeds}

    def _chunk(
        self, event: Mapping[str, Any], meta: Mapping[str, Any], index: int, grown: _Growing, own: bool
    ) -> Chunk:
        reason = meta.get("finish_reason")
        kind = object_of(reason).get("type") if isinstance(reason, dict) else reason
        if kind == "abort":
            raise given_up(str(object_of(reason).get("message") or "no reason given"))
        finish = finish_of(kind)
        rows = meta.get("output_token_logprobs")
        rows = [row for row in rows if isinstance(row, list) and len(row) > 1] if isinstance(rows, list) else []
        given = ids_of(event["output_ids"]) if "output_ids" in event else ids_of([r[1] for r in rows])
        if "text" not in event and not given:
            raise GarbledReply("the server sent an event with neither text nor tokens")
        total = count_of(meta.get("completion_tokens"))
        ids = self._new_ids(given, total, grown)
        logprobs = [r[0] for r in rows[len(rows) - len(ids) :]] if own and len(rows) >= len(ids) else None
        grown.ids += ids
        text = self._new_text(text_of(event.get("text")), grown, ended=finish == "stop")
        # Every token has a text but those that end inside a character.
        pending = bool(ids) and not text and finish is None
        lost = max(0, total - len(grown.ids)) if finish else 0
        return Chunk(index, ids, text, logprobs_of(logprobs, len(ids)), finish, lost=lost, pending=pending)

    def _new_ids(self, given: tuple[int, ...], total: int, grown: _Growing) -> tuple[int, ...]:
        """Servers send all ids so far or only the new ones, by a setting of theirs; the count tells which."""
        had = len(grown.ids)
        if had and len(given) != total and had + len(given) == total:
            grown.pieces = True
        if grown.pieces:
            return given
        if list(given[:had]) != grown.ids:
            raise GarbledReply("the server changed tokens that it had sent before")
        return given[had:]

    def _new_text(self, text: str, grown: _Growing, ended: bool) -> str:
        whole = grown.text + text if grown.pieces and not text.startswith(grown.text) else text
        if not ended:
            whole = whole.rstrip("\ufffd")  # an unfinished character, which a cut leaves unfinished
        if not whole.startswith(grown.text):
            raise GarbledReply("the server changed text that it had sent before")
        new = whole[len(grown.text) :]
        grown.text += new
        return new
