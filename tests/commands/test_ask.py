"""`ponder ask`: what it prints where, what it costs, and how it ends when it is stopped."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import time

import pytest
from command_line import (
    COMMAND,
    Terminal,
    end,
    interrupt,
    ponder,
    run,
    scripted,
    slowly,
    start,
    traces,
    wait_until_asked,
    write_script,
)
from servers import FakeServer, FakeVllm

from ponder.commands import asking
from ponder.ops.store import Store
from ponder.types import Trace, from_dict, from_json

COST = re.compile(
    r"(\d+) tokens \((.+)\) · prompt (\d+) computed, (\d+) cached · (\d+\.\d) s · \d+ tokens/s(?: · \$(\d+\.\d+))?"
)

ESCAPE = "\x1b"


def cost_line(err: str) -> re.Match[str]:
    """The last line of standard error, taken apart."""
    found = COST.fullmatch(err.splitlines()[-1])
    assert found, err
    return found


# ---------------------------------------------------------------- what is printed where


def test_answer_and_nothing_else_on_standard_output(tmp_path):
    result = ponder("ask", "-m", scripted(tmp_path, "It is 4.", "2 + 2 is 4."), "2 + 2?")
    assert (result.code, result.out) == (0, "It is 4.\n")
    thought, blank, cost = result.err.splitlines()
    assert (thought, blank) == ("2 + 2 is 4.", "")
    trace = traces()[0]
    found = cost_line(cost)
    assert int(found[1]) == trace.cost.tokens == len(trace.samples[0].ids)
    assert found[2] == f"{trace.cost.thinking} thinking, {trace.cost.answer} answer"
    assert int(found[3]) == len(trace.samples[0].prompt_ids)
    assert int(found[4]) == 0
    assert found[6] is None


def test_quiet_prints_the_answer_alone(tmp_path):
    result = ponder("ask", "--quiet", "-m", scripted(tmp_path, "It is 4."), "2 + 2?")
    assert (result.code, result.out, result.err) == (0, "It is 4.\n", "")


def test_json_is_the_whole_trace_and_nothing_else(tmp_path):
    result = ponder("ask", "--json", "-m", scripted(tmp_path, "It is 4.", "2 + 2 is 4."), "2 + 2?")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 1
    trace = from_json(Trace, result.out)
    assert (trace.answer, trace.thinking, trace.question.text, trace.state) == (
        "It is 4.",
        "2 + 2 is 4.",
        "2 + 2?",
        "done",
    )
    assert trace == traces()[0]


def test_no_escape_sequence_where_there_is_no_terminal(tmp_path):
    result = ponder("ask", "-m", scripted(tmp_path, "It\x1b[31m is 4.\x07", "\x1b]0;title\x07"), "2 + 2?")
    assert result.out == "It\ufffd[31m is 4.\ufffd\n"
    assert ESCAPE not in result.err
    assert "\ufffd]0;title" in result.err


def test_a_terminal_shows_thinking_dimmed_and_obeys_no_model(tmp_path):
    model = scripted(tmp_path, "red \x1b[31m, clear \x1b[2J", "Let me see.")
    with Terminal("ask", "-m", model, "hi") as terminal:
        assert terminal.end() == 0
    shown = terminal.seen
    dimmed = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", shown))
    assert dimmed.startswith("Let me see.")
    assert COST.fullmatch(dimmed.removeprefix("Let me see."))
    undimmed = re.sub(r"\x1b\[2m.*?\x1b\[0m", "", shown)
    assert undimmed.strip() == "red \ufffd[31m, clear \ufffd[2J"


def test_no_color_switches_every_escape_sequence_off(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    with Terminal("ask", "--compare", "-m", model, "hi", NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert "trained thinking" in terminal.seen
    assert ESCAPE not in terminal.seen


# ---------------------------------------------------------------- how to think


def test_no_think_answers_at_once(tmp_path):
    result = ponder("ask", "--no-think", "--json", "-m", scripted(tmp_path, "It is 4."), "2 + 2?")
    trace = from_json(Trace, result.out)
    assert (trace.answer, trace.thinking, trace.cost.thinking) == ("It is 4.", "", 0)
    assert trace.provenance.strategy == "direct()"


def test_think_prompt_asks_for_steps_in_words(tmp_path):
    result = ponder("ask", "--think", "prompt", "--json", "-m", scripted(tmp_path, "wrong", "Two and two."), "2 + 2?")
    trace = from_json(Trace, result.out)
    assert "The answer is 4." in trace.answer
    assert trace.thinking == "Two and two."
    assert "step by step" in bytes(i for i in trace.samples[0].prompt_ids if i < 256).decode()


def test_compare_puts_the_ways_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = ponder("ask", "--compare", "-m", scripted(tmp_path, "It is [/b] 4.", "Two and two."), "2 + 2?")
    assert result.code == 0
    rows = {cells[0]: cells[1:] for line in result.out.splitlines() if (cells := _cells(line))}
    assert list(rows) == ["direct", "step by step", "trained thinking"]
    stored = dict(zip(rows, reversed(traces()), strict=True))
    for name, (answer, thinking, answered, prompt, _) in rows.items():
        cost = stored[name].cost
        assert (int(thinking), int(answered), int(prompt)) == (cost.thinking, cost.answer, cost.prompt)
        assert answer == stored[name].answer
    assert rows["direct"][0] == "It is [/b] 4."
    assert "— step by step\nTwo and two." in result.err


def _cells(line: str) -> list[str]:
    cells = re.split(r" {2,}", line.strip())
    return cells if len(cells) == 6 and cells[0] != "way" else []


def test_compare_as_json_and_quietly(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    result = ponder("ask", "--compare", "--json", "-m", model, "2 + 2?")
    found = {name: from_dict(Trace, document) for name, document in json.loads(result.out).items()}
    assert {name: trace.thinking for name, trace in found.items()} == {
        "direct": "",
        "step by step": "Let me see.",
        "trained thinking": "Let me see.",
    }
    assert result.err == ""
    quiet = ponder("ask", "--compare", "--quiet", "-m", model, "2 + 2?")
    assert quiet.err == ""
    assert quiet.out.count("It is 4.") == 2
    assert "Let me see." not in quiet.out


def test_compare_leaves_out_what_the_model_cannot_do(tmp_path):
    untrained = scripted(tmp_path, "no", model={"chat_template": None})
    result = ponder("ask", "--compare", "--json", "-m", untrained, "2 + 2?")
    assert list(json.loads(result.out)) == ["direct", "step by step"]


def test_compare_goes_on_where_one_way_fails(tmp_path):
    replies = [
        {"after": "</think>", "say": "\n\nAt once."},
        {"when": "step by step", "say": "x", "fault": {"kind": "garbage"}},
    ]
    result = ponder("ask", "--compare", "-m", write_script(tmp_path / "s.json", replies), "2 + 2?")
    assert result.code == 0
    assert "direct" in result.out
    assert "trained" not in result.out
    failures = [line for line in result.err.splitlines() if line.startswith("ponder: ")]
    assert failures[0].startswith("ponder: step by step: the scripted engine sent something that is no reply")
    assert failures[1].startswith("ponder: trained thinking: no reply in")
    alone = write_script(tmp_path / "none.json", [])
    assert ponder("ask", "--compare", "-m", alone, "2 + 2?").code == 2


# ---------------------------------------------------------------- servers


@pytest.mark.parametrize("kind", [FakeServer, FakeVllm])
def test_a_server_is_asked(kind):
    async def asked() -> tuple[str, str]:
        thought = {"thinking": "2 + 2 is 4."} if kind is FakeServer else {}
        text = "It is 4." if kind is FakeServer else "2 + 2 is 4. The answer is 4."
        async with kind([text], **thought) as server:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "ask", "-m", f"openai:{server.url}#tiny", "2 + 2?", stdout=-1, stderr=-1, stdin=-3
            )
            out, err = await process.communicate()
            assert process.returncode == 0, err
            return out.decode(), err.decode()

    out, err = asyncio.run(asked())
    assert out == ("It is 4.\n" if kind is FakeServer else "The answer is 4.\n")
    assert err.startswith("2 + 2 is 4.")
    trace = traces()[0]
    assert (trace.answer, trace.provenance.model) == (out.strip(), "tiny")
    assert int(cost_line(err)[1]) == trace.cost.tokens > 0


# ---------------------------------------------------------------- what is asked


def prompt_of(trace: Trace) -> str:
    return bytes(i for i in trace.samples[0].prompt_ids if i < 256).decode()


def test_piped_text_is_asked_about(tmp_path):
    model = scripted(tmp_path, "Yes.")
    ponder("ask", "-m", model, "Summarise", stdin="one\ntwo\n")
    ponder("ask", "-m", model, stdin="\ufeffWhat is this?")
    ponder("ask", "-m", model, "Just this", stdin="")
    ponder("ask", "-m", model, "And this")
    assert [trace.question.text for trace in reversed(traces())] == [
        "Summarise\n\none\ntwo\n",
        "What is this?",
        "Just this",
        "And this",
    ]


def test_a_real_pipe_is_read(tmp_path):
    result = run("ask", "-q", "-m", scripted(tmp_path, "Yes."), "Summarise", stdin="größer\n".encode())
    assert (result.code, result.out, result.err) == (0, "Yes.\n", "")
    assert traces()[0].question.text == "Summarise\n\ngrößer\n"


def test_files_are_asked_about_in_order(tmp_path):
    model = scripted(tmp_path, "Yes.")
    for name in ("b", "a"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    ponder("ask", "-m", model, "Compare", "--file", tmp_path / "b", "-f", tmp_path / "a", stdin="and piped")
    ponder("ask", "-m", model, "--file", tmp_path / "a")
    assert traces()[1].question.text == "Compare\n\ntext of b\n\ntext of a\n\nand piped"
    assert traces()[0].question.text == "text of a"


def test_a_system_message_reaches_the_model(tmp_path):
    ponder("ask", "-m", scripted(tmp_path, "Yes."), "--system", "Be brief.", "hi")
    trace = traces()[0]
    assert [message.role for message in trace.question.messages] == ["system", "user"]
    assert prompt_of(trace).startswith("system\nBe brief.")


def test_the_model_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PONDER_MODEL", scripted(tmp_path, "It is 4."))
    assert ponder("ask", "hi").out == "It is 4.\n"


# ---------------------------------------------------------------- bounds


def test_budget_bounds_everything(tmp_path):
    model = scripted(tmp_path, "It is 4. " * 40, "I wonder. " * 40)
    for budget in (16, 60, 150):
        result = ponder("ask", "--budget", budget, "-m", model, "2 + 2?")
        trace = traces()[0]
        assert trace.budget.tokens == budget
        assert 0 < int(cost_line(result.err)[1]) == trace.cost.tokens <= budget
        assert trace.answer
        assert result.out.strip() == trace.answer


def test_answer_and_thinking_have_bounds_of_their_own(tmp_path):
    model = scripted(tmp_path, "It is 4. " * 40, "I wonder. " * 40)
    ponder("ask", "--budget", 200, "--answer", 120, "-m", model, "2 + 2?")
    assert traces()[0].cost.thinking <= 80
    assert traces()[0].cost.answer >= 120
    ponder("ask", "--budget", 200, "--thinking", 30, "-m", model, "2 + 2?")
    assert 0 < traces()[0].cost.thinking <= 30
    ponder("ask", "--thinking", 0, "-m", model, "2 + 2?")
    assert traces()[0].cost.thinking == 0


def test_min_thinking_makes_the_model_wait(tmp_path):
    replies = [
        {"after": "Wait", "say": ", that is wrong. It is five, as everybody knows very well.\n</think>\n\n5"},
        {"say": "<think>\nFour.\n</think>\n\n4"},
    ]
    model = write_script(tmp_path / "s.json", replies)
    assert ponder("ask", "-m", model, "2 + 2?").out == "4\n"
    result = ponder("ask", "--min-thinking", 40, "-m", model, "2 + 2?")
    assert result.out == "5\n"
    assert "Wait, that is wrong." in result.err
    assert traces()[0].cost.thinking >= 40


def test_price_gives_dollars(tmp_path):
    model = scripted(tmp_path, "It is 4.", "2 + 2 is 4.")
    result = ponder("ask", "--price", "2,1,10", "-m", model, "2 + 2?")
    cost = traces()[0].cost
    # Dollars per million tokens: 2 for the prompt, 1 where it was cached, 10 for what is generated.
    expected = (cost.prompt_computed * 2 + cost.prompt_cached * 1 + cost.tokens * 10) / 1_000_000
    assert cost.dollars == pytest.approx(expected)
    assert float(cost_line(result.err)[6]) == pytest.approx(expected, abs=1e-6)
    ponder("ask", "--price", "2,10", "-m", model, "2 + 2?")
    assert traces()[0].cost.dollars == pytest.approx((cost.prompt * 2 + cost.tokens * 10) / 1_000_000)


def test_dollars_bound_the_request(tmp_path):
    model = scripted(tmp_path, "It is 4. " * 40, "I wonder. " * 40)
    result = ponder("ask", "--dollars", 0.001, "--price", "1,10", "-m", model, "2 + 2?")
    cost = traces()[0].cost
    assert result.code == 0
    assert 0.0008 < cost.dollars <= 0.001
    assert cost.tokens <= (1000 - cost.prompt) / 10


def test_seconds_bound_a_slow_model(tmp_path):
    model = scripted(tmp_path, "It is 4. " * 9, "I wonder.", faults=slowly(0.02))
    started = time.monotonic()
    result = ponder("ask", "--seconds", 1, "-m", model, "2 + 2?")
    assert time.monotonic() - started < 3
    assert result.code == 0
    assert result.out.startswith("It is 4.")
    assert traces()[0].cost.seconds < 2


def test_seconds_bound_a_silent_model(tmp_path):
    model = scripted(tmp_path, "It is 4.", faults=[{"kind": "hang", "times": None}])
    started = time.monotonic()
    result = ponder("ask", "--seconds", 0.3, "-m", model, "2 + 2?")
    assert time.monotonic() - started < 3
    assert (result.code, result.out) == (2, "")
    assert result.err == "ponder: no answer came within 0.3 seconds. allow more.\n"
    assert traces()[0].state == "failed"


def test_seed_and_temperature_reach_the_trace(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    ponder("ask", "--seed", 7, "--temperature", 0, "-m", model, "hi")
    ponder("ask", "-m", model, "hi")
    after, before = traces()
    assert (before.provenance.seed, before.provenance.settings["temperature"]) == (7, 0)
    assert after.provenance.seed is not None  # drawn, and told
    assert after.provenance.settings["temperature"] == 0.6


# ---------------------------------------------------------------- what is kept


def test_a_trace_is_stored_and_shown(tmp_path):
    ponder("ask", "-m", scripted(tmp_path, "It is 4.", "2 + 2 is 4."), "What is 2 + 2?")
    trace = traces()[0]
    listed = ponder("traces", "list").out
    assert trace.id in listed
    assert "What is 2 + 2? → It is 4." in listed
    shown = ponder("traces", "show", trace.id[:8]).out
    for text in ("What is 2 + 2?", "2 + 2 is 4.", "It is 4.", "chain_of_thought", f"{trace.cost.tokens} tokens"):
        assert text in shown
    assert [event.type for event in trace.events] == [
        "thinking_delta",
        "answer_delta",
        "sample_finished",
        "best_answer",
    ]


def test_no_store_leaves_no_database(tmp_path, ponder_home):
    model = scripted(tmp_path, "It is 4.")
    assert ponder("ask", "--no-store", "-m", model, "hi").out == "It is 4.\n"
    assert not list(ponder_home.glob("ponder.db*"))
    assert ponder("ask", "-m", model, "hi").code == 0
    assert (ponder_home / "ponder.db").exists()


def test_a_failure_is_stored_with_what_there_was(tmp_path):
    model = scripted(tmp_path, "It is 4.", faults=[{"kind": "garbage", "at": 36}])
    result = ponder("ask", "-m", model, "hi")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("ponder: the scripted engine sent something that is no reply.")
    trace = traces()[0]
    assert trace.state == "failed"
    assert trace.answer == result.out.strip() == "It is"
    assert "no reply" in trace.error


# ---------------------------------------------------------------- how it is stopped


def test_ctrl_c_keeps_the_answer_so_far(tmp_path):
    process = start("ask", "--no-think", "-m", scripted(tmp_path, "It is four, I think.", faults=slowly(0.1)), "2 + 2?")
    first = process.stdout.read(5).decode()
    interrupt(process)
    result = end(process)
    assert result.code == 130
    assert "It is four, I think.".startswith(first + result.out.strip())
    assert len(first + result.out) < 15
    assert int(COST.fullmatch(result.err.strip())[1]) >= 5
    trace = traces()[0]
    assert trace.state == "interrupted"
    assert trace.answer == (first + result.out).strip()
    assert trace.cost.answer >= 5


def test_ctrl_c_before_the_first_token(tmp_path):
    process = start("ask", "-m", scripted(tmp_path, "no", faults=[{"kind": "hang"}]), "2 + 2?")
    wait_until_asked()
    interrupt(process)
    result = end(process, timeout=5)
    assert (result.code, result.out.strip()) == (130, "")
    assert result.err.startswith("0 tokens · prompt ")
    assert traces()[0].state == "interrupted"


def test_ctrl_c_twice_ends_at_once(tmp_path):
    process = start("ask", "--no-think", "-m", scripted(tmp_path, "It is four.", faults=slowly(0.2)), "2 + 2?")
    process.stdout.read(3)
    interrupt(process)
    interrupt(process)
    result = end(process, timeout=5)
    # Where the second one meets an interpreter that is ending already, it dies of the signal as any program does.
    assert result.code in (130, -signal.SIGINT)
    assert "Traceback" not in result.err
    assert traces()[0].state == "interrupted"


def test_the_second_ctrl_c_does_not_wait_for_what_ignores_the_first():
    pressed: list[float] = []

    async def work(stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        for delay in (0.05, 0.2):
            loop.call_later(delay, lambda: (pressed.append(time.monotonic()), signal.raise_signal(signal.SIGINT)))
        await stop.wait()
        assert len(pressed) == 1
        await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        asking.run(work)
    assert len(pressed) == 2
    assert time.monotonic() - pressed[1] < 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_model_is_being_opened():
    # A server that accepts the connection and says nothing.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start("ask", "-m", f"openai:http://127.0.0.1:{server.getsockname()[1]}/v1#m", "hi")
        connection, _ = server.accept()
        interrupt(process)
        result = end(process, timeout=5)
        connection.close()
    assert (result.code, result.out, result.err) == (130, "", "ponder: stopped\n")


def test_ctrl_c_ends_a_download():
    async def work(stop: asyncio.Event) -> None:
        report = asking._ending(lambda *_: reported.append(1), stop)
        report("fetching", 1, 2)
        stop.set()
        with pytest.raises(asking.Stopped):
            report("fetching", 2, 2)

    reported: list[int] = []
    asyncio.run(work(asyncio.Event()))
    assert reported == [1]


def test_kill_leaves_the_trace_so_far(tmp_path, ponder_home):
    process = start("ask", "-m", scripted(tmp_path, "It is four, I think.", faults=slowly(0.03)), "2 + 2?")
    process.stdout.read(5)
    process.kill()
    end(process)
    with Store.open() as store:
        summary = store.list()[0]
        trace = store.get(summary.id)
    assert summary.state == trace.state == "interrupted"
    assert trace.answer.startswith("It is")
    assert "It is four, I think.".startswith(trace.answer)
    assert [event.type for event in trace.events] == ["thinking_delta", "answer_delta"]
    assert trace.events[0].text.strip() == "Let me see."
    assert f"{trace.id}" in ponder("traces", "list", "--state", "interrupted").out
    assert "interrupted" in ponder("traces", "show", trace.id).out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_leaves_is_no_error(tmp_path, options):
    model = scripted(tmp_path, "It is four, I think.", faults=slowly(0.02))
    process = start("ask", "--no-think", *options, "-m", model, "2 + 2?")
    if not options:
        process.stdout.read(5)
    process.stdout.close()
    process.stdout = None
    result = end(process)
    assert result.code == 141
    assert "Traceback" not in result.err
    assert "rror" not in result.err
    # The whole answer was there before JSON is printed; else it was cut off.
    assert traces()[0].state == ("done" if options else "interrupted")


def test_closed_streams_are_fine(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    command = " ".join([*COMMAND, "ask", "-m", model, "hi"])
    shell = [f"{command} <&-", f"{command} 2>&- </dev/null", f"{command} >&- </dev/null"]
    processes = [subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for line in shell]
    no_input, no_errors, no_output = [end(process) for process in processes]
    assert (no_input.code, no_input.out) == (0, "It is 4.\n")
    assert (no_errors.code, no_errors.out) == (0, "It is 4.\n")
    assert no_output.code == 0
    assert "Let me see." in no_output.err
    assert [trace.answer for trace in traces()] == ["It is 4."] * 3


# ---------------------------------------------------------------- the embedded model


@pytest.mark.model
def test_the_embedded_model_answers_within_the_budget(ponder_home):
    result = run("ask", "--json", "--budget", 24, "--seed", 1, "What is 3 + 4?", timeout=100)
    assert result.code == 0, result.err
    trace = from_json(Trace, result.out)
    assert trace.answer
    assert "<" not in trace.answer
    assert 0 < trace.cost.tokens <= 24
    assert trace.cost.tokens == len(trace.samples[0].ids) + trace.cost.cancelled
    assert trace.cost.flops > 0
    assert trace.provenance.model == "ponder-135m"
    assert trace == traces()[0]


def test_a_strategy_of_several_samples_tells_each_in_a_line_and_prints_one_answer(tmp_path):
    model = scripted(tmp_path, "It is 4.", "2 + 2 is 4.")
    result = ponder("ask", "-m", model, "--strategy", "vote(3)", "2 + 2?")
    assert (result.code, result.out) == (0, "It is 4.\n")
    lines = result.err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines if "It is 4." in line) == ["1", "2", "3"]
    assert int(cost_line(result.err)[1]) == traces()[0].cost.tokens
    assert traces()[0].provenance.strategy == "self_consistency(3)"


def test_a_strategy_that_is_none_or_one_too_many_is_one_line(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    wrong = ponder("ask", "-m", model, "--strategy", "guess(3)", "2 + 2?")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "there is no strategy 'guess'" in wrong.err
    both = ponder("ask", "-m", model, "--strategy", "vote", "--no-think", "2 + 2?")
    assert (both.code, "--strategy says how to think already" in both.err) == (2, True)
