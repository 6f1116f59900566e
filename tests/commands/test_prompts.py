"""`ponder prompts`: versions, labels, files, and a gate that asks a model before a label moves."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, ponder, write_script

from ponder.commands import prompts as commands
from ponder.commands.prompt_eval import MARGIN
from ponder.evals import prompt_gate
from ponder.ops.prompts import Prompts

SUMS = 6


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def done(*arguments: object, **options: Any) -> str:
    result = ponder("prompts", *arguments, **options)
    assert (result.code, result.err) == (0, ""), result
    return result.out


def told(*arguments: object, **options: Any) -> Any:
    return json.loads(done(*arguments, "--json", **options))


def refused(*arguments: object, **options: Any) -> str:
    """The line on standard error."""
    result = ponder("prompts", *arguments, **options)
    assert result.code == 2, result
    assert len(result.err.splitlines()) == 1
    return result.err


def put(*texts: str, name: str = "support") -> None:
    for text in texts:
        done("put", name, stdin=text)


# ---------------------------------------------------------------- versions


def test_put_and_list_and_show(tmp_path: Path) -> None:
    (tmp_path / "support.txt").write_text("You answer for {{ product }}.\n")
    assert done("list") == "no prompts\n"
    assert done("put", "support", tmp_path / "support.txt", "--note", "[bold]first") == "support@1\n"
    assert done("put", "support", tmp_path / "support.txt") == "support@1 says that already\n"
    assert done("put", "support", "--as", "user", "--var", "x", "--var", "y", stdin="Hi {{ x }}") == "support@2\n"
    done("tag", "support@1", "prod")
    cells = [line.split() for line in done("list").splitlines() if "support" in line]
    assert [(row[:3], row[3:5]) for row in cells] == [(["support", "2", "prod@1"], ["x,", "y"])]
    (listed,) = told("list")
    assert (listed["name"], listed["versions"], listed["labels"], listed["variables"]) == (
        "support",
        2,
        {"prod": 1},
        ["x", "y"],
    )
    shown = done("show", "support@prod")
    assert "prod · [bold]first" in shown
    assert "You answer for {{ product }}.\n" in shown
    assert "prod to version 1 (tag)" in shown
    found = told("show", "support@prod")
    assert (found["prompt"], found["labels"], found["note"]) == ("support@1", ["prod"], "[bold]first")
    assert found["messages"] == [{"role": "system", "text": "You answer for {{ product }}."}]
    filled = told("show", "support@1", "--set", "product={{ x }}=1")
    assert filled["messages"] == [{"role": "system", "text": "You answer for {{ x }}=1."}]


def test_json_of_put_tells_whether_it_is_new() -> None:
    first, again = (told("put", "p", stdin="text") for _ in range(2))
    assert (first["prompt"], first["new"], again["new"]) == ("p@1", True, False)


def test_differences() -> None:
    put("one\ntwo", "one\n2", "one\ntwo")
    assert "-two\n+2\n" in done("diff", "support@2")
    assert "-2\n+two\n" in done("diff", "support@2", "3").replace("-two\n+2\n", "-2\n+two\n")
    assert done("diff", "support@3", "1") == "support@1 and support@3 say the same\n"
    found = told("diff", "support", "support@2")
    assert (found["from"], found["to"]) == ("support@2", "support@3")
    assert "--- support@2 message 1 (system)\n+++ support@3 message 1 (system)" in found["diff"]
    assert "no version before support@1" in refused("diff", "support@1")


def test_export_and_import(tmp_path: Path) -> None:
    put('Say "{{ x }}"\nnow.')
    for name in ("p.toml", "p.json"):
        assert done("export", "support", "-o", tmp_path / name) == f"{tmp_path / name}: support@1\n"
        assert done("import", tmp_path / name) == "support@1 says that already\n"
    assert done("export", "support") == (tmp_path / "p.toml").read_text()
    assert told("export", "support") == json.loads((tmp_path / "p.json").read_text())
    assert told("export", "support", "-o", tmp_path / "q.toml") == {
        "prompt": "support@1",
        "file": str(tmp_path / "q.toml"),
    }
    changed = (tmp_path / "p.toml").read_text().replace("Say", "Tell").replace('name = "support"', 'name = "other"')
    (tmp_path / "p.toml").write_text(changed)
    assert told("import", tmp_path / "p.toml")["messages"] == [{"role": "system", "text": 'Tell "{{ x }}"\nnow.'}]
    assert "neither TOML nor JSON" in refused("import", tmp_path / "p.yaml")
    assert "neither TOML nor JSON" in refused("export", "support", "-o", tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("show", "nothing"), "there is no prompt 'nothing'"),
        (("show", "p@9"), "no version or label '9'"),
        (("show", "p", "--set", "x"), "--set 'x' fills no blank"),
        (("show", "p", "--set", "y=1"), "nothing to fill x"),
        (("put", "p", "nowhere.txt"), "cannot read nowhere.txt"),
        (("put", "a b"), "cannot be the name of a prompt"),
        (("tag", "p@9", "prod"), "no version or label '9'"),
        (("tag", "p", "3"), "cannot be a label"),
        (("tag", "p", "prod", "--force"), "there is none"),
        (("rollback", "p", "prod"), "no version or label 'prod'"),
        (("eval", "p", "--task", "nowhere.jsonl", "--set", "x=1"), "nowhere.jsonl"),
        (("eval", "p", "--task", "nowhere.jsonl", "--against", "9"), "no version or label '9'"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], problem: str) -> None:
    put("Hi {{ x }}", name="p")
    assert problem in refused(*arguments, stdin="text")


# ---------------------------------------------------------------- labels


def test_labels_move_and_go_back() -> None:
    put("one", "two")
    assert done("tag", "support@1", "prod") == "prod is support@1 now\n"
    assert done("tag", "support", "prod") == "prod is support@2 now, was support@1\n"
    assert done("tag", "support@2", "prod") == "prod is support@2 already\n"
    assert done("rollback", "support", "prod") == "prod is support@1 now, was support@2\n"
    assert "stood nowhere before" in refused("rollback", "support", "prod")
    assert told("tag", "support@2", "staging") == {
        "prompt": "support@2",
        "label": "staging",
        "moved": True,
        "before": None,
        "forced": False,
        "gate": None,
    }
    assert told("tag", "support@prod", "staging")["before"] == "support@2"
    assert told("rollback", "support", "staging")["prompt"] == "support@2"


# ---------------------------------------------------------------- the gate


def questions(folder: Path) -> Path:
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(SUMS)]
    path = folder / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def adder(folder: Path) -> str:
    """A model that is right unless its prompt tells it to be wrong."""
    right = [
        {"when": f"What is {i} ", "say": f"<think>\nAdd.\n</think>\n\nThe answer is {i + 3}."} for i in range(SUMS)
    ]
    return write_script(
        folder / "adder.json", [{"when": "Be wrong", "say": "<think>\n</think>\n\nThe answer is 99."}, *right]
    )


@pytest.fixture
def gate(tmp_path: Path) -> list[object]:
    """The options of the gate: so few questions need a wide margin."""
    return ["-m", adder(tmp_path), "--margin", 45]


def test_what_is_as_good_is_promoted_and_its_result_stored(tmp_path: Path, gate: list[object]) -> None:
    put("Be kind.", "Be kinder.")
    done("tag", "support@1", "prod")
    shown = done("tag", "support@2", "prod", "--gate", questions(tmp_path), *gate)
    lines = shown.splitlines()
    assert lines[0] == "sums · scripted · chain_of_thought"
    assert lines[1].startswith("support@2  100.0% [")
    assert lines[2].startswith("support@1  100.0% [")
    assert "+0.0 points [" in lines[3]
    assert lines[-1] == "prod is support@2 now, was support@1"
    (move,) = [move for move in told("show", "support@2")["history"] if move["version"] == 2]
    (kept,) = told("show", "support@2")["evaluations"]
    assert (move["evaluation"], move["forced"]) == (kept["id"], False)
    assert kept["passed"] is True
    assert kept["document"]["margin"] == 0.45
    assert kept["document"]["difference"]["value"] == 0
    assert "+0.0 [" in done("show", "support@2")


def test_what_is_worse_is_refused_in_a_line_unless_it_is_forced(tmp_path: Path, gate: list[object]) -> None:
    put("Be right.", "Be wrong.")
    done("tag", "support@1", "prod")
    task = questions(tmp_path)
    line = refused("tag", "support@2", "prod", "--gate", task, *gate)
    assert "support@2 is worse: -100.0 points [" in line
    assert "against support@1 on 6 questions of sums, margin 45." in line
    assert "--force" in line
    result = ponder("prompts", "tag", "support@2", "prod", "--gate", task, *gate, "--json")
    assert result.code == 2
    found = json.loads(result.out)
    assert (found["moved"], found["gate"]["passed"], found["gate"]["worse"]) == (False, False, 6)
    with Prompts.open() as prompts:
        assert prompts.labels("support") == {"prod": 1}
        assert [each.passed for each in prompts.evaluations("support@2")] == [False, False]
    forced = told("tag", "support@2", "prod", "--gate", task, *gate, "--force")
    assert (forced["moved"], forced["forced"], forced["before"]) == (True, True, "support@1")
    with Prompts.open() as prompts:
        move = prompts.history("support", "prod")[-1]
        last = prompts.evaluations("support@2")[-1]
        assert (move.version, move.forced, move.evaluation, last.passed) == (2, True, last.id, False)
    assert "prod to version 2 (tag, forced)" in done("show", "support@2")


def test_force_of_what_passes_is_not_forced(tmp_path: Path, gate: list[object]) -> None:
    put("Be kind.", "Be kinder.")
    done("tag", "support@1", "prod")
    assert told("tag", "support", "prod", "--gate", questions(tmp_path), *gate, "--force")["forced"] is False


def test_too_few_questions_promote_nothing_at_the_usual_margin(tmp_path: Path) -> None:
    put("Be kind.", "Be kinder.")
    done("tag", "support@1", "prod")
    line = refused("tag", "support", "prod", "--gate", questions(tmp_path), "-m", adder(tmp_path))
    assert "support@2 is not shown to be as good: +0.0 points" in line
    assert "margin 2. ask more questions" in line


def test_a_label_that_is_new_has_nothing_to_be_worse_than(tmp_path: Path) -> None:
    put("Be wrong.")
    assert done("tag", "support", "prod", "--gate", "nowhere.jsonl") == "prod is support@1 now\n"
    assert done("tag", "support", "prod", "--gate", "nowhere.jsonl") == "prod is support@1 already\n"


def test_eval_compares_with_prod_and_asks_nothing_twice(tmp_path: Path, gate: list[object]) -> None:
    put("Be right.", "Be wrong.", "Be {{ how }}.")
    task = questions(tmp_path)
    alone = told("eval", "support@1", "--task", task, *gate)
    assert (alone["current"], alone["passed"], alone["candidate"]["accuracy"]["value"]) == (None, None, 1.0)
    done("tag", "support@1", "prod")
    worse = told("eval", "support@2", "--task", task, *gate)
    assert (worse["current"]["prompt"], worse["passed"], worse["difference"]["value"]) == ("support@1", False, -1.0)
    same = told("eval", "support@3", "--task", task, *gate, "--set", "how=wrong")
    # Its text is that of support@2 once it is filled: the same run, which is done.
    assert (same["candidate"]["prompt"], same["candidate"]["run"]) == ("support@3", worse["candidate"]["run"])
    assert same["current"]["run"] == worse["current"]["run"] == alone["candidate"]["run"]
    assert len(json.loads(ponder("runs", "list", "--json").out)["evaluations"]) == 2
    assert "not shown to be no worse" in done("eval", "support@2", "--task", task, "--against", "1", *gate)
    assert "compared with itself" in refused("eval", "support@2", "--task", task, "--against", "2", *gate)
    assert "has the variable 'x'" in refused("eval", "support@2", "--task", task, "--set", "x=1", *gate)
    with Prompts.open() as prompts:
        assert [each.passed for each in prompts.evaluations("support@2")] == [False] * 2


def test_kept_traces_name_the_version_that_was_asked(tmp_path: Path, gate: list[object]) -> None:
    put("Be right.", "Be wrong.")
    task = questions(tmp_path)
    told("eval", "support@2", "--task", task, "--against", "1", *gate, "--traces")
    traces = [json.loads(ponder("traces", "show", each["id"], "--json").out) for each in listed_traces()]
    assert len(traces) == 2 * SUMS
    for trace in traces:
        version = "support@1" if trace["question"]["messages"][0]["parts"][0]["text"] == "Be right." else "support@2"
        assert trace["provenance"]["prompt_version"] == version


def listed_traces() -> list[Any]:
    result = ponder("traces", "list", "--limit", 100, "--json")
    assert result.code == 0, result
    return list(json.loads(result.out))


def test_a_label_that_was_moved_during_the_gate_stays_there(
    tmp_path: Path, gate: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("one", "two", "three")
    done("tag", "support@1", "prod")
    measured = commands.prompt_eval.measured

    def meanwhile(*arguments: Any) -> Any:
        with Prompts.open() as others:
            others.tag("support@2", "prod")
        return measured(*arguments)

    monkeypatch.setattr(commands.prompt_eval, "measured", meanwhile)
    line = refused("tag", "support@3", "prod", "--gate", questions(tmp_path), *gate)
    assert "prod was moved to support@2 meanwhile" in line
    with Prompts.open() as prompts:
        assert prompts.labels("support") == {"prod": 2}


def test_the_margin_of_the_command_is_that_of_the_gate() -> None:
    assert MARGIN == 100 * prompt_gate.MARGIN


# ---------------------------------------------------------------- completion


def test_completion_of_names_versions_and_labels() -> None:
    put("one", "two")
    put("one", name="sales")
    done("tag", "support@1", "prod")
    done("tag", "support@2", "next")
    assert commands._complete_name("s") == ["sales", "support"]
    assert commands._complete_reference("su") == ["support"]
    assert commands._complete_reference("support@") == ["support@next", "support@prod", "support@1", "support@2"]
    assert commands._complete_reference("support@p") == ["support@prod"]
    assert commands._complete_reference("nothing@") == []
    assert commands._complete_label("") == ["next", "prod"]


def test_completion_of_a_damaged_file_offers_nothing(ponder_home: Path) -> None:
    (ponder_home / "prompts.db").write_bytes(b"no database at all " * 100)
    assert commands._complete_name("") == []
    assert "is damaged" in refused("list")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(ponder_home / "prompts.db").execute("SELECT 1 FROM versions")


def test_all_commands_take_json() -> None:
    result: Result = ponder("prompts", "--help")
    for name in ("list", "show", "put", "diff", "tag", "rollback", "eval", "export", "import"):
        assert name in result.out
        assert "--json" in ponder("prompts", name, "--help").out
