"""`ponder chat`: what is remembered, what can be set, and how it is stopped."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import pytest
from command_line import Terminal, end, interrupt, ponder, slowly, start, traces, wait_until_asked, write_script

from ponder.types import Message, assistant, from_json, to_json, user

REPLIES = [
    # A reply to the second turn that only fits where the first one is still there, answer included.
    {
        "when": r"/My name is Ann[\s\S]*Hello Ann[\s\S]*user\nWhat is my name\?/",
        "say": "<think>\nShe said so.\n</think>\n\nYou are Ann.",
    },
    {"when": r"/user\nWhat is my name\?(?![\s\S]*user)/", "say": "<think>\nWho?\n</think>\n\nI do not know."},
    {"when": r"/user\nMy name is Ann(?![\s\S]*user)/", "say": "<think>\nA name.\n</think>\n\nHello Ann."},
    {
        "when": r"/user\nfail(?![\s\S]*user)/",
        "say": "<think>\nOh.\n</think>\n\nno",
        "fault": {"kind": "garbage", "at": 12},
    },
    {"when": r"/step by step[^\n]*<\|im_end\|>\n$/", "say": "Step one. The answer is 7."},
    {"after": "</think>", "say": "\n\nAt once."},
    {"say": "<think>\nI wonder and wonder and wonder.\n</think>\n\nI wonder."},
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_script(tmp_path / "chat.json", REPLIES)


def talk(model: str, *lines: str, options: tuple[object, ...] = ()) -> tuple[list[str], list[str]]:
    """A conversation through a pipe: the answers, and the lines that went to standard error."""
    result = ponder("chat", "-m", model, *options, stdin="".join(f"{line}\n" for line in lines))
    assert result.code == 0, result
    return result.out.splitlines(), result.err.splitlines()


def tokens(err: list[str]) -> list[int]:
    """The tokens of each line that tells a cost."""
    return [int(found[1]) for line in err if (found := re.match(r"(\d+) tokens .*· prompt", line))]


def test_the_history_is_kept(model):
    answers, said = talk(model, "My name is Ann", "What is my name?")
    assert answers == ["Hello Ann.", "You are Ann."]
    assert [line for line in said if "·" not in line and line] == ["A name.", "She said so."]
    second, first = traces()
    assert [message.text for message in second.question.messages] == [
        "My name is Ann",
        "Hello Ann.",
        "What is my name?",
    ]
    assert first.answer == "Hello Ann."
    assert "She said so." not in "".join(message.text for message in second.question.messages)


def test_without_the_history_it_would_not_know(model):
    assert talk(model, "What is my name?")[0] == ["I do not know."]


def test_a_piped_dialogue_ignores_empty_lines_and_stops_at_quit(model):
    answers, said = talk(model, "", "  ", "My name is Ann", "/quit", "What is my name?")
    assert answers == ["Hello Ann."]
    assert len(tokens(said)) == 1
    assert talk(model) == ([], [])


def test_quiet_and_no_store(model, ponder_home):
    answers, said = talk(model, "My name is Ann", options=("--quiet", "--no-store"))
    assert (answers, said) == (["Hello Ann."], [])
    assert not list(ponder_home.glob("ponder.db*"))


def test_budget_is_for_each_turn(model):
    answers, said = talk(model, "one", "/budget 30", "two", "/budget 9", "three", options=("--budget", 200))
    assert len(answers) == 3
    assert "30 tokens for each turn" in said
    assert [trace.budget.tokens for trace in reversed(traces())] == [200, 30, 9]
    first, second, third = tokens(said)
    assert first > 30 >= second > 9 >= third > 0


def test_thinking_is_switched(model):
    lines = ("/think off", "one", "/think prompt", "two", "/think on", "three")
    answers, said = talk(model, *lines)
    assert answers == ["At once.", "The answer is 7.", "I wonder."]
    for way in ("off", "prompt", "on"):
        assert f"thinking {way}" in said
    on, prompt, off = traces()
    assert (off.cost.thinking, off.provenance.strategy) == (0, "direct()")
    assert prompt.thinking == "Step one."
    assert on.thinking == "I wonder and wonder and wonder."


def test_thinking_is_chosen_by_options(model):
    assert talk(model, "one", options=("--no-think",))[0] == ["At once."]
    assert talk(model, "one", options=("--think", "prompt"))[0] == ["The answer is 7."]


def test_save_and_load_go_on_where_it_was(model, tmp_path):
    file = tmp_path / "with space.jsonl"
    _, said = talk(model, "My name is Ann", f"/save {file}", options=("--system", "Be kind."))
    assert f"3 messages in {file}" in said
    messages = [from_json(Message, line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert [message.text for message in messages] == ["Be kind.", "My name is Ann", "Hello Ann."]
    answers, _ = talk(model, "What is my name?", f"/save {file}", options=("--load", file))
    assert answers == ["You are Ann."]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 5
    assert [message.text for message in traces()[0].question.messages][:2] == ["Be kind.", "My name is Ann"]


def test_save_tells_what_is_wrong(model, tmp_path):
    answers, said = talk(model, "/save", f"/save {tmp_path}/none/file", f"/save {tmp_path}", "My name is Ann")
    assert [line for line in said if line.startswith("ponder:")] == [
        "ponder: /save needs a file. try /save chat.jsonl.",
        f"ponder: cannot write {tmp_path}/none/file: No such file or directory. choose another file.",
        f"ponder: cannot write {tmp_path}: Is a directory. choose another file.",
    ]
    assert answers == ["Hello Ann."]


def test_cost_adds_up(model):
    _, said = talk(model, "/cost", "My name is Ann", "What is my name?", "/cost", options=("--price", "1,10"))
    nothing = "0 tokens · prompt 0 computed, 0 cached · 0.0 s"
    assert said[0] == nothing
    none, first, second, total = tokens(said)
    assert none == 0 < first < first + second == total
    spent = [trace.cost for trace in traces()]
    assert f"${sum(cost.dollars for cost in spent):.6f}" in said[-1]
    assert (
        f"prompt {sum(c.prompt_computed for c in spent)} computed, {sum(c.prompt_cached for c in spent)} cached"
        in said[-1]
    )


def test_undo_forgets_the_last_turn(model):
    answers, said = talk(model, "My name is Ann", "/undo", "What is my name?", "/undo", "/undo")
    assert answers == ["Hello Ann.", "I do not know."]
    assert said.count("0 messages") == 3
    answers, said = talk(model, "My name is Ann", "one", "/undo", "What is my name?")
    assert answers == ["Hello Ann.", "I wonder.", "You are Ann."]
    assert "2 messages" in said


def test_help_tells_the_settings(model):
    _, said = talk(model, "/budget 77", "/think off", "/help")
    shown = "\n".join(said)
    assert "(now 77)" in shown
    assert "(now off)" in shown
    for command in ("/budget", "/think", "/save", "/cost", "/undo", "/help", "/quit"):
        assert command in shown


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/nonsense", "/nonsense is no command. see /help."),
        ("/", "/ is no command. see /help."),
        ("/budget", "'' is no budget. try /budget 1000."),
        ("/budget 0", "'0' is no budget. try /budget 1000."),
        ("/budget many", "'many' is no budget. try /budget 1000."),
        ("/budget " + "9" * 5000, None),
        ("/think hard", "/think hard says nothing. try /think on, off, trained or prompt."),
    ],
)
def test_a_wrong_command_is_told_and_the_chat_goes_on(model, line, complaint):
    answers, said = talk(model, line, "My name is Ann")
    assert said[0].startswith("ponder: ")
    assert complaint is None or said[0] == f"ponder: {complaint}"
    assert answers == ["Hello Ann."]


def test_a_failing_engine_loses_neither_the_chat_nor_its_history(model):
    answers, said = talk(model, "My name is Ann", "fail", "/budget 2", "too small", "/budget 500", "What is my name?")
    assert answers == ["Hello Ann.", "You are Ann."]
    complaints = [line for line in said if line.startswith("ponder:")]
    assert complaints[0].startswith("ponder: the scripted engine sent something that is no reply")
    assert complaints[1].startswith("ponder: a budget of 2 tokens leaves no room")
    assert [trace.state for trace in reversed(traces())] == ["done", "failed", "failed", "done"]


# ---------------------------------------------------------------- on a terminal


def ctrl_c_at_the_prompt(terminal: Terminal) -> str:
    """Presses it until the prompt comes back: Python misses one that comes just before it waits for input."""
    for _ in range(4):
        terminal.type("\x03")
        with contextlib.suppress(AssertionError):
            return terminal.expect("> ", timeout=5)
    pytest.fail(f"Ctrl-C does nothing at the prompt: {terminal.seen!r}")


def test_ctrl_c_stops_the_turn_and_ctrl_d_the_chat(tmp_path):
    replies = [
        {"when": r"/So fa[\s\S]*user\nGo on/", "say": "<think>\n\n</think>\n\nAs I said."},
        {"when": "slow", "say": "<think>\n\n</think>\n\nSo far and no further, or maybe a little."},
    ]
    faults = [{**slowly(0.1)[0], "times": 1, "at": 1}]
    model = write_script(tmp_path / "chat.json", replies, faults=faults)
    with Terminal("chat", "--no-think", "-m", model) as terminal:
        assert "Ctrl-D to leave" in terminal.expect("> ")
        terminal.type("Be slow\n")
        terminal.expect("So far")
        terminal.type("\x03")
        assert " tokens (" in terminal.expect("> ")
        terminal.type("Go on\n")
        assert "As I said." in terminal.expect("> ")
        # At the prompt it drops the line that was being typed.
        terminal.type("half a line")
        terminal.expect("half a line")
        assert "/quit or Ctrl-D to leave" in ctrl_c_at_the_prompt(terminal)
        assert "/quit or Ctrl-D to leave" in ctrl_c_at_the_prompt(terminal)
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.seen
    done, stopped = traces()
    assert (stopped.state, done.state) == ("interrupted", "done")
    assert stopped.answer.startswith("So far")
    assert done.question.messages[1] == assistant(stopped.answer)


def test_a_turn_that_was_stopped_before_it_said_anything_is_forgotten(tmp_path):
    replies = [
        {"when": "Say nothing", "after": "</think>", "say": "\n\nno", "fault": {"kind": "hang"}},
        {"after": "</think>", "say": "\n\nYes."},
    ]
    model = write_script(tmp_path / "chat.json", replies)
    with Terminal("chat", "--no-think", "-m", model) as terminal:
        terminal.expect("> ")
        terminal.type("Say nothing\n")
        terminal.expect("Say nothing\n")
        wait_until_asked()
        terminal.type("\x03")
        assert "0 tokens" in terminal.expect("> ")
        terminal.type("Hello\n/quit\n")
        assert terminal.end() == 0
    assert "Yes." in terminal.seen
    assert traces()[0].question.messages == (user("Hello"),)


def test_ctrl_c_ends_a_chat_that_nobody_types_into(model):
    process = start("chat", "-m", model, stdin=-1)
    process.stdin.write(b"My name is Ann\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"Hello Ann.\n"
    while b"tokens (" not in process.stderr.readline():
        pass
    time.sleep(0.3)  # the turn ends just after it has told its cost
    interrupt(process)
    process.stdin.flush()
    result = end(process, timeout=5)
    assert (result.code, result.err) == (130, "ponder: stopped\n")
    assert traces()[0].state == "done"


def test_a_conversation_is_saved_as_it_is_written(model, tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text("\n" + to_json(user("My name is Ann")) + "\n\n" + to_json(assistant("Hello Ann.")) + "\n")
    assert talk(model, "What is my name?", options=("--load", file))[0] == ["You are Ann."]
    assert json.loads(file.read_text().splitlines()[1])["version"] == 1
