"""Prompts: versions that never change, labels that move, texts that stay texts, and a file that nothing damages."""

from __future__ import annotations

import json
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ponder.errors import InputError, StoreError
from ponder.ops import prompt as prompt_module
from ponder.ops import prompt_file
from ponder.ops.prompt import Prompt, Turn, checked, diff, in_front
from ponder.ops.prompts import Prompts, UnknownPrompt
from ponder.types import assistant, system, user

NAMES, LABELS = st.sampled_from(["support", "team/greeting"]), st.sampled_from(["prod", "staging"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)


@pytest.fixture
def prompts(tmp_path: Path) -> Iterator[Prompts]:
    with Prompts.open(tmp_path / "prompts.db") as opened:
        yield opened


def made(*texts: str, variables: tuple[str, ...] | None = None, version: int = 1) -> Prompt:
    turns, declared = checked([Turn("system", text) for text in texts], variables)
    return Prompt("support", version, turns, declared)


# ---------------------------------------------------------------- against a dictionary


class Model(RuleBasedStateMachine):
    """Versions as lists and labels as stacks, beside the database."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.prompts = Prompts.open(Path(self.folder.name) / "prompts.db")
        self.versions: dict[str, list[str]] = {}
        self.labels: dict[tuple[str, str], list[int]] = {}
        self.moves = 0

    def teardown(self) -> None:
        self.prompts.close()
        self.folder.cleanup()

    @rule(name=NAMES, text=st.sampled_from(["one", "two", "{{ three }}"]))
    def put(self, name: str, text: str) -> None:
        versions = self.versions.setdefault(name, [])
        if versions[-1:] != [text]:
            versions.append(text)
        assert self.prompts.put(name, text).version == len(versions)

    @rule(name=NAMES, version=st.integers(0, 4), label=LABELS)
    def tag(self, name: str, version: int, label: str) -> None:
        if not 1 <= version <= len(self.versions.get(name, [])):
            with pytest.raises(UnknownPrompt):
                self.prompts.tag(f"{name}@{version}", label)
            return
        stack = self.labels.setdefault((name, label), [])
        if stack[-1:] != [version]:
            stack.append(version)
            self.moves += 1
        assert self.prompts.tag(f"{name}@{version}", label).version == version

    @precondition(lambda self: self.versions)
    @rule(name=NAMES, label=LABELS)
    def rollback(self, name: str, label: str) -> None:
        stack = self.labels.get((name, label), [])
        if len(stack) < 2:
            with pytest.raises(InputError):
                self.prompts.rollback(name, label)
            return
        stack.pop()
        self.moves += 1
        assert self.prompts.rollback(name, label).version == stack[-1]

    @rule()
    def reopen(self) -> None:
        self.prompts.close()
        self.prompts = Prompts.open(Path(self.folder.name) / "prompts.db")

    @invariant()
    def the_same(self) -> None:
        found = {each.name: each for each in self.prompts.list()}
        assert {name: each.versions for name, each in found.items()} == {
            name: len(texts) for name, texts in self.versions.items()
        }
        for name, texts in self.versions.items():
            assert [each.messages[0].text for each in self.prompts.versions(name)] == texts
            assert self.prompts.get(name).version == len(texts)
            for number, text in enumerate(texts, 1):
                assert self.prompts.get(f"{name}@{number}").messages == (Turn("system", text),)
            stands = {label: stack[-1] for (of, label), stack in self.labels.items() if of == name}
            assert self.prompts.labels(name) == found[name].labels == stands
            assert {label: self.prompts.get(f"{name}@{label}").version for label in stands} == stands
        assert sum(len(self.prompts.history(name)) for name in self.versions) == self.moves


def test_versions_and_labels_are_those_of_a_dictionary() -> None:
    run_state_machine_as_test(
        Model, settings=hypothesis_settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


# ---------------------------------------------------------------- versions and labels


def test_the_same_again_is_no_new_version_and_keeps_its_note(prompts: Prompts) -> None:
    first = prompts.put("support", "Be {{ tone }}.", note="first")
    assert (first.reference, first.variables, first.messages) == (
        "support@1",
        ("tone",),
        (Turn("system", "Be {{ tone }}."),),
    )
    assert prompts.put("support", "Be {{ tone }}.", note="other") == first
    assert prompts.put("support", "Be {{ tone }}.", variables=["tone", "more"]).version == 2
    assert prompts.put("support", [Turn("user", "Be {{ tone }}.")]).version == 3
    assert prompts.put("support", "Be {{ tone }}.").version == 4  # as the first, and not as the newest
    assert prompts.get("support@1") == first


def test_line_ends_are_one_character(prompts: Prompts) -> None:
    assert prompts.put("p", "a\r\nb\rc\n").messages[0].text == "a\nb\nc\n"
    assert prompts.put("p", "a\nb\nc\n").version == 1


@pytest.mark.parametrize("name", ["", "-p", "a b", "a@b", "café", "x" * 201, "a\nb", "/p", "\x1b[31m"])
def test_names_that_no_reference_could_have_are_refused(prompts: Prompts, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        prompts.put(name, "text")
    assert prompts.list() == ()


@pytest.mark.parametrize("label", ["", "3", "007", "a b", "a@b", "-x", "é", "x" * 101])
def test_labels_that_could_be_versions_are_refused(prompts: Prompts, label: str) -> None:
    prompts.put("p", "text")
    with pytest.raises(InputError, match="cannot be a label"):
        prompts.tag("p", label)
    assert prompts.history("p") == ()


def test_what_is_not_there_is_told_with_what_is(prompts: Prompts) -> None:
    for wrong in ("p", "p@1", "p@prod", "", "@", "@prod"):
        with pytest.raises(UnknownPrompt, match="there is no prompt"):
            prompts.get(wrong)
    prompts.put("p", "one")
    for wrong, mend in (("p@2", "only version is 1"), ("p@0", "only version"), ("p@prod", "tag p@1 LABEL"), ("p@", "")):
        with pytest.raises(UnknownPrompt, match="no version or label") as caught:
            prompts.get(wrong)
        assert mend in caught.value.mend
    prompts.tag("p", "prod")
    with pytest.raises(UnknownPrompt) as caught:
        prompts.get("p@staging")
    assert caught.value.mend == "it has prod (1)"
    with pytest.raises(UnknownPrompt):
        prompts.get("p@99999999999999999999")


def test_rollback_goes_back_step_by_step_and_is_history_itself(prompts: Prompts) -> None:
    for text in ("one", "two", "three"):
        prompts.tag(prompts.put("p", text).reference, "prod")
    assert [prompts.rollback("p", "prod").version for _ in range(2)] == [2, 1]
    with pytest.raises(InputError, match="stood nowhere before p@1"):
        prompts.rollback("p", "prod")
    prompts.tag("p@3", "prod")
    assert prompts.rollback("p", "prod").version == 1
    kinds = [(move.version, move.kind) for move in prompts.history("p", "prod")]
    tags, backs = [(1, "tag"), (2, "tag"), (3, "tag")], [(2, "rollback"), (1, "rollback")]
    assert kinds == [*tags, *backs, (3, "tag"), (1, "rollback")]


def test_a_gate_s_verdict_holds_for_the_version_that_it_saw(prompts: Prompts) -> None:
    for text in ("one", "two", "three"):
        prompts.put("p", text)
    prompts.tag("p@1", "prod", instead_of=0)
    kept = prompts.add_evaluation("p@3", {"task": "sums"}, passed=True)
    prompts.tag("p@2", "prod")
    with pytest.raises(InputError, match="prod was moved to p@2 meanwhile"):
        prompts.tag("p@3", "prod", evaluation=kept, instead_of=1)
    assert prompts.labels("p") == {"prod": 2}
    move = prompts.tag("p@3", "prod", evaluation=kept, forced=True, instead_of=2)
    assert prompts.history("p")[-1] == move
    assert (move.evaluation, move.forced) == (kept, True)
    assert [(each.id, each.passed, each.document) for each in prompts.evaluations("p@3")] == [
        (kept, True, {"task": "sums"})
    ]
    assert prompts.evaluations("p@2") == ()
    with pytest.raises(UnknownPrompt):
        prompts.add_evaluation("p@9", {})


# ---------------------------------------------------------------- the database


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET messages = '[]'",
        "UPDATE versions SET note = 'other'",
        "UPDATE OR REPLACE versions SET version = 1 WHERE version = 2",
        "DELETE FROM versions",
        "INSERT OR REPLACE INTO versions VALUES ('p', 1, '[]', '[]', '', '')",
        "INSERT OR REPLACE INTO versions VALUES ('p', 2, '[]', '[]', '', '')",
        "INSERT INTO versions VALUES ('p', 4, '[]', '[]', '', '')",
        "UPDATE moves SET version = 2",
        "DELETE FROM moves",
        "INSERT OR REPLACE INTO moves SELECT id, name, label, 2, kind, created, forced, evaluation FROM moves",
        "INSERT INTO moves (name, label, version, kind, created, forced) VALUES ('p', 'prod', 9, 'tag', '', 0)",
        "UPDATE evaluations SET passed = 1",
        "DELETE FROM evaluations",
        "REPLACE INTO evaluations SELECT id, name, version, created, 1, document FROM evaluations",
    ],
)
def test_the_database_itself_refuses_every_change(prompts: Prompts, statement: str) -> None:
    prompts.put("p", "one")
    prompts.put("p", "two")
    prompts.tag("p@1", "prod")
    prompts.add_evaluation("p@1", {}, passed=False)
    before = (prompts.versions("p"), prompts.history("p"), prompts.evaluations("p@1"))
    with pytest.raises(sqlite3.IntegrityError):
        prompts._connection.execute(statement)
    assert (prompts.versions("p"), prompts.history("p"), prompts.evaluations("p@1")) == before


def test_the_file_is_private_and_a_damaged_one_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.db"
    Prompts.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"no database at all, but long enough to be read as the head of one" * 20)
    with pytest.raises(StoreError, match="is damaged"):
        Prompts.open(path)


PUTTER = """
import sys
from ponder.ops.prompts import Prompts
sys.stdin.readline()
with Prompts.open(sys.argv[1]) as prompts:
    for number in range(int(sys.argv[3])):
        print(prompts.put("p", f"{sys.argv[2]} {number}").version, flush=True)
"""


def _putters(path: Path, names: str, count: int) -> list[subprocess.Popen[str]]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [
        subprocess.Popen([sys.executable, "-c", PUTTER, str(path), name, str(count)], **pipes) for name in names
    ]
    for child in children:
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
    return children


def test_two_processes_that_put_at_once_lose_nothing(tmp_path: Path) -> None:
    path, count = tmp_path / "prompts.db", 30
    versions: list[int] = []
    for child in _putters(path, "ab", count):
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        versions += map(int, out.split())
    assert sorted(versions) == list(range(1, 2 * count + 1))
    with Prompts.open(path) as prompts:
        texts = {each.messages[0].text for each in prompts.versions("p")}
    assert texts == {f"{name} {number}" for name in "ab" for number in range(count)}


def test_what_was_put_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "prompts.db"
    (child,) = _putters(path, "a", 100_000)
    assert child.stdout
    told = [int(child.stdout.readline()) for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    # Not communicate(): it would leave out what the reader of the first lines has read already.
    told += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.communicate(timeout=60)
    with Prompts.open(path) as prompts:
        versions = prompts.versions("p")
        assert [each.version for each in versions] == list(range(1, len(versions) + 1))
        assert len(told) <= len(versions) <= len(told) + 1
        assert versions[len(told) - 1].messages[0].text == f"a {len(told) - 1}"
        assert prompts.put("p", "after").version == len(versions) + 1


# ---------------------------------------------------------------- filling the blanks


@given(value=st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% raw %}", "{% endraw %}", "{# ", "{{ secret }}", "{%"]))
def test_a_value_is_text_whatever_it_holds(value: str) -> None:
    prompt = made("before {{ x }} after{# a comment #}{% raw %}{{ x }}{% endraw %}", variables=("x",))
    assert prompt.render({"x": value}) == (system(f"before {value} after{{{{ x }}}}"),)
    listed = made("{% for each in xs %}<{{ each }}>{% endfor %}")
    assert listed.render({"xs": [value, value]}) == (system(f"<{value}><{value}>"),)


@given(TEXTS.filter(lambda text: not any(mark in text for mark in ("{{", "{%", "{#"))))
def test_a_text_without_blanks_is_that_text(text: str) -> None:
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    prompt = made(text)
    assert (prompt.render(), prompt.variables) == ((system(expected),), ())


def test_roles_conditions_and_json() -> None:
    turns, declared = checked(
        [
            Turn("system", "{% if tone is defined and tone %}Be {{ tone }}. {% endif %}{{ user.name }}"),
            Turn("user", "{{ user | tojson }}"),
            Turn("assistant", "Yes."),
        ],
        None,
    )
    assert declared == ("tone", "user")
    prompt = Prompt("p", 1, turns, declared)
    filled = prompt.render({"tone": None, "user": {"name": "<Ann & Bo>"}})
    assert filled == (system("<Ann & Bo>"), user('{"name": "<Ann & Bo>"}'), assistant("Yes."))


def _one_line(error: InputError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_values_missing_and_surplus_are_lines() -> None:
    prompt = made("{{ a }} {{ b }}")
    with pytest.raises(InputError, match="support@1 has nothing to fill a, b with") as caught:
        prompt.render({})
    _one_line(caught.value)
    with pytest.raises(InputError, match=r"no variable 'c\\nd'\. it takes a, b"):
        prompt.render({"a": 1, "b": 2, "c\nd": 3})
    with pytest.raises(InputError, match="it takes no variables"):
        made("text").render({"a": 1})
    made("text", variables=("a",)).render({"a": 1})  # declared and not used


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{{ x.y }}", {"x": {}}),
        ("{{ x.__class__ }}", {"x": "text"}),
        ("{{ x['__class__']['__mro__'] }}", {"x": "text"}),
        ("{{ ''.__class__.__mro__ }}{{ x }}", {"x": ""}),
        ("{{ x.format(x) }}", {"x": "{0.__class__.__init__}"}),
        ("{{ x.append(1) }}", {"x": [1]}),
        ("{{ x() }}", {"x": "text"}),
        ("{{ 'a' * x }}", {"x": 10**12}),
        ("{{ 9 ** x }}", {"x": 10**9}),
        ("{{ x * x }}", {"x": 10**300}),
        ("{{ 1 / x }}", {"x": 0}),
        (
            "{% for i in x %}{% for j in x %}{% for k in x %}{{ x }}{% endfor %}{% endfor %}{% endfor %}",
            {"x": "a" * 500},
        ),
        ("{{ x }}", {"x": object()}),
        ("{{ x }}", {"x": {1: "key"}}),
        ("{{ x }}", {"x": [{"y": {1, 2}}]}),
    ],
)
def test_what_cannot_be_filled_is_a_line_and_reaches_nothing(text: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        made(text).render(values)
    assert "support@1" in _one_line(caught.value) or "the value of x" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def test_a_value_that_is_too_deep_is_a_line() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match="too many lists"):
        made("{{ x }}").render({"x": deep})
    while isinstance(deep, list):  # so that it is not taken apart recursively
        deep = deep.pop()


def test_the_longest_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_module, "LONGEST", 100)
    assert len(made("{{ x }}").render({"x": "a" * 100})[0].text) == 100
    with pytest.raises(InputError, match="grew too long"):
        made("{{ x }}").render({"x": "a" * 101})
    with pytest.raises(InputError, match="more than 100 characters"):
        made("a" * 101)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "without text"),
        (" \n ", "without text"),
        ("{{ x", "no template"),
        ("{% if %}", "no template"),
        ("{# open", "no template"),
        ('{"a": {"b": 1, {{}}}', "no template"),
        ("{{ " + "(" * 5000 + "x" + ")" * 5000 + " }}", "no template"),
        ("{% include 'secrets' %}", "includes no other template"),
        ("{% extends name %}", "includes no other template"),
        ("{{ x | nonsense }}", "no template"),
        ("{{ xs | random }}", "no template"),
        ("{{ loop.index }}", "'loop' cannot be a variable"),
        ("{{ _private }}", "'_private' cannot be a variable"),
        ("{{ naïve }}", "cannot be a variable"),
    ],
)
def test_what_can_be_no_prompt_is_refused_when_it_is_put(prompts: Prompts, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        prompts.put("p", text)
    _one_line(caught.value)
    assert prompts.list() == ()


def test_declarations_are_checked(prompts: Prompts) -> None:
    with pytest.raises(InputError, match="uses b without declaring it"):
        prompts.put("p", "{{ a }} {{ b }}", variables=["a"])
    for name in ("1a", "a-b", "", "self", "true"):
        with pytest.raises(InputError, match="cannot be a variable"):
            prompts.put("p", "text", variables=[name])
    with pytest.raises(InputError, match="no messages of 'tool'"):
        prompts.put("p", [Turn("tool", "text")])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no UTF-8"):
        prompts.put("p", "caf\udce9")
    assert prompts.list() == ()
    assert prompts.put("p", "text", variables=["b", "a", "b"]).variables == ("b", "a")


# ---------------------------------------------------------------- before a conversation


def test_system_messages_at_the_beginning_become_one() -> None:
    asked = (system("Short."), user("Hi"), system("Later."))
    assert in_front((system("Be kind."), user("A?"), assistant("B.")), asked) == (
        system("Be kind.\n\nShort."),
        user("A?"),
        assistant("B."),
        user("Hi"),
        system("Later."),
    )
    assert in_front((system("Be kind."),), (user("Hi"),)) == (system("Be kind."), user("Hi"))
    assert in_front((user("A?"),), asked) == (system("Short."), user("A?"), user("Hi"), system("Later."))
    assert in_front((), asked) == asked


# ---------------------------------------------------------------- differences and files


def test_differences_are_told_message_by_message() -> None:
    old = Prompt("p", 1, (Turn("system", "one\ntwo\n"), Turn("user", "same")), ("a",))
    new = Prompt("p", 2, (Turn("system", "one\n2\n"), Turn("user", "same"), Turn("assistant", "more")), ("a", "b"))
    assert diff(old, old) == ""
    assert diff(old, new).split("\n") == [
        "--- p@1 message 1 (system)",
        "+++ p@2 message 1 (system)",
        "@@ -1,4 +1,4 @@",
        " [system]",
        " one",
        "-two",
        "+2",
        " ",
        "--- p@1 message 3 (none)",
        "+++ p@2 message 3 (assistant)",
        "@@ -0,0 +1,2 @@",
        "+[assistant]",
        "+more",
        "--- p@1 variables",
        "+++ p@2 variables",
        "@@ -1 +1,2 @@",
        " a",
        "+b",
    ]


TURNS = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=3)


@given(old=TURNS, new=TURNS)
def test_there_is_a_difference_where_there_is_one(old: list[Turn], new: list[Turn]) -> None:
    first, second = Prompt("p", 1, tuple(old)), Prompt("p", 2, tuple(new))
    assert (diff(first, second) == "") == (old == new)


PLAIN = TEXTS.filter(lambda text: "{" not in text)


@given(
    texts=st.lists(PLAIN, min_size=1, max_size=3),
    note=st.text(st.characters(exclude_categories=["Cs"])),
    variables=st.lists(st.from_regex(r"x[a-z_]{0,5}", fullmatch=True), unique=True, max_size=3),
    form=st.sampled_from(["toml", "json"]),
)
def test_a_file_says_what_was_exported(texts: list[str], note: str, variables: list[str], form: Any) -> None:
    turns, declared = checked([Turn("user", text) for text in texts], variables)
    prompt = Prompt("team/p", 7, turns, declared, note.replace("\r", ""))
    found = prompt_file.loads(prompt_file.dumps(prompt, form), form, "f")
    assert (found.name, found.messages, found.variables, found.note) == ("team/p", turns, declared, prompt.note)


@pytest.mark.parametrize("name", ["p.toml", "p.json"])
def test_what_is_imported_again_is_no_new_version(prompts: Prompts, tmp_path: Path, name: str) -> None:
    prompt = prompts.put("p", [Turn("system", 'Say """{{ x }}""" \\ \t now.\n'), Turn("user", "é\n\n")], note="n")
    prompt_file.write(prompt, tmp_path / name)
    found = prompt_file.read(tmp_path / name)
    assert prompts.put(found.name, found.messages, found.variables, found.note) == prompt
    with Prompts.open(tmp_path / "others.db") as others:
        other = others.put(found.name, found.messages, found.variables, found.note)
    assert (other.messages, other.variables, other.note) == (prompt.messages, prompt.variables, prompt.note)


GOOD = {"version": 1, "name": "p", "messages": [{"role": "user", "text": "hi"}]}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"version": 2}, "has version 2"),
        ({"more": 1}, "no field 'more'"),
        ({"name": 3}, "name and note"),
        ({"note": []}, "name and note"),
        ({"variables": "x"}, "list of names"),
        ({"variables": [1]}, "list of names"),
        ({"messages": {}}, "messages has to be"),
        ({"messages": [{"role": "tool", "text": "x"}]}, "messages has to be"),
        ({"messages": [{"role": ["user"], "text": "x"}]}, "messages has to be"),
        ({"messages": [{"role": "user", "text": 1}]}, "messages has to be"),
        ({"messages": [{"role": "user", "text": "x", "more": 1}]}, "messages has to be"),
        ({"messages": ["x"]}, "messages has to be"),
    ],
)
def test_files_of_another_form_are_refused_by_their_name(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(GOOD))
    assert prompt_file.read(path).variables is None
    path.write_text(json.dumps(GOOD | changed))
    with pytest.raises(InputError, match=problem) as caught:
        prompt_file.read(path)
    assert str(path) in _one_line(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"version": 1', "\x00", "caf\xe9"])
@pytest.mark.parametrize("name", ["p.json", "p.toml"])
def test_files_that_are_no_prompts_are_lines(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        prompt_file.read(path)
    assert str(path) in _one_line(caught.value)


def test_files_that_cannot_be_used_are_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither TOML nor JSON"):
        prompt_file.read(tmp_path / "p.txt")
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        prompt_file.read(tmp_path / "p.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory"):
        prompt_file.write(made("text"), tmp_path / "folder.toml")
