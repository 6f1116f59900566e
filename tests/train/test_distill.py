from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer
from torch import Tensor
from train.trained import WORDS, random_rows, small, smaller, steps_without_times, trainer_in, weights

from ponder.engine.torch_load import Loaded
from ponder.errors import InputError
from ponder.train import stored
from ponder.train.distill import distance, distill, taught
from ponder.train.rows import Row, packed
from ponder.train.run import steps_of
from ponder.train.sft import sft
from ponder.train.teacher import Divergence, Present, Stored, common_words, store
from ponder.train.texts import Texts
from ponder.train.trainer import Stopped, Trainer
from ponder.train.verified import Verified
from ponder.types import Question, Sample, user

END = 2
KINDS = [
    Divergence("forward"),
    Divergence("reverse", temperature=2.0),
    Divergence("jensen_shannon", beta=0.3),
]


def slow(student: Any, teacher: Any, rows: Sequence[Row], how: Divergence, words: int | None = None) -> Tensor:
    """The mean over learnt tokens, from whole logits of each row by itself, in float64."""
    found = []
    for row in rows:
        ids = torch.tensor([list(row.ids)])
        s, t = (model(ids).logits[0, :-1, :words].double() / how.temperature for model in (student, teacher))
        s, t = s.log_softmax(-1), t.detach().log_softmax(-1)

        def kl(p: Tensor, q: Tensor) -> Tensor:
            return (p.exp() * (p - q)).sum(-1)

        m = torch.log(how.beta * t.exp() + (1 - how.beta) * s.exp())
        each = {
            "forward": kl(t, s),
            "reverse": kl(s, t),
            "jensen_shannon": how.beta * kl(t, m) + (1 - how.beta) * kl(s, m),
        }[how.kind]
        found.append(each[torch.tensor(list(row.mask[1:]))])
    return torch.cat(found).mean()


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.kind)
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_loss_and_gradient_are_those_of_whole_logits(how, kind, tmp_path):
    student, teacher, rows = small(), small(kind, seed=5), random_rows(6)
    loss = slow(student, teacher, rows, how)
    loss.backward()
    expected = loss.detach()
    gradient = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    trainer = trainer_in(tmp_path, student)
    trainer.scorer.piece = 7  # so that pieces end inside rows
    present = Present(teacher, how)
    total = sum(row.learnt for row in rows)
    for pack in packed(rows, 70):
        (trainer.scorer(pack, present.reduce(pack)).sum() / total).backward()
    for name, p in student.named_parameters():
        assert torch.allclose(p.grad, gradient[name], atol=3e-6, rtol=1e-4), name
    assert distance(trainer, rows, present) == pytest.approx(float(expected), rel=1e-5)


def test_a_step_logs_that_loss_and_leaves_the_teacher_as_it_was(tmp_path):
    teacher, rows = small("qwen3", seed=5), random_rows(6)
    before = stored.model_hash(teacher)
    expected = slow(small(), teacher, rows, KINDS[0]).detach()
    trainer = trainer_in(tmp_path, steps=3)
    distill(trainer, rows, len(rows), Present(teacher, KINDS[0]))
    first, *_, last = steps_of(tmp_path)
    assert first["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert last["loss"] < first["loss"]
    assert stored.model_hash(teacher) == before != stored.model_hash(trainer.model)
    assert all(p.grad is None for p in teacher.parameters())


def test_of_an_adapter_alone_the_base_stays_as_it_was(tmp_path):
    student, rows = tiny_lora(small(), "default"), random_rows(4)
    for name, p in student.named_parameters():
        p.requires_grad_("lora_" in name)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    distill(trainer_in(tmp_path, student, steps=2), rows, 4, Present(small(seed=5), KINDS[1]))
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_neither_model_has_its_logits_held_for_a_whole_batch(tmp_path):
    teacher, rows = small(seed=5), random_rows(12)
    trainer = trainer_in(tmp_path, tokens=500, steps=1)
    present = Present(teacher, KINDS[0])
    sizes: list[int] = []
    for model in (trainer.model, teacher):
        model.lm_head.register_forward_hook(lambda head, given, logits: sizes.append(len(logits)))
    trainer.scorer.piece = 16
    distill(trainer, rows, 12, present)
    assert max(sizes) == 16
    assert sum(row.learnt for row in rows) > 100


def test_micro_batches_of_any_size_add_up_to_the_same(tmp_path):
    found = []
    for tokens in (40, 1000):
        trainer = trainer_in(tmp_path / str(tokens), tokens=tokens)
        distill(trainer, random_rows(9), 4, Present(small(seed=5), KINDS[2]))
        found.append(weights(trainer))
    # Adam divides gradients by their own size: where they are near 0, their rounding counts as much as they do.
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5, rtol=0) for name in found[0])


