"""`ponder curve`: its files, its numbers, what it pays for, and how it goes on after it was stopped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import end, interrupt, ponder, slowly, start, write_script

from ponder.commands.curve import _budgets
from ponder.commands.evaluating import split_expressions
from ponder.commands.measuring import _need
from ponder.errors import InputError
from ponder.evals.study import load
from ponder.ops.results import Results
from ponder.ops.store import Store
from ponder.strategies import policy
from ponder.types import Budget, Cost

pytest.importorskip("plotly", reason="the page needs ponder[plots]")
pytest.importorskip("matplotlib", reason="the picture needs ponder[plots]")

SUMS = 8
RIGHT = {i: "yyyn" if i < 4 else "ynnn" for i in range(SUMS)}
"""Which of four samples of a question are right; the wrong ones agree."""

PAID = SUMS * (1 + 4)
"""Samples: an answer at once, and a pool of four; the first one of a pool is that of a chain of thought."""

QUICK = ("--samples", 4, "--share", 150, "--budgets", "150")


def questions(folder: Path) -> Path:
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(SUMS)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "sums.jsonl"


def adder(folder: Path, **rest: Any) -> str:
    """A model that is wrong without thinking, and right in the first sample with it."""
    replies: list[dict[str, Any]] = []
    for i, letters in RIGHT.items():
        says = [
            f"<think>\n<b>{i}</b> and 3, sample {k}.\n</think>\n\nThe answer is {i + 3 if each == 'y' else i}."
            for k, each in enumerate(letters)
        ]
        when = f"What is {i} "
        replies += [
            {"when": when, "after": "</think>", "say": f"\n\nThe answer is {i}."},
            {"when": when, "say": says},
            *({"when": when, "say": each} for each in says),
        ]
    return write_script(folder / "adder.json", replies, **rest)


def wait_until_kept(results: int, timeout: float = 30) -> None:
    """Waits until so many results are in the database."""
    deadline = time.monotonic() + timeout
    while True:
        with Store.open() as store:
            if sum(run.results for run in Results(store).runs()) >= results:
                return
        assert time.monotonic() < deadline, "too few results came"
        time.sleep(0.05)


def told(*arguments: object) -> dict[str, Any]:
    result = ponder("curve", *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_one_command_gives_the_curves_the_policy_the_picture_and_the_page(tmp_path):
    found = told(questions(tmp_path), "-m", adder(tmp_path), *QUICK, "-o", tmp_path / "out")
    assert found["files"] == [
        str(tmp_path / "out" / name) for name in ("curve.json", "policy.toml", "curve.png", "report.html")
    ]
    by_label = {point["label"]: point for point in found["points"]}
    accuracies = {label: point["accuracy"]["value"] for label, point in by_label.items()}
    assert accuracies["direct, 150 tokens"] == 0
    assert accuracies["chain_of_thought, 150 tokens"] == 1
    # Of four, three are right on one half of the questions and one on the other: 3/4 and 1/4 of single samples.
    assert accuracies["one sample"] == 0.5
    assert accuracies["vote(4)"] == 0.5
    assert accuracies["coverage of 4"] == 1
    assert accuracies["coverage of 2"] == pytest.approx((1 + 0.5) / 2)
    assert by_label["vote(4)"]["strategy"] == "vote(4)"
    assert by_label["vote(2)"]["budget"] == 300
    assert by_label["vote(4)"]["tokens"] == pytest.approx(4 * by_label["one sample"]["tokens"])
    assert found["gap"]["value"] == 0.5
    assert found["floor"] == {"answer": "3", "value": 1 / 8}
    assert found["paid now"]["samples"] == PAID
    assert policy.load(tmp_path / "out" / "policy.toml").efforts["high"].strategy == "chain_of_thought"
    assert found["policy"]["efforts"]["high"]["accuracy"] == 1
    study = load(tmp_path / "out" / "curve.json")
    assert study.made.command.startswith("ponder curve ")
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "vote(4)" in page


def test_the_policy_answers_questions(tmp_path):
    model = adder(tmp_path)
    told(questions(tmp_path), "-m", model, *QUICK, "-o", tmp_path / "out", "--no-plots")
    answer = ponder("ask", "-m", model, "--policy", tmp_path / "out" / "policy.toml", "What is 5 + 3?")
    assert (answer.code, answer.out) == (0, "The answer is 8.\n")


def test_where_strategies_disagree_is_told_as_text(tmp_path):
    told(questions(tmp_path), "-m", adder(tmp_path), *QUICK, "-o", tmp_path / "out")
    study = load(tmp_path / "out" / "curve.json")
    assert [each.question for each in study.disagreements] == ["q0", "q4", "q1", "q5", "q2"]
    first, second, *_ = study.disagreements
    assert (first.text, first.reference) == ("What is 0 + 3?", "3")
    labels = ["direct, 150 tokens", "chain_of_thought, 150 tokens", "vote(4), 600 tokens"]
    assert [voice.label for voice in first.voices] == labels
    assert [voice.correct for voice in first.voices] == [False, True, True]
    assert [voice.correct for voice in second.voices] == [False, True, False]
    assert second.voices[1].answer == "The answer is 7."
    assert second.voices[1].thinking.strip() == "<b>4</b> and 3, sample 0."
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "&lt;b&gt;4&lt;/b&gt; and 3" in page
    assert "<b>4</b>" not in page


def test_nothing_is_paid_twice(tmp_path):
    asked = (questions(tmp_path), "-m", adder(tmp_path), *QUICK, "--no-plots")
    first = told(*asked, "-o", tmp_path / "a")
    again = told(*asked, "-o", tmp_path / "b")
    assert first["paid now"]["samples"] == PAID
    assert again["paid now"]["samples"] == 0
    assert again["points"] == first["points"]
    more = told(*asked, "-o", tmp_path / "c", "--strategies", "direct,chain_of_thought,vote,chain_of_thought('prompt')")
    assert 0 < more["paid now"]["samples"] <= 2 * SUMS
    assert "chain_of_thought('prompt'), 150 tokens" in [point["label"] for point in more["points"]]


def test_without_a_cache_all_is_paid_and_no_texts_are_told(tmp_path, ponder_home):
    asked = (questions(tmp_path), "-m", adder(tmp_path), *QUICK, "--no-plots", "--no-cache", "-o", tmp_path / "out")
    # Here a chain of thought is paid for itself.
    assert [told(*asked)["paid now"]["samples"] for _ in range(2)] == [PAID + SUMS] * 2
    assert load(tmp_path / "out" / "curve.json").disagreements == ()
    assert not list(ponder_home.glob("ponder.db*"))


def test_ctrl_c_keeps_what_is_done(tmp_path):
    slow = adder(tmp_path, faults=slowly(0.004))
    asked = (questions(tmp_path), "-m", slow, *QUICK, "--no-plots", "--at-once", 2, "-o", tmp_path / "out")
    process = start("curve", *asked)
    wait_until_kept(SUMS + 2)
    interrupt(process)
    stopped = end(process)
    assert stopped.code == 130
    last = stopped.err.splitlines()[-1]
    assert last.startswith("ponder: stopped in ")
    assert last.endswith("the same command goes on from there.")
    assert not (tmp_path / "out" / "curve.json").exists()
    again = told(*asked)
    assert 0 < again["paid now"]["samples"] <= PAID - SUMS - 2
    assert (tmp_path / "out" / "curve.json").exists()


def test_a_budget_that_changes_nothing_more_is_not_measured(tmp_path):
    asked = (questions(tmp_path), "-m", adder(tmp_path), "--no-plots", "-o", tmp_path / "out")
    found = told(*asked, "--strategies", "direct,chain_of_thought", "--budgets", "20..640")
    budgets: dict[str, list[int]] = {}
    for point in found["points"]:
        budgets.setdefault(point["series"], []).append(point["budget"])
    assert budgets == {"direct": [20, 40], "chain_of_thought": [20, 40, 80, 160]}
    assert found["notes"][0].startswith("direct is measured up to 40 tokens: no answer took more than 17,")
    assert found["gap"] is None


def test_a_pilot_says_how_much_a_sample_needs(tmp_path):
    asked = (questions(tmp_path), "-m", adder(tmp_path), "--no-plots", "-o", tmp_path / "out")
    found = told(*asked, "--strategies", "vote", "--samples", 4, "--budgets", "400")
    (share,) = {
        point["budget"] / int(point["label"].split("(")[1].split(")")[0].split(",")[0])
        for point in found["points"]
        if point["strategy"]
    }
    most = max(point["tokens"] for point in found["points"] if point["label"] == "one sample")
    assert most < share < 2 * most + 16
    assert f"Each sample of the pool had {share:g} tokens." in found["notes"]
    assert "best_of_n(arithmetic_steps)" in {point["series"] for point in found["points"]}


def test_for_people_it_prints_a_table_and_the_efforts(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = ponder("curve", questions(tmp_path), "-m", adder(tmp_path), *QUICK, "-o", tmp_path / "out", "--no-plots")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()]
    (row,) = [cells for cells in rows if cells[:2] == ["*", "chain_of_thought,"]]
    assert row[4] == "100.0%"
    assert "a perfect verifier would add 50.0 points [" in result.out
    assert "high    chain_of_thought within 150 tokens: 100.0% [" in result.out
    assert result.out.endswith(f"{tmp_path / 'out' / 'policy.toml'}\n")
    assert result.err.splitlines()[0].startswith("direct, 150 tokens: 0.0% [0.0, ")


def test_too_few_questions_make_no_policy(tmp_path):
    asked = (questions(tmp_path), "-m", adder(tmp_path), *QUICK, "-o", tmp_path / "out")
    found = told(*asked, "--limit", 3)
    assert found["policy"] is None
    assert found["problem"].startswith("3 questions are too few")
    assert not (tmp_path / "out" / "policy.toml").exists()
    assert "Too little was measured to choose by." in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--strategies", "guess"], "there is no strategy 'guess'"),
        (["--strategies", ","], "--strategies names none"),
        (["--budgets", "9..3"], "--budgets '9..3' says nothing"),
        (["--budgets", "many"], "--budgets 'many' says nothing"),
        (["--budgets", "0,64"], "--budgets '0,64' says nothing"),
        (["--samples", 1], "--samples 1 is no pool"),
        (["--share", 5], "--share 5 is less than a sample gets"),
        (["--risk", 0.7], "--risk 0.7 is no risk"),
        (["--selector", "taste"], "there is no verifier 'taste'"),
        (["--at-once", 0], "--at-once 0 asks nothing"),
        (["--sample-seed", 1], "--sample-seed draws some"),
        (["--output", "sums.jsonl"], "cannot make the folder sums.jsonl"),
    ],
)
def test_mistakes_are_told_before_anything_is_paid(tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    result = ponder("curve", questions(tmp_path), "-m", adder(tmp_path), *options)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"ponder: {line}")


def test_missing_extras_are_told_before_anything_is_paid(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    asked = (questions(tmp_path), "-m", adder(tmp_path), *QUICK, "-o", tmp_path / "out")
    result = ponder("curve", *asked)
    assert result.code == 2
    assert result.err == (
        "ponder: the picture and the page need plotly. pip install 'ponder[plots]', or give --no-plots.\n"
    )
    assert told(*asked, "--no-plots")["files"][-1].endswith("policy.toml")


def test_lists_are_split_where_expressions_end():
    assert split_expressions("direct, vote(8, risk=0.05),best_of_n(4, verifier='pattern(\"a,b\")') ") == [
        "direct",
        "vote(8, risk=0.05)",
        "best_of_n(4, verifier='pattern(\"a,b\")')",
    ]


def test_budgets_are_doubled_or_listed():
    assert _budgets("64..600") == (64, 128, 256, 512)
    assert _budgets("300,100,100") == (100, 300)
    assert _budgets("7..7") == (7,)
    with pytest.raises(InputError):
        _budgets("64..")


@pytest.mark.parametrize(("thinking", "answer"), [(40, 5), (1000, 5), (10, 90), (0, 20)])
def test_what_a_sample_needs_leaves_room_for_its_thinking(thinking, answer):
    need = int(_need(Cost(thinking=thinking, answer=answer)))
    assert need >= thinking + answer
    assert need - Budget(need).reserve >= thinking
