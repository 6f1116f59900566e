"""Chat templates: messages as templates know them, the sandbox, turns that are continued."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from ponder.chat.template import CHATML, ChatTemplate, to_template
from ponder.errors import InputError
from ponder.types import (
    Audio,
    Image,
    Message,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Video,
    assistant,
    system,
    user,
)

TEMPLATES = Path(__file__).parent.parent / "data" / "templates"
ASKED = (system("Be brief."), user("2+2?"))
TOOL = {"type": "function", "function": {"name": "f", "description": "does <b>é</b>", "parameters": {}}}
CALLING = Message("assistant", (Thinking("I need f."), ToolCall("f", '{"x": 1}', "abcdefghi")))
RETURNED = Message("tool", (ToolResult("abcdefghi", "42"),))


def template(name: str) -> ChatTemplate:
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), "<BOS>", "<EOS>")


# ---------------------------------------------------------------- whole prompts

PROMPTS = [
    (
        "chatml",
        {},
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("deepseek_r1", {}, "<BOS>Be brief.<｜User｜>2+2?<｜Assistant｜><think>\n"),
    ("deepseek_v3_1", {}, "<BOS>Be brief.<｜User｜>2+2?<｜Assistant｜></think>"),
    ("deepseek_v3_1", {"thinking": True}, "<BOS>Be brief.<｜User｜>2+2?<｜Assistant｜><think>"),
    ("mistral", {}, "<BOS>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]2+2?[/INST]"),
    (
        "gemma4",
        {"enable_thinking": True},
        "<BOS><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\n2+2?<turn|>\n<|turn>model\n",
    ),
]


@pytest.mark.parametrize(("name", "switches", "expected"), PROMPTS)
def test_the_prompt_is_exact(name: str, switches: dict[str, object], expected: str) -> None:
    assert template(name).render(ASKED, **switches) == expected


def test_chatml_is_the_default_for_models_without_a_template() -> None:
    assert ChatTemplate(CHATML).render(ASKED) == template("chatml").render(ASKED)


def test_without_a_generation_prompt_the_prompt_ends_with_the_last_turn() -> None:
    assert template("qwen3").render(ASKED, add_generation_prompt=False).endswith("2+2?<|im_end|>\n")


@pytest.mark.parametrize("name", ["deepseek_r1", "deepseek_v3_1", "qwq", "qwen3"])
def test_history_loses_its_thinking(name: str) -> None:
    turns = (user("2+2?"), assistant("<think>\nsecret\n</think>\n\n4"), user("And 3+3?"))
    text = template(name).render(turns)
    assert "4" in text
    assert "secret" not in text


def test_thinking_of_the_running_turn_is_replayed_with_tool_calls() -> None:
    text = template("qwen3").render((user("f?"), CALLING, RETURNED), tools=[TOOL])
    assert "<think>\nI need f.\n</think>" in text
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>' in text
    assert "<tool_response>\n42\n</tool_response>" in text
    assert '"description": "does <b>é</b>"' in text  # JSON for models is not escaped for HTML


def test_a_tool_result_knows_the_name_of_its_tool() -> None:
    text = template("gpt_oss").render((user("f?"), CALLING, RETURNED), tools=[TOOL])
    assert "<|channel|>analysis<|message|>I need f.<|end|>" in text
    assert '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>' in text
    assert "<|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>" in text


def test_templates_that_paste_arguments_get_them_as_text() -> None:
    text = template("deepseek_v3_1").render((user("f?"), CALLING, RETURNED))
    assert 'f<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>' in text


def test_the_ids_of_the_parser_suit_the_strictest_template() -> None:
    from ponder.chat.tool_calls import parse_tool_calls

    (call,) = parse_tool_calls("[f(x=1)]")
    turns = (user("f?"), Message("assistant", (call,)))
    assert template("mistral").render(turns).endswith('[TOOL_CALLS]f[ARGS]{"x": 1}<EOS>')
    with pytest.raises(InputError, match="9 letters or digits"):
        template("mistral").render((user("f?"), Message("assistant", (ToolCall("f", "{}", "1"),))))


def test_the_date_is_todays() -> None:
    found = re.search(r"Current date: (\S+)", template("gpt_oss").render(ASKED))
    assert found
    assert abs((datetime.now() - datetime.fromisoformat(found[1])).total_seconds()) < 2 * 86400


# ---------------------------------------------------------------- messages


def test_messages_become_the_usual_dictionaries() -> None:
    assert to_template([system("a"), user("b"), assistant("c", thinking="d")]) == [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "reasoning_content": "d", "thinking": "d"},
    ]


def test_arguments_that_are_no_object_stay_text() -> None:
    message = Message("assistant", tuple(ToolCall("f", text, "1") for text in ('{"x": 1}', "{", "[1]", "[" * 100_000)))
    (plain,) = to_template([message])
    assert [call["function"]["arguments"] for call in plain["tool_calls"]] == [{"x": 1}, "{", "[1]", "[" * 100_000]
    assert plain["tool_calls"][0] == {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert plain["content"] == ""


def test_each_tool_result_is_a_message_in_front_of_what_else_was_said() -> None:
    both = Message("user", (ToolResult("1", "a"), ToolResult("2", "b"), Text("Go on.")))
    assert to_template([both]) == [
        {"role": "tool", "content": "a", "tool_call_id": "1", "name": ""},
        {"role": "tool", "content": "b", "tool_call_id": "2", "name": ""},
        {"role": "user", "content": "Go on."},
    ]


def test_attachments_make_the_content_a_list() -> None:
    message = Message("user", (Text("See"), Image("data:i"), Audio("data:a"), Video(("f1", "f2"), 0.5)))
    assert to_template([message])[0]["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image", "url": "data:i"},
        {"type": "audio", "url": "data:a"},
        {"type": "video", "frames": ["f1", "f2"], "seconds": 0.5},
    ]


# ---------------------------------------------------------------- continued turns


@pytest.mark.parametrize("name", ["chatml", "deepseek_r1", "qwq", "qwen3", "mistral", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("text", ["The answer is", " spaced \n\n", ""])
def test_a_continued_turn_is_the_generation_prompt_and_the_exact_text(name: str, text: str) -> None:
    turns = (user("2+2?"),)
    prompt = template(name).render(turns)
    assert template(name).render([*turns, assistant(text)], continue_final_message=True) == prompt + text


def test_a_continued_turn_keeps_its_thinking_where_history_would_lose_it() -> None:
    begun = "<think>\nfirst\n</think>\n\nThe answer"
    text = template("qwen3").render([*ASKED, assistant(begun)], continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\n" + begun)


@pytest.mark.parametrize(("name", "begun"), [("qwq", "<think>\nfirst"), ("deepseek_v3_1", "<think>first")])
def test_a_continued_turn_opens_its_thinking_once(name: str, begun: str) -> None:
    text = template(name).render([user("2+2?"), assistant(begun)], continue_final_message=True, thinking=True)
    assert text.endswith(begun)
    assert text.count("<think>") == 1


def test_thinking_apart_from_the_text_is_laid_out_by_the_template() -> None:
    both = template("qwen3").render([*ASKED, assistant("The answer ", "Easy.")], continue_final_message=True)
    assert both.endswith("<|im_start|>assistant\n<think>\nEasy.\n</think>\n\nThe answer ")
    only = Message("assistant", (Thinking("Easy, since"),))
    alone = template("qwen3").render([*ASKED, only], continue_final_message=True)
    assert alone.endswith("<|im_start|>assistant\n<think>\nEasy, since")


def test_a_template_that_drops_thinking_cannot_continue_it() -> None:
    for message in (assistant("The answer", "Easy."), Message("assistant", (Thinking("Easy"),))):
        with pytest.raises(InputError, match="drops the thinking"):
            template("chatml").render([*ASKED, message], continue_final_message=True)


@pytest.mark.parametrize("turns", [(), ASKED])
def test_only_the_assistant_can_be_continued(turns: tuple[Message, ...]) -> None:
    with pytest.raises(InputError, match="assistant"):
        template("chatml").render(turns, continue_final_message=True)


# ---------------------------------------------------------------- what templates may use


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index > 1 %}\n{% break %}\n{% endif %}\n{{ m.content }}\n{% endfor %}"
    )
    assert ChatTemplate(source).render(ASKED) == "Be brief.\n"


def test_generation_blocks_only_group() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }};{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source).render(ASKED) == "Be brief.;2+2?;"


def test_tojson_takes_the_arguments_that_templates_give_it() -> None:
    source = "{{ tools[0] | tojson(indent=1) }}|{{ tools[0] | tojson(separators=(',', ':'), sort_keys=true) }}"
    tool = {"b": "é<", "a": [1]}
    assert ChatTemplate(source).render((), tools=[tool]) == ('{\n "b": "é<",\n "a": [\n  1\n ]\n}|{"a":[1],"b":"é<"}')


def test_variables_are_what_a_template_asks_of_its_caller() -> None:
    assert "enable_thinking" in template("qwen3").variables
    assert "thinking" in template("deepseek_v3_1").variables
    assert not {"ns", "enable_thinking"} & template("qwq").variables


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ messages.append(1) }}",
    "{% for i in range(999999999) %}x{% endfor %}",
    "{{ 1 / 0 }}",
    "{{ missing.attribute }}",
    "{{ messages[0].content + 1 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_and_broken_templates_are_input_errors(source: str) -> None:
    with pytest.raises(InputError, match="chat template failed"):
        ChatTemplate(source).render(ASKED)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% nonsense %}", "{% generation %}x"])
def test_a_template_that_is_no_jinja_is_an_input_error(source: str) -> None:
    for ask in (lambda: ChatTemplate(source).render(ASKED), lambda: ChatTemplate(source).variables):
        with pytest.raises(InputError, match="not valid Jinja"):
            ask()


def test_what_the_template_said_is_what_the_user_reads() -> None:
    with pytest.raises(InputError, match="System role not supported"):
        template("gemma2").render(ASKED)
    with pytest.raises(InputError, match="must alternate"):
        template("gemma2").render((user("a"), user("b")))


def test_importing_the_module_does_not_load_jinja() -> None:
    code = "import sys, ponder.chat.template, ponder.chat.formats, ponder.chat.parse; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
