from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.trained import (
    killed_run,
    largest_file,
    random_rows,
    small,
    steps_without_times,
    trainer_in,
    weights,
)

from ponder.errors import InputError, TrainingError
from ponder.train import checkpoint
from ponder.train.rows import Pack, Row
from ponder.train.run import METRICS, steps_of
from ponder.train.scorer import at_targets
from ponder.train.sft import sft
from ponder.train.trainer import Stopped, Trainer

HERE = Path(__file__).parent


def same(a: Trainer, b: Trainer) -> bool:
    """Bit for bit, masters and moments and what the model computes with."""
    one, other = a.optimizer.state(), b.optimizer.state()
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
        and all(torch.equal(p, q) for p, q in pairs)
    )


# ---------------------------------------------------------------- going on


def test_a_run_killed_at_random_places_is_the_one_that_never_was(tmp_path):
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_child.py"), str(tmp_path / "killed"), "5"],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    whole = killed_run(tmp_path / "whole")
    again = killed_run(tmp_path / "killed")  # done: it only takes up what there is
    assert again.step == 10
    assert same(again, whole)
    assert steps_without_times(tmp_path / "killed") == steps_without_times(tmp_path / "whole")


@pytest.mark.parametrize(("stop", "every"), [(1, 0), (3, 2), (3, 1)])
def test_a_run_asked_to_stop_ends_its_step_and_goes_on_from_there(stop, every, tmp_path):
    told: list[str] = []
    trainer = trainer_in(tmp_path / "part", steps=5, save_every=every)
    trainer.run.stopping = lambda: trainer.step >= stop
    with pytest.raises(Stopped, match=f"stopped after step {stop} of 5") as caught:
        sft(trainer, random_rows(9), 4)
    assert caught.value.exit_code == 130
    assert [line["step"] for line in steps_of(tmp_path / "part")] == list(range(1, stop + 1))
    part, whole = (trainer_in(tmp_path / name, steps=5, save_every=every) for name in ("part", "whole"))
    part.run.told = told.append
    for each in (part, whole):
        sft(each, random_rows(9), 4)
    assert same(part, whole)
    assert told == [f"going on after step {stop}"]
    assert steps_without_times(tmp_path / "part") == steps_without_times(tmp_path / "whole")


def test_a_stop_at_the_last_step_is_the_end(tmp_path):
    trainer = trainer_in(tmp_path, steps=2)
    trainer.run.stopping = lambda: trainer.step == 2
    sft(trainer, random_rows(3), 2)
    assert trainer.step == 2


def test_ctrl_c_within_a_step_loses_that_step_alone(tmp_path):
    rows = random_rows(6)

    def train(folder: Path, interrupt: int | None) -> Trainer:
        trainer = trainer_in(folder, steps=4)

        def loss(logprobs: Any, pack: Pack) -> tuple[Any, dict[str, Any]]:
            if trainer.step + 1 == interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            return -logprobs.sum() / 10, {}

        for _ in trainer.steps():
            trainer.update(rows, at_targets, loss)
        return trainer

    before = torch.random.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", interrupt=3)
    found, damaged = checkpoint.newest(tmp_path / "part" / "checkpoints")
    assert found is not None
    assert (found.step, damaged) == (2, [])
    assert same(train(tmp_path / "part", None), train(tmp_path / "whole", None))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path):
    first = trainer_in(tmp_path, steps=6)
    first.run.stopping = lambda: first.step >= 4
    with pytest.raises(Stopped):
        sft(first, random_rows(9), 4)
    path = tmp_path / "checkpoints" / "step-00000004" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    told: list[str] = []
    again = trainer_in(tmp_path, steps=6)
    again.run.told = told.append
    sft(again, random_rows(9), 4)
    assert [("step-00000004" in line, "an older one is taken" in line) for line in told[:1]] == [(True, True)]
    assert told[1] == "going on after step 3"
    whole = trainer_in(tmp_path / "whole", steps=6)
    sft(whole, random_rows(9), 4)
    assert same(again, whole)
    assert [line["step"] for line in steps_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_without_any_that_is_whole_it_says_so(tmp_path):
    sft(trainer_in(tmp_path, steps=1), random_rows(3), 2)
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"no checkpoint of .* is whole"):
        sft(trainer_in(tmp_path, steps=2), random_rows(3), 2)


