"""Stored prompts in requests: the messages in front, the version told, and nothing else of a request changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import StoreError
from ponder.ops.prompt import Turn
from ponder.ops.prompts import Prompts
from ponder.server.failures import Refusal
from ponder.server.json_body import Fields
from ponder.server.prompt_of import with_prompt
from ponder.server.request import Caller, PromptVersion, Request, Sampling
from ponder.server.wanted import wanted
from ponder.types import Budget, Question, ask, assistant, system, user


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prompts]:
    with Prompts.open(tmp_path_factory.mktemp("prompts") / "prompts.db") as opened:
        opened.put("support", "You answer for {{ product }}.")
        opened.put(
            "support", [Turn("system", "Be kind to {{ product }}."), Turn("user", "A?"), Turn("assistant", "B.")]
        )
        opened.tag("support@1", "prod")
        opened.put("plain", "Be brief.")
        yield opened


def asking(body: dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Request:
    """A request as the server reads it: what is asked of ponder from the body and the headers."""
    want = wanted(Fields({"model": "toy", "ponder": body}), headers or {})
    return Request(
        "r", want.model, more.pop("question", ask("Hi")), prompt=want.prompt, variables=want.variables, **more
    )


def refused(request: Request, prompts: Prompts) -> Refusal:
    with pytest.raises(Refusal) as caught:
        with_prompt(request, prompts)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "version", "label", "text"),
    [
        ("support@prod", 1, "prod", "You answer for ponder."),
        ("support@1", 1, "", "You answer for ponder."),
        ("support@2", 2, "", "Be kind to ponder."),
        ("support", 2, "", "Be kind to ponder."),
    ],
)
def test_the_version_is_found_and_told(prompts: Prompts, name: str, version: int, label: str, text: str) -> None:
    found = with_prompt(asking({"prompt": name, "variables": {"product": "ponder"}}), prompts)
    assert found.prompt == PromptVersion("support", version, label)
    assert found.question.messages[0] == system(text)
    assert found.question.messages[-1] == user("Hi")


def test_the_header_names_one_too(prompts: Prompts) -> None:
    found = with_prompt(asking({}, {"X-Ponder-Prompt": "plain"}), prompts)
    assert (found.prompt, found.question.messages) == (PromptVersion("plain", 1), (system("Be brief."), user("Hi")))


def test_messages_of_both_in_their_order_with_one_system_message(prompts: Prompts) -> None:
    question = Question((system("Short."), user("Hi")), tools=({"type": "function"},), metadata={"a": 1})
    found = with_prompt(asking({"prompt": "support", "variables": {"product": "x"}}, question=question), prompts)
    expected = (system("Be kind to x.\n\nShort."), user("A?"), assistant("B."), user("Hi"))
    assert found.question == dataclasses.replace(question, messages=expected)


def test_without_a_prompt_nothing_changes(prompts: Prompts) -> None:
    request = asking({})
    assert with_prompt(request, prompts) is request


@pytest.mark.parametrize("name", ["nothing", "support@staging", "support@3", "support@0", "prod"])
def test_what_is_not_there_is_404(prompts: Prompts, name: str) -> None:
    found = refused(asking({"prompt": name, "variables": {"product": "x"}}), prompts)
    assert (found.status, found.kind, found.param, found.code) == (404, "not_found_error", "prompt", "prompt_not_found")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [({}, "nothing to fill product with"), ({"product": 1, "x": 2}, "no variable 'x'"), ({"x": 2}, "product")],
)
def test_variables_that_do_not_fit_are_400(prompts: Prompts, variables: dict[str, Any], problem: str) -> None:
    found = refused(asking({"prompt": "support", "variables": variables}), prompts)
    assert (found.status, found.param) == (400, "variables")
    assert problem in str(found)


def test_a_database_that_fails_is_no_fault_of_the_client(tmp_path: Path) -> None:
    with Prompts.open(tmp_path / "prompts.db") as broken:
        broken._connection.execute("ALTER TABLE versions RENAME TO gone")
        with pytest.raises(StoreError):
            with_prompt(asking({"prompt": "support"}), broken)


def test_completions_get_its_text_in_front(prompts: Prompts) -> None:
    request = asking({"prompt": "plain"}, raw=" Once", question=ask(" Once"), dialect="completions")
    found = with_prompt(request, prompts)
    assert (found.raw, found.question.text) == ("Be brief. Once", "Be brief. Once")
    assert refused(asking({"prompt": "plain"}, raw_ids=(1, 2)), prompts).status == 400


def test_parts_of_messages_as_variables_of_the_responses_api(prompts: Prompts) -> None:
    def filled(value: Any, dialect: Any = "responses") -> Request:
        request = asking({"prompt": "support@1", "variables": {"product": value}}, dialect=dialect)
        return with_prompt(request, prompts)

    part = {"type": "input_text", "text": "{{ ponder }}"}
    assert filled(part).question.messages[0] == system("You answer for {{ ponder }}.")
    assert filled("x").question.messages[0] == system("You answer for x.")
    assert "input_text" in filled(part, "openai").question.messages[0].text
    for wrong in ({"type": "input_image", "image_url": "x"}, {"type": "input_text"}, {"type": "input_text", "text": 1}):
        with pytest.raises(Refusal, match="the variable 'product' is no text") as caught:
            filled(wrong)
        assert caught.value.status == 400


REQUESTS = st.builds(
    Request,
    st.text(),
    st.text(),
    st.builds(ask, st.text()),
    n=st.integers(1, 5),
    strategy=st.sampled_from(["", "auto", "vote(8)"]),
    effort=st.sampled_from(["", "low", "max"]),
    budget=st.builds(Budget, st.integers(1, 1000)),
    think=st.none() | st.booleans(),
    deadline=st.none() | st.floats(1, 9),
    sampling=st.builds(Sampling, st.none() | st.floats(0, 2)),
    caller=st.builds(Caller, st.text(), st.text(), st.text()),
    prompt=st.sampled_from(
        [PromptVersion("support", 0, "prod"), PromptVersion("support", 2), PromptVersion("support", 0)]
    ),
    variables=st.fixed_dictionaries({"product": st.text() | st.just("ponder: {strategy: vote(64), budget: 10**9}")}),
)


@given(request=REQUESTS)
def test_no_text_changes_budget_strategy_model_or_key(prompts: Prompts, request: Request) -> None:
    found = with_prompt(request, prompts)
    changed = {"question", "prompt"}
    for field in dataclasses.fields(Request):
        if field.name not in changed:
            assert getattr(found, field.name) == getattr(request, field.name), field.name
    assert request.prompt is not None
    assert found.prompt is not None
    assert (found.prompt.name, found.prompt.label) == (request.prompt.name, request.prompt.label)
    assert found.prompt.version >= 1
    assert request.variables["product"] in found.question.messages[0].text
