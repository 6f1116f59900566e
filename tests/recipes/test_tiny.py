"""recipes/tiny: its data hold together, two steps of every stage run, and (slow) what it claims holds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ponder.types import Sample, Span

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

HERE = Path(__file__).parents[2] / "recipes" / "tiny"


def module(name: str) -> ModuleType:
    spec = spec_from_file_location(f"tiny_recipe_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(HERE))
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path[:] = before
    return found


chains, claims, stages = module("chains"), module("claims"), module("stages")


def started(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "run.py"), str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------- the task


def test_every_operation_is_a_permutation_and_no_slip_is_right() -> None:
    for by in chains.OPERATIONS:
        assert {chains.TABLE[by + digit] for digit in "0123456789"} == set("0123456789")
    assert len(chains.SLIPS) == len(chains.TABLE) * chains.HARD
    assert all(chains.TABLE[entry] != slip for entry, slip in chains.SLIPS.items())


def test_a_chain_carries_its_digit_on() -> None:
    for made in chains.chains(200, range(2, 9), seed=5):
        value, *operations = made.question.split()
        lines = made.thinking.split("\n")
        assert len(lines) == len(operations)
        for name, operation, line in zip("abcdefgh", operations, lines, strict=False):
            assert operation[0] == name
            result = chains.TABLE[operation[1] + value]
            assert line == f"{operation}{value}={result}" == chains.step(operation, value)
            value = result
        assert made.answer == made.reference == value
    assert chains.step("aK", "x") == ""


def test_hard_entries_are_rare_in_what_is_imitated_first() -> None:
    lines = [
        line for made in chains.chains(2000, range(2, 9), seed=1, seldom=0.06) for line in made.thinking.split("\n")
    ]
    assert 0.015 < sum(line[1:3] in chains.SLIPS for line in lines) / len(lines) < 0.03
    assert all(line == chains.step(line[:2], line[2]) for line in lines)


def test_thinking_slips_at_hard_entries_alone_and_goes_on_from_there() -> None:
    hard, slips = 0, list[str]()
    for made in chains.chains(2000, range(2, 9), seed=1, slip=0.6):
        value, *operations = made.question.split()
        right = value
        for operation, line in zip(operations, made.thinking.split("\n"), strict=True):
            assert line[:4] == f"{operation}{value}="
            hard += line[1:3] in chains.SLIPS
            slips += [line] if line != chains.step(operation, value) else []
            right, value = chains.TABLE[operation[1] + right], line[-1]
        assert (made.answer, made.reference) == (value, right)
    assert 0.57 < len(slips) / hard < 0.63
    assert all(line[-1] == chains.SLIPS[line[1:3]] for line in slips)


def test_chains_are_the_same_for_a_seed_and_keep_away_from_the_test() -> None:
    test = {each.question for each in chains.chains(300, range(2, 9), seed=0)}
    again = {each.question for each in chains.chains(300, range(2, 9), seed=0)}
    learnt = {each.question for each in chains.chains(3000, range(2, 9), seed=1, beside=test)}
    assert test == again
    assert not test & learnt
    assert test & {each.question for each in chains.chains(3000, range(2, 9), seed=1)}  # they would have met


def test_thinking_is_cut_anywhere_and_often_after_a_line() -> None:
    (made,) = chains.chains(1, [5], seed=3)
    draw = random.Random(0)
    cuts = [chains.cut(made, draw) for _ in range(400)]
    assert all((made.thinking + "\n").startswith(each.thinking) and each.thinking for each in cuts)
    assert {each.answer for each in cuts} == {made.answer}
    assert {len(each.thinking) for each in cuts} == set(range(1, len(made.thinking) + 2))
    assert 0.5 < sum(each.thinking.endswith("\n") for each in cuts) / len(cuts) < 0.7


def test_the_tokenizer_reads_any_text_and_has_the_markers() -> None:
    tokenizer = chains.tokenizer()
    for text in ("3 aK bC", "Anna has 5 äpfel\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer("<think>\n</think>", add_special_tokens=False).input_ids) == 3


def test_a_step_is_judged_by_those_before_it() -> None:
    samples = module("samples")
    (made,) = chains.chains(1, [4], seed=3)
    lines = made.thinking.split("\n")

    def judged(thinking: str, answer: str = "") -> tuple[float, ...]:
        text = f"{thinking}\n</think>\n{answer}"
        spans = (Span("thinking", 0, len(thinking)), Span("marker", len(thinking), len(thinking) + 10))
        spans = (*spans, Span("answer", len(thinking) + 10, len(text)))
        steps: tuple[float, ...] = samples.right_steps(made, Sample(0, text, spans=spans, thinking=thinking))
        return steps

    assert judged(made.thinking) == (1, 1, 1, 1)
    # The slip alone is wrong: what comes after it goes on from what it came to.
    wrong = str((int(lines[1][-1]) + 1) % 10)
    after = chains.step(made.question.split()[3], wrong)
    assert judged("\n".join([lines[0], lines[1][:-1] + wrong, after])) == (1, 0, 1)
    assert judged("\n".join([lines[0], *lines[2:]])) == (1, 0, 0)
    assert judged("\n".join([*lines, lines[-1]])) == (1, 1, 1, 1, 0)
    # The answer is what all of the operations came to, and not what only some of them did.
    other = str((int(made.answer) + 1) % 10)
    assert judged(made.thinking, made.answer) == (1, 1, 1, 1, 1)
    assert judged(made.thinking, other) == (1, 1, 1, 1, 0)
    assert judged("\n".join(lines[:3]), lines[2][-1]) == (1, 1, 1, 0)


# ---------------------------------------------------------------- the claims


def results() -> dict[str, Any]:
    """Those of the run that the README tells of."""
    found: dict[str, Any] = json.loads((HERE / "results.json").read_text("utf-8"))
    return found


def test_every_claim_can_fail() -> None:
    found = results()
    found["reward"]["last"] = found["reward"]["first"]
    for difference in found["differences"].values():
        difference["low"] = -0.01
    found["kept"]["value"] = 0.79
    found["budgets"][-1]["low"] = -0.01
    assert not any(claim.holds for claim in claims.checked(found))


def test_the_readme_shows_these_results() -> None:
    assert claims.report(results()) in (HERE / "README.md").read_text("utf-8")


def test_a_report_takes_the_place_of_another() -> None:
    readme = "above\n<!-- results -->\nold\n<!-- end of the results -->\nbelow\n"
    assert claims.placed(readme, "new") == readme.replace("old", "new")


# ---------------------------------------------------------------- stages side by side


STAGES = """
import sys, time
from pathlib import Path
sys.path.insert(0, {recipe!r})
import stages
from stages import Stage