def test_what_a_trainer_wants_kept_comes_back(tmp_path):
    for steps, expected in ((2, [1, 2]), (3, [1, 2, 3])):
        trainer = trainer_in(tmp_path, steps=steps)
        for step in trainer.steps():
            trainer.state["seen"] = [*trainer.state.get("seen", []), step]
        assert trainer.state == {"seen": expected}


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    sft(trainer_in(tmp_path, steps=1), random_rows(3), 2)
    other = trainer_in(tmp_path, small(hidden_size=16), steps=2)
    with pytest.raises(TrainingError, match="the checkpoint does not fit the model"):
        sft(other, random_rows(3), 2)


def test_a_full_disk_stops_the_run_and_keeps_what_there_is(tmp_path):
    rows = random_rows(6)
    first = trainer_in(tmp_path, steps=4)
    first.run.stopping = lambda: first.step >= 2
    with pytest.raises(Stopped):
        sft(first, rows, 2)
    with largest_file(20_000), pytest.raises(TrainingError, match="step 3 cannot be written") as caught:
        sft(trainer_in(tmp_path, steps=4), rows, 2)
    assert "step-00000002, is whole" in caught.value.mend
    again, whole = trainer_in(tmp_path, steps=4), trainer_in(tmp_path / "whole", steps=4)
    for each in (again, whole):
        sft(each, rows, 2)
    assert same(again, whole)


# ---------------------------------------------------------------- a step


def test_each_step_is_a_line_of_what_was_measured(tmp_path):
    rows = random_rows(5)
    trainer = trainer_in(tmp_path, steps=3, rate=1e-2)
    shown: list[tuple[int, int]] = []
    trainer.run.shown = lambda step, steps, values: shown.append((step, steps))

    def loss(logprobs: Any, pack: Pack) -> tuple[Any, dict[str, Any]]:
        return -logprobs.sum() / 7, {"tokens": pack.mask.sum()}

    for step in trainer.steps():
        totals = trainer.update(rows, at_targets, loss)
        trainer.log(own=step * 10.0)
        assert totals["tokens"] == sum(row.learnt for row in rows)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [(line["step"], line["own"], line["rate"]) for line in lines] == [
        (step, step * 10.0, trainer.schedule.at(step)) for step in (1, 2, 3)
    ]
    assert all(line["tokens"] == sum(len(row) for row in rows) for line in lines)
    assert all(line["learnt"] == sum(row.learnt for row in rows) for line in lines)
    assert all(line["seconds"] > 0 and line["gradient_norm"] > 0 for line in lines)
    assert lines[0]["loss"] > lines[2]["loss"]
    assert shown == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_keeps_the_step_before(bad, tmp_path):
    rows = random_rows(6)
    trainer = trainer_in(tmp_path, steps=5, save_every=0, tokens=60)
    after: dict[str, Any] = {}

    def loss(logprobs: Any, pack: Pack) -> tuple[Any, dict[str, Any]]:
        spoilt = bad if trainer.step == 2 and 0 in pack.rows else 1.0  # in one micro-batch of several
        return -logprobs.sum() * spoilt / 10, {}

    with pytest.raises(TrainingError, match="step 3: the loss is not finite") as caught:  # noqa: PT012
        for _ in trainer.steps():
            after = weights(trainer)
            trainer.update(rows, at_targets, loss)
    assert "\n" not in str(caught.value)
    assert "the weights are as before" in str(caught.value)
    assert all(torch.equal(value, after[name]) for name, value in weights(trainer).items())
    found, _ = checkpoint.newest(trainer.run.checkpoints)
    assert found is not None
    assert found.step == 2
    assert all(torch.equal(found.tensors[f"weight.{name}"], value) for name, value in after.items())
    assert [line["step"] for line in steps_of(tmp_path)] == [1, 2]


def test_a_gradient_that_is_not_finite_keeps_it_too(tmp_path):
    trainer = trainer_in(tmp_path, steps=3)

    def loss(logprobs: Any, pack: Pack) -> tuple[Any, dict[str, Any]]:
        zero = logprobs.sum() * 0
        return (torch.sqrt(zero) if trainer.step == 1 else zero), {}  # 0, with a slope that is infinite

    with pytest.raises(TrainingError, match="step 2: the gradient is not finite"):  # noqa: PT012
        for _ in trainer.steps():
            trainer.update(random_rows(3), at_targets, loss)
    found, _ = checkpoint.newest(trainer.run.checkpoints)
    assert found is not None
    assert found.step == 1


