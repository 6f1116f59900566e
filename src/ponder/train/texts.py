"""Conversations as the tokens that a model sees: the same ones that an engine gives it.

A prompt and what follows it are tokenised apart, as they are when a model answers: what a token spans never depends on
whether a trace is learnt or sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ponder.chat.formats import ThinkingFormat, detect
from ponder.chat.model import with_instruction
from ponder.chat.parse import Parser, coalesce
from ponder.chat.template import CHATML, ChatTemplate
from ponder.errors import InputError
from ponder.protocols import ModelInfo
from ponder.train.rows import Row
from ponder.types import Message, Sample, Span

if TYPE_CHECKING:
    from ponder.engine.torch_load import Loaded

TOLD = "Think for at most {tokens} tokens."
"""How a model is told its thinking budget, where it is trained to keep one."""


@dataclass(frozen=True)
class Texts:
    """How a model's conversations are written down.

    encode: token ids of a text, special tokens recognised, nothing added. decode: the text of ids. end: the id that
    ends a turn.
    """

    template: ChatTemplate
    format: ThinkingFormat
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end: int

    @classmethod
    def of(cls, loaded: Loaded) -> Texts:
        """Those of a loaded model. Raises InputError for one whose tokenizer has no end of turn."""
        tokenizer: Any = loaded.tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of {loaded.source} has no end-of-turn token", "Set its eos_token")
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
        source = tokenizer.chat_template or CHATML
        info = ModelInfo(loaded.source, 0, bos=bos, eos=eos, chat_template=source, metadata=loaded.metadata)
        return cls(
            ChatTemplate(source, bos, eos), detect(info), loaded.ids, tokenizer.decode, int(tokenizer.eos_token_id)
        )

    def prompt(self, messages: Sequence[Message], think: bool = True, budget: int | None = None) -> list[int]:
        """Token ids up to where the model goes on: inside thinking, or at its answer. `budget` tells it one."""
        return self.encode(self._prompt(messages, think, budget))

    def trace(
        self, messages: Sequence[Message], thinking: str, answer: str, budget: int | None = None
    ) -> tuple[list[int], list[int]]:
        """(prompt, completion) of a turn that thought `thinking`, or did not where that is empty, and then answered."""
        text = self._prompt(messages, bool(thinking), budget)
        said = answer
        if thinking:
            opened = "" if self.format.inside(text) else f"{self.format.open}\n"
            said = opened + thinking + self.format.closing + answer
        return self.encode(text), [*self.encode(said), self.end]

    def row(self, messages: Sequence[Message], thinking: str, answer: str, budget: int | None = None) -> Row:
        """The turn as a row of which all but the prompt is learnt."""
        prompt, said = self.trace(messages, thinking, answer, budget)
        return Row(prompt + said, [False] * len(prompt) + [True] * len(said))

    def read(self, sample: Sample, inside: bool | None = None) -> Sample:
        """The sample with its text, spans, thinking and answer, from its tokens.

        inside: whether it begins inside thinking; None looks whether its prompt ends there.
        """
        ids = sample.ids[:-1] if sample.ids and sample.ids[-1] == self.end else sample.ids
        text = self.decode(ids)
        if inside is None:
            inside = self.format.inside(self.decode(sample.prompt_ids))
        parser = Parser(self.format, inside, tools=False)
        spans, at = [], 0
        said = {"thinking": "", "answer": ""}
        for piece in coalesce([*parser.feed(text), *parser.finish()]):
            spans.append(Span(piece.kind, at, at + len(piece.text)))
            at += len(piece.text)
            if piece.kind in said:
                said[piece.kind] += piece.text
        return replace(sample, text=text, spans=tuple(spans), thinking=said["thinking"], answer=said["answer"])

    def _prompt(self, messages: Sequence[Message], think: bool, budget: int | None) -> str:
        if budget is not None:
            messages = with_instruction(messages, TOLD.format(tokens=budget))
        if think and self.format.instruction:
            messages = with_instruction(messages, self.format.instruction)
        switches = self.format.switches_on if think else self.format.switches_off
        text = self.template.render(messages, **switches)
        return text + self.format.begin(text, think)
