"""Reinforcement learning on verifiable rewards, on a model small enough to know what has to come out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import naive, tiny_texts
from tiny import tiny_lora, tiny_model

from ponder.errors import InputError, TrainingError
from ponder.protocols import Verifier
from ponder.train.devices import find_devices
from ponder.train.grpo import Settings, asked, grpo, step_places
from ponder.train.optimizer import Optimizer, Schedule
from ponder.train.rewards import Rewards
from ponder.train.rollout import Rollouts
from ponder.train.run import Run, steps_of
from ponder.train.trainer import Stopped, Trainer
from ponder.types import Question, Sample, Score, user
from ponder.verifiers.reward_model import from_function

QUESTIONS = [Question((user(f"say {number}"),), reference="a") for number in range(6)]


def vowels(question: Question, sample: Sample) -> float:
    return sum(letter in "aeiou" for letter in sample.text) / max(1, len(sample.text))


def never(question: Question, sample: Sample) -> float:
    return 0.5


def begins(question: Question, sample: Sample) -> float:
    """Right if the first token's text begins with a lower-case letter: one draw, and a known best policy."""
    return float(sample.text[:1].islower())


def trained(
    folder: Path,
    reward: Callable[[Question, Sample], float] | Verifier = vowels,
    *,
    steps: int = 3,
    rate: float = 5e-3,
    model: Any = None,
    stop_after: int | None = None,
    rollouts: Callable[[Any], Rollouts] | None = None,
    rewards: Rewards | None = None,
    tokens: int = 400,
    process_verifier: Verifier | None = None,
    reference: Any = None,
    **settings: Any,
) -> Trainer:
    """A short run in `folder`."""
    model = tiny_model() if model is None else model
    texts = tiny_texts(model)
    run = Run(folder)
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trainer = Trainer(model, Optimizer(parameters), Schedule(rate, steps), find_devices(), run, tokens, save_every=1)
    if stop_after is not None:
        run.stopping = lambda: trainer.step >= stop_after
    verifier = from_function("reward", reward) if reward in (vowels, never, begins) else reward
    grpo(
        trainer,
        QUESTIONS,
        texts,
        (rollouts or (lambda model: naive(model, texts)))(model),
        rewards or Rewards({"reward": (verifier, 1.0)}),
        Settings(**({"prompts": 2, "samples": 4, "max_tokens": 6} | settings)),
        reference=reference,
        process=process_verifier,
    )
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.optimizer.state()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "gspo", "cispo"])
def test_reward_rises_to_what_a_known_best_policy_gets(tmp_path: Path, loss: str) -> None:
    trained(tmp_path, begins, steps=25, rate=1e-2, max_tokens=1, samples=8, loss=loss)
    rewards = [step["reward"] for step in steps_of(tmp_path)]
    assert sum(rewards[:3]) / 3 < 0.6
    assert sum(rewards[-3:]) / 3 > 0.9


def test_sampler_and_trainer_agree_and_the_run_says_so(tmp_path: Path) -> None:
    trained(tmp_path, steps=1)
    (step,) = steps_of(tmp_path)
    assert 0 <= step["sampler_kl"] < 1e-9
    assert step["ratio"] == pytest.approx(1, abs=1e-5)
    assert step["length"] == pytest.approx(6, abs=1)
    assert 0 < step["entropy"] < math.log(272)


def test_log_probabilities_are_those_of_the_temperature(tmp_path: Path) -> None:
    texts = tiny_texts()
    trained(tmp_path, steps=1, temperature=0.7, rollouts=lambda model: naive(model, texts, 0.7))
    assert steps_of(tmp_path)[0]["sampler_kl"] < 1e-9


@pytest.mark.parametrize("settings", [{}, {"loss": "grpo"}, {"minibatches": 2, "passes": 2}, {"beta": 0.1}])
def test_how_a_batch_is_packed_does_not_matter(tmp_path: Path, settings: dict[str, Any]) -> None:
    def run(name: str, tokens: int) -> dict[str, torch.Tensor]:
        model = tiny_lora(tiny_model(), "default")
        return weights(
            trained(tmp_path / name, model=model, steps=2, tokens=tokens, reference=model.disable_adapter, **settings)
        )

    one, other = run("one", 4000), run("other", 60)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 2e-5


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = weights(trained(tmp_path / "whole", steps=4, dynamic=1))
    with pytest.raises(Stopped):
        trained(tmp_path / "halves", steps=4, dynamic=1, stop_after=2)
    assert same(weights(trained(tmp_path / "halves", steps=4, dynamic=1)), whole)
    times = [{k: v for k, v in step.items() if k not in ("time", "seconds")} for step in steps_of(tmp_path / "halves")]
    assert times == [
        {k: v for k, v in step.items() if k not in ("time", "seconds")} for step in steps_of(tmp_path / "whole")
    ]


def test_rollouts_that_were_paid_for_are_not_sampled_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(model: Any) -> Rollouts:
        inner = naive(model, tiny_texts(model))

        def sample(asks: Any) -> Any:
            calls.append(len(asks))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return inner(asks)

        return sample

    with pytest.raises(KeyboardInterrupt):  # in the second part of the second step
        trained(tmp_path / "cut", steps=2, part=1, rollouts=counted)
    assert calls == [1, 1, 1, 1]
    resumed = trained(tmp_path / "cut", steps=2, part=1, rollouts=counted)
    assert calls == [1, 1, 1, 1, 1]  # the part that was cut, and nothing else
    assert same(weights(resumed), weights(trained(tmp_path / "whole", steps=2, part=1)))


