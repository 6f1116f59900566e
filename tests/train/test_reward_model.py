"""Reward models: taught where they will be asked, in what they are taught, and how good that is said to be."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import END, tiny_model, tiny_tokenizer

from ponder.chat.model import Model, model_of
from ponder.engine.torch_engine import TorchEngine, TorchSettings
from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.protocols import SamplingParams, Verifier
from ponder.train.adapters import trainable, with_lora
from ponder.train.devices import find_devices
from ponder.train.optimizer import Optimizer, Schedule
from ponder.train.reward_model import asked, labelled_row, log_odds, measured, quality, reward_model
from ponder.train.rows import Row
from ponder.train.run import Run, steps_of
from ponder.train.texts import Texts
from ponder.train.trainer import Stopped, Trainer
from ponder.types import Question, Sample, Score, user
from ponder.verifiers.reward_model import outcome_reward, process_reward_model

TOKENIZER = tiny_tokenizer()
PONDER = {"name": "ponder"}
END_ID = TOKENIZER.convert_tokens_to_ids(END)


@functools.cache
def texts() -> Texts:
    return Texts.of(Loaded(tiny_model(), TOKENIZER, "a tiny model", metadata={"ponder.thinking": PONDER}))


def drawn(said: Sequence[int], prompt: str = "How much?") -> Sample:
    """A sample of exactly these tokens."""
    written = texts()
    ids = tuple(said)
    none = (None,) * len(ids)
    return written.read(Sample(0, "", tuple(written.prompt((user(prompt),))), ids, (True,) * len(ids), none))


def of_text(thinking: str, answer: str = "") -> Sample:
    prompt, said = texts().trace((user("How much?"),), thinking, answer)
    return drawn(said) if tuple(prompt) == drawn(said).prompt_ids else pytest.fail("two prompts")


class Listening(TorchEngine):
    """Remembers what it was asked."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.asked: list[tuple[int, ...]] = []

    async def score(self, ids: Sequence[int], start: int, params: SamplingParams | None = None) -> list[float]:
        self.asked.append(tuple(ids[:start]))
        return await super().score(ids, start, params)


def scores(model: Any, verifiers: Sequence[tuple[Verifier, Sample]]) -> tuple[list[Score], list[tuple[int, ...]]]:
    """What verifiers say when an engine on `model` is asked, and the ids that it was asked after, each twice."""

    async def run() -> tuple[list[Score], list[tuple[int, ...]]]:
        settings = TorchSettings(context=256, sequences=4, dtype="float32", threads=1, device="cpu")
        engine = Listening(model, TOKENIZER, settings=settings)
        try:
            chatty: Model = model_of(engine)
            found = [await v.with_model(chatty)(Question((user("?"),)), s) for v, s in verifiers]  # type: ignore[attr-defined]
        finally:
            await engine.close()
        return found, engine.asked

    return asyncio.run(run())


def sequences(row: Row) -> list[tuple[list[int], float]]:
    """For each branch of a row: what the model has read when it is asked, and the label."""
    assert row.branch is not None
    assert row.positions is not None
    tokens = list(zip(row.ids, row.positions, row.branch, row.mask, row.values["target"], strict=True))
    found = []
    for number in range(1, max(row.branch) + 1):
        tail = [each for each in tokens if each[2] == number]
        begun = [token for token, place, branch, *_ in tokens if branch == 0 and place < tail[0][1]]
        assert [each[3] for each in tail] == [False] * (len(tail) - 1) + [True]
        found.append(([*begun, *(each[0] for each in tail[:-1])], tail[-1][4]))
    return found


def trainer(
    folder: Path, model: Any, steps: int, rate: float = 3e-3, tokens: int = 4096, kind: Any = "constant"
) -> Trainer:
    optimizer = Optimizer(trainable(model))
    return Trainer(model, optimizer, Schedule(rate, steps, kind=kind), find_devices(device="cpu"), Run(folder), tokens)


# ------------------------------------------------------------------ where it is asked

THINKING = "2 + 3 = 5\n\n the other 5 is née\n5 * 2 = 10\nand the last"


