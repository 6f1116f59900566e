"""A model one can talk to: an engine, its chat template, and its way of marking thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ponder.chat.answer_grammar import constrained
from ponder.chat.formats import ELICIT, ThinkingFormat, detect
from ponder.chat.template import CHATML, ChatTemplate
from ponder.errors import Unsupported
from ponder.protocols import Engine, SamplingParams
from ponder.types import Cost, Message, Text

USUAL_TEMPERATURE = 0.6
"""Where a model recommends none: what the makers of most thinking models advise."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens, as providers state them."""

    prompt: float
    cached: float
    output: float


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `inside`: the reply begins inside thinking."""

    text: str
    ids: tuple[int, ...]
    inside: bool


@dataclass(frozen=True)
class Model:
    """What strategies work with. `stop`, where given, ends the request softly as soon as it is set.

    `answer_grammar` (see `answer_grammar`) binds every answer, and no thinking. An answer that the budget cuts short is
    no more than a beginning of what the grammar asks for.
    """

    engine: Engine
    template: ChatTemplate
    format: ThinkingFormat
    name: str
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=1))
    price: Price | None = None
    stop: asyncio.Event | None = None
    answer_grammar: str = ""

    def eliciting(self) -> Model:
        """The same model, asked in words to think step by step. The markers it was trained on stay markers."""
        own = self.format
        if not own.trained:
            return replace(self, format=ELICIT)
        markers = (*own.ends, *own.open_markers, *own.close_markers, own.closing.strip(), own.skip.strip())
        ends = dict.fromkeys(each for each in (*ELICIT.ends, *markers) if each)
        return replace(self, format=replace(ELICIT, ends=tuple(ends)))

    def bound(self) -> Model:
        """The same model with a format in which its answer can be bound to `answer_grammar`, where it has one.

        Raises Unsupported where its engine binds samples to no grammar.
        """
        if not self.answer_grammar:
            return self
        if not self.engine.capabilities.grammar:
            raise Unsupported(
                f"{self.name} runs on an engine that holds answers to no schema or grammar",
                "run it with gguf: or hf:, or ask for plain text",
            )
        return replace(self, format=constrained(self.format, self.answer_grammar))

    async def prompt(self, messages: Sequence[Message], think: bool, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """Renders messages up to where the model goes on, and says whether it goes on thinking."""
        switches = self.format.switches_on if think else self.format.switches_off
        if think and self.format.instruction:
            messages = with_instruction(messages, self.format.instruction)
        text = self.template.render(messages, tools=list(tools) or None, **switches)
        text += self.format.begin(text, think)
        ids = await self.engine.tokenize(text)
        return Prompt(text, tuple(ids), think and self.format.inside(text))

    def priced(self, cost: Cost) -> Cost:
        """`cost` with its floating-point operations and, where a price is known, its dollars.

        2 N operations a token, N the number of parameters (Kaplan et al., 2020, section 2.1); what
        attention adds is left out.
        """
        parameters = self.engine.info.parameters
        computed = cost.prompt_computed + cost.recomputed + cost.tokens
        dollars = None
        if self.price is not None:
            price = self.price
            dollars = (
                cost.prompt_computed * price.prompt + cost.prompt_cached * price.cached + cost.tokens * price.output
            ) / 1e6
        return replace(cost, flops=None if parameters is None else 2.0 * parameters * computed, dollars=dollars)


def with_instruction(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The messages, with an instruction below the last one of the user."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
    if last is None:
        return tuple(messages)
    asked = messages[last]
    return (*messages[:last], replace(asked, parts=(*asked.parts, Text(f"\n\n{instruction}"))), *messages[last + 1 :])


def model_of(engine: Engine, price: Price | None = None) -> Model:
    """The model behind an engine, with the template, thinking format and temperature that it states."""
    info = engine.info
    template = ChatTemplate(info.chat_template or CHATML, info.bos, info.eos)
    temperature = float(info.metadata.get("general.sampling.temp", USUAL_TEMPERATURE))
    params = SamplingParams(max_tokens=1, temperature=temperature)
    return Model(engine, template, detect(info), info.name, params, price)