def test_groups_whose_rewards_are_all_equal_teach_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(tmp_path, never, steps=2, model=model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [step["groups_even"] for step in steps_of(tmp_path)] == [1.0, 1.0]


def test_dropped_rows_stay_in_the_denominators(tmp_path: Path) -> None:
    """Two groups, one of them even: the gradient is half of what the other alone would give, not all of it."""

    def only(question: Question, sample: Sample) -> float:
        return vowels(question, sample) if question.text == chosen else 0.0

    texts, settings = tiny_texts(), Settings(prompts=2, samples=4, max_tokens=6, loss="dr_grpo")
    first = asked(QUESTIONS, texts, settings, 0, 2, 0)[0]
    chosen = first.question.text
    both = trained(tmp_path / "both", from_function("only", only), steps=1, loss="dr_grpo")
    alone = trained(tmp_path / "alone", from_function("only", only), steps=1, loss="dr_grpo", prompts=1)
    norms = [steps_of(tmp_path / name)[0]["gradient_norm"] for name in ("both", "alone")]
    assert both.step == alone.step == 1
    assert norms[0] == pytest.approx(norms[1] / 2, rel=1e-3)


def test_dynamic_sampling_replaces_even_groups(tmp_path: Path) -> None:
    def some(question: Question, sample: Sample) -> float:
        return vowels(question, sample) if question.text in ("say 1", "say 2") else 0.0

    trained(tmp_path, from_function("some", some), steps=1, dynamic=20)
    (step,) = steps_of(tmp_path)
    assert step["rounds"] > 1
    assert step["groups_even"] == 0


def test_budgets_are_told_and_kept_to(tmp_path: Path) -> None:
    texts, settings = tiny_texts(), Settings(prompts=6, samples=2, max_tokens=50, budgets=(8, 32))
    asks = asked(QUESTIONS, texts, settings, 0, 6, 0)
    assert {ask.told for ask in asks} == {8, 32}
    assert all(ask.thinking == ask.told and f"at most {ask.told} tokens" in texts.decode(ask.prompt) for ask in asks)
    rewards = Rewards({"reward": (from_function("right", lambda q, s: 1.0), 1.0)}, length="exact", alpha=0.01)
    trained(tmp_path, steps=1, rewards=rewards, budgets=(3, 9), prompts=4)
    step = steps_of(tmp_path)[0]
    lines = [json.loads(line) for path in (tmp_path / "rollouts").iterdir() for line in path.read_text().splitlines()]
    earned = [1 - 0.01 * abs(line["told"] - len(line["ids"])) for line in lines]
    assert step["reward"] == pytest.approx(sum(earned) / len(earned))


def test_a_kl_term_holds_the_policy_back(tmp_path: Path) -> None:
    def moved(name: str, beta: float) -> float:
        model = tiny_lora(tiny_model(), "default")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trained(tmp_path / name, steps=6, model=model, beta=beta, reference=model.disable_adapter, rate=2e-3)
        return sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters())

    assert moved("free", 0.0) != moved("held", 1.0)
    with pytest.raises(InputError, match="needs a reference"):
        trained(tmp_path / "none", steps=1, beta=0.1)


def test_process_rewards_tell_the_steps_of_an_answer_apart() -> None:
    texts = tiny_texts()
    ids = tuple(texts.encode("one\ntwo\n</think>\nthe end"))
    sample = texts.read(Sample(0, "", tuple(texts.prompt((user("q"),))), ids, (True,) * len(ids), (0.0,) * len(ids)))
    from ponder.train.rollout import Ask, Rollout

    rollout = Rollout(Ask(QUESTIONS[0], sample.prompt_ids, 1, 50), sample, (0.0,) * len(ids))
    places = step_places(texts, rollout, 3)
    whole = "one\ntwo\n</think>\nthe end"
    assert [texts.decode(ids[: place + 1]) for place in places] == ["one\n", "one\ntwo\n", whole]


def test_process_rewards_change_what_is_learnt(tmp_path: Path) -> None:
    async def steps(question: Question, sample: Sample) -> Score:
        return Score(
            0.5, "steps", steps=tuple(float(len(line) % 2) for line in sample.text.splitlines() if line.strip())
        )

    plain = weights(trained(tmp_path / "plain", steps=1))
    assert same(plain, weights(trained(tmp_path / "unweighted", steps=1, process_verifier=steps)))
    assert not same(plain, weights(trained(tmp_path / "weighted", steps=1, process_verifier=steps, process=1.0)))


@pytest.mark.parametrize(
    ("reward", "said"),
    [(lambda q, s: math.nan, "Let it return a finite number"), (lambda q, s: 1 / 0, "ZeroDivisionError")],
)
def test_a_reward_that_fails_is_named_and_nothing_is_lost(tmp_path: Path, reward: Any, said: str) -> None:
    async def failing(question: Question, sample: Sample) -> Score:
        return Score(reward(question, sample) if trainer_steps["at"] else vowels(question, sample), "mine")

    trainer_steps = {"at": 0}
    trained(tmp_path, failing, steps=1)
    trainer_steps["at"] = 1
    with pytest.raises(TrainingError, match="the reward reward") as caught:
        trained(tmp_path, failing, steps=2)
    assert said in str(caught.value) or "gave nan" in str(caught.value)
    assert len(steps_of(tmp_path)) == 1
    assert list((tmp_path / "rollouts").glob("step-00000002*"))  # what was sampled is kept
    trainer_steps["at"] = 0
    assert trained(tmp_path, failing, steps=2).step == 2


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        Settings(samples=1)
    with pytest.raises(InputError, match="all the same"):
        Settings(temperature=0)
    with pytest.raises(InputError, match="importance"):
        Settings(importance=2.0)


def test_no_questions_is_one_clear_line(tmp_path: Path) -> None:
    texts = tiny_texts()
    with pytest.raises(InputError, match="the dataset is empty"):
        asked([], texts, Settings(), 0, 1, 0)
