"""A model one can talk to: its prompts, what they cost, and what thinking it is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ponder.chat.formats import DEEPSEEK_R1, ELICIT, FAMILIES, GPT_OSS, PONDER, QWEN3, THINK_TAGS, ThinkingFormat
from ponder.chat.model import Model, Price, Prompt, model_of, with_instruction
from ponder.chat.parse import Parser
from ponder.chat.template import CHATML
from ponder.engine.scripted import ScriptedEngine, says
from ponder.errors import InputError
from ponder.types import Cost, Image, Message, Text, ask, assistant, system, user

QUESTION = ask("What is 3 + 4?").messages
SWITCHED = CHATML.replace(
    "{% if add_generation_prompt %}",
    "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}{% if add_generation_prompt %}",
)


def model(form: ThinkingFormat | None = None, **how: Any) -> Model:
    made = model_of(ScriptedEngine(says("4"), **how))
    return made if form is None else replace(made, format=form)


def prompted(made: Model, think: bool, messages: tuple[Message, ...] = QUESTION, tools: Any = ()) -> Prompt:
    return asyncio.run(made.prompt(messages, think, tools))


TURN = "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("form", "think", "text", "inside"),
    [
        (PONDER, True, TURN + "<think>\n", True),
        (PONDER, False, TURN, False),
        (THINK_TAGS, True, TURN, False),
        (THINK_TAGS, False, TURN + "<think>\n\n</think>\n\n", False),
        (DEEPSEEK_R1, True, TURN + "<think>\n", True),
        (GPT_OSS, True, TURN, False),
        (GPT_OSS, False, TURN + "<|channel|>final<|message|>", False),
        (ELICIT, False, TURN, False),
    ],
    ids=lambda value: value.name if isinstance(value, ThinkingFormat) else None,
)
def test_a_prompt_begins_or_skips_thinking_as_the_format_does(
    form: ThinkingFormat, think: bool, text: str, inside: bool
) -> None:
    made = model(form)
    prompt = prompted(made, think)
    assert (prompt.text, prompt.inside) == (text, inside)
    assert prompt.ids == tuple(made.engine.tokenizer.encode(text))  # type: ignore[attr-defined]


def test_thinking_asked_for_in_words_stands_below_the_question() -> None:
    prompt = prompted(model(ELICIT), True)
    assert f"What is 3 + 4?\n\n{ELICIT.instruction}<|im_end|>" in prompt.text
    assert prompt.inside, "all that comes is thinking until the answer is announced"


def test_a_template_that_switches_thinking_is_told() -> None:
    made = model(QWEN3, chat_template=SWITCHED)
    assert "[True]" in prompted(made, True).text
    assert "[False]" in prompted(made, False).text


def test_tools_reach_the_template() -> None:
    template = "{% if tools %}{{ tools | length }} tools: {{ tools[0]['name'] }}{% endif %}" + CHATML
    made = model(PONDER, chat_template=template)
    assert prompted(made, True, tools=[{"name": "add"}]).text.startswith("1 tools: add")
    assert "tools" not in prompted(made, True).text


def test_eliciting_changes_the_format_alone() -> None:
    made = model(PONDER)
    assert made.eliciting() == replace(made, format=ELICIT)
    assert made.format is PONDER
    assert model().eliciting().format is ELICIT, "a model that was not trained to think has no markers to drop"


@pytest.mark.parametrize("form", [each for each in FAMILIES.values() if each.trained], ids=lambda form: form.name)
def test_asked_in_words_the_markers_of_a_trained_model_stay_out_of_its_answer(form: ThinkingFormat) -> None:
    asked = model(form).eliciting().format
    parser = Parser(asked, inside=True, tools=False)
    text = f"{form.open}7, I think.{form.closing}The answer is {form.skip}7.{form.close}"
    pieces = parser.feed(text) + parser.finish()
    said = {kind: "".join(p.text for p in pieces if p.kind == kind).strip() for kind in ("thinking", "answer")}
    kept = "The answer is7." if form.skip else "The answer is 7."
    assert said == {"thinking": "7, I think.", "answer": kept}


def test_model_of_takes_template_and_format_from_the_engine() -> None:
    made = model(chat_template=CHATML + "{% if add_generation_prompt %}<think>\n\n{% endif %}", name="thinker")
    assert made.name == "thinker"
    assert made.format.trained
    assert prompted(made, True).inside
    assert not model().format.trained


def test_model_of_an_engine_that_hides_its_template_uses_a_common_one() -> None:
    hidden = ScriptedEngine(says("4"), chat_only=True)
    assert hidden.info.chat_template is None
    assert model_of(hidden).template.render(QUESTION) == TURN


def test_a_broken_template_is_the_users_to_mend() -> None:
    with pytest.raises(InputError, match="template"):
        prompted(model(PONDER, chat_template="{% if %}"), True)


# ---------------------------------------------------------------- the instruction


def test_the_instruction_goes_to_the_last_user_message() -> None:
    messages = (system("Be brief."), user("One?"), assistant("1"), user("Two?"), assistant("2"))
    changed = with_instruction(messages, "Think.")
    assert [m.text for m in changed] == ["Be brief.", "One?", "1", "Two?\n\nThink.", "2"]
    assert [m.text for m in messages][3] == "Two?", "the question itself is left alone"


def test_the_instruction_keeps_images() -> None:
    (changed,) = with_instruction(
        (Message("user", (Text("What is it?"), Image("data:image/png;base64,AA=="))),), "Think."
    )
    assert [part.type for part in changed.parts] == ["text", "image", "text"]


def test_without_a_user_there_is_nobody_to_instruct() -> None:
    messages = (system("Be brief."), assistant("1"))
    assert with_instruction(messages, "Think.") == messages


# ---------------------------------------------------------------- the price


def sized(parameters: int | None, price: Price | None = None) -> Model:
    engine = ScriptedEngine(says("4"))
    engine._info = replace(engine.info, parameters=parameters)
    return replace(model_of(engine), price=price)


COST = Cost(
    prompt_computed=100, prompt_cached=40, recomputed=7, thinking=30, answer=10, cancelled=3, written=5, calls=2
)


def test_floating_point_operations_are_two_a_parameter_and_token() -> None:
    assert sized(1000).priced(COST).flops == 2 * 1000 * (100 + 7 + 30 + 10 + 3 + 5)
    assert sized(None).priced(COST).flops is None


def test_dollars_are_counted_by_kind_of_token() -> None:
    priced = sized(None, Price(prompt=1.0, cached=0.1, output=4.0)).priced(COST)
    assert priced.dollars == pytest.approx((100 * 1.0 + 40 * 0.1 + (30 + 10 + 3 + 5) * 4.0) / 1e6)
    assert sized(None).priced(COST).dollars is None, "no price is not a price of 0"


def test_pricing_changes_no_count() -> None:
    priced = sized(1000, Price(1, 1, 1)).priced(COST)
    assert replace(priced, flops=0.0, dollars=0.0) == COST
