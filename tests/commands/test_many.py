"""Evaluations of a known name with many samples run on torch; what was begun on one engine is never mixed or left."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from ponder.chat.model import Model
from ponder.commands import evaluating
from ponder.commands.asking import Asking
from ponder.engine import cache, catalogue, many
from ponder.engine.download import sha256_file
from ponder.evals.identity import identity_of
from ponder.evals.results import Run, Setting
from ponder.evals.run import engines_of, evaluate, kept_run
from ponder.ops.store import Store
from ponder.tasks import Task
from ponder.train.export import to_gguf
from ponder.types import Budget, Question, user

VOTE = "vote(4)"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.gguf"
    to_gguf(tiny_model(), tiny_tokenizer(), path, kind="f32")
    return path


@pytest.fixture
def named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model that the catalogue knows by a name, in the cache; 8 samples are many, on any processor."""
    monkeypatch.setenv("PONDER_HOME", str(tmp_path / "home"))
    size = weights.stat().st_size
    base = catalogue.Base("tiny", "tiny.gguf", sha256_file(weights), size, "", "", "", 0, "", "a test")
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, catalogue.Entry("tiny", "", base)))
    cache.path_of(base).parent.mkdir(parents=True)
    shutil.copy(weights, cache.path_of(base))
    monkeypatch.setattr(many, "WORTH", 8)
    monkeypatch.setattr(many, "SIDE_BY_SIDE", 8)
    monkeypatch.setattr(many, "_has_instructions", lambda cpu: True)
    monkeypatch.setattr("ponder.engine.torch_projection.packs", lambda device, dtype: True)
    return "tiny"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "ponder.db") as store:
        yield store


def task(count: int = 2) -> Task:
    questions = tuple(
        Question((user(f"{i} + 3?"),), reference=str(i + 3), metadata={"id": f"q{i}"}) for i in range(count)
    )
    return Task("sums", questions, "math_answer", "5a")


def asked(
    store: Store | None, uri: str, asked: Task, at_once: int | None = None, strategy: str = VOTE
) -> tuple[Run, dict[str, Any]]:
    """The run, and who the model was."""

    async def work() -> tuple[Run, dict[str, Any]]:
        stop = asyncio.Event()
        options = Asking(uri, (), 1.0, None, None, store is not None, True)
        model: Model = await evaluating.open_for(options, stop, store, asked, [strategy], 1, at_once)
        try:
            side = evaluating.questions_at_once(model, strategy, at_once)
            run = await evaluate(asked, model, Setting(strategy, Budget(128)), at_once=side, store=store)
            return run, identity_of(model.engine)
        finally:
            await model.engine.close()

    return asyncio.run(asyncio.wait_for(work(), 60))


def test_many_samples_of_a_known_name_run_on_torch(
    named: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run, who = asked(store, named, task())
    assert run.engine == "hf"
    assert who["uri"] == "hf"
    assert [len(result.samples) for result in run.results] == [4, 4]
    assert kept_run(store, run.id).engine == "hf"
    said = capsys.readouterr().err.splitlines()
    assert said == ["ponder: 8 samples: torch computes them; gguf:tiny has llama.cpp"]


def test_few_samples_and_an_engine_that_was_named_are_as_ever(
    named: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    few, _ = asked(store, named, task(1))
    named_so, who = asked(store, f"gguf:{named}", task())
    assert few.engine == named_so.engine == who["uri"] == "gguf"
    assert capsys.readouterr().err == ""


def test_what_two_engines_said_is_never_mixed(named: str, store: Store) -> None:
    from ponder.evals.cached import Account

    async def paid(uri: str) -> tuple[str, Account]:
        account, stop = Account(), asyncio.Event()
        options = Asking(uri, (), 1.0, None, None, True, True)
        model = await evaluating.open_for(options, stop, store, task(), [VOTE])
        try:
            run = await evaluate(task(), model, Setting(VOTE, Budget(128)), store=store, account=account)
        finally:
            await model.engine.close()
        return run.id, account

    ids = []
    for uri in (f"gguf:{named}", f"hf:{named}"):
        first, account = asyncio.run(paid(uri))
        assert account.cached_samples == 0
        assert account.samples > 0
        again, account = asyncio.run(paid(uri))
        assert again == first
        assert account.samples == 0
        ids.append(first)
    assert len(set(ids)) == 2


def test_a_run_goes_on_where_it_was_begun(named: str, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    torch, _ = asked(store, named, task())
    one_by_one, _ = asked(store, named, task(), at_once=1)  # too few side by side for torch
    assert one_by_one.id == torch.id
    assert "begun on torch" in capsys.readouterr().err
    questions = replace(task(), name="others")
    llama, _ = asked(store, named, questions, at_once=1)
    assert llama.engine == "gguf"
    at_once, _ = asked(store, named, questions)
    assert at_once.id == llama.id
    assert "begun on llama.cpp" in capsys.readouterr().err


def test_only_runs_of_the_same_work_say_where_it_was_begun(named: str, store: Store) -> None:
    asked(store, named, task())
    assert engines_of(store, task(), named, [VOTE, "direct"]) == {"hf"}
    others = [task(3), replace(task(), name="others"), replace(task(), sha256="5b")]
    assert [engines_of(store, each, named, [VOTE]) for each in others] == [set()] * 3
    assert engines_of(store, task(), "ponder-135m", [VOTE]) == engines_of(store, task(), named, ["vote(5)"]) == set()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)  # on a busy machine
def test_ponder_eval_of_the_embedded_model_uses_torch(tmp_path: Path) -> None:
    from command_line import ponder

    if not many.computes_here():
        pytest.skip("torch computes no bfloat16 here")
    rows = [{"id": f"q{i}", "question": f"What is {i} + 3?", "answer": str(i + 3)} for i in range(32)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    ran = ponder("eval", file, "--strategy", "vote(8)", "--budget", 256, "--no-cache", "--json")
    assert json.loads(ran.out)["engine"] == "hf"
    assert "torch computes them" in ran.err
