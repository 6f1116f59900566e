"""Labels for steps: by arithmetic, by what follows them, and what is paid for only once."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.chat.formats import PONDER
from ponder.chat.model import Model, model_of
from ponder.data.ledger import Ledger
from ponder.data.monte_carlo import MonteCarlo, combined_labels
from ponder.data.step_labels import MOST_STEPS, Labels, arithmetic_labels, in_order, labelled, steps_in
from ponder.engine._script import TOKENIZER
from ponder.engine.scripted import EOS, Fault, ScriptedEngine
from ponder.errors import EngineDisconnected, EngineError, InputError, Unsupported
from ponder.protocols import Capabilities, SamplingParams
from ponder.types import Cost, Question, Sample, Span, user
from ponder.verifiers.math_answer import math_answer
from ponder.verifiers.reward_model import from_function, process_reward_model

PROMPT = "<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n<think>\n"
QUESTION = Question((user("How much?"),), reference="12")
STEPS = ("2 + 3 = 5\n", "5 + 6 = 11\n", "11 + 1 = 12\n", "so it is done\n")


def sample(*steps: str, answer: str = "") -> Sample:
    thinking = "".join(steps)
    text = f"{thinking}</think>\n{answer}"
    ids = (*text.encode(), EOS)
    spans = (Span("thinking", 0, len(thinking) - 1), Span("marker", len(thinking) - 1, len(thinking) + 9))
    spans = (*spans, Span("answer", len(thinking) + 9, len(text)))
    prompt = tuple(TOKENIZER.encode(PROMPT))
    return Sample(0, text, prompt, ids, (True,) * len(ids), (None,) * len(ids), spans=spans)


class Continuing(ScriptedEngine):
    """Completion i after so many steps is right where `right(steps, i)`. Each completion is as long as its number."""

    def __init__(self, right: Callable[[int, int], bool], first: bool = True, **more: Any) -> None:
        super().__init__(self._say, **more)
        self.is_right, self.can_skip = right, first
        self.asked: list[tuple[int, int, int]] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, first=self.can_skip)

    def _say(self, prefix: tuple[int, ...], index: int, params: SamplingParams) -> Sequence[int]:
        steps = TOKENIZER.decode(prefix).decode().removeprefix(PROMPT).count("\n")
        answer = 12 if self.is_right(steps, index) else 13
        return [*f"{'x' * index}\n</think>\nThe answer is {answer}.".encode(), EOS]

    def sample(self, prefix: Sequence[int], n: int, params: SamplingParams) -> Any:
        steps = TOKENIZER.decode(prefix).decode().removeprefix(PROMPT).count("\n")
        self.asked.append((steps, params.first, n))
        return super().sample(prefix, n, params)


def continued(engine: ScriptedEngine, **settings: Any) -> MonteCarlo:
    model = replace(model_of(engine), format=PONDER)
    return MonteCarlo(model, math_answer(), **settings)


def label(labeller: Callable[[Question, Sample], Awaitable[Labels]], *steps: str) -> Labels:
    async def run() -> Labels:
        return await labeller(QUESTION, sample(*(steps or STEPS)))

    return asyncio.run(run())


SHARES = {1: 4, 2: 3, 3: 1, 4: 0}


def some(steps: int, index: int) -> bool:
    """After more steps fewer completions are right, and the longest ones."""
    return index >= 4 - SHARES[steps]


# ------------------------------------------------------------------ steps and arithmetic


def test_an_answer_is_labelled_by_whether_it_is_right() -> None:
    """It is the last step, and only the end of the turn is left to draw after it."""

    async def run(answer: str) -> Labels:
        engine = ScriptedEngine(lambda prefix, *_: [EOS] if prefix[-1] == ord(".") else [*b"</think>\n12.", EOS])
        return await continued(engine, k=3)(QUESTION, sample(*STEPS, answer=answer))

    assert asyncio.run(run("12.")).values == (1.0,) * 5
    assert asyncio.run(run("13.")).values == (*(1.0,) * 4, 0.0)


def test_steps_end_where_the_verifier_asks() -> None:
    asked: list[str] = []

    def heard(prefix: tuple[int, ...], token: int) -> float:
        asked.append(TOKENIZER.decode(prefix).decode())
        return -1.0

    engine, drawn = ScriptedEngine(lambda *_: [], logprob=heard), sample(*STEPS)

    async def run() -> list[tuple[str, int]]:
        await process_reward_model(model_of(engine), marker="?", most_steps=3)(QUESTION, drawn)
        return await steps_in(engine, drawn, 3)

    found = asyncio.run(run())
    assert [text for text, _ in found] == [*STEPS[:2], "".join(STEPS[2:])]
    assert [TOKENIZER.decode((*drawn.prompt_ids, *drawn.ids[:at])).decode() + "?" for _, at in found] == asked[::2]
    assert inspect.signature(process_reward_model).parameters["most_steps"].default == MOST_STEPS
    ((whole, end),) = asyncio.run(steps_in(engine, drawn, None))
    assert (whole, end) == (drawn.text, len(drawn.ids) - 1)


def test_arithmetic() -> None:
    by_arithmetic = arithmetic_labels(ScriptedEngine(lambda *_: []))
    assert label(by_arithmetic).values == (1, 1, 1, 1)
    assert label(by_arithmetic, "I think\n", "2 + 3 = 6\n", "6 + 6 = 12\n", "so\n").values == (1, 0, 0, 0)
    assert label(by_arithmetic, "I think\n", "so it is\n").values == (None, None)
    assert label(by_arithmetic).places == tuple(len("".join(STEPS[: k + 1])) for k in range(4))
    assert label(by_arithmetic).cost == Cost()


def test_samples_without_tokens_are_refused() -> None:
    with pytest.raises(Unsupported, match="without exact tokens"):
        asyncio.run(steps_in(ScriptedEngine(lambda *_: []), Sample(0, "1 + 1 = 2", exact=False)))


# ------------------------------------------------------------------ rollouts


def test_soft_labels_are_shares() -> None:
    engine = Continuing(some)
    found = label(continued(engine, k=4))
    assert found.values == (1, 0.75, 0.25, 0)
    assert engine.asked == [(steps, 0, 4) for steps in (1, 2, 3, 4)]
    assert found.cost.calls == 4
    assert found.cost.verifier == engine.generated
    assert found.cost.cancelled == 0
    assert found.cost.prompt == sum(len(PROMPT_IDS) + place for place in found.places)
    assert found.cost.prompt_cached > len(PROMPT_IDS)


PROMPT_IDS = TOKENIZER.encode(PROMPT)


def test_hard_labels_end_with_the_first_right_completion() -> None:
    engine = Continuing(some)
    found = label(continued(engine, k=4, hard=True))
    assert found.values == (1, 1, 1, 0)
    assert found.cost.cancelled > 0
    assert found.cost.verifier + found.cost.cancelled == engine.generated
    assert engine.generated < label(continued(Continuing(some), k=4)).cost.verifier


@given(st.integers(0, 16))
def test_halving_finds_the_first_step_from_which_none_is_right(wrong: int) -> None:
    steps = [f"{k} + 1 = {k + 1}\n" for k in range(16)]
    engine = Continuing(lambda after, index: after <= wrong and index == 1)
    found = label(continued(engine, k=2, hard=True, halving=True), *steps)
    assert found.values == tuple(float(k < wrong) for k in range(16))
    assert len(engine.asked) <= 5


def test_an_answer_that_was_cut_is_not_right() -> None:
    longest = len("xxx\n</think>\nThe answer is 12.")
    found = label(continued(Continuing(lambda steps, index: True), k=4, max_tokens=longest))
    assert found.values == (0.75,) * 4, "the last completion lacks its end of turn"


def test_combined_labels_ask_only_before_the_first_wrong_equation() -> None:
    engine = Continuing(some)
    found = label(combined_labels(continued(engine, k=4)), "2 + 3 = 5\n", "5 + 6 = 11\n", "11 + 1 = 13\n", "so\n")
    assert found.values == (1, 0.75, 0, 0)
    assert [steps for steps, *_ in engine.asked] == [1, 2]
    words = label(combined_labels(continued(Continuing(some), k=4)), "we\n", "say\n")
    assert words.values == (1, 0.75), "where arithmetic knows nothing, completions are asked"


def test_contradictions_are_refused() -> None:
    engine = Continuing(some)
    with pytest.raises(InputError, match="k=0 completions"):
        continued(engine, k=0)
    with pytest.raises(InputError, match="hard=True"):
        continued(engine, halving=True)
    cold = replace(model_of(engine), params=SamplingParams(1, temperature=0.0))
    with pytest.raises(InputError, match="all 8 completions are the same"):
        MonteCarlo(cold, math_answer())


# ------------------------------------------------------------------ paid for once


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def costs(*given: Cost) -> tuple[int, ...]:
    total = sum(given, Cost())
    return total.verifier, total.cancelled, total.calls, total.prompt


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = label(continued(Continuing(some), k=4, ledger=Ledger(path)))
    engine = Continuing(some)
    again = label(continued(engine, k=4, ledger=Ledger(path)))
    assert (again.values, again.cost, engine.calls) == (first.values, Cost(), 0)
    assert costs(Ledger(path).cost) == costs(first.cost)
    more = label(continued(engine, k=6, ledger=Ledger(path)))
    assert engine.asked == [(steps, 4, 2) for steps in (1, 2, 3, 4)]
    assert more.values == tuple((share + 2) / 6 for share in SHARES.values())


@pytest.mark.parametrize("at", [1, 60, 111, 116])
def test_what_ended_before_a_failure_is_kept(tmp_path: Path, at: int) -> None:
    """However far the engine came before it went away, labels are those of an uninterrupted run, and all is counted."""
    path, broken = tmp_path / "ledger.jsonl", Continuing(some, faults=[Fault("disconnect", at=at, first_call=2)])
    with pytest.raises(EngineDisconnected):
        label(continued(broken, k=4, ledger=Ledger(path)))
    kept = [line for line in lines(path) if "index" in line]
    assert (len(kept) > 4) == (at > 110)
    assert costs(Ledger(path).cost)[0] + costs(Ledger(path).cost)[1] == broken.generated
    engine = Continuing(some)
    found = label(continued(engine, k=4, ledger=Ledger(path)))
    whole = label(continued(Continuing(some), k=4))
    assert found.values == whole.values
    assert sum(n for *_, n in engine.asked) == 16 - len(kept)
    assert sum("index" in line for line in lines(path)) == 16
    total = Ledger(path).cost
    assert total.verifier == whole.cost.verifier
    assert total.verifier + total.cancelled == broken.generated + engine.generated


def test_an_engine_that_cannot_skip_samples_keeps_whole_requests(tmp_path: Path) -> None:
    """Short completions alone would be kept otherwise, and here they are the wrong ones."""
    path = tmp_path / "ledger.jsonl"
    broken = Continuing(some, first=False, faults=[Fault("disconnect", at=116, first_call=1)])
    with pytest.raises(EngineDisconnected):
        label(continued(broken, k=4, ledger=Ledger(path)))
    assert not [line for line in lines(path) if "index" in line]
    assert costs(Ledger(path).cost)[:2] == (0, broken.generated)
    engine = Continuing(some, first=False)
    assert label(continued(engine, k=4, ledger=Ledger(path))).values == (1, 0.75, 0.25, 0)
    seeds: list[int] = []
    engine.is_right = lambda steps, index: True
    engine.reply = lambda prefix, index, params: seeds.append(params.seed) or engine._say(prefix, index, params)
    more = label(continued(engine, k=6, ledger=Ledger(path)))
    assert more.values == tuple((share + 2) / 6 for share in SHARES.values())
    assert {first for _, first, _ in engine.asked} == {0}
    assert len(set(seeds)) == 4, "each step's further completions are others than its first ones"


def test_completions_that_never_end_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    engine = Continuing(some, faults=[Fault("partial", at=5, sample=1)])
    with pytest.raises(EngineError, match="1 of 4 completions did not end"):
        label(continued(engine, k=4, ledger=Ledger(path)))
    engine.asked.clear()
    assert label(continued(engine, k=4, ledger=Ledger(path))).values == (1, 0.75, 0.25, 0)
    assert engine.asked[0] == (1, 1, 1), "the one that did not end is asked for alone"


def test_a_ledger_survives_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = label(continued(Continuing(some), k=4, ledger=Ledger(path)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    Ledger(path)  # who only reads changes nothing
    assert path.read_bytes() == data[: len(data) * 2 // 3]
    engine = Continuing(some)
    assert label(continued(engine, k=4, ledger=Ledger(path))).values == whole.values
    assert 0 < engine.calls < 4
    assert sum("index" in line for line in lines(path)) == 16


def test_files_that_are_no_ledgers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for text in ("[]\n", '{"version": 2, "key": "a", "cost": {}}\n', "{}\n", "words\n"):
        path.write_text('{"version": 1, "key": "a", "cost": {"calls": 1}}\n' + text)
        with pytest.raises(InputError, match=r"line 2 of .* is none of a ledger"):
            Ledger(path)
    with pytest.raises(InputError, match="cannot be read"):
        Ledger(tmp_path)
    path.write_text("somebody's notes")  # no line of ours that was cut short
    with pytest.raises(InputError, match="line 1 of"):
        Ledger(path)
    assert path.read_text() == "somebody's notes"


KILLED = """
import asyncio, os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_step_labels import *

