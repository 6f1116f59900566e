"""An engine of one's own: token ids in, token ids out. Here a "model" that can do nothing but add.

Any object of this shape will do: see `Engine` in ponder/protocols.py. It has to stop when it is told to
and to go on from any prefix, its own earlier tokens and ponder's markers included; budgets, thinking,
traces and costs then work as they do on any other engine.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

import ponder
from ponder.chat.model import model_of
from ponder.errors import Unsupported
from ponder.protocols import Capabilities, ChatChunk, Chunk, ModelInfo, SamplingParams
from ponder.types import Message

END = 256  # the ids below are the bytes of ASCII
OPENED = "<|im_start|>assistant\n"


class Adder:
    """Says what the first sum of a question comes to."""

    uri = "adder:"
    # Without a chat template of its own it gets ChatML, and is asked in words to think.
    info = ModelInfo("adder", context=4096, eos_ids=(END,), eos="<|im_end|>")
    capabilities = Capabilities(logprobs=False, shared_prefill=False)

    async def tokenize(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < END).decode()

    async def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> AsyncIterator[Chunk]:
        ids = [*_what_follows(await self.detokenize(prefix)).encode(), END][: params.max_tokens]
        for index in range(n):
            for place, token in enumerate(ids):
                await asyncio.sleep(0)  # whoever closes the iterator here cancels the rest
                last = place == len(ids) - 1
                yield Chunk(
                    index,
                    (token,),
                    "" if token == END else chr(token),
                    logprobs=(None,),
                    finish=("stop" if token == END else "length") if last else None,
                    prompt_computed=len(prefix) if index == place == 0 else 0,
                )

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        raise Unsupported("the adder has no probabilities", "take another engine")

    def chat(
        self, messages: Sequence[Message], n: int, params: SamplingParams, think: bool | None = None
    ) -> AsyncIterator[ChatChunk]:
        raise Unsupported("the adder takes token ids, not messages", "use sample()")

    async def close(self) -> None:
        pass


def _what_follows(prompt: str) -> str:
    asked, _, said = prompt.rpartition(OPENED)
    a, b = re.findall(r"(\d+) *\+ *(\d+)", asked)[0]
    thinking, answer = f"I add {b} to {a} and get {int(a) + int(b)}.\n", f"The answer is {int(a) + int(b)}."
    if (thinking + answer).startswith(said):
        return (thinking + answer)[len(said) :]
    # ponder closed the thinking before it was complete: only the answer is left.
    return answer[len(said) - said.rindex(answer[:13]) :]


async def main() -> None:
    model = model_of(Adder())
    for budget in (1000, 50):
        trace = await ponder.asolve("How much is 19 + 23?", model=model, budget=budget)
        print(f"{trace.thinking!r} -> {trace.answer!r} ({trace.cost.tokens} of {budget} tokens)")


if __name__ == "__main__":
    asyncio.run(main())