@pytest.mark.parametrize("most_steps", [1, 2, 3, 16, None])
@pytest.mark.parametrize("answers", [("+", "-"), (" +", " -"), (" there", " them")])
def test_rows_are_what_the_verifier_asks(most_steps: int | None, answers: tuple[str, str]) -> None:
    """Answers that begin alike are asked apart at the first token in which they differ."""
    sample, settings = of_text(THINKING, "5."), {"token": answers[0], "against": answers[1]}
    chosen: Any = {} if most_steps is None else {"most_steps": most_steps}
    verifier = (outcome_reward if most_steps is None else process_reward_model)(**settings, **chosen)
    _, heard = scores(tiny_model(), [(verifier, sample)])
    steps = 1 if most_steps is None else min(5, most_steps)
    labels = [k / 5 for k in range(steps)]
    row = labelled_row(texts(), sample, labels, most_steps=most_steps, **settings)
    assert [(tuple(ids), label) for ids, label in sequences(row)] == list(zip(heard[::2], labels, strict=True))
    question = asked(texts(), **settings)
    assert {row.ids[at] for at, learnt in enumerate(row.mask) if learnt} == {question.yes}
    assert all(ids[-len(question.question) :] == question.question for ids in heard)


PIECES = st.lists(st.sampled_from(["the", " and", "\n", "\n\n", "5", " é", "</think>", "x = 1", " "]), max_size=10)


@given(PIECES, st.lists(st.integers(0, 60), max_size=4))
def test_rows_are_asked_wherever_tokens_happen_to_end(pieces: list[str], cuts: list[int]) -> None:
    """Samples are cut anywhere, characters and merges included: their tokens are no tokenisation of their text."""
    text, ids = "".join(pieces), []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
        ids += TOKENIZER(text[begin:end], add_special_tokens=False).input_ids
    sample = drawn([*ids, END_ID])
    heard = SCORED.ask(sample)
    row = labelled_row(texts(), sample, [1.0] * len(heard))
    assert [tuple(each) for each, _ in sequences(row)] == heard if heard else not row.learnt


class Scored:
    """One engine for many examples, in its own loop; made when it is first asked."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    def ask(self, sample: Sample) -> list[tuple[int, ...]]:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            settings = TorchSettings(context=256, sequences=4, dtype="float32", threads=1, device="cpu")
            self.engine = Listening(tiny_model(), TOKENIZER, settings=settings)
        self.engine.asked.clear()
        verifier = process_reward_model(model_of(self.engine))
        self.loop.run_until_complete(verifier(Question((user("?"),)), sample))
        return self.engine.asked[::2]

    def close(self) -> None:
        if self.loop is not None:
            self.loop.run_until_complete(self.engine.close())
            self.loop.close()


SCORED = Scored()


@pytest.fixture(scope="module", autouse=True)
def _in_one_thread() -> Any:
    """Threads would only wait for each other over matrices so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    SCORED.close()


def test_steps_without_a_label_are_not_asked() -> None:
    whole = labelled_row(texts(), of_text(THINKING), [0.25, 0.5, 0.75, 1.0])
    some = labelled_row(texts(), of_text(THINKING), [0.25, None, 0.75, None])
    assert sequences(some) == sequences(whole)[::2]
    assert labelled_row(texts(), of_text(THINKING), [None] * 4).learnt == 0


def test_training_sees_the_probabilities_that_the_verifier_reads(tmp_path: Path) -> None:
    """The off-by-one that would be: the label belongs to the prediction after the marker's last token."""
    model, sample = tiny_model(), of_text(THINKING)
    (score,), _ = scores(model, [(process_reward_model(), sample)])
    question = asked(texts())
    row = labelled_row(texts(), sample, [1.0, 1.0, 0.0, 0.0])
    (found,) = trainer(tmp_path, model, 1).scored([row], log_odds(question.yes, question.no))
    read = torch.sigmoid(found[torch.tensor(row.mask)])
    assert read.tolist() == pytest.approx(score.steps, abs=1e-5)
    assert max(score.steps) - min(score.steps) > 0.01
    outcome, _ = scores(model, [(outcome_reward(), sample)])
    row = labelled_row(texts(), sample, [1.0], most_steps=None)
    (found,) = trainer(tmp_path, model, 1).scored([row], log_odds(question.yes, question.no))
    assert float(torch.sigmoid(found[-1])) == pytest.approx(outcome[0].value, abs=1e-5)


# ------------------------------------------------------------------ what is learnt


def ruled(numbers: random.Random) -> tuple[Sample, list[float]]:
    """A sample some of whose steps end in the right word; which ones, whatever the others are."""
    right = [numbers.random() < 0.5 for _ in range(numbers.randint(1, 4))]
    return of_text("\n".join(f"{numbers.randrange(10)} {'the' if each else 'x'}" for each in right)), [
        *map(float, right)
    ]