def test_prompts_are_not_learnt_from_and_ends_are(tmp_path):
    """Of two rows that differ in what follows a token, that token's own prediction is alone what is compared."""
    teacher = small(seed=5)
    row = Row([3, 4, 5, END], [False, False, False, True])
    trainer = trainer_in(tmp_path, steps=60, rate=1e-2, save_every=0)

    def at(model: Any, place: int) -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([[3, 4, 5]])).logits[0, place].softmax(-1)

    distill(trainer, [row], 1, Present(teacher, KINDS[0]))
    assert torch.allclose(at(trainer.model, 2), at(teacher, 2), atol=0.02)
    assert not torch.allclose(at(trainer.model, 1), at(teacher, 1), atol=0.1)
    assert steps_of(tmp_path)[0]["learnt"] == 1


# ---------------------------------------------------------------- the optimum


@pytest.mark.parametrize("how", [Divergence("forward"), Divergence("reverse"), Divergence("jensen_shannon")])
def test_a_student_that_can_becomes_its_teacher(how, tmp_path):
    teacher, rows = smaller(seed=5), random_rows(6, longest=9, words=16)
    trainer = trainer_in(tmp_path, smaller(hidden_size=32), steps=150, rate=1e-2, save_every=0)
    distill(trainer, rows, 6, Present(teacher, how))
    first = steps_of(tmp_path)[0]["loss"]
    assert first > 0.2
    assert distance(trainer, rows, Present(teacher, how)) < min(0.01, first / 50)


def sampler(model: Any, length: int = 3) -> Any:
    """Samples from the model as it is, from a seed that the step decides."""

    def sample(prompts: Sequence[Sequence[int]], step: int) -> list[tuple[list[int], list[int]]]:
        draw, found = torch.Generator().manual_seed(step), []
        with torch.no_grad():
            for prompt in prompts:
                ids = list(prompt)
                while len(ids) < len(prompt) + length and ids[-1] != END:
                    logits = model(torch.tensor([ids])).logits[0, -1]
                    ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=draw)))
                found.append((list(prompt), ids[len(prompt) :]))
        return found

    return sample


def test_on_its_own_samples_too(tmp_path):
    teacher, student = smaller(seed=5), smaller(hidden_size=32)
    prompts = [Row([3], [False]), Row([4], [False])]
    trainer = trainer_in(tmp_path, student, steps=150, rate=1e-2, save_every=0, tokens=200)
    distill(trainer, prompts, 8, Present(teacher, Divergence("reverse")), sample=sampler(student, 2))
    lines = steps_of(tmp_path)
    assert sum(line["loss"] for line in lines[:5]) / 5 > 0.3
    assert sum(line["loss"] for line in lines[-10:]) / 10 < 0.05
    assert 1 <= lines[-1]["sampled_length"] <= 2


# ---------------------------------------------------------------- on-policy


class Counting:
    """A sampler that notes what it is asked, and answers `said`."""

    def __init__(self, said: Sequence[int] = (7, END)) -> None:
        self.said = said
        self.asked: list[tuple[int, list[list[int]]]] = []

    def __call__(self, prompts: Any, step: int) -> Any:
        self.asked.append((step, [list(prompt) for prompt in prompts]))
        return [(prompt, self.said) for prompt in prompts]


