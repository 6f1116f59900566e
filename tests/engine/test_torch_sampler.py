"""The bulk sampler: the right tokens, with the log-probabilities that the model itself gives them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import tiny_lora, tiny_model

from ponder.engine.torch_decoder import ROUND
from ponder.engine.torch_graphs import reach_bucket, rows_bucket
from ponder.engine.torch_lanes import STOP
from ponder.engine.torch_sampler import Drawn, Job, Sampler, Thinking
from ponder.errors import BudgetTooSmall, ContextOverflow, EngineError, InputError

VOCABULARY = 272
END = 2
PIECES = [b"", b"", b"", b"<think>", b"</think>", *(bytes([i]) for i in range(256)), *([b"ab"] * 11)]
PROMPTS = [(5, 80, 90), (7,), tuple(range(20, 60)), tuple(range(100, 100 + ROUND + 5)), (9, 9, 9, 9)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make these tiny products a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sampler(model: Any, **settings: Any) -> Sampler:
    return Sampler(model, **{"end_ids": (END,), "pieces": PIECES, "slots": 6, "context": 256, **settings})


def jobs(n: int = 3, max_tokens: int = 24) -> list[Job]:
    return [Job(prompt, n, max_tokens, seed=number) for number, prompt in enumerate(PROMPTS)]


def forward(model: Any, prompt: tuple[int, ...], drawn: Drawn, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of what was drawn, by transformers' own forward pass."""
    ids = torch.tensor([[*prompt, *drawn.ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(drawn.ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_logprobs_are_those_of_a_forward_pass(kind: str) -> None:
    model = tiny_model(kind)
    drawn = sampler(model, temperature=0.7).sample(jobs())
    for prompt, samples in zip(PROMPTS, drawn, strict=True):
        assert len(samples) == 3
        for one in samples:
            assert torch.tensor(one.logprobs) == pytest.approx(forward(model, prompt, one), abs=1e-5)
            assert torch.tensor(one.tempered) == pytest.approx(forward(model, prompt, one, 0.7), abs=2e-5)
            assert all(one.mask)
            assert one.finish == ("stop" if one.ids[-1] == END else "length")
            assert len(one.ids) == 24 or one.ids[-1] == END


def test_a_sample_depends_on_nothing_that_runs_beside_it() -> None:
    model = tiny_model()
    want = sampler(model, slots=6).sample(jobs())
    for slots in (1, 4, 15):
        assert [[d.ids for d in s] for s in sampler(model, slots=slots).sample(jobs())] == [
            [d.ids for d in s] for s in want
        ]
    alone = sampler(model).sample([jobs()[2]])
    assert [d.ids for d in alone[0]] == [d.ids for d in want[2]]
    turned = sampler(model, look=5).sample(jobs()[::-1])[::-1]
    assert [[d.ids for d in s] for s in turned] == [[d.ids for d in s] for s in want]
    fewer = sampler(model).sample([Job(j.prompt, 2, j.max_tokens, seed=j.seed) for j in jobs()])
    assert [[d.ids for d in s] for s in fewer] == [[d.ids for d in s[:2]] for s in want]


def test_seeds_reach_the_sampler() -> None:
    model = tiny_model()
    job = Job(PROMPTS[0], 4, 16)
    bulk = sampler(model)
    one, again = bulk.sample([job])[0], bulk.sample([job])[0]
    other = bulk.sample([Job(job.prompt, 4, 16, seed=1)])[0]
    assert [d.ids for d in one] == [d.ids for d in again]
    assert len({d.ids for d in (*one, *other)}) == 8


def test_temperature_zero_takes_the_likeliest() -> None:
    model = tiny_model()
    (one, two) = sampler(model, temperature=0).sample([Job(PROMPTS[2], 2, 12)])[0]
    assert one == two
    ids = torch.tensor([[*PROMPTS[2], *one.ids]])
    with torch.no_grad():
        assert one.ids == tuple(model(ids).logits[0, len(PROMPTS[2]) - 1 : -1].argmax(-1).tolist())
    assert one.tempered == one.logprobs


def test_filters_leave_the_likeliest_alone() -> None:
    model = tiny_model()
    greedy = sampler(model, temperature=0).sample(jobs())
    for filters in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert [[d.ids for d in s] for s in sampler(model, **filters).sample(jobs())] == [
            [d.ids for d in s] for s in greedy
        ]


def test_thinking_is_closed_when_its_tokens_are_spent() -> None:
    model = tiny_model(dtype=torch.float64)  # after ids that it finds unlikely, float32 itself is off by 2e-5
    closing = (10, 11, 12)
    bulk = sampler(model, end_ids=(), thinking=Thinking(closing_ids=closing, answer=4))
    asked = [Job(PROMPTS[0], 3, 20, thinking=5), Job(PROMPTS[0], 3, 20), Job(PROMPTS[0], 3, 20, thinking=0)]
    drawn = bulk.sample(asked)
    for samples, cap in zip(drawn, (5, 20 - 3 - 4, 0), strict=True):
        for one in samples:
            assert len(one.ids) == 20
            if 4 in one.ids[:cap]:  # the model closed it by itself
                assert all(one.mask)
                assert one.thought == one.ids.index(4) + 1
                continue
            assert one.thought == cap
            assert one.ids[cap : cap + 3] == closing
            assert [place for place, own in enumerate(one.mask) if not own] == [cap, cap + 1, cap + 2]
            assert torch.tensor(one.logprobs) == pytest.approx(forward(model, PROMPTS[0], one), abs=1e-5)
    # Up to the cap the same numbers draw the same tokens.
    for short, long in zip(drawn[0], drawn[1], strict=True):
        assert short.ids[:5] == long.ids[:5]


def test_a_marker_in_pieces_ends_thinking_too() -> None:
    model = tiny_model()
    free = sampler(model, end_ids=()).sample([Job(PROMPTS[0], 8, 20)])[0]
    said = free[3]
    # The marker begins in the middle of the fourth token, and is complete with the sixth.
    spelled = {said.ids[3]: b"x<", said.ids[4]: b"/thi", said.ids[5]: b"nk> y"}
    assert len(spelled) == 3
    pieces = [spelled.get(token, b"." if piece == b"</think>" else piece) for token, piece in enumerate(PIECES)]
    bulk = sampler(model, end_ids=(), pieces=pieces, thinking=Thinking(closing_ids=(10,), answer=1))
    again = bulk.sample([Job(PROMPTS[0], 8, 20)])[0]
    assert again[3].ids == said.ids
    assert again[3].thought == 6
    assert all(again[3].mask)
    cut = bulk.sample([Job(PROMPTS[0], 8, 20, thinking=5)])[0][3]
    assert (cut.thought, cut.ids[:6]) == (5, (*said.ids[:5], 10))


def test_stop_strings_end_a_sample_with_the_token_that_completes_them() -> None:
    model = tiny_model()
    free = sampler(model, end_ids=()).sample([Job(PROMPTS[0], 6, 30)])[0]
    text = {one: b"".join(PIECES[token] for token in one.ids) for one in free}
    stop = next(
        text[one][at : at + 2].decode("ascii")
        for one in free
        for at in range(8, 25)
        if text[one][at : at + 2].isascii() and len(text[one]) > 27
    )
    for one, cut in zip(
        free, sampler(model, end_ids=(), stop=("never said", stop)).sample([Job(PROMPTS[0], 6, 30)])[0], strict=True
    ):
        lengths = [n for n in range(1, 31) if stop.encode() in b"".join(PIECES[token] for token in one.ids[:n])]
        assert cut.ids == (one.ids[: lengths[0]] if lengths else one.ids)
        assert cut.finish == ("stop" if lengths else "length")
    assert any(stop.encode() in whole for whole in text.values())


def test_a_step_of_an_optimiser_shows_at_once() -> None:
    model = tiny_model()
    bulk = sampler(model)
    before = bulk.sample(jobs())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.arange(10, 40)[None]).logits.square().mean().backward()
    optimiser.step()
    after = bulk.sample(jobs())
    assert before != after
    for prompt, samples in zip(PROMPTS, after, strict=True):
        for one in samples:
            assert torch.tensor(one.logprobs) == pytest.approx(forward(model, prompt, one), abs=1e-5)


def test_a_change_in_the_middle_of_a_run_shows_where_no_copies_are_kept() -> None:
    model = tiny_model()
    bulk = sampler(model, end_ids=(), slots=1)
    run = bulk.run([Job(PROMPTS[0], 2, 4)])
    next(run)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.zero_()
        model.lm_head.weight.mul_(0.5)
    _, _, second = next(run)
    tail = forward(model, PROMPTS[0], second)
    assert second.logprobs[0] != pytest.approx(float(tail[0]), abs=1e-6)  # its prompt is remembered from before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_copies_follow_after_a_step_and_after_refresh(dtype: torch.dtype) -> None:
    model = tiny_model()
    bulk = sampler(model, dtype=dtype)
    before = bulk.sample(jobs())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = bulk.sample(jobs())
    assert after == sampler(model, dtype=dtype).sample(jobs())
    assert after != before
    model.model.layers[0].mlp.down_proj.weight.data.mul_(3)  # behind torch's back
    bulk.refresh()
    assert bulk.sample(jobs()) == sampler(model, dtype=dtype).sample(jobs()) != after


def test_bfloat16_is_as_close_as_transformers_own() -> None:
    """Against float32, ours may be off little more than transformers' bfloat16 is: both about 0.03 on average here,
    and 0.3 to 0.4 at worst, on weights whose logits are far larger than a trained model's."""
    model = tiny_model()
    narrow = tiny_model(dtype=torch.bfloat16)
    with torch.no_grad():
        for wide, thin in zip(model.parameters(), narrow.parameters(), strict=True):
            wide.copy_(thin)  # the same weights: what is compared is the arithmetic
    ours, theirs = [], []
    for prompt, samples in zip(PROMPTS, sampler(narrow).sample(jobs()), strict=True):
        for one in samples:
            exact = forward(model, prompt, one)
            ours.append((torch.tensor(one.logprobs) - exact).abs())
            theirs.append((forward(narrow, prompt, one) - exact).abs())
    assert torch.cat(ours).mean() < 1.5 * torch.cat(theirs).mean()
    assert torch.cat(ours).max() < 1.5 * torch.cat(theirs).max()


@pytest.mark.parametrize("fold", [False, True])
def test_adapters_unmerged_and_folded(fold: bool) -> None:
    model = tiny_lora(
        tiny_model(dtype=torch.float64), "one", "two"
    ).double()  # such large weights lose digits in float32
    bulk = sampler(model, fold=fold)
    for turn in range(2):
        drawn = bulk.sample(jobs())
        for prompt, samples in zip(PROMPTS, drawn, strict=True):
            for one in samples:
                assert torch.tensor(one.logprobs) == pytest.approx(forward(model, prompt, one), abs=1e-5)
        with model.disable_adapter(), torch.no_grad():
            bare = model(torch.tensor([PROMPTS[2]])).logits
        with torch.no_grad():
            assert not torch.allclose(bare, model(torch.tensor([PROMPTS[2]])).logits, atol=1e-2), turn
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.mul_(0.7)


def test_a_model_whose_weights_were_joined_can_be_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny_model()
    bulk = sampler(model)
    want = bulk.sample(jobs())
    model.save_pretrained(tmp_path)
    assert sampler(type(model).from_pretrained(tmp_path)).sample(jobs()) == want
    model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()})
    assert bulk.sample(jobs()) == sampler(model).sample(jobs()) != want


def test_what_cannot_be_done_is_said_before_anything_runs() -> None:
    bulk = sampler(tiny_model(), thinking=Thinking(closing_ids=(10, 11), answer=8))
    for job, error in (
        (Job((5,), 1, 256), ContextOverflow),
        (Job((), 1, 8), InputError),
        (Job((5,), 0, 8), InputError),
        (Job((5,), 1, 9), BudgetTooSmall),
    ):
        with pytest.raises(error):
            bulk.run([Job((5,), 1, 20), job])
    with pytest.raises(InputError, match="thinking"):
        sampler(tiny_model()).run([Job((5,), 1, 8, thinking=4)])
    assert bulk.steps == 0
    with pytest.raises(ValueError, match="closing"):
        Thinking(closing_ids=())


def test_a_model_that_computes_no_numbers_is_an_error_and_leaves_nothing_behind() -> None:
    model = tiny_model()
    bulk = sampler(model)
    want = bulk.sample(jobs())
    kept = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(EngineError, match="no numbers"):
        bulk.sample(jobs())
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.copy_(kept)
    assert bulk.sample(jobs()) == want


def test_rows_are_used_well() -> None:
    """Steps at the tail compute only what lives, and no prompt is computed twice."""
    model = tiny_model()
    bulk = sampler(model, end_ids=(), slots=4)
    sizes, prefilled = [], []
    step, prefill = bulk._lanes.step, bulk._decoder.prefill
    bulk._steps = lambda rows, reach: (sizes.append(rows), step(rows, reach))[1]  # type: ignore[assignment]
    bulk._decoder.prefill = lambda ids, rows, **where: (
        prefilled.append(tuple(ids.shape)),
        prefill(ids, rows, **where),
    )[1]  # type: ignore[method-assign]
    asked = [Job(PROMPTS[0], 5, 4), Job(PROMPTS[4], 2, 7), Job(PROMPTS[2], 1, 3)]
    drawn = bulk.sample(asked)
    assert [[len(one.ids) for one in samples] for samples in drawn] == [[4] * 5, [7] * 2, [3]]
    assert sum(sizes) == bulk.tokens == 5 * 4 + 2 * 7 + 3
    assert all(later <= earlier for earlier, later in pairwise(sizes))
    assert sum(rows for rows, _ in prefilled) == 3
    assert bulk.steps == len(sizes)
    assert bulk.seconds > 0


def test_prompts_of_similar_length_are_computed_together() -> None:
    bulk = sampler(tiny_model(), slots=8)
    prefilled = []
    prefill = bulk._decoder.prefill
    bulk._decoder.prefill = lambda ids, rows, **where: (
        prefilled.append(tuple(ids.shape)),
        prefill(ids, rows, **where),
    )[1]  # type: ignore[method-assign]
    bulk.sample([Job(tuple(range(10, 10 + length)), 1, 2) for length in (30, 32, 31, 100, 101)])
    assert sorted(prefilled) == [(2, 100), (3, 31)]


def test_steps_in_buckets_as_captured_ones_are() -> None:
    """Lanes beyond the living compute along, and change nothing; neither does a step while all count as ended."""
    model = tiny_model()
    want = sampler(model, slots=7, share=False).sample(jobs())
    bulk = sampler(model, slots=7, look=3, share=False)
    lanes = bulk._lanes

    def bucketed(rows: int, reach: int) -> None:
        size = rows_bucket(rows, 7), reach_bucket(reach, 256)
        finish = lanes.finish.clone()
        lanes.finish.fill_(STOP)
        lanes.step(*size)  # as a graph is warmed up
        lanes.finish.copy_(finish)
        lanes.step(*size)

    bulk._steps = bucketed
    assert bulk.sample(jobs()) == want


def test_buckets_hold_what_they_should_with_little_to_spare() -> None:
    sizes = {rows_bucket(rows, 2000) for rows in range(1, 2001)}
    assert sorted(sizes)[:9] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert len(sizes) < 24
    for rows in range(1, 2001):
        assert rows <= rows_bucket(rows, 2000) <= max(2, rows * 1.5)
    assert reach_bucket(1, 1000) == ROUND
    assert reach_bucket(4 * ROUND + 1, 1000) == 6 * ROUND
    assert reach_bucket(999, 1000) == 8 * ROUND