def test_a_process_model_learns_a_rule_and_judges_with_it(tmp_path: Path) -> None:
    numbers = random.Random(0)
    samples = [ruled(numbers) for _ in range(120)]
    rows = [labelled_row(texts(), sample, labels) for sample, labels in samples]
    model = with_lora(tiny_model(), rank=8, alpha=16.0, name="process")
    question = asked(texts())
    training = trainer(tmp_path, model, 40, 1e-2)
    reward_model(training, rows[:80], 8, question.yes, question.no, held_out=rows[80:], every=20)
    logged = steps_of(tmp_path)
    assert logged[-1]["held_out_accuracy"] > 0.95
    assert logged[-1]["held_out_auc"] > 0.98
    assert logged[19]["held_out_steps"] == sum(len(labels) for _, labels in samples[80:])
    assert "held_out_accuracy" not in logged[0]
    assert logged[0]["accuracy"] < 0.9 < logged[-1]["accuracy"]

    verifier = process_reward_model(adapters={"process": 1.0})
    model.eval()
    given_scores, _ = scores(model, [(verifier, sample) for sample, _ in samples[80:]])
    judged = [(r, c) for score, (_, labels) in zip(given_scores, samples[80:], strict=True)
              for r, c in zip(score.steps, labels, strict=True)]  # fmt: skip
    assert sum((r >= 0.5) == (c == 1) for r, c in judged) / len(judged) == pytest.approx(
        logged[-1]["held_out_accuracy"]
    )
    (without,), _ = scores(model, [(process_reward_model(adapters={}), samples[0][0])])
    assert without.steps != pytest.approx(given_scores[0].steps, abs=0.05)


def test_an_outcome_model_learns_a_rule_and_judges_with_it(tmp_path: Path) -> None:
    numbers = random.Random(1)
    right = [numbers.random() < 0.5 for _ in range(70)]
    samples = [of_text(f"the {k % 10}\nx", f"{k % 7} {'the' if each else 'x'}") for k, each in enumerate(right)]
    rows = [labelled_row(texts(), s, [float(c)], most_steps=None) for s, c in zip(samples, right, strict=True)]
    model = with_lora(tiny_model(), rank=8, alpha=16.0, name="outcome")
    question = asked(texts())
    reward_model(trainer(tmp_path, model, 25, 1e-2), rows[:40], 8, question.yes, question.no, held_out=rows[40:])
    assert steps_of(tmp_path)[-1]["held_out_accuracy"] > 0.95
    model.eval()
    found, _ = scores(model, [(outcome_reward(adapters={"outcome": 1.0}), sample) for sample in samples[40:]])
    assert sum((s.value >= 0.5) == c for s, c in zip(found, right[40:], strict=True)) >= 29


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_soft_labels_are_learnt_as_probabilities(tmp_path: Path, share: float) -> None:
    """The optimum of the cross-entropy is the label itself; and of repeated steps with hard labels, their share."""
    question = asked(texts())
    soft = [labelled_row(texts(), of_text("the 1\nthe 2"), [share, 1 - share])]
    hard = [labelled_row(texts(), of_text("and 3"), [float(k < 4 * share)]) for k in range(4)]
    model = tiny_model()
    training = trainer(tmp_path, model, 60, 1e-2, kind="linear")
    reward_model(training, soft + hard, 5, question.yes, question.no)
    first, second = training.scored([soft[0], hard[0]], log_odds(question.yes, question.no))
    learnt = [*torch.sigmoid(first[torch.tensor(soft[0].mask)]).tolist(), float(torch.sigmoid(second[-1]))]
    assert learnt == pytest.approx([share, 1 - share, share], abs=0.01)
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    assert steps_of(tmp_path)[-1]["loss"] == pytest.approx(entropy, abs=0.002)


