"""llama-server: completions by token ids over its native address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ponder.engine.dialects import Address, ask, count_of, finish_of, ids_of, index_of, logprobs_of, object_of, text_of
from ponder.engine.transport import Transport
from ponder.errors import EngineDisconnected, GarbledReply, Unsupported
from ponder.protocols import Capabilities, Chunk, SamplingParams, closing


@dataclass
class _Slot:
    """One sample of llama-server while it grows. `held` waits for what follows it."""

    count: int = 0
    held: Chunk | None = None


class LlamaServer:
    """llama.cpp's own `/completion`.

    Its stream names only the last of the tokens that make up one character. The others are recovered by
    tokenising the character, and where that does not agree with the server's counts they are reported
    as `lost`: such a sample is no longer exact, and neither continuing nor training on it is. Recovered
    ids have no log-probability, and the rest of a character that the prompt began reads as U+FFFD.
    """

    capabilities = Capabilities(chat=True, score=False, exact_cancel=False)

    def __init__(self, wire: Transport, where: Address, slots: int) -> None:
        self._wire = wire
        self._where = where
        self.most = max(1, slots)
        self._special: dict[int, str] = {}

    async def tokenize(self, text: str) -> list[int]:
        body = {"model": self._where.model, "content": text, "add_special": False, "parse_special": True}
        return list(ids_of(await ask(self._wire, f"{self._where.root}/tokenize", body, "tokens")))

    async def detokenize(self, ids: Sequence[int]) -> str:
        body = {"model": self._where.model, "tokens": list(ids)}
        return text_of(await ask(self._wire, f"{self._where.root}/detokenize", body, "content"))

    async def score(self, ids: Sequence[int], start: int) -> list[float]:
        raise Unsupported("llama-server cannot score given tokens", "use a vLLM server or the gguf: engine")

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        slots = [_Slot() for _ in range(n)]
        counted = False
        url = f"{self._where.root}/completion"
        async with closing(self._wire.stream(url, self._body(prefix, n, params))) as events:
            async for event in events:
                for chunk in await self._read(event, slots):
                    timings = object_of(event.get("timings"))
                    if timings and not counted:
                        # Every sample repeats the numbers of the one prefill that they share.
                        computed, cached = count_of(timings.get("prompt_n")), count_of(timings.get("cache_n"))
                        chunk, counted = replace(chunk, prompt_computed=computed, prompt_cached=cached), True
                    yield chunk

    def _body(self, prefix: Sequence[int], n: int, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._where.model,
            "prompt": list(prefix),
            "n_predict": params.max_tokens,
            "n_cmpl": n,
            "stream": True,
            "return_tokens": True,
            "timings_per_token": True,  # the only way to learn what of the prompt was cached before the end
            "cache_prompt": True,
            "n_probs": 1,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "samplers": ["top_k", "top_p", "min_p", "temperature"],
            "repeat_penalty": 1.0,
            "ignore_eos": params.ignore_eos,
        }
        return body if params.seed is None else {**body, "seed": params.seed}

    async def _read(self, event: Mapping[str, Any], slots: list[_Slot]) -> list[Chunk]:
        """What one event makes certain."""
        if "content" not in event and "tokens" not in event:
            raise GarbledReply("the server sent an event with neither text nor tokens")
        index = index_of(event, len(slots))
        slot = slots[index]
        finish = finish_of(event.get("stop_type")) if event.get("stop") else None
        if event.get("stop") and finish is None:
            raise EngineDisconnected("the server gave up on a sample in the middle", "look at the server's log")
        chunk = await self._tokens(event, index, slot)
        held, slot.held = slot.held, None
        if finish:
            if held:
                # The end-of-turn token comes as any other, spelled out if the server was started with --special.
                held = replace(held, text="") if finish == "stop" else await self._spelled(held)
            return [_joined(held, replace(chunk, finish=finish))]
        ready = [await self._spelled(held)] if held else []
        if _may_be_marker(chunk):
            slot.held = chunk
            return ready
        return [*ready, chunk]

    async def _tokens(self, event: Mapping[str, Any], index: int, slot: _Slot) -> Chunk:
        ids = ids_of(event.get("tokens", []))
        text = text_of(event.get("content"))
        rows = event.get("completion_probabilities")
        logprobs = logprobs_of(
            [object_of(r).get("logprob") for r in rows] if isinstance(rows, list) else None, len(ids)
        )
        missing = max(0, count_of(event.get("tokens_predicted")) - slot.count - len(ids))
        slot.count += missing + len(ids)
        if missing and ids:
            spelled = await self.tokenize(text)
            if len(spelled) == missing + len(ids) and tuple(spelled[missing:]) == ids:
                return Chunk(index, tuple(spelled), text, (None,) * missing + logprobs)
        return Chunk(index, ids, text, logprobs, lost=missing)

    async def _spelled(self, chunk: Chunk) -> Chunk:
        """`chunk` with the text of a special token that the server hides unless it was started with --special."""
        if chunk.text or len(chunk.ids) != 1:
            return chunk
        token = chunk.ids[0]
        if token not in self._special:
            self._special[token] = await self.detokenize([token])
        return replace(chunk, text=self._special[token])


def _may_be_marker(chunk: Chunk) -> bool:
    """Whether `chunk` may hold a special token, so that only what follows tells if the turn ended with it."""
    text = chunk.text
    return bool(chunk.ids) and (not text or (text[0] in "<[" and text[-1] in ">]"))


def _joined(first: Chunk | None, second: Chunk) -> Chunk:
    if first is None:
        return second
    return replace(
        second,
        ids=first.ids + second.ids,
        text=first.text + second.text,
        logprobs=first.logprobs + second.logprobs,
        lost=first.lost + second.lost,
    )