class Dying(Continuing):
    def _say(self, prefix, index, params):
        for place, token in enumerate(super()._say(prefix, index, params)):
            if self.calls == 3 and (index, place) == (3, 29):
                os.kill(os.getpid(), signal.SIGKILL)
            yield token

label(continued(Dying(some), k=4, ledger=Ledger(sys.argv[3])))
"""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    path, here = tmp_path / "ledger.jsonl", Path(__file__).parent
    run = [sys.executable, "-c", KILLED, str(here), str(here.parent), str(path)]
    assert subprocess.run(run, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
    assert sum("index" in line for line in lines(path)) == 11, "two requests, and what had ended of the third"
    engine = Continuing(some)
    assert label(continued(engine, k=4, ledger=Ledger(path))).values == (1, 0.75, 0.25, 0)
    assert engine.asked == [(3, 3, 1), (4, 0, 4)]


def test_a_real_engine_draws_the_completions_that_are_missing(tmp_path: Path) -> None:
    import torch
    from tiny import tiny_model, tiny_tokenizer

    from ponder.engine.torch_engine import TorchEngine, TorchSettings

    path, model, tokenizer = tmp_path / "ledger.jsonl", tiny_model(), tiny_tokenizer()
    with torch.no_grad():  # some completions end by themselves, and some do not
        model.lm_head.weight[tokenizer.eos_token_id] *= 6

    async def run(ledger: Ledger) -> Labels:
        settings = TorchSettings(context=256, sequences=8, dtype="float32", threads=1, device="cpu")
        engine = TorchEngine(model, tokenizer, settings=settings)
        try:
            asked = model_of(engine)
            asked = replace(asked, params=replace(asked.params, temperature=3.0))
            ids = tuple(await engine.tokenize("a b\nthe and\n"))
            none = (None,) * len(ids)
            drawn = Sample(0, await engine.detokenize(ids), (1, 30, 31), ids, (True,) * len(ids), none)
            even = from_function("even", lambda question, sample: len(sample.ids) % 2)
            return await MonteCarlo(asked, even, k=8, max_tokens=40, ledger=ledger)(QUESTION, drawn)
        finally:
            await engine.close()

    whole = asyncio.run(run(Ledger(path)))
    assert all(0 < value < 1 for value in whole.values)
    made = [line for line in path.read_text().splitlines(keepends=True) if "index" in line]
    assert len(made) == 8 * len(whole.values) == 16
    path.write_text("".join(random.Random(0).sample(made, 5)))
    again = asyncio.run(run(Ledger(path)))
    assert again.values == whole.values
    assert again.cost.verifier < whole.cost.verifier


# ------------------------------------------------------------------ many samples


def test_samples_that_begin_alike_share_what_is_paid_for() -> None:
    engine = Continuing(some)
    labeller = continued(engine, k=4)
    samples = [sample(*STEPS), sample(*STEPS[:2], "and\n"), sample(*STEPS)]

    async def run() -> list[Labels]:
        return [found async for *_, found in labelled(labeller, [(QUESTION, each) for each in samples])]

    found = asyncio.run(run())
    assert [each.values for each in found] == [(1, 0.75, 0.25, 0), (1, 0.75, 0.25), (1, 0.75, 0.25, 0)]
    assert sum(each.cost.calls for each in found) == engine.calls == 5
    assert costs(*(each.cost for each in found)) == costs(labeller.ledger.cost)


def test_order_and_bound() -> None:
    running: list[int] = []
    most = 0

    async def work(item: int) -> int:
        nonlocal most
        running.append(item)
        most = max(most, len(running))
        try:
            await asyncio.sleep(0.001 * (item % 3))
        finally:
            running.remove(item)
        if item == 17:
            raise InputError("17")
        return item

    async def run(items: AsyncIterator[int]) -> list[int]:
        return [item async for item in items]

    assert asyncio.run(run(in_order(work, range(15), workers=4))) == list(range(15))
    assert most == 4
    with pytest.raises(InputError, match="17"):
        asyncio.run(run(in_order(work, range(30), workers=4)))
    assert not running


def test_keys_know_everything_that_decides_a_completion() -> None:
    engine = Continuing(some)
    base = continued(engine)
    others = [
        continued(engine, hard=True),
        continued(engine, max_tokens=7),
        continued(engine, seed=1),
        replace(base, model=replace(base.model, name="another")),
        replace(base, model=replace(base.model, params=replace(base.model.params, temperature=0.1))),
        replace(base, model=replace(base.model, params=replace(base.model.params, adapters={"a": 1.0}))),
    ]
    keys = [each._key(QUESTION, (1, 2)) for each in (base, *others)]
    keys += [base._key(replace(QUESTION, reference="13"), (1, 2)), base._key(QUESTION, (1, 3))]
    assert len(set(keys)) == len(keys)
    assert continued(engine, k=3)._key(QUESTION, (1, 2)) == keys[0]


def test_the_model_is_asked_as_it_samples() -> None:
    heard: list[SamplingParams] = []
    engine = ScriptedEngine(lambda prefix, index, params: heard.append(params) or [EOS])
    model: Model = replace(model_of(engine), format=PONDER)
    model = replace(model, params=replace(model.params, temperature=0.3, until="x"))
    label(MonteCarlo(model, math_answer(), k=2, max_tokens=33), "a\n")
    assert {(each.temperature, each.max_tokens, each.until) for each in heard} == {(0.3, 33, "")}