def test_every_labelled_step_weighs_the_same_however_rows_are_split(tmp_path: Path) -> None:
    numbers = random.Random(2)
    rows = [labelled_row(texts(), *ruled(numbers)) for _ in range(9)]
    question, found = asked(texts()), []
    for name, tokens in (("one", 10_000), ("many", max(map(len, rows)))):
        model = tiny_model()
        reward_model(trainer(tmp_path / name, model, 3, tokens=tokens), rows, 9, question.yes, question.no)
        lines = steps_of(tmp_path / name)
        found.append(([(line["loss"], line["accuracy"]) for line in lines], list(model.parameters())))
    (lines, one), (other, many) = found
    assert torch.tensor(lines) == pytest.approx(torch.tensor(other), abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, many, strict=True))
    training = trainer(tmp_path / "check", tiny_model(), 1)
    assert lines[0][0] == pytest.approx(measured(training, rows, question.yes, question.no).loss, abs=1e-5)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    numbers = random.Random(3)
    rows = [labelled_row(texts(), *ruled(numbers)) for _ in range(12)]
    question, found = asked(texts()), []

    def run(name: str, stop: int | None = None) -> Any:
        model = with_lora(tiny_model(), rank=2, alpha=4.0, dropout=0.1)
        training = trainer(tmp_path / name, model, 6)
        training.run.stopping = lambda: stop is not None and training.step >= stop
        reward_model(training, rows[:9], 4, question.yes, question.no, held_out=rows[9:], every=2)
        lines = steps_of(tmp_path / name)
        return [p for _, p in trainable(model)], [{**line, "time": 0, "seconds": 0} for line in lines]

    found = [run("whole")]
    with pytest.raises(Stopped):
        run("parts", stop=3)
    found.append(run("parts"))
    (whole, lines), (parts, others) = found
    assert lines == others
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


# ------------------------------------------------------------------ how good it is

labelled_odds = st.lists(
    st.tuples(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]) | st.floats(-30, 30), st.sampled_from([0, 0.25, 0.5, 1])),
    min_size=1,
    max_size=30,
)


@given(labelled_odds)
def test_quality_is_what_loops_say(steps: list[tuple[float, float]]) -> None:
    found = quality([z for z, _ in steps], [c for _, c in steps])
    chances = [(1 / (1 + math.exp(-z)), c) for z, c in steps]
    ones, zeros = [z for z, c in steps if c >= 0.5], [z for z, c in steps if c < 0.5]
    wins = [(a > b) + (a == b) / 2 for a in ones for b in zeros]
    assert found.auc == (pytest.approx(sum(wins) / len(wins)) if wins else None)
    assert found.steps == len(steps)
    assert found.accuracy == pytest.approx(sum((r >= 0.5) == (c >= 0.5) for r, c in chances) / len(steps))
    assert found.brier == pytest.approx(sum((r - c) ** 2 for r, c in chances) / len(steps))
    tenths: dict[int, list[float]] = {}
    for r, c in chances:
        tenths.setdefault(min(9, int(10 * r)), []).append(r - c)
    assert found.calibration_error == pytest.approx(sum(abs(sum(part)) for part in tenths.values()) / len(steps))
    losses = [math.log1p(math.exp(-abs(z))) + max(z, 0) - c * z for z, c in steps]
    assert found.loss == pytest.approx(sum(losses) / len(steps), abs=1e-9)


def test_steps_of_one_kind_have_no_auc(tmp_path: Path) -> None:
    assert "auc" not in dict(quality([1.0, 2.0], [1.0, 1.0]).items())
    question, row = asked(texts()), labelled_row(texts(), of_text("the 1"), [1.0])
    reward_model(trainer(tmp_path, tiny_model(), 1), [row], 1, question.yes, question.no, held_out=[row])
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "held_out_auc" not in line
    assert line["held_out_steps"] == 1


# ------------------------------------------------------------------ what is refused


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    sample, question = of_text(THINKING), asked(texts())
    with pytest.raises(InputError, match="3 labels do not fit a sample of 4 steps"):
        labelled_row(texts(), sample, [1.0] * 3)
    with pytest.raises(InputError, match=r"1.5 is no probability"):
        labelled_row(texts(), sample, [1.0, 1.5, 0.0, 0.0])
    with pytest.raises(InputError, match="nan is no probability"):
        labelled_row(texts(), sample, [1.0, math.nan, 0.0, 0.0])
    with pytest.raises(InputError, match="begins like all of the other"):
        asked(texts(), token="+", against="+")
    training = trainer(tmp_path, tiny_model(), 1)
    unlabelled = labelled_row(texts(), sample, [None] * 4)
    with pytest.raises(InputError, match="no sample has a labelled step"):
        reward_model(training, [unlabelled], 1, question.yes, question.no)
    with pytest.raises(InputError, match="a row asks for another token"):
        reward_model(training, [labelled_row(texts(), sample, [1.0] * 4)], 1, question.no, question.yes)
    with pytest.raises(InputError, match="compare nothing"):
        measured(training, [unlabelled], question.yes, question.no)