stages.SHARED = ()

def made(name):
    Path(f"{{name}} began").write_text(str(time.monotonic()))
    time.sleep(1)
    Path(f"{{name}} ended").write_text(str(time.monotonic()))
    return int(name == "broken")

if __name__ == "__main__":
    sys.exit(not stages.run({plan}, made, 2))
"""


def staged(folder: Path, plan: str) -> tuple[int, dict[str, float]]:
    """The exit status of these stages, and when each began and ended."""
    (folder / "made.py").write_text(STAGES.format(recipe=str(HERE), plan=plan), "utf-8")
    done = subprocess.run([sys.executable, "made.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    times = {path.name: float(path.read_text("utf-8")) for path in folder.glob("* *") if path.suffix == ""}
    return done.returncode, times


def test_stages_run_side_by_side_and_after_what_they_need(tmp_path: Path) -> None:
    plan = (
        """{"a": Stage("a ended"), "c": Stage("c ended", ("a", "b")), "b": Stage("b ended"), "d": Stage("d ended")}"""
    )
    status, times = staged(tmp_path, plan)
    assert status == 0
    assert max(times["a began"], times["b began"]) < min(times["a ended"], times["b ended"])
    assert times["c began"] > max(times["a ended"], times["b ended"])
    assert times["d began"] > min(times["a ended"], times["b ended"])  # no more than two at once
    seconds = json.loads((tmp_path / "seconds.json").read_text("utf-8"))
    assert set(seconds) == {"a", "b", "c", "d", "all", "of a core"}
    assert 2 <= seconds["all"] < sum(seconds[name] for name in "abcd") + 10
    assert staged(tmp_path, plan) == (0, times)  # nothing is done twice


def test_a_stage_that_fails_keeps_others_from_starting(tmp_path: Path) -> None:
    status, times = staged(tmp_path, """{"broken": Stage("never"), "after": Stage("after ended", ("broken",))}""")
    assert status == 1
    assert set(times) == {"broken began", "broken ended"}


# ---------------------------------------------------------------- running it


@pytest.mark.slow
def test_two_steps_of_every_stage(tmp_path: Path) -> None:
    done = started(tmp_path / "out", "--smoke")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["n"] == 7
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000
    again = started(tmp_path / "out", "--smoke")
    assert again.returncode == 0, again.stderr
    assert "step" not in again.stderr  # nothing is done twice
    assert json.loads(again.stdout.splitlines()[-1])["accuracy"] == told["accuracy"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_it_claims_holds(tmp_path: Path) -> None:
    done = started(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