def test_a_step_that_fails_half_way_is_in_no_checkpoint(tmp_path):
    """The first of two updates has moved the weights: they are those of no whole step."""
    trainer = trainer_in(tmp_path, steps=3, save_every=1)
    updates: list[int] = []

    def loss(logprobs: Any, pack: Pack) -> tuple[Any, dict[str, Any]]:
        return -logprobs.sum() * (math.nan if len(updates) == 4 else 1.0), {}

    kept: dict[str, Any] = {}
    with pytest.raises(TrainingError, match="step 2: the loss is not finite"):  # noqa: PT012
        for _ in trainer.steps():
            kept = weights(trainer)
            for _ in range(2):
                updates.append(1)
                trainer.update(random_rows(3), at_targets, loss)
    found, _ = checkpoint.newest(trainer.run.checkpoints)
    assert found is not None
    assert found.step == 1
    assert all(torch.equal(found.tensors[f"weight.{name}"], value) for name, value in kept.items())

    early = trainer_in(tmp_path / "early", steps=3, save_every=0)
    updates.clear()
    with pytest.raises(TrainingError, match="step 2"):  # noqa: PT012
        for _ in early.steps():
            for _ in range(2):
                updates.append(1)
                early.update(random_rows(3), at_targets, loss)
    assert checkpoint.newest(early.run.checkpoints) == (None, [])  # none rather than a wrong one


def test_nothing_to_learn_from_takes_no_step(tmp_path):
    trainer = trainer_in(tmp_path, steps=1)
    for _ in trainer.steps():
        assert trainer.update([Row([3, 4], [True, False])], at_targets, lambda *_: pytest.fail("no loss")) == {}
    assert all(torch.equal(weights(trainer)[name], p) for name, p in small().named_parameters())


def test_rows_without_anything_to_learn_change_nothing(tmp_path):
    rows, found = random_rows(4), []
    idle = Row([5, 6, 7, 8], [False] * 4)
    for number, batch in enumerate((rows, [idle, *rows[:2], idle, *rows[2:]])):
        trainer = trainer_in(tmp_path / str(number), steps=1)
        for _ in trainer.steps():
            trainer.update(batch, at_targets, lambda logprobs, pack: (-logprobs.sum() / 10, {}))
        found.append(weights(trainer))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_scored_gives_each_row_its_own_in_the_order_of_the_rows(tmp_path):
    rows = [random_rows(3)[1], Row([5, 6, 7], [False] * 3), *random_rows(6, seed=2)]
    trainer = trainer_in(tmp_path, tokens=40)
    found = trainer.scored(rows, at_targets)
    assert [len(value) for value in found] == [len(row) for row in rows]
    plain = small()
    for row, value in zip(rows, found, strict=True):
        with torch.no_grad():
            logs = plain(torch.tensor([list(row.ids)])).logits[0].log_softmax(-1)
        for at in range(len(row)):
            expected = float(logs[at - 1, row.ids[at]]) if at and row.mask[at] else 0.0
            assert float(value[at]) == pytest.approx(expected, abs=2e-5)
    assert trainer.scored([], at_targets) == []
    assert not any(p.grad is not None for p in trainer.model.parameters())


# ---------------------------------------------------------------- supervised fine-tuning


def test_fine_tuning_learns_answers_with_their_end_and_not_prompts(tmp_path):
    row = Row([3, 4, 5, 6, 2], [False, False, False, True, True])
    trainer = trainer_in(tmp_path, steps=60, rate=1e-2, save_every=0)
    sft(trainer, [row], 1)
    with torch.no_grad():
        now, before = (m(torch.tensor([row.ids])).logits[0].softmax(-1) for m in (trainer.model, small()))
    assert float(now[2, 6]) > 0.99
    assert float(now[3, 2]) > 0.99
    assert float(now[0, 4]) < float(before[0, 4]) + 0.2
    assert steps_of(tmp_path)[0]["learnt"] == 2


def test_its_loss_is_the_mean_over_all_learnt_tokens_of_the_batch(tmp_path):
    rows = random_rows(6)
    trainer = trainer_in(tmp_path, steps=1, tokens=60)
    expected = -sum(float(value.double().sum()) for value in trainer.scored(rows, at_targets))
    sft(trainer, rows, 6)
    assert steps_of(tmp_path)[0]["loss"] == pytest.approx(expected / sum(row.learnt for row in rows), rel=1e-6)


def test_of_nothing_it_says_so(tmp_path):
    with pytest.raises(InputError, match="no example has anything to learn from"):
        sft(trainer_in(tmp_path), [replace(row, mask=[False] * len(row)) for row in random_rows(2)], 2)