def test_a_share_of_the_rows_is_sampled_by_the_student(tmp_path):
    rows, teacher = random_rows(10), Present(small(seed=5), KINDS[0])
    asked = Counting()
    distill(trainer_in(tmp_path / "some", steps=12, save_every=0), rows, 10, teacher, sample=asked, share=0.3)
    counts = [len(prompts) for _, prompts in asked.asked]
    assert 20 <= sum(counts) <= 52  # 120 draws: 36, plus or minus three deviations
    assert len(set(counts)) > 1
    heads = {tuple(row.ids[: row.mask.index(True)]) for row in rows}
    assert {tuple(prompt) for _, prompts in asked.asked for prompt in prompts} <= heads
    none = Counting()
    distill(trainer_in(tmp_path / "none", steps=2), rows, 10, teacher, sample=none, share=0.0)
    assert not none.asked
    every = Counting()
    distill(trainer_in(tmp_path / "all", steps=2), rows, 10, teacher, sample=every)
    assert [(step, len(prompts)) for step, prompts in every.asked] == [(1, 10), (2, 10)]
    assert steps_of(tmp_path / "all")[0]["learnt"] == 20


def test_a_prompt_is_what_stands_before_the_first_learnt_token(tmp_path):
    """The very first token is predicted from nothing, so it is a prompt whatever its mask says."""
    rows, asked = [Row([3, 4, 5], [True] * 3), Row([6, 7, 8], [False, False, True]), Row([9], [False])], Counting()
    teacher = Present(small(seed=5), KINDS[0])
    distill(trainer_in(tmp_path, steps=1), rows, 3, teacher, sample=asked)
    assert sorted(asked.asked[0][1]) == [[3], [6, 7], [9]]


def test_a_student_that_says_nothing_takes_no_step_and_goes_on(tmp_path):
    trainer = trainer_in(tmp_path, steps=2)
    distill(trainer, random_rows(3), 2, Present(small(seed=5), KINDS[0]), sample=Counting(said=()))
    assert all(torch.equal(weights(trainer)[name], p) for name, p in small().named_parameters())
    assert [line["sampled_length"] for line in steps_of(tmp_path)] == [0, 0]


