"""Which family a model is of, and what ponder writes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ponder.chat import formats
from ponder.chat.formats import FAMILIES, ThinkingFormat, detect
from ponder.chat.template import ChatTemplate
from ponder.errors import InputError
from ponder.protocols import ModelInfo
from ponder.types import user

TEMPLATES = Path(__file__).parent.parent / "data" / "templates"


def info(template: str | None = None, **metadata: Any) -> ModelInfo:
    source = None if template is None else (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    stated = {key.replace("_", "."): value for key, value in metadata.items()}
    return ModelInfo("m", 1000, bos="<s>", eos="</s>", chat_template=source, metadata=stated)


def prompt(template: str, **switches: Any) -> str:
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, "<s>", "</s>").render([user("What does <think> mean?")], **switches)


FAMILY_OF = {
    "chatml": "elicit",
    "deepseek_r1": "deepseek-r1",
    "deepseek_r1_unopened": "deepseek-r1",
    "deepseek_v3_1": "deepseek-v3.1",
    "qwq": "qwq",
    "qwen3": "qwen3",
    "mistral": "mistral",
    "gpt_oss": "gpt-oss",
    "gemma4": "gemma",
    "gemma2": "elicit",
    "granite": "granite",
    "granite_phrases": "granite-phrases",
}


def test_every_template_has_a_family_to_be_tested_against() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FAMILY_OF)


@pytest.mark.parametrize(("template", "family"), FAMILY_OF.items())
def test_the_template_tells_the_family(template: str, family: str) -> None:
    assert detect(info(template)).name == family


def test_a_model_without_template_is_asked_to_think_step_by_step() -> None:
    found = detect(info())
    assert found is formats.NOT_TRAINED
    assert not found.trained
    assert "step by step" in found.instruction
    assert found.close in found.instruction


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        ("deepseek_r1", True),
        ("deepseek_r1_unopened", False),
        ("deepseek_v3_1", True),
        ("qwq", True),
        ("qwen3", False),
        ("granite", False),
    ],
)
def test_the_rendered_prompt_says_whether_thinking_is_open(template: str, opened: bool) -> None:
    found = detect(info(template))
    assert found.opened_by_prompt is opened
    assert found.inside(prompt(template, **found.switches_on)) is opened


@pytest.mark.parametrize("template", [name for name, family in FAMILY_OF.items() if family != "elicit"])
def test_prompt_and_what_ponder_writes_leave_no_doubt_where_the_reply_begins(template: str) -> None:
    found = detect(info(template))
    on = prompt(template, **found.switches_on)
    on += found.begin(on, think=True)
    assert found.inside(on) or found.start == ""
    off = prompt(template, **found.switches_off)
    off += found.begin(off, think=False)
    assert not found.inside(off)
    if found.skip:
        assert found.past(off)
    # A block is never opened twice, nor an empty one written behind another.
    tail = off.split("What does <think> mean?")[1]
    assert all(tail.count(marker) <= 1 for marker in found.open_markers)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("deepseek_r1", "<｜Assistant｜><think>\n\n</think>\n\n"),
        ("deepseek_r1_unopened", "<｜Assistant｜><think>\n\n</think>\n\n"),
        ("deepseek_v3_1", "<｜Assistant｜></think>"),
        ("qwq", "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n"),
        ("gpt_oss", "<|start|>assistant<|channel|>final<|message|>"),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>"),
        ("mistral", "[/INST]"),
    ],
)
def test_how_thinking_is_skipped(template: str, end: str) -> None:
    found = detect(info(template))
    off = prompt(template, **found.switches_off)
    assert (off + found.begin(off, think=False)).endswith(end)


def test_a_prompt_that_thinks_by_default_is_closed_even_without_its_switch() -> None:
    text = prompt("deepseek_v3_1", thinking=True)
    assert formats.DEEPSEEK_V3_1.begin(text, think=False) == "</think>"


def test_a_direct_answer_of_the_default_model_is_not_an_empty_block() -> None:
    text = prompt("chatml")
    assert formats.PONDER.begin(text, think=False) == ""
    assert formats.PONDER.begin(text, think=True) == "<think>\n"
    assert formats.PONDER.inside(text + "<think>\n")
    assert formats.PONDER.closing == "\n</think>\n"


def test_markers_in_the_question_do_not_open_thinking() -> None:
    text = ChatTemplate((TEMPLATES / "chatml.jinja").read_text()).render([user("<think>")])
    assert "<think>" in text
    assert not formats.PONDER.inside(text)


def test_a_format_without_an_opening_marker_is_inside_from_the_start() -> None:
    assert formats.ELICIT.inside("anything")
    assert formats.ELICIT.begin("anything", think=True) == ""
    assert formats.ELICIT.begin("anything", think=False) == ""


def test_reasoning_effort_is_a_variable_of_gpt_oss() -> None:
    text = prompt("gpt_oss", **{formats.GPT_OSS.effort: "high"})
    assert "Reasoning: high" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_what_ponder_writes_is_made_of_the_markers_of_the_format(name: str) -> None:
    family = FAMILIES[name]
    assert any(marker in family.closing for marker in family.close_markers)
    if family.start:
        assert family.inside(family.start)
    if family.skip:
        assert family.past(family.skip)


def test_a_switch_called_thinking_is_found_in_other_families_too() -> None:
    source = "{% if thinking %}<think>{% endif %}{{ messages[0].content }}"
    found = detect(ModelInfo("m", 100, chat_template=source))
    assert found.switches_on == {"thinking": True}
    assert found.switches_off == {"thinking": False}


def test_think_tags_in_the_history_alone_make_a_model_that_opens_them_itself() -> None:
    source = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% endfor %}Reply:"
    found = detect(ModelInfo("m", 100, chat_template=source))
    assert (found.name, found.opened_by_prompt, found.start) == ("think-tags", False, "")


# ---------------------------------------------------------------- metadata


def test_metadata_goes_before_the_template() -> None:
    stated = {"name": "mine", "open": "<a>", "close": "</a>", "closes": ["</b>"], "switches_on": {"x": 1}}
    found = detect(info("qwen3", ponder_thinking=stated))
    assert found == ThinkingFormat("mine", "<a>", "</a>", closes=("</b>",), switches_on={"x": 1})


def test_metadata_may_be_json_and_name_a_family() -> None:
    found = detect(info("chatml", ponder_thinking=json.dumps({"name": "ponder", "wait": "\nHm"})))
    assert found.start == "<think>\n"
    assert found.wait == "\nHm"
    assert found.trained


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"opne": "<a>"}, "'opne'"),
        ("{", "not JSON"),
        ("[1]", "mapping"),
        ({"open": 3}, "open=3"),
        ({"closes": "</a>"}, "list of strings"),
        ({"closes": [1]}, "list of strings"),
        ({"trained": "yes"}, "bool"),
    ],
)
def test_wrong_metadata_is_one_clear_line(stated: Any, said: str) -> None:
    with pytest.raises(InputError, match=r"ponder\.thinking") as caught:
        detect(info("chatml", ponder_thinking=stated))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
