from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_lora
from train.trained import largest_file, random_rows, small, smaller, steps_without_times, trainer_in, weights

from ponder.errors import InputError, WeightsError
from ponder.train import stored
from ponder.train.dpo import FILE, Pair, dpo, pairs_of
from ponder.train.run import steps_of
from ponder.train.trainer import Stopped, Trainer
from ponder.train.verified import Verified, verified
from ponder.types import Question, Sample, Score, Scored, Trace, user

END = 2


def some_pairs(count: int = 5) -> list[Pair]:
    """Pairs of random answers of different lengths, each ending a turn."""
    prompts, a, b = (random_rows(count, seed, 3, 12) for seed in (1, 2, 3))
    return [Pair(p.ids, [*x.ids, END], [*y.ids, END]) for p, x, y in zip(prompts, a, b, strict=True)]


def slow(model: Any, prompt: Any, answer: Any, mask: Any = None) -> float:
    """The log-probability of an answer, by a sequence of its own, in float64."""
    ids = [*prompt, *answer]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    each = [float(logprobs[len(prompt) + at - 1, token]) for at, token in enumerate(answer)]
    return sum(value for value, counts in zip(each, mask or [True] * len(each), strict=True) if counts)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize(("kind", "config"), [("llama", {}), ("mistral", {"sliding_window": 6}), ("gemma2", {})])
def test_two_answers_after_one_prompt_are_what_two_sequences_are(kind, config, tmp_path):
    model, pairs = small(kind, **config), some_pairs()
    pairs[1] = replace(pairs[1], chosen_mask=[at % 2 == 0 for at in range(len(pairs[1].chosen))])
    expected = {
        "reward_chosen": 0.1 * mean(slow(model, p.prompt, p.chosen, p.chosen_mask) for p in pairs),
        "reward_rejected": 0.1 * mean(slow(model, p.prompt, p.rejected) for p in pairs),
    }
    dpo(trainer_in(tmp_path, model, steps=1, warmup=0), pairs, len(pairs), reference="none")
    (line,) = steps_of(tmp_path)
    assert line["reward_chosen"] == pytest.approx(expected["reward_chosen"], abs=2e-5)
    assert line["reward_rejected"] == pytest.approx(expected["reward_rejected"], abs=2e-5)
    assert line["margin"] == pytest.approx(line["reward_chosen"] - line["reward_rejected"], abs=1e-5)


def test_the_loss_is_the_papers(tmp_path):
    pairs = some_pairs()
    trainer = trainer_in(tmp_path, steps=2, rate=3e-3, warmup=0)
    dpo(trainer, pairs, len(pairs), beta=0.3)  # the weights after one step, against those before it
    first, second = steps_of(tmp_path)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-6)
    assert second["accuracy"] > 0.5
    # The same two steps, the second one's loss by hand.
    again, before = small(), small()
    dpo(trainer_in(tmp_path / "one", again, steps=1, rate=3e-3, warmup=0), pairs, len(pairs), beta=0.3)
    deltas = []
    for p in pairs:
        h = [slow(again, p.prompt, ids) - slow(before, p.prompt, ids) for ids in (p.chosen, p.rejected)]
        deltas.append(h[0] - h[1])
    assert second["loss"] == pytest.approx(mean(math.log1p(math.exp(-0.3 * d)) for d in deltas), abs=1e-4)
    assert second["margin"] == pytest.approx(0.3 * mean(deltas), abs=1e-4)
    assert second["accuracy"] == pytest.approx(mean(d > 0 for d in deltas))


def test_ipo_takes_averages(tmp_path):
    model, pairs = small(), some_pairs()
    deltas = [
        slow(model, p.prompt, p.chosen) / len(p.chosen) - slow(model, p.prompt, p.rejected) / len(p.rejected)
        for p in pairs
    ]
    dpo(trainer_in(tmp_path, model, steps=1, warmup=0), pairs, len(pairs), kind="ipo", beta=0.5, reference="none")
    assert steps_of(tmp_path)[0]["loss"] == pytest.approx(mean((d - 1) ** 2 for d in deltas), abs=1e-5)


# ---------------------------------------------------------------- the optimum


def ratio(model: Any) -> float:
    return slow(model, [5], [6, END]) - slow(model, [5], [7, END])


