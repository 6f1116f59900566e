"""`ponder route`: what it prints and writes, that `ask` obeys it, and mistakes told before anything is paid."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import ponder, write_script

from ponder.commands.route import settings_of
from ponder.errors import InputError
from ponder.strategies.policy import Effort, Policy, dump, load

FACTS, SUMS = 60, 60
ARMS = "direct@60,chain_of_thought@300"


def questions(folder: Path, facts: int = FACTS, sums: int = SUMS) -> Path:
    rows = [
        {"id": f"f{i}", "question": f"Which number is {i} called?", "answer": str(i), "kind": "fact"}
        for i in range(facts)
    ]
    rows += [
        {
            "id": f"s{i}",
            "question": f"Ann has {i} apples and gets 3 more. How many?",
            "answer": str(i + 3),
            "kind": "sum",
        }
        for i in range(sums)
    ]
    path = folder / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def model(folder: Path) -> str:
    """Right on facts with and without thinking, and on sums with thinking alone, which takes its time."""
    replies: list[dict[str, Any]] = []

    def says(when: str, thinking: str, thought: int, at_once: int) -> None:
        # Without thinking the turn begins with a block of it that is closed already.
        replies.append({"when": when, "after": "</think>", "say": f"\n\nThe answer is {at_once}."})
        replies.append({"when": when, "say": f"<think>\n{thinking}\n</think>\n\nThe answer is {thought}."})

    for i in range(FACTS):
        says(f"Which number is {i} called", "It is what it is, and that is that.", i, i)
    for i in range(SUMS):
        says(f"Ann has {i} apples", f"{i} and 3 make {i + 3}, I think.", i + 3, i)
    return write_script(folder / "model.json", replies)


def told(*arguments: object) -> dict[str, Any]:
    result = ponder("route", *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    found: dict[str, Any] = json.loads(result.out)
    return found


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the questions, the model and the route, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("routed")
        patch.setenv("PONDER_HOME", str(folder / "home"))
        found = told(questions(folder), "-m", model(folder), "--arms", ARMS, "-o", folder / "out")
        again = told(folder / "mixed.jsonl", "-m", model(folder), "--arms", ARMS, "-o", folder / "out")
        assert again["paid now"]["tokens"] == 0, "the same command pays for nothing twice"
        assert {**again, "paid now": 0} == {**found, "paid now": 0}
    return folder, found


def test_thinking_helps_with_sums(routed: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["kind"]: row for row in routed[1]["helps"]}
    assert list(rows) == [None, "fact", "sum"]
    assert (rows["fact"]["difference"]["value"], rows["sum"]["difference"]["value"]) == (0, 1)
    assert rows["sum"]["difference"]["low"] > 0.9
    assert rows["fact"]["difference"]["low"] < 0 < rows["fact"]["difference"]["high"]
    assert rows[None]["from"] == "direct@60"


def test_the_router_keeps_what_is_right_for_less(routed: tuple[Path, dict[str, Any]]) -> None:
    router = routed[1]["router"]
    assert router["kept"]["value"] == 1
    assert router["kept"]["low"] < 1
    direct, thinking = (arm["tokens"] for arm in routed[1]["arms"])
    assert router["spent"]["value"] == pytest.approx((direct + thinking) / 2 / thinking, abs=0.1)
    assert router["by chance"]["low"] > 0.1
    assert router["arms"] == ["direct@60", "chain_of_thought@300"]


def test_ask_obeys_the_policy_that_was_written(routed: tuple[Path, dict[str, Any]]) -> None:
    folder, found = routed
    policy = folder / "out" / "policy.toml"
    assert set(found["files"]) >= {str(policy), str(folder / "out" / "route.json")}
    assert load(policy).default == "auto"
    assert set(load(policy).efforts) == {"low", "high"}
    assert load(policy).efforts["high"].accuracy == 1
    asked = ("ask", "-m", f"scripted:{folder / 'model.json'}", "--policy", policy, "--json")
    fact, summed = (
        json.loads(ponder(*asked, question).out)
        for question in ("Which number is 7 called?", "Ann has 8 apples and gets 3 more. How many?")
    )
    assert (fact["answer"], fact["cost"]["thinking"]) == ("The answer is 7.", 0)
    assert summed["answer"] == "The answer is 11."
    assert summed["cost"]["thinking"] > 0
    assert summed["scores"][0]["verifier"] == "route"


def test_a_person_reads_tables(routed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = routed
    monkeypatch.setenv("PONDER_HOME", str(folder / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    result = ponder("route", folder / "mixed.jsonl", "-m", model(folder), "--arms", ARMS, "-o", folder / "shown")
    assert (result.code, result.err) == (0, "")
    for words in (
        "Does chain_of_thought@300 help, compared with direct@60?",
        "The router, out of fold",
        "Reliability, out of fold",
        "kept     100.0% [",
        "of the accuracy of always chain_of_thought@300; wanted were 95%",
        "points against sending as many questions to each arm at random",
        str(folder / "shown" / "policy.toml"),
    ):
        assert words in result.out
    row = next(line for line in result.out.splitlines() if " sum " in line)
    assert row.split()[1:4] == ["60", "0.0%", "100.0%"]
    assert "+100.0 [" in row


def test_the_picture_is_drawn_where_it_can_be(routed: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    picture = routed[0] / "out" / "reliability.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in routed[1]["files"]


def test_without_matplotlib_it_says_what_to_install(
    routed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util as util

    folder, real = routed[0], util.find_spec
    monkeypatch.setenv("PONDER_HOME", str(folder / "home"))
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest))
    result = ponder("route", folder / "mixed.jsonl", "-m", model(folder), "--arms", ARMS, "-o", folder / "plain")
    assert "pip install 'ponder[plots]'" in result.out
    assert not (folder / "plain" / "reliability.png").exists()


def test_a_policy_that_is_there_gets_a_route_and_keeps_its_efforts(
    routed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = routed[0]
    monkeypatch.setenv("PONDER_HOME", str(folder / "home"))
    (folder / "kept").mkdir()
    path = folder / "kept" / "policy.toml"
    dump(Policy({"medium": Effort("vote(5)", 900, why="mine")}, model="scripted"), path)
    told(folder / "mixed.jsonl", "-m", model(folder), "--arms", ARMS, "-o", folder / "kept")
    policy = load(path)
    assert policy.efforts == {"medium": Effort("vote(5)", 900, why="mine")}
    assert policy.default == "auto"
    assert [arm["strategy"] for arm in policy.route["arms"]] == ["direct", "chain_of_thought"]
    assert tomllib.loads(path.read_text())["route"]["measured"]["questions"] == 120
    dump(Policy({"medium": Effort("vote(5)", 900)}, model="another"), path)
    result = ponder("route", folder / "mixed.jsonl", "-m", model(folder), "--arms", ARMS, "-o", folder / "kept")
    assert result.code == 2
    assert "is a policy for another. give another --output." in result.err


# ---------------------------------------------------------------- mistakes


def test_arms_are_strategies_with_budgets() -> None:
    found = settings_of(" direct@32, vote(8, risk=0.05)@1024 ,allocate(2, ((0.6, 2), (0, 8)))@512")
    assert [(each.strategy, each.budget.tokens) for each in found] == [
        ("direct", 32),
        ("vote(8, risk=0.05)", 1024),
        ("allocate(2, ((0.6, 2), (0, 8)))", 512),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "leaves nothing to choose from"),
        ("direct@32", "leaves nothing to choose from"),
        ("direct@32,direct@32", "leaves nothing to choose from"),
        ("direct,vote(8)@64", "the arm 'direct' has no budget"),
        ("direct@32,vote(8)@", "has no budget"),
        ("direct@32,vote(8)@0", "has no budget"),
        ("direct@32,vote(8)@-5", "has no budget"),
        ("direct@32,fly(8)@64", "there is no strategy 'fly'"),
    ],
)
def test_arms_that_are_none_are_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        settings_of(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "1.5"), "--keep 1.5 is no share"),
        (("--keep", "nan"), "--keep nan is no number"),
        (("--margin", "-1"), "--margin -1 is below 0"),
        (("--sample-seed", "1"), "say how many with --limit"),
        (("--limit", "3"), "3 questions are too few to calibrate on"),
        (("--first",), "tells no log-probabilities to decide by. leave out --first"),
        (("-o", "mixed.jsonl"), "cannot make the folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ponder("route", questions(tmp_path), "-m", model(tmp_path), "--arms", ARMS, *options)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert len(result.err.splitlines()) == 1