def test_a_resumed_run_is_the_one_that_was_never_stopped(tmp_path):
    rows = random_rows(9)

    def run(folder: Path, stop: int | None = None) -> Trainer:
        student = small()
        trainer = trainer_in(folder, student, steps=6, save_every=4)
        if stop is not None:
            trainer.run.stopping = lambda: trainer.step >= stop
        distill(trainer, rows, 4, Present(small(seed=5), KINDS[1]), sample=sampler(student), share=0.5)
        return trainer

    with pytest.raises(Stopped):
        run(tmp_path / "part", stop=3)
    states = [run(tmp_path / name).optimizer.state() for name in ("part", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert steps_without_times(tmp_path / "part") == steps_without_times(tmp_path / "whole")


# ---------------------------------------------------------------- stored teachers


def test_all_of_a_stored_teachers_tokens_are_the_teacher(tmp_path):
    rows, teacher = random_rows(7), small(seed=5)
    store(teacher, rows, WORDS, tmp_path / "all", temperature=1.5, tokens=70)
    how = Divergence("forward", temperature=1.5)
    expected, found = trainer_in(tmp_path / "a", tokens=70), trainer_in(tmp_path / "b", tokens=50)
    distill(expected, rows, 4, Present(teacher, how))
    distill(found, rows, 4, Stored(tmp_path / "all", rows))
    for a, b in zip(steps_of(tmp_path / "a"), steps_of(tmp_path / "b"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)


def test_fewer_of_them_are_nearer_but_teach_the_same(tmp_path):
    rows, teacher = random_rows(6, longest=9, words=16), smaller(seed=5)
    store(teacher, rows, 4, tmp_path / "four")
    student = Stored(tmp_path / "four", rows)
    trainer = trainer_in(tmp_path / "run", smaller(hidden_size=32), steps=120, rate=1e-2, save_every=0)
    whole = Present(teacher, Divergence("forward"))
    assert distance(trainer, rows, student) < distance(trainer, rows, whole)
    before = distance(trainer, rows, whole)
    distill(trainer, rows, 6, student)
    assert distance(trainer, rows, student) < 0.01
    assert distance(trainer, rows, whole) < before / 2


def test_a_file_for_other_rows_or_damaged_is_refused(tmp_path):
    rows, path = random_rows(3), tmp_path / "top"
    store(small(seed=5), rows, 3, path)
    with pytest.raises(InputError, match="was made for other rows"):
        Stored(path, rows[1:])
    with pytest.raises(InputError, match="was made for other rows"):
        Stored(path, [replace(row, mask=[True] * len(row)) for row in rows])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="is damaged"):
        Stored(path, rows)
    with pytest.raises(InputError, match="there is no file"):
        Stored(tmp_path / "none", rows)


def test_a_stored_teacher_cannot_follow_the_student(tmp_path):
    rows = random_rows(3)
    store(small(seed=5), rows, 3, tmp_path / "top")
    with pytest.raises(InputError, match="has not read what the student samples"):
        distill(trainer_in(tmp_path / "run"), rows, 2, Stored(tmp_path / "top", rows), sample=Counting())


# ---------------------------------------------------------------- what cannot be


def test_heads_wider_than_the_vocabulary_are_compared_where_both_have_tokens(tmp_path):
    student, teacher, rows = small(), small(seed=5, vocab_size=WORDS + 8), random_rows(5, words=60)
    expected = slow(student, teacher, rows, KINDS[0], words=60).detach()
    trainer = trainer_in(tmp_path, student)
    assert distance(trainer, rows, Present(teacher, KINDS[0], words=60)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match="do not fit"):
        distance(trainer, rows, Present(teacher, KINDS[0]))


def loaded(name: str, tokenizer: Any = None) -> Loaded:
    return Loaded(tiny_model(), tokenizer or tiny_tokenizer(), name)


def test_other_vocabularies_are_told_to_learn_from_traces():
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    assert common_words(loaded("a"), loaded("b")) == 272
    with pytest.raises(InputError, match=r"the big one has another vocabulary.*Let the teacher write traces"):
        common_words(loaded("the small one"), loaded("the big one", other))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "no example has anything to learn from"),
        ([Row([3, 4], [True, False])], {}, "no example has anything to learn from"),
        ([Row([3, 4], [False, True])], {"share": 1.5}, "a share of 1.5"),
        ([Row([3] * 101, [True] * 101)], {}, "a sequence of 101 tokens does not fit into micro-batches of 100"),
    ],
)
def test_what_cannot_be_learnt_is_told_before_the_first_step(rows, settings, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        distill(trainer_in(tmp_path), rows, 2, Present(small(seed=5), KINDS[0]), **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kind": "total"}, "there is no divergence"), ({"beta": 1.0}, "beta is 1.0"), ({"temperature": 0}, "is 0")],
)
def test_divergences_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        Divergence(**settings)


@pytest.mark.parametrize("k", [0, WORDS + 1])
def test_a_number_of_tokens_that_cannot_be(k, tmp_path):
    with pytest.raises(InputError, match=rf"k is {k}"):
        store(small(), random_rows(2), k, tmp_path / "top")


# ---------------------------------------------------------------- traces that are right


def said(index: int, thinking: str, answer: str, **more: Any) -> Sample:
    return Sample(index, thinking + answer, thinking=thinking, answer=answer, exact=False, **more)


def test_right_traces_become_the_students_own_turns(tmp_path):
    texts = Texts.of(loaded("a"))
    first, second = (Question((user(text),)) for text in ("2 + 3?", "4 + 5?"))
    right = said(0, "2 + 3 = 5.", "The answer is 5.")
    samples = [
        Verified(first, right, 1.0),
        Verified(first, said(1, "2 + 3 = 6.", "The answer is 6."), 0.0),
        Verified(first, replace(right, index=2), 1.0),  # the same text again
        Verified(first, said(3, "3 + 2 = 5.", "The answer is 5."), 1.0),
        Verified(first, said(4, "Well, 5.", "The answer is 5."), 1.0),
        Verified(second, said(0, "4 + 5 = 9.", "The answer is", finish="length"), 1.0),
        Verified(second, said(1, "4 + 5 = 9.", "The answer is 9."), 0.5),
    ]
    rows = taught(samples, texts, most=2)
    assert [texts.decode([i for i, on in zip(row.ids, row.mask, strict=True) if on]) for row in rows] == [
        texts.decode(texts.trace(first.messages, "2 + 3 = 5.", "The answer is 5.")[1]),
        texts.decode(texts.trace(first.messages, "3 + 2 = 5.", "The answer is 5.")[1]),
    ]
    assert all(row.ids[-1] == texts.end and row.mask[-1] for row in rows)
    assert len(taught(samples, texts, threshold=0.5)) == 4
    sft(trainer_in(tmp_path, tiny_model(), steps=1, tokens=1000), rows, 2)
    assert steps_of(tmp_path)[0]["learnt"] == sum(row.learnt for row in rows)
