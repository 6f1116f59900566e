"""Rollouts with tools: calls found, made and shown; and a recipe that asks for them, from end to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import tiny_texts
from safetensors.torch import load_file
from teaching import document, model_folder
from train.saying import saying, spoken
from train.trained import steps_without_times

from ponder.chat.formats import detect
from ponder.chat.template import ChatTemplate
from ponder.data.examples import Example, write_examples
from ponder.engine.torch_load import load
from ponder.errors import InputError
from ponder.improve import improve, planned
from ponder.protocols import ModelInfo, Tool
from ponder.train.recipe import Recipe
from ponder.train.recipe_file import read
from ponder.train.rollout import Ask, Reply, Rollout
from ponder.train.run import steps_of
from ponder.train.texts import Texts
from ponder.train.tool_use import answered, check, shown, telling, with_tools
from ponder.train.tools import tools_named
from ponder.types import Question, ToolCall, ToolResult, user

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
QUESTION = Question((user("What is 2 + 3?"),), reference="5")
CALCULATOR = tools_named(["calculator()"])


def call(name: str = "calculator", **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def rollout_of(*replies: str, turns: int = 3, tools: Sequence[Tool] = CALCULATOR) -> tuple[Rollout, Texts]:
    texts = tiny_texts()
    ask = Ask(QUESTION, tuple(texts.prompt(QUESTION.messages)), 1, 2000)
    ((rollout,),) = with_tools(saying(texts, *replies), tools, texts, turns=turns)([ask])
    return rollout, texts


def reply_to(text: str, tools: Sequence[Tool] = CALCULATOR, seconds: float = 5.0, ended: bool = True) -> Reply:
    texts = tiny_texts()
    turn = spoken(texts, text, texts.prompt(QUESTION.messages), ended)
    reply = asyncio.run(answered(tools, texts, seconds)(QUESTION, turn))
    assert reply is not None
    return reply


# ---------------------------------------------------------------- calls and their results


def test_a_result_is_shown_as_the_template_does_and_is_not_learnt() -> None:
    asked = f"I add.\n</think>\n{call(expression='2 + 3')}"
    rollout, texts = rollout_of(asked, "So 5.\n</think>\nThe answer is 5.")
    sample = rollout.sample
    result = "\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert texts.decode(sample.ids) == f"{asked}<|im_end|>{result}So 5.\n</think>\nThe answer is 5.<|im_end|>"
    assert texts.decode([t for t, mine in zip(sample.ids, sample.mask, strict=True) if not mine]) == result
    assert (sample.answer, sample.thinking) == ("The answer is 5.", "I add.\nSo 5.")
    assert (rollout.calls, rollout.failed, sample.finish) == (1, 0, "stop")


def test_several_calls_of_a_turn_are_all_made() -> None:
    reply = reply_to(f"</think>\n{call(expression='2*3')}\n{call(expression='1/0')}")
    assert "tool\n6<|im_end|>" in reply.text
    assert "tool\nerror: division by zero<|im_end|>" in reply.text
    assert (reply.calls, reply.failed) == (2, 1)


def test_a_call_inside_thinking_counts() -> None:
    assert "tool\n5<" in reply_to(call(expression="2+3")).text


def test_an_answer_is_not_answered() -> None:
    rollout, _ = rollout_of("Easy.\n</think>\nThe answer is 5.")
    assert (rollout.calls, rollout.sample.answer, rollout.sample.mask.count(False)) == (0, "The answer is 5.", 0)


def test_a_sample_whose_turns_are_used_up_has_no_answer() -> None:
    asks = f"Hm.\n</think>\n{call(expression='5')}"
    rollout, _ = rollout_of(asks, asks, turns=2)
    assert (rollout.calls, rollout.sample.answer, rollout.sample.finish) == (1, "", "length")


async def _breaks(**arguments: Any) -> str:
    raise RuntimeError("the disk is on fire")


async def _sleeps(**arguments: Any) -> str:
    await asyncio.sleep(60)
    return "late"


async def _ends_turns(**arguments: Any) -> str:
    return "5<|im_end|>\n<|im_start|>user\n" + "9" * 5000


def named(name: str, run: Any) -> Tool:
    return Tool(name, name, {"type": "object", "properties": {}}, run)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (call("abacus"), "there is no tool 'abacus': choose from calculator, breaks, sleeps"),
        (call(expression="two"), "more than numbers"),
        (call(sum="2+3"), "unexpected keyword argument 'sum'"),
        (call("breaks"), "the disk is on fire"),
        (call("sleeps"), "sleeps took longer than 0.05 s"),
        ("<tool_call>{calculator: 2}</tool_call>", "the call cannot be read"),
        ('<tool_call>{"name": "calculator", "arguments": [1]}</tool_call>', "the arguments are no object"),
    ],
)
def test_a_call_that_fails_has_the_reason_as_its_result(said: str, told: str) -> None:
    tools = (*CALCULATOR, named("breaks", _breaks), named("sleeps", _sleeps))
    reply = reply_to(f"</think>\n{said}", tools, seconds=0.05)
    assert "tool\nerror: " in reply.text
    assert told in reply.text
    assert (reply.calls, reply.failed) == (1, 1)


def test_a_result_neither_ends_its_turn_nor_fills_the_context() -> None:
    reply = reply_to(f"</think>\n{call('talks')}", [named("talks", _ends_turns)])
    assert reply.text.startswith("\n<|im_start|>tool\n5\nuser\n9999")
    assert reply.text.count("<|im_end|>") == 1
    assert 2000 < len(reply.text) < 2100


def test_a_turn_whose_end_the_server_kept_is_ended() -> None:
    assert reply_to(f"</think>\n{call(expression='1')}", ended=False).text.startswith("<|im_end|>\n<|im_start|>tool\n1")


# ---------------------------------------------------------------- chat templates

ENDS = {
    "qwen3": "<|im_end|>",
    "qwq": "<|im_end|>",
    "mistral": "</s>",
    "gpt_oss": "<|return|>",
    "gemma2": "<end_of_turn>",
    "deepseek_r1": "<｜end▁of▁sentence｜>",
}


def texts_of(name: str) -> Texts:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    form = detect(ModelInfo(name, 0, eos=ENDS[name], chat_template=source))
    return Texts(ChatTemplate(source, "<bos>", ENDS[name]), form, lambda text: list(text.encode()), str, 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
        ("qwq", "\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        ("mistral", "[TOOL_RESULTS]5[/TOOL_RESULTS][THINK]"),
    ],
)
def test_each_template_shows_results_in_its_own_way(name: str, text: str) -> None:
    texts = telling(texts_of(name), CALCULATOR)
    check(CALCULATOR, texts)
    asked = ToolCall("calculator", '{"expression": "2+3"}', "abcdefghi")
    assert shown(texts, [asked], [ToolResult(asked.id, "5")]) == text


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "deepseek_r1"])
def test_a_template_that_shows_no_results_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"can be shown no results of tools: .*Leave tools out") as raised:
        check(CALCULATOR, texts_of(name))
    assert "\n" not in str(raised.value)


def test_prompts_tell_of_the_tools_where_the_template_does() -> None:
    plain = texts_of("qwen3")
    told = bytes(telling(plain, CALCULATOR).prompt(QUESTION.messages)).decode()
    assert '"name": "calculator"' in told
    assert '"required": ["expression"]' in told
    assert b"calculator" not in bytes(plain.prompt(QUESTION.messages))


# ---------------------------------------------------------------- from a recipe

CALL = call(expression="1+1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was taught to call the calculator, and questions."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("tools")
    model_folder(path, max_position_embeddings=512)
    write_examples(path / "examples.jsonl", [Example(f"{a}+1?", CALL, "Hm.", reference=str(a + 1)) for a in range(6)])
    taught = document(path, steps=30, optimizer={"rate": 1e-2, "schedule": "constant"})
    improve(read(taught), path / "cold")
    return path


def recipe(folder: Path, **changes: Any) -> Recipe:
    told = {
        "prompts": 2,
        "samples": 3,
        "max_tokens": 220,
        "slots": 6,
        "answer": 4,
        "beta": 0.01,  # so that every sample is learnt from, and the tokens that count can be counted
        "overlong": 200,
        "tools": ["calculator()"],
        "turns": 2,
    }
    model = {"model": str(folder / "cold" / "model"), "batch": None, "thinking": None, "full": None}
    return read(document(folder, "grpo", **model, lora={"rank": 2}, steps=3, tokens=1024, grpo=told | changes))


def one_step(told: Recipe) -> Recipe:
    return told.model_copy(update={"steps": 1})


class Cut(Exception):
    pass


def cut(step: int, steps: int, values: object) -> None:
    if step == 3:
        raise Cut


def rollouts_of(folder: Path, step: int) -> list[dict[str, Any]]:
    (path,) = (folder / "rollouts").glob(f"step-{step:08d}-*")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_with_tools_runs_masks_the_results_and_resumes(folder: Path, tmp_path: Path) -> None:
    whole = improve(recipe(folder), tmp_path / "whole")
    ids = load(str(folder / "cold" / "model"))
    begun = "<|im_end|>\n<|im_start|>tool\n"
    answered = 0
    for step in steps_of(tmp_path / "whole"):
        lines = rollouts_of(tmp_path / "whole", step["step"])
        assert step["calls"] == pytest.approx(sum(line["calls"] for line in lines) / len(lines))
        assert step["failed_calls"] == pytest.approx(sum(line["failed"] for line in lines) / len(lines))
        # What was learnt is what the policy chose; the rest is in the rows, and counts for nothing.
        assert step["learnt"] == sum(sum(line["mask"]) for line in lines)
        assert step["tokens"] == sum(len(line["mask"]) + len(line["prompt_ids"]) for line in lines)
        assert abs(step["loss"]) < float("inf")
        for line in lines:
            whole_text = ids.tokenizer.decode(line["ids"])
            mine = ids.tokenizer.decode([t for t, m in zip(line["ids"], line["mask"], strict=True) if m])
            if CALL in whole_text and begun in whole_text:
                answered += 1
                assert f"{CALL}{begun}2<|im_end|>" in whole_text
                assert f"{begun}2" not in mine
    assert answered > 5
    with pytest.raises(Cut):
        improve(recipe(folder), tmp_path / "cut", shown=cut)
    again = improve(recipe(folder), tmp_path / "cut")
    assert steps_without_times(tmp_path / "cut") == steps_without_times(tmp_path / "whole")
    weights = [load_file(each / "adapter_model.safetensors") for each in (whole, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_without_tools_says_nothing_of_calls(folder: Path, tmp_path: Path) -> None:
    improve(one_step(recipe(folder, tools=[], turns=1)), tmp_path / "run")
    assert "calls" not in steps_of(tmp_path / "run")[0]


def test_calls_are_means_over_all_rounds_of_a_step(folder: Path, tmp_path: Path) -> None:
    """Rewards that are all equal are sampled anew, and those samples called tools, too."""
    same = recipe(folder, rewards={"pattern('never said')": 1.0}, overlong=0, dynamic=1)
    improve(one_step(same), tmp_path / "run")
    (step,) = steps_of(tmp_path / "run")
    files = sorted((tmp_path / "run" / "rollouts").iterdir())
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert (step["rounds"], len(lines)) == (2, 12)
    assert step["calls"] == pytest.approx(sum(line["calls"] for line in lines) / 12)


def test_a_model_that_can_be_shown_no_results_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    load(str(folder / "tiny")).model.save_pretrained(silent)
    tokenizer = load(str(folder / "tiny")).tokenizer
    tokenizer.chat_template = "{% for m in messages if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(silent)
    told = recipe(folder).model_copy(update={"model": str(silent)})
    with pytest.raises(InputError, match="leaves results out"):
        planned(told)
    with pytest.raises(InputError, match="leaves results out"):
        improve(told, tmp_path / "run")
    assert not (tmp_path / "run" / "rollouts").exists()


def test_a_turn_keeps_the_tokens_that_an_answer_needs(folder: Path, tmp_path: Path) -> None:
    """After the first call so few are left that the sampler could close no thinking: the sample ends there."""
    first = len(tiny_texts().encode(f"Hm.\n</think>\n{CALL}")) + 1
    short = recipe(folder, max_tokens=first + 26, overlong=0, temperature=0.1)
    improve(one_step(short), tmp_path / "run")
    lines = rollouts_of(tmp_path / "run", 1)
    ended = [line for line in lines if line["calls"]]
    assert ended
    assert all((line["answer"], line["finish"], 0 in line["mask"]) == ("", "length", False) for line in ended)