@pytest.mark.parametrize(
    ("settings", "wins", "expected"),
    [
        ({"beta": 0.5}, 3, math.log(3) / 0.5),
        ({"beta": 0.5, "smoothing": 0.2}, 4, math.log(0.8 / 0.2) / 0.5),
        ({"beta": 0.5, "kind": "ipo"}, 4, 2 * 1 / (2 * 0.5)),
    ],
)
def test_the_known_optimum_is_reached(settings, wins, expected, tmp_path):
    """Of 4 comparisons 6 wins some: sigma(beta Delta) is their share; averages over 2 tokens are half the sums."""
    better, worse = Pair([5], [6, END], [7, END]), Pair([5], [7, END], [6, END])
    model = smaller()
    start = ratio(model)
    trainer = trainer_in(tmp_path, model, steps=80, rate=1e-2, save_every=0)
    dpo(trainer, [better] * wins + [worse] * (4 - wins), 4, **settings)
    assert ratio(model) - start == pytest.approx(expected, abs=0.03)


def test_the_end_of_an_answer_is_learnt_and_the_prompt_is_not(tmp_path):
    model = small()
    told = Pair([5, 6, 7], [8, END], [8, 9])  # they differ in nothing but the end
    before = slow(model, [5, 6, 7, 8], [END]) - slow(model, [5, 6, 7, 8], [9])
    dpo(trainer_in(tmp_path, model, steps=20), [told], 1)
    assert slow(model, [5, 6, 7, 8], [END]) - slow(model, [5, 6, 7, 8], [9]) > before + 1
    assert steps_of(tmp_path)[0]["learnt"] == 4


# ---------------------------------------------------------------- the reference


def test_the_reference_of_an_adapter_is_what_it_began_as_or_nothing(tmp_path):
    pairs = some_pairs()
    plain = small()
    adapted = tiny_lora(small(), "default")
    for name, p in adapted.named_parameters():
        p.requires_grad_("lora_" in name)
    base = {name: p.detach().clone() for name, p in adapted.named_parameters() if "lora_" not in name}
    expected = 0.1 * mean(slow(adapted, p.prompt, p.chosen) - slow(plain, p.prompt, p.chosen) for p in pairs)
    dpo(trainer_in(tmp_path / "base", adapted, steps=1), pairs, len(pairs), reference="base")
    assert steps_of(tmp_path / "base")[0]["reward_chosen"] == pytest.approx(expected, abs=2e-5)
    assert abs(expected) > 0.05
    dpo(trainer_in(tmp_path / "initial", adapted, steps=1), pairs, len(pairs), reference="initial")
    assert steps_of(tmp_path / "initial")[0]["reward_chosen"] == pytest.approx(0, abs=1e-5)
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in base.items())


def test_it_is_worked_out_once_and_stays_as_it_was(tmp_path, monkeypatch):
    pairs = some_pairs()
    whole = trainer_in(tmp_path / "whole", steps=6)
    dpo(whole, pairs, 2)
    part = trainer_in(tmp_path / "part", steps=6, save_every=2)
    part.run.stopping = lambda: part.step >= 3
    with pytest.raises(Stopped, match="step 3 of 6"):
        dpo(part, pairs, 2)
    written = (tmp_path / "part" / FILE).read_bytes()
    resumed = trainer_in(tmp_path / "part", steps=6)
    monkeypatch.setattr(Trainer, "scored", lambda *_: pytest.fail("the reference was worked out again"))
    dpo(resumed, pairs, 2)
    assert (tmp_path / "part" / FILE).read_bytes() == written
    a, b = whole.optimizer.state(), resumed.optimizer.state()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert steps_without_times(tmp_path / "part") == steps_without_times(tmp_path / "whole")


def test_a_damaged_one_is_made_again_from_the_initial_weights(tmp_path):
    pairs = some_pairs()
    trainer = trainer_in(tmp_path, steps=4)
    trainer.run.stopping = lambda: trainer.step >= 2
    with pytest.raises(Stopped):
        dpo(trainer, pairs, 2)
    path = tmp_path / FILE
    right = stored.load(path)[0]["logprobs"].clone()
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="is damaged"):
        stored.load(path)
    dpo(trainer_in(tmp_path, steps=4), pairs, 2)
    assert torch.equal(stored.load(path)[0]["logprobs"], right)


def test_one_of_another_run_is_refused(tmp_path):
    pairs = some_pairs()
    dpo(trainer_in(tmp_path, steps=1), pairs, 2)
    with pytest.raises(InputError, match="began with other pairs"):
        dpo(trainer_in(tmp_path, steps=1), pairs[1:], 2)
    with pytest.raises(InputError, match="began with other initial weights"):
        dpo(trainer_in(tmp_path, small(seed=1), steps=1), pairs, 2)


