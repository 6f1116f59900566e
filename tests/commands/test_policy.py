"""`--policy` and `--effort`: the strategy and budget that an effort means, on the command line and in chat."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import ponder, scripted, traces

from ponder.strategies.policy import BUILT_IN, Effort, Policy, dump


def policy(folder: Path, model: str = "") -> Path:
    efforts = {"low": Effort("direct", 100), "medium": Effort("chain_of_thought", 300), "high": Effort("vote(3)", 900)}
    dump(Policy(efforts, "medium", "sums", model), folder / "policy.toml")
    return folder / "policy.toml"


def asked() -> tuple[str, int | None, int]:
    """Strategy, budget and number of samples of the newest trace."""
    trace = traces()[0]
    return trace.provenance.strategy, trace.budget.tokens, len(trace.samples)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--effort", "low"], ("direct()", 100, 1)),
        ([], ("chain_of_thought", 300, 1)),
        (["-e", "high"], ("self_consistency(3)", 900, 3)),
        (["--effort", "high", "--budget", 500], ("self_consistency(3)", 500, 3)),
    ],
)
def test_an_effort_is_a_strategy_with_its_budget(tmp_path, options, expected):
    model = scripted(tmp_path, "It is 4.")
    result = ponder("ask", "-m", model, "--policy", policy(tmp_path), *options, "2 + 2?")
    assert (result.code, result.out) == (0, "It is 4.\n")
    assert "ponder:" not in result.err
    strategy, budget, samples = asked()
    assert strategy.startswith(expected[0])
    assert (budget, samples) == expected[1:]


@pytest.mark.parametrize("effort", BUILT_IN.efforts)
def test_without_a_policy_efforts_are_built_in(tmp_path, effort):
    ponder("ask", "-m", scripted(tmp_path, "It is 4."), "--effort", effort, "2 + 2?")
    strategy, budget, samples = asked()
    assert budget == BUILT_IN.efforts[effort].budget
    assert strategy.startswith({"low": "direct", "medium": "chain_of_thought", "high": "self_consistency"}[effort])
    assert samples == (4 if effort == "high" else 1)  # all alike: decided after the first wave


def test_bounds_of_the_command_line_hold_beside_an_effort(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    ponder("ask", "-m", model, "--effort", "medium", "--thinking", 0, "--answer", 40, "2 + 2?")
    trace = traces()[0]
    assert (trace.budget.tokens, trace.budget.thinking, trace.budget.answer) == (1024, 0, 40)
    assert trace.cost.thinking == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--effort", "low", "--strategy", "direct"], "--effort says how to think already. drop --strategy."),
        (["--effort", "low", "--think", "prompt"], "--effort says how to think already. drop --think."),
        (["--effort", "low", "--no-think"], "--effort says how to think already. drop --no-think."),
        (["--policy", "policy.toml", "--compare"], "--policy says how to think already. drop --compare."),
        (["--effort", "auto"], "the policy has no effort 'auto'. choose from low, medium, high."),
        (["--effort", "most"], "the policy has no effort 'most'. choose from low, medium, high."),
        (
            ["--policy", "none.toml"],
            "cannot read none.toml: No such file or directory. make a policy with ponder curve.",
        ),
    ],
)
def test_contradictions_and_what_is_not_there(tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    policy(tmp_path)
    result = ponder("ask", "-m", scripted(tmp_path, "It is 4."), *options, "2 + 2?")
    assert (result.code, result.out, result.err) == (2, "", f"ponder: {line}\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version = 1\nefforts =", "is no TOML"),
        ("version = 7", "has version 7"),
        ('version = 1\n[efforts.medium]\nstrategy = "vote(8)"\n', "efforts.medium.budget: Field required"),
        ('version = 1\n[efforts.medium]\nstrategy = "guess"\nbudget = 9\n', "there is no strategy 'guess'"),
    ],
)
def test_a_spoilt_policy_is_told_in_one_line(tmp_path, text, problem):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    result = ponder("ask", "-m", scripted(tmp_path, "It is 4."), "--policy", path, "2 + 2?")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert problem in result.err


def test_another_model_than_the_measured_one_is_told(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    chosen = ["-m", model, "--policy", policy(tmp_path, "ponder-135m"), "2 + 2?"]
    result = ponder("ask", *chosen)
    assert (result.code, result.out) == (0, "It is 4.\n")
    assert result.err.startswith("ponder: the policy was measured on ponder-135m, not on ")
    assert ponder("ask", "--quiet", *chosen).err == ""


def test_chat_takes_efforts_until_told_otherwise(tmp_path):
    model = scripted(tmp_path, "It is 4.")
    lines = "2 + 2?\n/think off\n/budget 70\n3 + 3?\n"
    result = ponder("chat", "-m", model, "--policy", policy(tmp_path), "--effort", "high", stdin=lines)
    assert result.code == 0
    assert result.out == "It is 4.\nIt is 4.\n"
    after, before = traces()
    assert (before.provenance.strategy, before.budget.tokens, len(before.samples)) == ("self_consistency(3)", 900, 3)
    assert (after.provenance.strategy, after.budget.tokens) == ("direct()", 70)
    clash = ponder("chat", "-m", model, "--effort", "low", "--no-think", stdin="")
    assert (clash.code, clash.err) == (2, "ponder: --effort says how to think already. drop --no-think.\n")