def test_micro_batches_of_any_size_add_up_to_the_same(tmp_path):
    found = []
    for tokens in (60, 1000):
        trainer = trainer_in(tmp_path / str(tokens), tokens=tokens)
        dpo(trainer, some_pairs(), 4)
        found.append(weights(trainer))
    # Adam divides gradients by their own size: where they are near 0, their rounding counts as much as they do.
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5, rtol=0) for name in found[0])
    assert any(not torch.allclose(found[0][name], p, atol=1e-4, rtol=0) for name, p in small().named_parameters())


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        ([], {}, "there are no pairs"),
        ([Pair([5], [6], [7]), Pair([5], [6, 7], (6, 7))], {}, "the answers of pair 2 are the same"),
        ([Pair([], [6], [7])], {}, "pair 1 has no prompt"),
        ([Pair([5], [], [7])], {}, "pair 1 has no token to learn from in what is chosen"),
        ([Pair([5], [6], [7], rejected_mask=[False])], {}, "no token to learn from in what is rejected"),
        ([Pair([5], [6], [7], [True, True])], {}, "pair 1 masks 2 of 1 tokens"),
        ([Pair([5] * 90, [6] * 9, [7])], {}, "a sequence of 100 tokens does not fit into micro-batches of 99"),
        ([Pair([5], [6], [7])], {"beta": 0.0}, "beta is 0.0"),
        ([Pair([5], [6], [7])], {"kind": "dpo"}, "there is no preference loss 'dpo'"),
        ([Pair([5], [6], [7])], {"kind": "ipo", "smoothing": 0.1}, "label_smoothing says nothing to ipo"),
        ([Pair([5], [6], [7])], {"reference": "teacher"}, "there is no reference 'teacher'"),
        ([Pair([5], [6], [7])], {"reference": "base"}, "the model has no adapter to leave out"),
    ],
)
def test_what_cannot_be_learnt_is_told_before_the_first_step(pairs, settings, message, tmp_path):
    trainer = trainer_in(tmp_path, tokens=99)
    with pytest.raises(InputError, match=message) as caught:
        dpo(trainer, pairs, 2, **settings)
    assert "\n" not in str(caught.value)
    assert trainer.step == 0
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- pairs from samples


def sampled(index: int, ids: tuple[int, ...], prompt: tuple[int, ...] = (5, 6), **more: Any) -> Sample:
    full = {"mask": (True,) * len(ids), "logprobs": (None,) * len(ids), "prompt_ids": prompt} | more
    return Sample(index, "", ids=ids, **full)


ASKED = Question((user("How many?"),))


def scored(*items: tuple[Sample, float]) -> list[Verified]:
    return [Verified(ASKED, sample, score) for sample, score in items]


def test_the_best_and_the_worst_of_a_prompt_are_a_pair():
    low, middle, high = sampled(0, (9, 2)), sampled(1, (8, 2)), sampled(2, (7, 7, 2), mask=(True, False, True))
    other = sampled(0, (9, 2), prompt=(6,))
    (pair,) = pairs_of(scored((low, 0.0), (middle, 0.5), (high, 1.0), (other, 1.0)))
    assert pair == Pair((5, 6), (7, 7, 2), (9, 2), (True, False, True), (True, True))
    assert pairs_of(scored((low, 0.5), (high, 0.5))) == []
    assert pairs_of(scored((low, 0.5), (high, 0.7)), gap=0.3) == []
    assert pairs_of(scored((low, 0.0), (replace(high, exact=False), 1.0))) == []


def test_matched_pairs_are_of_like_lengths():
    right = [(sampled(at, tuple(range(10, 10 + size))), 1.0) for at, size in enumerate((3, 8))]
    wrong = [(sampled(at, tuple(range(40, 40 + size))), 0.0) for at, size in enumerate((15, 9), start=2)]
    (first,) = pairs_of(scored(*right, *wrong))
    assert (len(first.chosen), len(first.rejected)) == (3, 15)
    (near,) = pairs_of(scored(*right, *wrong), matched=True)
    assert (len(near.chosen), len(near.rejected)) == (8, 9)


def test_a_traces_samples_have_the_last_score_that_the_verifier_gave_them():
    a, b, c = (sampled(at, (at + 3,)) for at in range(3))
    events = (
        Scored(Score(0.0, "math_answer"), 0),
        Scored(Score(0.9, "judge"), 0),
        Scored(Score(1.0, "math_answer"), 1),
        Scored(Score(math.nan, "math_answer"), 2),
    )
    trace = Trace("t", ASKED, samples=(a, b, c), events=events)
    assert list(verified([trace], "math_answer")) == scored((a, 0.0), (b, 1.0))
    assert list(verified([trace])) == scored((a, 0.9), (b, 1.0))


def test_a_full_disk_leaves_what_was_there(tmp_path):
    stored.save(tmp_path / "x", {"x": torch.ones(1)}, {"of": "before"})
    with largest_file(1000), pytest.raises(WeightsError, match="the disk is full"):
        stored.save(tmp_path / "x", {"x": torch.ones(1000)}, {})
    assert stored.load(tmp_path / "x") == ({"x": torch.ones(1)}, {"of": "before"})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
